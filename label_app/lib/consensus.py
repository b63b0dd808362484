"""What several outlines of an image are together: how alike they are, what most of them and STAPLE make of them."""

from __future__ import annotations

from collections import Counter

import numpy as np

SAME_LESION = 0.8  # Dice; two readers who draw less alike differ
UNKNOWN, NOT_READABLE = "class unknown", "not readable"  # what a label says that has no class


def dice(first: np.ndarray, second: np.ndarray) -> float | None:
    """Dice of two masks (height, width), bool; None where both are empty."""
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero(first & second)) / total if total else None


def differ(first: dict, second: dict, overlap: float | None) -> bool:
    """Whether two labels of an image, of which these are the infos, differ in class or outline.

    Args:
        first: info of one.
        second: of the other.
        overlap: Dice of their masks; None where both are empty.
    """
    return says(first) != says(second) or (overlap is not None and overlap < SAME_LESION)


def is_read(info: dict) -> bool:
    """Whether a label's outline is an answer; version 0.5 called an unreadable image one of which nobody can tell."""
    return not (info.get("not_readable") or info.get("cannot_tell"))


def says(info: dict) -> str:
    """The class that a label's info has, or what it has in its place."""
    return info.get("class") or (UNKNOWN if is_read(info) else NOT_READABLE)


def majority(masks: list[np.ndarray]) -> np.ndarray:
    """Pixels, (height, width), bool, that more than half of some masks hold: of two, what both hold."""
    return np.sum(masks, axis=0) * 2 > len(masks)


def staple(masks: list[np.ndarray]) -> np.ndarray:
    """Pixels, (height, width), bool, that are lesion with a probability of at least half by STAPLE.

    Warfield, Zou and Wells, IEEE Transactions on Medical Imaging 23 (2004), as SimpleITK has it. Its prior is the mean
    of the masks over the pixels, so that it is given the masks' surroundings alone: what all leave out is background.
    """
    import SimpleITK  # which takes a second

    union = np.any(masks, axis=0)
    result = np.zeros_like(union)
    if not union.any():
        return result
    rows, columns = np.flatnonzero(union.any(1)), np.flatnonzero(union.any(0))
    margin = max(len(rows), len(columns)) // 4 + 1
    top, bottom = max(0, rows[0] - margin), rows[-1] + margin + 1
    left, right = max(0, columns[0] - margin), columns[-1] + margin + 1
    images = [SimpleITK.GetImageFromArray(mask[top:bottom, left:right].astype(np.uint8)) for mask in masks]
    probability = SimpleITK.GetArrayFromImage(SimpleITK.STAPLE(images, 1.0))
    result[top:bottom, left:right] = probability >= 0.5
    return result


def common_class(infos: list[dict]) -> str:
    """The class that most labels have; empty where none leads."""
    counts = Counter(info["class"] for info in infos if info.get("class")).most_common(2)
    return "" if not counts or len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]
