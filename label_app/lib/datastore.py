"""A folder of images and their labels that survives crashes and other processes."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel

from scripts.data import EXTENSIONS, names_a_picture, picture_problem
from scripts.files import write_json, write_whole
from scripts.transforms import open_image

from .errors import RequestError
from .labels import check_class, read_info, read_mask, warnings, write_label

logger = logging.getLogger(__name__)
TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
LONGEST_NAME = 220  # bytes; a file system takes 255, and a file's name is longer while it is written


def check_tag(tag: object) -> None:
    """Refuse a label's tag that could lead out of its folder.

    Raises:
        RequestError: it has other signs than letters, digits, - and _.
    """
    if not isinstance(tag, str) or not TAG.fullmatch(tag):
        raise RequestError(400, f"tag {tag!r} is not valid; use letters, digits, - and _")


def check_suggestion_tag(tag: object) -> None:
    """``check_tag`` for the answers of a model.

    Raises:
        RequestError: the tag is not valid, or that of a person's labels, whose place the answers would take.
    """
    check_tag(tag)
    if tag == "final":
        raise RequestError(400, "label_tag final is for labels of a person; use original or another name")


def picture_names(folder: str) -> list[str]:
    """Names of a folder's files that end like images; hidden ones are still being written, or of another system."""
    return [name for name in os.listdir(folder) if names_a_picture(name) and not name.startswith(".")]


def name_problem(name: str) -> str:
    """Why a file's name cannot be used; empty where it can."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    return f"the name has {size} bytes, more than {LONGEST_NAME}" if size > LONGEST_NAME else ""


class PictureDatastore(LocalDatastore):
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
        self._seen: tuple = ()
        os.makedirs(folder, exist_ok=True)
        self._lock = FileLock(os.path.join(folder, ".lock"))
        super().__init__(folder, extensions=[f"*{extension}" for extension in EXTENSIONS])

    # -- what LocalDatastore does with files

    def _to_id(self, file: str) -> tuple[str, str]:
        return os.path.splitext(file)

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        # A name with a dot in front is a file that another process is still writing. Extensions count in any case.
        return {name: name for name in picture_names(path) if not name_problem(name)}

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
            self._seen = self._state()

    def _state(self) -> tuple:
        folders = [self._datastore_path, self._datastore.label_path(None)]
        folders += [entry.path for entry in os.scandir(folders[1]) if entry.is_dir()]
        times = [os.stat(folder).st_mtime_ns for folder in folders]
        return self._config_ts, *times

    def _look(self) -> None:
        """Take in what another process or person has put into the folder or taken away."""
        if self._state() != self._seen:
            self._reconcile_datastore()

    def _label_file(self, name: str, tag: str, extension: str = ".png") -> Path:
        return Path(self._datastore.label_path(tag)) / f"{name}{extension}"

    # -- what is read

    def list_images(self) -> list[str]:
        """Ids (file names without extension) of all images, sorted."""
        self._look()
        return sorted(super().list_images())

    def get_labeled_images(self, label_tag=None, labels=None) -> list[str]:
        """Ids of images with a submitted label, sorted."""
        self._look()
        return sorted(super().get_labeled_images())

    def get_unlabeled_images(self, label_tag=None, labels=None) -> list[str]:
        """Ids of the other images, sorted."""
        self._look()
        return sorted(super().get_unlabeled_images())

    def status(self) -> dict:
        """Counts of images and labels."""
        self._look()
        return super().status()

    def json(self) -> dict:
        """The whole datastore."""
        self._look()
        return super().json()

    def picture(self, image_id: str) -> str:
        """Path of a readable image.

        Raises:
            RequestError: 404 where the folder has no such image, 422 where it cannot be read.
        """
        self._look()
        path = self.get_image_uri(image_id)
        if not path:
            raise RequestError(404, f"image {image_id!r} is unknown; ids are file names without extension")
        problem = picture_problem(path)
        if problem:
            raise RequestError(422, f"{Path(path).name}: not a readable image ({problem}); replace the file")
        return path

    def archive(self, limit_cases: int | None) -> BinaryIO:
        """ZIP of images and submitted labels, open at its start, in a file that goes when it is closed.

        Args:
            limit_cases: how many images at most; all where it is None or 0.

        Raises:
            RequestError: there is no label.
        """
        names = self.get_labeled_images()
        if not names:
            raise RequestError(404, "no label yet, so there is nothing to download")
        file = tempfile.TemporaryFile()
        with zipfile.ZipFile(file, "w") as archive:
            for name in names[: limit_cases or None]:
                for kind, path in (("image", self.get_image_uri(name)), ("label", self.get_label_uri(name, "final"))):
                    archive.write(path, f"{kind}/{os.path.basename(path)}")
            archive.writestr("metadata.json", self._datastore.model_dump_json(exclude={"base_path"}))
        file.seek(0)
        return file

    def problems(self) -> list[str]:
        """A line for each file that cannot be used: unreadable, of the same id as another, or no label of an image."""
        found = sorted(picture_names(self._datastore_path))
        lines = [f"{f}: {problem}; rename the file" for f in found if (problem := name_problem(f))]
        files = [f for f in found if not name_problem(f)]
        unreadable = [(f, picture_problem(os.path.join(self._datastore_path, f))) for f in files]
        lines += [f"{file}: not a readable image ({problem})" for file, problem in unreadable if problem]
        counts = Counter(os.path.splitext(f)[0] for f in files)
        used = {name: os.path.basename(self.get_image_uri(name)) for name, count in counts.items() if count > 1}
        lines += [f"{name}: several files of this name, only {file} is used" for name, file in used.items()]
        files = sorted(Path(self._datastore.label_path(None)).glob("[!.]*/[!.]*"))
        labels = [(file.relative_to(self._datastore_path), self.label_problem(file)) for file in files]
        lines += [f"{file}: {problem}" for file, problem in labels if problem]
        return [line.encode("utf-8", "backslashreplace").decode("utf-8") for line in lines]

    def label_problem(self, file: str | Path) -> str:
        """Why a label's file, which a person may have put there by hand, cannot be used; empty where it can."""
        name, extension = os.path.splitext(os.path.basename(file))
        if not names_a_picture(file):
            return f"not an image ({extension}); send it with PUT /datastore/label, which makes a PNG of it"
        try:
            self._mask(name, file)
        except Exception as error:  # whatever it is, the other labels go on
            return str(error) or type(error).__name__
        return ""

    # -- what is written

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        """Keep a person's label as PNG mask of the image's size, with its class or the one it had.

        Raises:
            RequestError: tag, image, file, size or class are not valid; nothing has been written.
        """
        check_tag(label_tag)
        mask = self._mask(image_id, label_filename)
        with self._lock:
            self._look()
            earlier = self.get_label_info(image_id, label_tag).get("class")
            return self._write(
                image_id, mask, label_tag, check_class(label_info or {}, mask, self.class_names, earlier)
            )

    def save_suggestion(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        """Keep a model's answer, whose class may contradict its mask.

        Raises:
            RequestError: the tag is not one for suggestions.
        """
        check_suggestion_tag(label_tag)
        return self._write(image_id, self._mask(image_id, label_filename), label_tag, dict(label_info))

    def mask(self, image_id: str, label_tag: str) -> np.ndarray:
        """A label's mask (height, width), bool.

        Raises:
            RequestError: there is no such label, or its file cannot be used.
        """
        return self._mask(image_id, self.get_label_uri(image_id, label_tag))

    def _mask(self, image_id: str, file: str | Path) -> np.ndarray:
        return read_mask(file, open_image(self.picture(image_id)).size)

    def _write(self, image_id: str, mask: np.ndarray, label_tag: str, info: dict) -> str:
        tag = getattr(label_tag, "value", label_tag)
        info |= {"ts": int(time.time()), "name": f"{image_id}.png"}
        with self._lock:
            self._look()
            file = self._label_file(image_id, tag)
            write_label(file, mask, info)
            for other in file.parent.iterdir():  # put there by hand; only the PNG carries a class
                if other.stem == image_id and names_a_picture(other) and not other.samefile(file):
                    other.unlink()
            self._datastore.objects[image_id].labels[tag] = DataModel(info=info, ext=".png")
            self._update_datastore_file()
            self._seen = self._state()
        self.latest = {"class": info.get("class"), "warnings": warnings(info, mask, self.class_names)}
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label.

        Raises:
            RequestError: there is no such label.
        """
        self._look()
        if self._datastore.label(label_id, label_tag) is None:
            raise RequestError(404, f"image {label_id!r} has no label with the tag {label_tag!r}")
        super().remove_label(label_id, label_tag)

    def update_label_info(self, label_id: str, label_tag: str, info: dict) -> None:
        """Change the info of a label, such as a class given later.

        Raises:
            RequestError: there is no such label, or the class is not valid for its mask.
        """
        with self._lock:
            self._look()
            label = self._datastore.label(label_id, label_tag)
            if label is None:
                raise RequestError(404, f"image {label_id!r} has no label with the tag {label_tag!r}")
            mask = self._mask(label_id, self._label_file(label_id, label_tag, label.ext))
            merged = {**label.info, **info}
            self._write(label_id, mask, label_tag, check_class(merged, mask, self.class_names))

    def update_image_info(self, image_id: str, info: dict) -> None:
        """Change the info of an image.

        Raises:
            RequestError: there is no such image.
        """
        with self._lock:
            self._look()
            if image_id not in self._datastore.objects:
                raise RequestError(404, f"image {image_id!r} is unknown")
            self._datastore.objects[image_id].image.info.update(info)
            self._update_datastore_file()
            self._seen = self._state()

    def add_image(self, image_id: str, image_filename: str, image_info: dict) -> str:
        """Take a new image into the folder.

        Raises:
            RequestError: the name leads out of the folder or is taken, or the file is not a readable image.
        """
        extension = os.path.splitext(image_filename)[1]
        problem = picture_problem(image_filename)
        if problem or not names_a_picture(image_filename):
            raise RequestError(422, f"not a readable image ({problem or extension}); send {', '.join(EXTENSIONS)}")
        problem = name_problem(f"{image_id}{extension}")
        if problem or not image_id or image_id.startswith(".") or re.search(r"[/\\\0]", image_id):
            raise RequestError(400, f"{image_id!r} is not a valid name for an image; use a plain file name")
        with self._lock:
            self._look()
            if image_id in self._datastore.objects:
                raise RequestError(409, f"image {image_id!r} exists; remove it first, or choose another name")
            name = f"{image_id}{extension}"
            write_whole(Path(self._datastore_path) / name, lambda path: shutil.copy(image_filename, path))
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=extension))
            self._update_datastore_file()
            self._seen = self._state()
        return image_id


class Unlabelled:
    """A datastore as a strategy sees it, whose images without label are those that it may choose from.

    Args:
        datastore: answers everything else.
        names: ids of those images.
    """

    def __init__(self, datastore: PictureDatastore, names: list[str]) -> None:
        self._datastore = datastore
        self._names = names

    def __getattr__(self, name: str):
        return getattr(self._datastore, name)

    def get_unlabeled_images(self, label_tag=None, labels=None) -> list[str]:
        """The ids given."""
        return self._names
