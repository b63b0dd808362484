"""From files to batches: which pictures there are, how they become grey, how often each is drawn."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.networks.layers import gaussian_1d
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from PIL import Image

from .loss import UNKNOWN_CLASS

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
logger = logging.getLogger(__name__)


def to_grey(picture: Image.Image) -> Image.Image:
    """Turn a picture of any mode into 8-bit grey: a ``converter`` for MONAI's ``PILReader``.

    Colour is weighted as in ITU-R BT.601 (Pillow's ``L``) and alpha is ignored. 16-bit and float pictures, which
    Pillow would clip at 255, are scaled by their own largest value when that is above 255.
    """
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0).clip(min=0)
        largest = values.max(initial=0)
        return Image.fromarray((values * (255 / largest if largest > 255 else 1)).round().astype(np.uint8))
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGB")
    return picture.convert("L")


def to_mask(picture: Image.Image) -> Image.Image:
    """Turn a mask of any mode into 0 and 255 with the threshold in the middle, for MONAI's ``PILReader``."""
    return to_grey(picture).point(lambda value: 255 if value > 127 else 0)


class AntiAliasd(MapTransform):
    """Smooth pictures (C, M, N) that ``Resized`` is to shrink next, to the same values as its own ``anti_aliasing``.

    The standard deviation is (factor of shrinking - 1) / 2 pixels along each side, as in ``skimage.transform.resize``.
    MONAI's general convolution took more than half of the time of an inference; OpenCV's filter takes a tenth of that.

    Args:
        keys: of the pictures.
        spatial_size: size (M, N) that they get next, in pixels.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = spatial_size

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return a copy of the item with smoothed pictures, float32."""
        item = dict(data)
        for key in self.key_iterator(item):
            picture = item[key]
            factors = [side / target for side, target in zip(picture.shape[1:], self.spatial_size)]
            if max(factors) > 1:
                rows, columns = (gaussian_1d(torch.tensor(max(0.0, (f - 1) / 2))).numpy() for f in factors)
                channels = np.asarray(picture, dtype=np.float32)
                smooth = [cv2.sepFilter2D(c, -1, columns, rows, borderType=cv2.BORDER_CONSTANT) for c in channels]
                item[key] = convert_to_dst_type(np.stack(smooth), picture, dtype=torch.float32)[0]
        return item


def names_a_picture(name: str | Path) -> bool:
    """Whether a file's extension, in any case, is that of a picture."""
    return Path(name).suffix.lower() in EXTENSIONS


def list_pictures(folder: str, output_dir: str | None = None, done: Collection[str] = ()) -> list[dict[str, str]]:
    """Return ``[{"image": path}, ...]`` for every readable picture that lies directly in a folder, sorted by name.

    Files that cannot be read are named, counted in the log and left out. Files of other types are ignored, and so are
    those whose names are ``done``.

    Raises:
        FileNotFoundError: where there is no such folder, or no readable picture in it.
        ValueError: where the masks would go to the same folder and be taken for pictures the next time.
    """
    if output_dir is not None and Path(folder).resolve() == Path(output_dir).resolve():
        raise ValueError(f"{folder}: holds the pictures and would get the masks; pass another --output_dir")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass --dataset_dir with a folder of pictures")
    files = sorted(f for f in Path(folder).iterdir() if f.is_file() and names_a_picture(f))
    problems = {f: problem for f in files if (problem := picture_problem(f))}
    for file, problem in problems.items():
        logger.error(f"{file}: left out, not a readable picture ({problem}); replace the file")
    if problems:
        logger.error(f"{len(problems)} of {len(files)} pictures left out")
    if len(problems) == len(files):
        raise FileNotFoundError(f"{folder}: no readable picture ({', '.join(EXTENSIONS)}) directly in this folder")
    return [{"image": str(f)} for f in files if f not in problems and f.name not in done]


def picture_problem(file: str | Path) -> str:
    """Why a picture cannot be read; empty where it can."""
    try:
        with Image.open(file) as picture:
            # A PNG carries checksums, so that it need not be decoded to be trusted.
            picture.verify() if picture.format == "PNG" else picture.load()
    except Exception as error:  # Pillow raises half a dozen types, SyntaxError among them
        return str(error) or type(error).__name__
    return ""


def sampling_weights(items: Sequence[dict]) -> torch.Tensor:
    """Weight of each item, shape (len(items),), with which every class is drawn equally often.

    Items whose class is missing or unknown count as a class of their own.
    """
    classes = [item.get("class", UNKNOWN_CLASS) for item in items]
    counts = Counter(classes)
    return torch.tensor([1 / counts[c] for c in classes], dtype=torch.double)


def prepare_batch(batch: dict, device: torch.device | str, non_blocking: bool = False, **kwargs) -> tuple:
    """Split a batch into pictures (B, 1, M, N) and targets: ``label`` (B, 1, M, N) and ``class`` (B,), long.

    MONAI Label sends no class; it becomes -1 (unknown) then.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    label = batch["label"].to(device, non_blocking=non_blocking, **kwargs)
    classes = torch.as_tensor(batch.get("class", [UNKNOWN_CLASS] * len(image)))
    return image, {"label": label, "class": classes.to(device, non_blocking=non_blocking)}
