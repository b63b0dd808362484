"""The box tool: the model asked again about the surroundings of a box, and told that an ellipse fills the box.

Array and box coordinates are those of the displayed image: rows from the top, columns from the left, in pixels.
"""

from __future__ import annotations

import numpy as np

STEEPNESS = 10.0  # of the ellipse's logit from its rim to its centre; chosen on the validation split, as is the limit
LIMIT = 0.2  # probabilities count as at least this and at most 1 less it, so that neither side has the only say
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


def fuse(whole: np.ndarray, inside: np.ndarray, box: Box) -> np.ndarray:
    """Add up the logits of the model and of the ellipse in a box; the model's is the mean of its two answers.

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
    mean = np.clip(mean, LIMIT, 1 - LIMIT)
    logit = np.log(mean / (1 - mean)) + STEEPNESS * (1 - ellipse(whole.shape, box))
    return (1 / (1 + np.exp(-np.clip(logit, -50, 50)))).astype(np.float32)
