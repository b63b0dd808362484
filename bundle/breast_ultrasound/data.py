"""From files to batches: which images there are, how often each is drawn."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from monai.data import Dataset, ThreadDataLoader, list_data_collate, load_decathlon_datalist
from tqdm import tqdm

from .command import first_cause, last_line
from .files import digest_or_empty, shown
from .images import DICOM_EXTENSIONS, EXTENSIONS, image_problem, is_image_name, masks_among

UNKNOWN_CLASS = -1
logger = logging.getLogger(__name__)


def image_root(dataset_dir: str | Path) -> str:
    """The folder that the names of images are relative to: ``dataset_dir``, or where it lies if it is one image."""
    path = Path(dataset_dir).expanduser()
    return str(path.parent if path.is_file() else path)


def common_folder(items: Sequence[Mapping[str, str]]) -> str:
    """The innermost folder that all images of a datalist lie in, itself or in its folders; empty without items."""
    folders = {os.path.dirname(os.path.abspath(item["image"])) for item in items}
    return os.path.commonpath(folders) if folders else ""


def image_name(file: str | Path, root: str | Path) -> str:
    """Name an image in tables: its path from ``root`` on, with forward slashes."""
    return Path(os.path.relpath(file, root)).as_posix()


def list_images(dataset_dir: str, output_dir: str | None = None, recursive: bool = False) -> list[dict[str, str]]:
    """Return ``[{"image": path}, ...]`` for every image of a folder, sorted by name, or for one file.

    What is ignored (files of other types, hidden files, masks beside their images, folders that are not searched) is
    counted in the log. Whether an image can be read shows when ``ImageLoader`` reads it.

    Args:
        dataset_dir: a folder, or one image; ``~`` is expanded.
        output_dir: where masks go; not searched for images.
        recursive: whether to search the folders in the folder too.

    Raises:
        FileNotFoundError: where there is no such folder or file, or no image in it.
        ValueError: where the masks would go among the images and be taken for images the next time.
    """
    given, root, output = check_places(dataset_dir, output_dir)
    if given.is_file():
        if not is_image_name(given):
            raise FileNotFoundError(f"{given}: not an image ({', '.join(EXTENSIONS)}); pass another --dataset_dir")
        return [{"image": str(given)}]
    files, ignored = walk(root, output, recursive, is_image_name)
    masks = masks_among(files)
    files = [file for file in files if file not in masks]
    ignored["mask"] = len(masks)
    counts = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in sorted(ignored.items()) if n]
    hint = "; --recursive True searches folders" if ignored["folder"] and not recursive else ""
    hint += "; configs/inference_dicom.json (predict --dicom) reads DICOM" if ignored["DICOM file"] else ""
    if not files:
        ignored_too = f"; ignored: {', '.join(counts)}{hint}" if counts else ""
        raise FileNotFoundError(f"{root}: no image ({', '.join(EXTENSIONS)}) in this folder{ignored_too}")
    if counts:
        logger.info(f"{root}: {len(files)} images; ignored: {', '.join(counts)}{hint}")
    return [{"image": str(f)} for f in sorted(files)]


def check_places(dataset_dir: str, output_dir: str | None) -> tuple[Path, Path, Path | None]:
    """What is given, the folder it is or lies in, and where results go.

    Raises:
        FileNotFoundError: where there is no such folder or file.
        ValueError: where the masks would go among the images and be taken for images the next time.
    """
    given, root = Path(dataset_dir).expanduser(), Path(image_root(dataset_dir))
    output = Path(output_dir).expanduser().resolve() if output_dir is not None else None
    if not given.exists():
        raise FileNotFoundError(f"{given}: no such folder; pass --dataset_dir with a folder of images or one image")
    if root.resolve() == output:
        raise ValueError(f"{root}: holds the images and would get the masks; pass another --output_dir")
    return given, root, output


def walk(
    root: Path, output: Path | None, recursive: bool, wanted: Callable[[Path], bool]
) -> tuple[list[Path], Counter]:
    """The files below a folder that are wanted, and how much of each other kind is ignored."""
    files: list[Path] = []
    ignored: Counter = Counter()
    for folder, folders, names in os.walk(root, onerror=_raise):
        inner = [f for f in folders if (Path(folder) / f).resolve() != output]
        folders[:] = [f for f in inner if recursive and not f.startswith(".") and not (Path(folder) / f).is_symlink()]
        ignored["folder"] += len(inner) - len(folders)
        for path in (Path(folder) / name for name in names):
            if path.name.startswith("."):
                ignored["hidden file"] += 1
            elif wanted(path) and path.is_file():
                files.append(path)
            else:
                ignored["DICOM file" if path.suffix.lower() in DICOM_EXTENSIONS else "other file"] += 1
    return files, ignored


def _raise(error: OSError) -> None:
    raise error


class Failure(NamedTuple):
    """An image that could not be read, in place of its item."""

    image: str
    reason: str


class _Guarded(Dataset):
    """A dataset whose items that fail become a ``Failure``, so that the others go on."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.data)
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict | Failure:
        file = self.data[index]["image"]
        try:
            os.fsencode(file).decode("utf-8")
            return self.dataset[index]
        except UnicodeDecodeError:
            return Failure(file, "its name is not UTF-8; rename the file")
        except Exception as error:  # MONAI's own text is a page, so that the file is asked again
            return Failure(file, f"{image_problem(file) or last_line(first_cause(error))}; replace the file")


class ImageLoader(ThreadDataLoader):
    """MONAI's ``ThreadDataLoader`` over items with an ``image``, which goes on where an image cannot be read.

    An exception would end the thread and with it the iteration, and later images would be lost without a word. Batches
    hold the images of one shape, so that their number shows only in the end and there is no ``len``.

    Args:
        dataset: with a list of ``{"image": path}`` as ``data``.
        failed: called with path and reason of each image that cannot be read.
        progress: whether to show a bar.
        kwargs: as for ``ThreadDataLoader``.
    """

    def __init__(
        self, dataset: Dataset, failed: Callable[[str, str], object], progress: bool = True, **kwargs: object
    ) -> None:
        super().__init__(_Guarded(dataset), collate_fn=list, **kwargs)
        self.failed = failed
        self.progress = progress

    def __len__(self) -> int:
        raise TypeError("the number of batches depends on the images' shapes")

    def __iter__(self) -> Iterator[dict]:
        with tqdm(total=len(self.dataset), unit="image", disable=not self.progress) as bar:
            for items in super().__iter__():
                batches: dict[tuple, list[dict]] = {}
                for item in items:
                    if isinstance(item, Failure):
                        self.failed(*item)
                    else:
                        batches.setdefault(tuple(item["image"].shape), []).append(item)
                for batch in batches.values():
                    yield list_data_collate(batch)
                bar.update(len(items))


def with_slashes(item: Mapping) -> dict:
    """A copy of a datalist's item, the paths of its files with forward slashes, which every system reads.

    Python on Windows writes backslashes; ``scripts/prepare_dataset.py`` keeps them out of names.
    """
    return {k: v.replace("\\", "/") if k in ("image", "label") and isinstance(v, str) else v for k, v in item.items()}


def _joined(folder: str, item: Mapping) -> dict:
    """``with_slashes``, the files below a folder, whose own name may hold a backslash."""
    own = with_slashes(item)
    files = {
        key: os.path.normpath(os.path.join(folder, own[key]))
        for key in ("image", "label")
        if isinstance(own.get(key), str)
    }
    return own | files


def read_datalist(path: str | Path) -> dict[str, Any]:
    """Content of a datalist, for what needs no joined paths; those of its items have forward slashes."""
    return json.loads(Path(path).read_text(encoding="utf-8"), object_hook=with_slashes)


def load_datalist(
    datalist: str | Mapping[str, float], split: str, dataset_dir: str, class_names: Sequence[str]
) -> list[dict]:
    """Return the items of one split of a prepared set, or of several sets, by MONAI's ``load_decathlon_datalist``.

    Args:
        datalist: path of a datalist, whose files lie below ``dataset_dir``; or ``{path: weight}``, each of whose files
            lie beside their datalist. A weight says how often the set is drawn compared with the others.
        split: ``training``, ``validation`` or ``testing``; several joined by ``+``.
        dataset_dir: base folder of the files of a single datalist.
        class_names: names in the order of the class indices.

    Returns:
        items with ``image`` and ``label`` as paths and, where it is given, ``class`` as an index of ``class_names``,
        -1 where unknown. ``class_name`` decides over ``class``. ``set`` and ``set_weight`` are for
        ``sampling_weights``.

    Raises:
        ValueError: images whose class is none of these, with their number and the first of them.
    """
    sets = datalist if isinstance(datalist, Mapping) else {datalist: 1.0}
    items = []
    for path, weight in sets.items():
        base = dataset_dir if isinstance(datalist, str) else str(Path(path).parent)
        for name in split.split("+"):
            # Joined here: MONAI would take a class or a patient for a path too where there is a file of that name
            found = load_decathlon_datalist(path, True, name, "")
            items += [{**_joined(base, item), "set": path, "set_weight": float(weight)} for item in found]
    wrong = []
    for item in items:
        if "class" in item or "class_name" in item:
            given = item.get("class_name", item.get("class"))
            try:
                item["class"] = class_index(given, class_names)
            except ValueError:
                wrong.append(f"{shown(str(item.get('image')))} {given!r}")
    if wrong:
        known = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        some = f"{len(wrong)} x class that is none of {known}, -1 unknown: {', '.join(wrong[:5])}"
        raise ValueError(f"{', '.join(sets)}: {some}; correct the datalist, or pass --class_names")
    return items


def items_digest(items: Sequence[Mapping]) -> str:
    """What shows whether items are still the same, wherever they lie: a SHA-256 over the name, the class, the weight of
    the set and the content of both files of each, in their order."""
    digest = hashlib.sha256()
    for item in items:
        facts = [Path(item["image"]).name, item.get("class", UNKNOWN_CLASS), item.get("set_weight", 1.0)]
        digest.update(json.dumps([*facts, *(digest_or_empty(item[key]) for key in ("image", "label"))]).encode())
    return digest.hexdigest()


def read_class_names(datalist: str | Mapping[str, float], default: Sequence[str]) -> list[str]:
    """Return what a prepared set, or all of several sets, call their classes, in the order of the indices.

    Args:
        datalist: as for ``load_datalist``.
        default: for sets that do not tell, and datalists that cannot be read, which ``load_datalist`` says.

    Raises:
        ValueError: the sets have different classes, or what one tells is no list of names.
    """
    found = {}
    for path in [datalist] if isinstance(datalist, str) else datalist:
        try:
            names = read_datalist(path).get("class_names")
        except (OSError, ValueError, AttributeError):
            continue
        if names and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"{path}: class_names {names!r} is no list of names; correct the datalist")
        if names:
            found[tuple(names)] = path
    if len(found) > 1:
        sets = "; ".join(f"{path}: {', '.join(names)}" for names, path in found.items())
        raise ValueError(f"sets of different classes ({sets}); name all of them with --class_names")
    return list(next(iter(found), default))


def class_index(given: str | int, class_names: Sequence[str]) -> int:
    """The index of a class that a datalist gives by its name or by its index; -1 is an unknown one.

    Raises:
        ValueError: there is no such class.
    """
    if type(given) is int and UNKNOWN_CLASS <= given < len(class_names):
        return given
    return list(class_names).index(given)


def sampling_weights(items: Sequence[dict]) -> torch.Tensor:
    """Weight of each item, shape (len(items),): every class is drawn equally often, and within a class the sets that
    hold it as their weights say.

    A set without normal images thus takes no share of the normal ones, which are a third of each batch as ever. Items
    whose class is missing or unknown count as a class of their own.
    """
    keys = [(item.get("class", UNKNOWN_CLASS), item.get("set")) for item in items]
    counts = Counter(keys)
    set_weights = {key: item.get("set_weight", 1.0) for key, item in zip(keys, items)}
    class_weights = Counter()
    for key, weight in set_weights.items():
        class_weights[key[0]] += weight
    return torch.tensor([set_weights[k] / class_weights[k[0]] / counts[k] for k in keys], dtype=torch.double)


def prepare_batch(batch: dict, device: torch.device | str, non_blocking: bool = False, **kwargs) -> tuple:
    """Split a batch into images (B, 1, M, N) and targets: ``label`` (B, 1, M, N) and ``class`` (B,), long.

    MONAI Label sends no class; it becomes -1 (unknown) then.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    label = batch["label"].to(device, non_blocking=non_blocking, **kwargs)
    classes = torch.as_tensor(batch.get("class", [UNKNOWN_CLASS] * len(image)))
    return image, {"label": label, "class": classes.to(device, non_blocking=non_blocking)}


class CanvasCollate:
    """Place the images of a batch on canvases of one shape, drawn for each batch: a ``collate_fn``.

    Shape and border say which hospital an image comes from, and with it which classes to expect. So every batch has
    another shape, and each image lies in it at a random scale, place, rotation and shear, partly cut off or with zeros
    around it, whatever its class. The centre of a lesion stays inside. All randomness is torch's, which the trainer
    seeds each epoch.

    Args:
        side: of the square whose area each canvas has, in pixels.
        widest: largest proportion of a canvas's sides, either way; 1 keeps it a square.
        zoom: smallest and largest scale, where 1 gives the image the canvas's area; drawn evenly on a log scale.
        rotate: largest angle, in radians.
        shear: largest shear.
        stretch: largest change of the proportions, as a fraction.
        multiple: of which the canvas's sides are multiples, in pixels.
    """

    def __init__(
        self,
        side: int,
        widest: float,
        zoom: Sequence[float],
        rotate: float,
        shear: float,
        stretch: float,
        multiple: int,
    ) -> None:
        self.side = side
        self.widest = widest
        self.zoom = zoom
        self.rotate = rotate
        self.shear = shear
        self.stretch = stretch
        self.multiple = multiple

    def __call__(self, items: Sequence[dict]) -> dict:
        """Collate items with ``image`` and ``label`` (1, W, H): a batch of tensors (B, 1, W', H'), float32."""
        proportion = math.exp(_uniform(-1, 1) * math.log(self.widest))
        sides = [self.side * proportion**0.5, self.side / proportion**0.5]
        canvas = np.array([max(1, round(s / self.multiple)) * self.multiple for s in sides])
        return list_data_collate([self.place(item, canvas) for item in items])

    def place(self, item: dict, canvas: np.ndarray) -> dict:
        """Return a copy of the item with ``image`` and ``label`` on the canvas (W', H')."""
        image = np.asarray(item["image"], dtype=np.float32)[0]
        label = np.asarray(item["label"], dtype=np.uint8)[0]
        shape = np.array(image.shape)
        zoom = math.exp(_uniform(*map(math.log, self.zoom))) * (canvas.prod() / shape.prod()) ** 0.5
        angle, shear, stretch = (_uniform(-r, r) for r in (self.rotate, self.shear, self.stretch))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = zoom * turn @ np.array([[1 + stretch, shear], [0, 1 / (1 + stretch)]])
        slack = np.abs(shape * zoom - canvas) / 2 + 0.05 * canvas
        middle = canvas / 2 + np.array([_uniform(-s, s) for s in slack])
        column, row, width, height = cv2.boundingRect(label)
        if width:
            offset = linear @ (np.array([row + height / 2, column + width / 2]) - shape / 2)
            middle = np.clip(middle + offset, 0.1 * canvas, 0.9 * canvas) - offset
        # OpenCV counts columns first.
        matrix = np.column_stack([linear, middle - linear @ (shape / 2)])[::-1, [1, 0, 2]]
        size = (int(canvas[1]), int(canvas[0]))
        placed = {
            "image": cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR),
            "label": cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST),
        }
        return {**item, **{key: torch.from_numpy(value)[None] for key, value in placed.items()}}


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
