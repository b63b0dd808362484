"""Images, masks and probability maps as the page gets them: PNGs of 8 bits."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Of a map's probabilities. A probability is counted as the number of steps that it has reached, so that every threshold
# of whole hundredths cuts the counts exactly as it cuts the probabilities; the mean of a part is off by less than half
# a step. 16 bits would make the map eight times as large (tests/test_label_mask.py).
STEPS = 200


def to_steps(probability: np.ndarray) -> np.ndarray:
    """A probability map (height, width), float32 in [0, 1], in steps: uint8 from 0 to ``STEPS``."""
    reached = np.arange(1, STEPS + 1) / STEPS
    return np.searchsorted(reached.astype(np.float32), probability, side="right").astype(np.uint8)


def png(image: Image.Image) -> bytes:
    """An image as PNG, written quickly."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def base64_png(pixels: np.ndarray) -> str:
    """8-bit pixels (height, width) as PNG in base64."""
    return base64.b64encode(png(Image.fromarray(pixels))).decode("ascii")
