"""The click tool: the model asked again about the surroundings of clicks, and its map moved to their right side.

Array and box coordinates are those of the displayed image: rows from the top, columns from the left, in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .box import RULE, Box, ask, surroundings

if TYPE_CHECKING:
    from breast_ultrasound.predictor import Predictor

# All chosen on the validation split. Lengths are fractions of the image's shorter side.
NEAR = 0.06  # a part of the mask this near belongs to a click
ALONE = 0.15  # half the side of the box about a click that no part belongs to
REACH = 0.5  # standard deviation of a click's effect, as a fraction of the radius of a disc with the mask's area
SMALLEST = 0.04  # that area is at least this fraction of the image's
SURE = 1.0  # logit by which a clicked pixel is on its side of the threshold
LIMIT = 0.02  # probabilities count as at least this and at most 1 less it
TOUCHING = np.ones((3, 3))  # parts of a mask touch by corners too, as in the bundle
Click = tuple[int, int, bool]  # column, row, whether the lesion is there


def around(mask: np.ndarray, x: int, y: int) -> Box:
    """What the model is shown of a click: the ``surroundings`` of it and of the parts of the mask that are near it."""
    height, width = mask.shape
    reach = round(NEAR * min(height, width))
    labels, _ = ndimage.label(mask, TOUCHING)
    near = np.unique(labels[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1])
    near = near[near > 0]
    reach = reach if near.size else round(ALONE * min(height, width))
    rows, columns = np.nonzero(np.isin(labels, near))
    rows, columns = (np.append(found, (at - reach, at + reach)) for found, at in ((rows, y), (columns, x)))
    left, top, right, bottom = (int(edge) for edge in (columns.min(), rows.min(), columns.max(), rows.max()))
    return surroundings((left, top, right + 1, bottom + 1), width, height)


def move(probability: np.ndarray, threshold: float, clicks: list[Click], mask: np.ndarray) -> np.ndarray:
    """Raise or lower a map about each click until it is ``SURE`` there; far away and where it was so, nothing changes.

    Args:
        probability: of the lesion, (height, width), in [0, 1].
        threshold: that makes a mask of it.
        clicks: in the image.
        mask: the model's part of what is drawn, (height, width), bool; its size sets how far a click reaches.

    Returns:
        probability of the lesion, (height, width), float32, in [0, 1].
    """
    limited, middle = np.clip(probability, LIMIT, 1 - LIMIT), np.log(threshold / (1 - threshold))
    logit = np.log(limited / (1 - limited)) - middle
    deviation = REACH * np.sqrt(max(mask.sum(), SMALLEST * mask.size) / np.pi)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for x, y, lesion in clicks:
        side = 1 if lesion else -1
        lacking = max(0.0, SURE - side * logit[y, x])
        logit += side * lacking * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * deviation**2))
    return (1 / (1 + np.exp(-logit - middle))).astype(np.float32)


def only_meant(probability: np.ndarray, threshold: float, clicks: list[Click], mask: np.ndarray) -> np.ndarray:
    """A map with 0 at and about the parts that neither touch what is drawn nor hold a click on the lesion."""
    labels, _ = ndimage.label(probability >= threshold, TOUCHING)
    meant = {*np.unique(labels[mask]), *(labels[y, x] for x, y, lesion in clicks if lesion)} - {0}
    rows, columns = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(np.isin(labels[rows, columns], list(meant)), probability, 0).astype(np.float32)


def ask_at(
    predictor: Predictor,
    image: np.ndarray,
    mask: np.ndarray,
    clicks: list[Click],
    box: Box | None = None,
    threshold: float | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """What the model sees where a person clicks, and the rule that makes a mask of it.

    It is the mean of the model's answers about the whole image and about the surroundings of each click; after a box,
    that of the box.

    Args:
        predictor: the model.
        image: 8-bit grey (height, width).
        mask: what the model has made of it so far, (height, width), bool.
        clicks: in the image.
        box: that was drawn before, if any.
        threshold: that cuts the map now; None for the model's own, or the box's.

    Returns:
        probability of the lesion, (height, width), float32, in [0, 1]; values by the names of ``Predictor.mask_rule``.

    Raises:
        ValueError: the surroundings of the box have one grey alone.
    """
    total, count = predictor(image).lesion_probability.copy(), np.ones(image.shape)
    threshold = threshold or (RULE if box else predictor.mask_rule)["mask_threshold"]
    for x, y, _ in clicks if box is None else ():
        left, top, right, bottom = around(mask, x, y)
        try:
            total[top:bottom, left:right] += predictor(image[top:bottom, left:right]).lesion_probability
        except ValueError:  # one grey alone, which tells nothing
            continue
        count[top:bottom, left:right] += 1
    mean = ask(predictor, image, total, box) if box else total / count
    return only_meant(move(mean, threshold, clicks, mask), threshold, clicks, mask), {
        **RULE,
        "mask_threshold": threshold,
    }
