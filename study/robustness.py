"""Evaluate trained weights on altered copies of the testing images: robustness and shortcuts.

Robustness: noise, gain, blur, low resolution, JPEG and crops, at three strengths each. Shortcuts: what the class rests
on where the lesion is blacked out, where only the lesion or only its surroundings are left, and where burned-in marks
are erased.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import sha256, write_csv, write_json
from breast_ultrasound.images import open_image, to_grey, to_mask
from study.experiments import row, trained_and_tested

NOISE = (10, 20, 40)  # standard deviation in grey levels of 255, white
GAIN = (0.5, 1.5, 2.0)  # factor of all grey levels, clipped at 255
BLUR = (1, 2, 4)  # standard deviation of a Gaussian in pixels
LOW_RESOLUTION = (2, 4, 8)  # factor of shrinking before the image is enlarged again
JPEG = (50, 25, 10)  # quality
CROP = (0.5, 1, 2)  # width as a multiple of the height
# Image and mask, strength, randomness; gives the image, or image and mask
Alteration = Callable[[np.ndarray, np.ndarray, Any, np.random.Generator], np.ndarray | tuple[np.ndarray, np.ndarray]]
MARK_LEVEL = 240  # burned-in marks are brighter than nearly all tissue
MARK_WIDTH = 7  # and thinner than this, in pixels


def noise(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """White noise; the file's name seeds it."""
    return np.clip(image + random.normal(0, strength, image.shape), 0, 255).astype(np.uint8)


def gain(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """Brighter or darker."""
    return np.clip(image * float(strength), 0, 255).astype(np.uint8)


def blur(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """Gaussian blur."""
    return cv2.GaussianBlur(image, (0, 0), strength)


def low_resolution(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """Shrunk, then enlarged to its size again."""
    height, width = image.shape
    small = cv2.resize(image, (max(1, width // strength), max(1, height // strength)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """Compressed and decoded again."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, strength])[1], cv2.IMREAD_GRAYSCALE)


def crop(
    image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The largest part of other proportions, about the lesion; shape must not tell the class."""
    height, width = image.shape
    size = np.array([min(height, width / strength), min(width, height * strength)]).astype(int)
    rows, columns = _box(mask) if mask.any() else (slice(0, height), slice(0, width))
    middle = np.array([rows.start + rows.stop, columns.start + columns.stop]) // 2
    top, left = np.clip(middle - size // 2, 0, np.array(image.shape) - size)
    part = np.s_[top : top + size[0], left : left + size[1]]
    return image[part], mask[part]


def lesion_blacked_out(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """The bounding box of the lesion in black, so that neither texture nor outline is left."""
    image = image.copy()
    image[_box(mask)] = 0
    return image


def lesion_only(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """All but the bounding box of the lesion in black; images without lesion stay as they are."""
    if not mask.any():
        return image
    result = np.zeros_like(image)
    result[_box(mask)] = image[_box(mask)]
    return result


def background_only(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """The bounding box of the lesion filled in from its rim (Telea, J. Graphics Tools 2004)."""
    box = np.zeros_like(image)
    box[_box(mask)] = 255
    return cv2.inpaint(image, box, 5, cv2.INPAINT_TELEA) if mask.any() else image


def marks_erased(image: np.ndarray, mask: np.ndarray, strength: Any, random: np.random.Generator) -> np.ndarray:
    """Thin bright lines and signs filled in from their rim."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (MARK_WIDTH, MARK_WIDTH))
    thin = cv2.morphologyEx(image, cv2.MORPH_TOPHAT, kernel) > 60
    marks = (thin & (image >= MARK_LEVEL)).astype(np.uint8)
    return cv2.inpaint(image, cv2.dilate(marks, np.ones((3, 3), np.uint8)), 3, cv2.INPAINT_TELEA)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return slice(0, 0), slice(0, 0)
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


CONDITIONS = {"unaltered": (lambda image, mask, strength, random: image, None)}
for _function, _strengths in (
    (noise, NOISE),
    (gain, GAIN),
    (blur, BLUR),
    (low_resolution, LOW_RESOLUTION),
    (jpeg, JPEG),
    (crop, CROP),
):
    CONDITIONS |= {f"{_function.__name__}_{s}": (_function, s) for s in _strengths}
CONDITIONS |= {f.__name__: (f, None) for f in (lesion_blacked_out, lesion_only, background_only, marks_erased)}


def measure_robustness(dataset_dir: Path, ckpt_dir: Path, output_dir: Path, output: Path, **options: object) -> None:
    """Alter, evaluate, remove, condition by condition; an interrupted run with the same weights is resumed.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        ckpt_dir: folder of the weights.
        output_dir: gets a folder with `metrics.json` and `images.csv` for each condition.
        output: CSV file to write: a row for each condition.
        options: options of the bundle, such as image_size.

    Raises:
        ValueError: an evaluation failed.
        FileNotFoundError: there is no datalist, or no weights.
    """
    dataset, folder, model = dataset_dir.resolve(), output_dir.resolve(), ckpt_dir.resolve() / "model.pt"
    for file, remedy in ((dataset / "datalist.json", "prepare the folder"), (model, "name the folder of the weights")):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    items, rows = read_datalist(dataset / "datalist.json")["testing"], []
    for name, (function, strength) in tqdm(CONDITIONS.items(), desc="conditions"):
        altered, metrics = folder / name / "altered", folder / name / "metrics.json"
        if metrics.is_file() and json.loads(metrics.read_text(encoding="utf-8"))["weights_sha256"] != sha256(model):
            metrics.unlink()
        if not metrics.is_file():
            shutil.rmtree(altered, ignore_errors=True)
            for item in items:
                _alter(dataset, altered, item, function, strength)
            write_json(altered / "datalist.json", {"training": [], "validation": [], "testing": items})
        test = {"dataset_dir": altered, "ckpt_dir": model.parent, **options}
        rows.append(row(trained_and_tested(folder, None, {name: test})[name], condition=name))
        shutil.rmtree(altered, ignore_errors=True)
    write_csv(output, rows, list(rows[0]))
    print(f"{len(items)} images under {len(CONDITIONS)} conditions: {output}")


def _alter(dataset: Path, folder: Path, item: dict, function: Alteration, strength: float | None) -> None:
    image, mask = to_grey(open_image(dataset / item["image"])), to_mask(open_image(dataset / item["label"]))
    random = np.random.default_rng(list(item["image"].encode()))
    altered = function(image, mask, strength, random)
    for key, pixels in zip(("image", "label"), altered if isinstance(altered, tuple) else (altered, mask)):
        file = folder / item[key]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
