"""A folder of images and their labels that survives crashes and other processes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel

from breast_ultrasound.files import write_json, write_whole
from breast_ultrasound.images import EXTENSIONS, is_image_name, masks_among

from .errors import RequestError
from .images import image_problem, image_size, read_grey
from .labels import check_class, read_info, read_kept, read_mask, warnings, write_label
from .names import SUGGESTIONS, check_image_id, check_suggestion_tag, check_tag, image_names, name_problem

ONE_AT_A_TIME = threading.RLock()  # held by every call that uses a datastore; MONAI Label counts on it
VERSIONS = "versions"  # folder of the labels that were replaced or removed, beside that of the labels


def grey_of(path: str) -> np.ndarray:
    """An image's file as the model sees it: uint8 (height, width).

    Raises:
        RequestError: it cannot be read.
    """
    check_readable(path)
    return read_grey(path)


def check_readable(path: str) -> None:
    """Refuse an image that cannot be decoded; each is tried once, until its file changes.

    Raises:
        RequestError: saying why.
    """
    if problem := image_problem(path):
        raise RequestError(422, f"{Path(path).name}: not a readable image ({problem}); replace the file")


class Kept(NamedTuple):
    """A label as it was when the datastore was asked. Files are replaced whole: it can be read at any later time."""

    info: dict
    file: str
    image: str

    def mask(self) -> np.ndarray:
        """Its mask (height, width), bool.

        Raises:
            RequestError: the file, which may have been put there by hand, is no mask of the image's size.
        """
        return read_kept(self.file, lambda: image_size(self.image))


class ImageDatastore(LocalDatastore):
    """``LocalDatastore`` of images that lie directly in a folder; labels are PNG masks in ``labels/<tag>``.

    Server, training and batch inference are processes of their own that write the same ``datastore_v2.json``; the
    original overwrites what another process wrote since, and files in place. Here each change reads first, under a
    lock, and replaces the file whole. A label's PNG carries its class; where the two disagree after a crash, the PNG,
    which is written first, is right.

    Args:
        folder: the images.
        class_names: valid classes of a label.
    """

    def __init__(self, folder: str, class_names: list[str]) -> None:
        self.class_names = class_names
        self.latest: dict = {}  # class and warnings of the label saved last
        self._state_read: tuple = ()
        os.makedirs(folder, exist_ok=True)
        self._lock = FileLock(os.path.join(folder, ".lock"))
        super().__init__(folder, extensions=[f"*{extension}" for extension in EXTENSIONS])

    # -- what LocalDatastore does with files

    def _to_id(self, file: str) -> tuple[str, str]:
        return os.path.splitext(file)

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        # A name with a dot in front is a file that another process is still writing. Extensions count in any case.
        return {name: name for name in image_names(path)[0] if not name_problem(name)}

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        path = Path(self._datastore_config_path)
        with self._lock:
            if not path.is_file() or path.stat().st_mtime_ns == self._config_ts:
                return
            try:
                self._datastore = LocalDatastoreModel.model_validate_json(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: not readable; move it away, the labels' files bring it back") from error
            self._datastore.base_path = self._datastore_path
            self._config_ts = path.stat().st_mtime_ns

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._lock:
            path = Path(self._datastore_config_path)
            write_json(path, json.loads(self._datastore.model_dump_json(exclude={"base_path"})))
            self._config_ts = path.stat().st_mtime_ns

    def _reconcile_datastore(self) -> None:
        with self._lock:
            super()._reconcile_datastore()
            changed = False
            for name, entry in self._datastore.objects.items():
                for tag, label in entry.labels.items():
                    info = read_info(self._label_file(name, tag, label.ext))
                    if info and info != label.info:
                        label.info, changed = info, True
            if changed:
                self._update_datastore_file()
            self._state_read = self._state()

    def _state(self) -> tuple:
        folders = [self._datastore_path, self._datastore.label_path(None)]
        try:
            folders += [entry.path for entry in os.scandir(folders[1]) if entry.is_dir()]
            times = [os.stat(folder).st_mtime_ns for folder in folders]
        except FileNotFoundError as error:
            gone = os.path.relpath(error.filename, os.path.dirname(self._datastore_path))
            raise RequestError(503, f"the folder {gone} is gone; put it back, or make an empty one") from error
        return self._config_ts, *times

    def _refresh(self) -> None:
        """Take in what another process or person has put into the folder or taken away."""
        if self._state() != self._state_read:
            self._reconcile_datastore()

    @contextmanager
    def _change(self) -> Iterator[dict[str, ImageLabelModel]]:
        """The entries of the images, to change: read anew before, written afterwards, for one process at a time."""
        with self._lock:
            self._refresh()
            yield self._datastore.objects
            self._update_datastore_file()
            self._state_read = self._state()

    def _label_file(self, name: str, tag: str, extension: str = ".png") -> Path:
        return Path(self._datastore.label_path(tag)) / f"{name}{extension}"

    # -- what is read

    def list_images(self) -> list[str]:
        """Ids (file names without extension) of all images, sorted."""
        self._refresh()
        return sorted(super().list_images())

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image as it lies in the folder, where a link has its own name; empty where there is none."""
        entry = self._datastore.objects.get(image_id)
        return os.path.join(self._datastore_path, f"{image_id}{entry.image.ext}") if entry else ""

    def get_labeled_images(self, label_tag=None, labels=None) -> list[str]:
        """Ids of images with a label that trains, sorted."""
        return sorted(name for name, kept in self.labels("final").items() if not kept.info.get("not_readable"))

    def get_unlabeled_images(self, label_tag=None, labels=None) -> list[str]:
        """Ids of the other images, sorted."""
        self._refresh()
        return sorted(super().get_unlabeled_images())

    def status(self) -> dict:
        """Counts of images and labels."""
        self._refresh()
        return super().status()

    def json(self) -> dict:
        """The whole datastore."""
        self._refresh()
        return super().json()

    def path(self, image_id: str) -> str:
        """Path of an image.

        Raises:
            RequestError: 404 where the folder has no such image.
        """
        self._refresh()
        path = self.get_image_uri(image_id)
        if not path:
            raise RequestError(404, f"image {image_id!r} is unknown; ids are file names without extension")
        return path

    def grey(self, image_id: str) -> np.ndarray:
        """An image as the model sees it: uint8 (height, width).

        Raises:
            RequestError: 404 where the folder has no such image, 422 where it cannot be read.
        """
        return grey_of(self.path(image_id))

    def read_label(self, image_id: str, file: str | Path) -> np.ndarray:
        """A label's file, which may lie anywhere, as mask (height, width), bool.

        Raises:
            RequestError: as ``grey``, or the file is no mask of the image's size.
        """
        return read_mask(file, image_size(self._readable(image_id)))

    def tags(self) -> list[str]:
        """Tags of all labels, sorted."""
        self._refresh()
        return sorted({tag for entry in self._datastore.objects.values() for tag in entry.labels})

    def labels(self, label_tag: str) -> dict[str, Kept]:
        """All labels with a tag, by image, sorted."""
        self._refresh()
        return {
            name: self._kept(name, label_tag)
            for name, entry in sorted(self._datastore.objects.items())
            if label_tag in entry.labels
        }

    def label(self, image_id: str, label_tag: str) -> Kept | None:
        """A label, if there is one."""
        self._refresh()
        found = self._datastore.label(image_id, label_tag)
        return self._kept(image_id, label_tag) if found else None

    def _kept(self, image_id: str, label_tag: str) -> Kept:
        entry = self._datastore.objects[image_id]
        label = entry.labels[label_tag]
        image = os.path.join(self._datastore.image_path(), f"{image_id}{entry.image.ext}")
        return Kept(label.info, str(self._label_file(image_id, label_tag, label.ext)), image)

    def versions(self, image_id: str, label_tag: str) -> dict[str, Kept]:
        """Labels of an image that were replaced or removed, by the time when that happened, oldest first."""
        image = self.path(image_id)
        folder = self._version_folder(image_id, label_tag)
        return {file.stem: Kept(read_info(file), str(file), image) for file in sorted(folder.glob("*.png"))}

    def _version_folder(self, image_id: str, label_tag: str) -> Path:
        check_tag(label_tag)
        return Path(self._datastore_path) / VERSIONS / label_tag / image_id

    def _keep_version(self, image_id: str, label_tag: str) -> None:
        """Copy the label that is about to go to those of earlier times, where a person gave it."""
        file = self._label_file(image_id, label_tag)
        if label_tag == SUGGESTIONS or not file.is_file():
            return
        folder = self._version_folder(image_id, label_tag)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.strftime('%Y-%m-%d %H.%M.%S')}.{time.time_ns() // 1000 % 10**6:06}.png"
        write_whole(folder / name, lambda path: shutil.copy(file, path))

    def _readable(self, image_id: str) -> str:
        """Path of an image that was decoded since it changed last."""
        path = self.path(image_id)
        check_readable(path)
        return path

    # -- what is written

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        """``keep_label`` for a file.

        Raises:
            RequestError: as ``read_label`` and ``keep_label``; nothing has been written.
        """
        check_tag(label_tag)
        return self.keep_label(image_id, self.read_label(image_id, label_filename), label_tag, label_info)

    def keep_label(self, image_id: str, mask: np.ndarray, label_tag: str, label_info: dict, anew: bool = False) -> str:
        """Keep a person's label as PNG mask of the image's size, with its class or the one it had, in place of an
        earlier one, which stays until this one is safe.

        Args:
            image_id: of an image of the folder.
            mask: (height, width), bool, of the image's size.
            label_tag: ``final``, or that of a reader.
            label_info: ``class`` and whatever else is to be kept with it.
            anew: whether a class that it had goes, where none is given.

        Raises:
            RequestError: tag or class are not valid; nothing has been written.
        """
        check_tag(label_tag)
        with self._lock:
            self._refresh()
            earlier = None if anew else self.get_label_info(image_id, label_tag).get("class")
            info = check_class(label_info or {}, mask, self.class_names, earlier)
            return self._write(image_id, mask, label_tag, info)

    def save_suggestion(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        """Keep a model's answer, whose class may contradict its mask.

        Raises:
            RequestError: the tag is not one for suggestions.
        """
        check_suggestion_tag(label_tag)
        return self._write(image_id, self.read_label(image_id, label_filename), label_tag, dict(label_info))

    def _write(self, image_id: str, mask: np.ndarray, label_tag: str, info: dict) -> str:
        tag = getattr(label_tag, "value", label_tag)
        info |= {"ts": int(time.time()), "name": f"{image_id}.png"}
        with self._change() as entries:
            file = self._label_file(image_id, tag)
            self._keep_version(image_id, tag)
            write_label(file, mask, info)
            for other in file.parent.iterdir():  # put there by hand; only the PNG carries a class
                if other.stem == image_id and is_image_name(other) and not other.samefile(file):
                    other.unlink()
            entries[image_id].labels[tag] = DataModel(info=info, ext=".png")
        self.latest = {"class": info.get("class"), "warnings": warnings(info, mask, self.class_names)}
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label, which stays among the versions.

        Raises:
            RequestError: there is no such label.
        """
        with self._change() as entries:
            label = self._datastore.label(label_id, label_tag)
            if label is None:
                raise RequestError(404, f"image {label_id!r} has no label with the tag {label_tag!r}")
            self._keep_version(label_id, label_tag)
            self._label_file(label_id, label_tag, label.ext).unlink(missing_ok=True)
            del entries[label_id].labels[label_tag]

    def update_label_info(self, label_id: str, label_tag: str, info: dict) -> None:
        """Change the info of a label, such as a class given later.

        Raises:
            RequestError: there is no such label, or the class is not valid for its mask.
        """
        with self._lock:
            self._refresh()
            label = self._datastore.label(label_id, label_tag)
            if label is None:
                raise RequestError(404, f"image {label_id!r} has no label with the tag {label_tag!r}")
            mask = self.read_label(label_id, self._label_file(label_id, label_tag, label.ext))
            merged = {**label.info, **info}
            self._write(label_id, mask, label_tag, check_class(merged, mask, self.class_names))

    def update_image_info(self, image_id: str, info: dict) -> None:
        """Change the info of an image.

        Raises:
            RequestError: there is no such image.
        """
        with self._change() as entries:
            if image_id not in entries:
                raise RequestError(404, f"image {image_id!r} is unknown")
            entries[image_id].image.info.update(info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict) -> str:
        """Take a new image into the folder.

        Raises:
            RequestError: the name leads out of the folder or is taken, or the file is not a readable image.
        """
        extension = os.path.splitext(image_filename)[1]
        problem = image_problem(image_filename)
        if problem or not is_image_name(image_filename):
            raise RequestError(422, f"not a readable image ({problem or extension}); send {', '.join(EXTENSIONS)}")
        check_image_id(image_id, extension)
        with self._change() as entries:
            if image_id in entries:
                raise RequestError(409, f"image {image_id!r} exists; remove it first, or choose another name")
            name = f"{image_id}{extension}"
            masks = masks_among([Path(name), *(Path(f"{other}.png") for other in entries)])
            if masks:
                raise RequestError(422, f"{name}: {min(masks)} is a mask of another image by its name; rename the file")
            write_whole(Path(self._datastore_path) / name, lambda path: shutil.copy(image_filename, path))
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            entries[image_id] = ImageLabelModel(image=DataModel(info=info, ext=extension))
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image that nobody has labelled, and suggestions with it; of a link, the link alone.

        Raises:
            RequestError: there is no such image, or a person's label of it would be lost.
        """
        with self._change() as entries:
            if image_id not in entries:
                raise RequestError(404, f"image {image_id!r} is unknown")
            labels = entries[image_id].labels
            kept = [tag for tag, label in labels.items() if tag != SUGGESTIONS and "model" not in label.info]
            if kept:
                raise RequestError(409, f"image {image_id!r} has labels ({', '.join(kept)}); remove them first")
            for tag, label in labels.items():
                self._label_file(image_id, tag, label.ext).unlink(missing_ok=True)
            os.unlink(self.get_image_uri(image_id))
            del entries[image_id]


class Unlabelled:
    """A datastore as a strategy sees it, whose images without label are those that it may choose from.

    Args:
        datastore: answers everything else.
        names: ids of those images.
    """

    def __init__(self, datastore: ImageDatastore, names: list[str]) -> None:
        self._datastore = datastore
        self._names = names

    def __getattr__(self, name: str):
        return getattr(self._datastore, name)

    def get_unlabeled_images(self, label_tag=None, labels=None) -> list[str]:
        """The ids given."""
        return self._names
