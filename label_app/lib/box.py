"""The box tool: the model asked again about the surroundings of a box, and told that an ellipse fills the box.

Array and box coordinates are those of the displayed image: rows from the top, columns from the left, in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from breast_ultrasound.predictor import Predictor

STEEPNESS = 10.0  # of the ellipse's logit from its rim to its centre; chosen on the validation split, as is the limit
LIMIT = 0.2  # probabilities count as at least this and at most 1 less it, so that neither side has the only say
# Where the model's lesion ends, in logits of the fused map: strips of this width on both sides of a rim are compared.
STRIP, BIN = 2.0, 0.25
RANGE = (-8.0, 8.0)
# From the fused map to the mask. Whoever drew the box has seen a lesion there: no part is too small or doubtful.
RULE = {"mask_threshold": 0.5, "smallest_fraction": 0.0, "component_threshold": 0.0}
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are excluded


def surroundings(box: Box, width: int, height: int) -> Box:
    """The box with half its width and height added on each side, within the image."""
    left, top, right, bottom = box
    columns, rows = (right - left + 1) // 2, (bottom - top + 1) // 2
    return max(0, left - columns), max(0, top - rows), min(width, right + columns), min(height, bottom + rows)


def ellipse(shape: tuple[int, int], box: Box) -> np.ndarray:
    """Distance of each pixel's centre from that of the ellipse in a box, (height, width); 1 on its rim."""
    left, top, right, bottom = box
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    across = (columns + 0.5 - (left + right) / 2) / ((right - left) / 2)
    down = (rows + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2)
    return np.hypot(across, down)


def rim(logit: np.ndarray, mean: np.ndarray) -> float:
    """Where the model's probability falls most: boxes are drawn too large, and seldom too small.

    The steps at all rims are averaged, each with the weight ``exp(10 step - |rim|)``: without a step it is 0, the rim
    of a box that fits.

    Args:
        logit: of the fused map, any shape.
        mean: the model's own probability of the same pixels.

    Returns:
        logit of the fused map at which to cut it, from -6 to 6.
    """
    bins = round((RANGE[1] - RANGE[0]) / BIN)
    sums = [np.histogram(logit, bins, RANGE, weights=weights)[0] for weights in (mean, np.ones_like(mean))]
    total, count = (np.convolve(values, np.ones(round(STRIP / BIN)), "valid") for values in sums)
    strips = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    steps = strips[round(STRIP / BIN) :] - strips[: -round(STRIP / BIN)]  # nan where a strip has no pixel
    rims = np.arange(len(steps)) * BIN + RANGE[0] + STRIP
    return float(np.average(rims, weights=np.exp(10 * np.nan_to_num(steps) - np.abs(rims))))


def fuse(whole: np.ndarray, inside: np.ndarray, box: Box) -> np.ndarray:
    """Add up the logits of the model and of the ellipse in a box, less that at the ``rim``, which 0.5 then cuts.

    The model's is the mean of its two answers.

    Args:
        whole: probability of the lesion in the whole image, (height, width), in [0, 1].
        inside: the same in the box's surroundings, where the model was shown nothing else.
        box: where a person sees the lesion; not empty.

    Returns:
        probability of the lesion, (height, width), float32, in [0, 1].
    """
    height, width = whole.shape
    left, top, right, bottom = surroundings(box, width, height)
    mean = whole / 2
    mean[top:bottom, left:right] += inside / 2
    limited = np.clip(mean, LIMIT, 1 - LIMIT)
    logit = np.log(limited / (1 - limited)) + STEEPNESS * (1 - ellipse(whole.shape, box))
    near = np.s_[top:bottom, left:right]
    logit -= rim(logit[near], mean[near])
    return (1 / (1 + np.exp(-np.clip(logit, -50, 50)))).astype(np.float32)


def ask(predictor: Predictor, image: np.ndarray, whole: np.ndarray, box: Box) -> np.ndarray:
    """What the model sees of the lesion in a box, by ``fuse``; ``RULE`` makes a mask of it.

    Args:
        predictor: the model.
        image: 8-bit grey (height, width).
        whole: its probability of the lesion in the whole image, (height, width).
        box: where a person sees the lesion; not empty.

    Returns:
        probability of the lesion, (height, width), float32, in [0, 1].

    Raises:
        ValueError: the surroundings of the box have one grey alone.
    """
    left, top, right, bottom = surroundings(box, image.shape[1], image.shape[0])
    return fuse(whole, predictor(image[top:bottom, left:right]).lesion_probability, box)
