"""What scanners write into their pictures: where it stands, and the masks that blank it, one for each size of image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from breast_ultrasound.images import open_image, to_mask

STEM = re.compile(r"blank_(\d+)x(\d+)(?:_(.+))?")
MOST = 60  # that are looked at, spread evenly over them
SAME = 12  # grey levels by which JPEG alters what stays equal
CHANGED = 40  # grey levels by which what is written differs from what is not
BRIGHT = 40  # grey levels of what is blanked because it stays equal
NEARLY_ALL = 0.8  # of the images
ALL = 0.9  # of the images; for the flat parts of signs in the tissue, since evenly grey tissue may be alike
SOME = 0.1  # of the images, in which a place beside the tissue has to change
SATURATED = 250  # grey levels; tissue under the probe has them in all images
FILLED = 0.2  # of a box in the tissue; a sign whose equal pixels fill more is blanked with what changes in it
RARELY = 0.05  # of the images, in which a place has to show tissue for being tissue
RECTANGLE = 0.95  # of the box around tissue; where it fills more, a linear probe showed all of the box
SMALLEST = 0.02  # of the picture; smaller parts that change are no tissue


class Suggestion(NamedTuple):
    """Where a scanner writes.

    Attributes:
        blank: bool (rows, columns), what to blank.
        tissue: bool (rows, columns), where tissue moves from image to image, and what lies between.
    """

    blank: np.ndarray
    tissue: np.ndarray

    @property
    def of_tissue(self) -> float:
        """The share of the tissue that would be blanked."""
        return float(self.blank[self.tissue].mean())


def suggest(images: Sequence[np.ndarray]) -> Suggestion:
    """Find what scanners write, from images of different patients.

    Tissue is what changes from image to image even where strokes are taken away. Beside it, all that changes is
    writing, whose lines are blanked over their whole length, since the next name may be longer; and so is what is
    bright and stays equal. In the tissue, strokes and signs that stay equal are blanked, these with what changes in
    them, such as the probe on a body mark; nothing else.

    Args:
        images: uint8 (rows, columns) of one size; bright text on dark or dark text on bright.

    Raises:
        ValueError: nothing changes from image to image.
    """
    stack = np.stack(images[:: -(-len(images) // MOST)])
    width = stack.shape[2]
    stroke = max(7, width // 90 | 1)  # pixels, wider than one
    kernel = np.ones((stroke, stroke), np.uint8)
    tissue = _tissue(stack, kernel)
    beside = cv2.dilate(tissue.astype(np.uint8), kernel) == 0
    usual = np.median(stack, axis=0).astype(np.uint8)
    differences = [cv2.absdiff(image, usual) for image in stack]
    written = _share([cv2.dilate(difference, kernel) > CHANGED for difference in differences]) >= SOME
    equal = (_share([difference <= SAME for difference in differences]) >= NEARLY_ALL) & (usual >= BRIGHT)
    strokes = _share([cv2.morphologyEx(image, cv2.MORPH_TOPHAT, kernel) > CHANGED for image in stack]) >= NEARLY_ALL
    flat = _share([difference <= SAME // 2 for difference in differences]) >= ALL
    signs = tissue & (equal & strokes | flat & (usual >= BRIGHT) & (usual < SATURATED))
    blank = np.zeros_like(tissue)
    for part, found in _boxes((written | equal) & beside, stroke):
        changes = (found & written[part]).any()
        blank[part[0], slice(None) if changes else part[1]] = True
    blank &= ~tissue
    blank |= cv2.dilate((signs & strokes).astype(np.uint8), np.ones((5, 5))) > 0
    for part, found in _boxes(signs, stroke):
        blank[part] |= found.mean() > FILLED
    return Suggestion(blank, tissue)


def _boxes(found: np.ndarray, stroke: int) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """The rows and columns of each group of true pixels, letters joined to lines, and the group's pixels therein."""
    joined = cv2.dilate(found.astype(np.uint8), np.ones((stroke, 4 * stroke)))
    count, labels = cv2.connectedComponents(joined)
    for number in range(1, count):
        group = (labels == number) & found
        left, top, columns, rows = cv2.boundingRect(group.astype(np.uint8))
        edge = stroke // 2
        part = np.s_[max(0, top - edge) : top + rows + edge, max(0, left - edge) : left + columns + edge]
        yield part, group[part]


def _tissue(stack: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Where images (N, rows, columns) change without their bright and dark strokes, with what lies between."""
    changes = []
    for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):  # takes bright strokes away, takes dark ones away
        plain = np.stack([cv2.morphologyEx(image, operation, kernel) for image in stack])
        usual = np.median(plain, axis=0).astype(np.uint8)
        changes.append([cv2.absdiff(image, usual) > SAME for image in plain])
    moving = (_share([bright & dark for bright, dark in zip(*changes)]) > RARELY).astype(np.uint8)
    moving = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones(3 * np.array(kernel.shape), np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(moving)
    tissue = np.zeros_like(moving)
    for number in range(1, count):
        if boxes[number, cv2.CC_STAT_AREA] >= SMALLEST * moving.size:
            hull = cv2.convexHull(cv2.findNonZero((labels == number).astype(np.uint8)))
            left, top, columns, rows = cv2.boundingRect(hull)
            cv2.fillConvexPoly(tissue, hull, 1)
            if cv2.contourArea(hull) > RECTANGLE * columns * rows:
                tissue[top : top + rows, left : left + columns] = 1
    if not tissue.any():
        raise ValueError("no tissue that changes from image to image; give images of different patients")
    return tissue.astype(bool)


def _share(found: Sequence[np.ndarray]) -> np.ndarray:
    """In which share of the images each pixel is true."""
    return np.mean(found, axis=0, dtype=np.float32)


def mask_name(size: tuple[int, int], device: str = "") -> str:
    """The file of a mask: of all images of a size (width, height), or of those of a device."""
    device = re.sub(r"[^A-Za-z0-9]+", "_", device).strip("_")
    return f"blank_{size[0]}x{size[1]}{'_' * bool(device)}{device}.png"


class Blanks:
    """The masks of a folder, and what they were used for.

    Args:
        folder: with masks called as ``mask_name`` says; white is blanked.

    Raises:
        FileNotFoundError: there is no such folder, or no mask in it.
        ValueError: a mask cannot be read, or its size is not what its name says.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"--blank {folder}: no such folder; scripts/find_text.py makes one")
        self.masks = {file.name: _read(file) for file in sorted(folder.glob("blank_*.png"))}
        if not self.masks:
            raise FileNotFoundError(f"--blank {folder}: no blank_WIDTHxHEIGHT.png in it; scripts/find_text.py makes it")
        self.used: dict[str, str] = {}  # mask by image
        self.without: dict[str, str] = {}  # size by image

    def of(self, name: str, grey: np.ndarray, device: str = "") -> np.ndarray | None:
        """The mask of an image, bool (rows, columns): that of its device, else that of its size, else None."""
        size = (grey.shape[1], grey.shape[0])
        for mask in (mask_name(size, device), mask_name(size)):
            if mask in self.masks:
                self.used[name] = mask
                return self.masks[mask]
        self.without[name] = "{}x{}".format(*size)
        return None

    def notes(self) -> list[str]:
        """What was blanked, what was not, and which masks fit no image."""
        used, without = Counter(self.used.values()), Counter(self.without.values())
        told = [f"Blanked by {mask}: {number} images." for mask, number in sorted(used.items())]
        told += [f"{mask} fits no image; its size is in its name." for mask in self.masks if mask not in used]
        sizes = ", ".join(f"{number} of {size}" for size, number in sorted(without.items()))
        still = "have no mask of their size, and still show what is written into them"
        return [*told, f"{sum(without.values())} images {still}: {sizes}."] if without else told


def _read(file: Path) -> np.ndarray:
    named = STEM.fullmatch(file.stem)
    if not named:
        raise ValueError(f"{file}: call it blank_WIDTHxHEIGHT.png, or blank_WIDTHxHEIGHT_DEVICE.png")
    try:
        mask = to_mask(open_image(file)) > 0
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if mask.shape != (int(named[2]), int(named[1])):
        size = "{1}x{0}".format(*mask.shape)
        raise ValueError(f"{file}: it has {size} pixels, not those of its name; draw it in the size of the images")
    return mask
