"""The box tool: the model asked again about the surroundings of a box, and told that an ellipse fills the box.

Array and box coordinates are those of the displayed image: rows from the top, columns from the left, in pixels.
"""

from __future__ import annotations

import numpy as np

STEEPNESS = 6.0  # of the ellipse's logit from its rim to its centre; chosen on the validation split
LIMIT = 0.02  # probabilities count as at least this and at most 1 less it, so that neither side has the only say
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


def fuse(probability: np.ndarray, box: Box) -> np.ndarray:
    """Add up the logits of the model and of the ellipse in a box.

    Args:
        probability: of the lesion, (height, width), in [0, 1].
        box: where a person sees the lesion; not empty.

    Returns:
        probability of the lesion, (height, width), float32, in [0, 1].
    """
    model = np.clip(probability, LIMIT, 1 - LIMIT)
    logit = np.log(model / (1 - model)) + STEEPNESS * (1 - ellipse(probability.shape, box))
    return (1 / (1 + np.exp(-np.clip(logit, -50, 50)))).astype(np.float32)
