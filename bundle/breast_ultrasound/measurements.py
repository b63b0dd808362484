"""Sizes of a lesion, from its mask: longest diameter, width, height, area."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Lesion(NamedTuple):
    """One connected part of a mask (8 neighbours), its lengths in millimetres or pixels.

    Attributes:
        mask: bool (rows, columns), of the whole image.
        outline: (N, 2), x and y in pixels from the image's upper left corner, where the first pixel's middle is 0.5.
        longest_diameter: between any two points of its pixels.
        width: along the rows, parallel to the transducer.
        height: along the columns.
        area: of its pixels, holes left out.
    """

    mask: np.ndarray
    outline: np.ndarray
    longest_diameter: float
    width: float
    height: float
    area: float

    @property
    def taller_than_wide(self) -> bool:
        """Whether it is higher than wide, in a picture whose upper side is the skin: BI-RADS' not parallel."""
        return self.height > self.width


def lesions(mask: np.ndarray, mm_per_pixel: tuple[float, float] | None = None) -> list[Lesion]:
    """Measure each part of a mask, the largest first.

    Args:
        mask: (rows, columns), lesion above 0.
        mm_per_pixel: along x and y; without it the lengths are in pixels.
    """
    step = np.array(mm_per_pixel or (1.0, 1.0))
    _, parts, stats, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    order = sorted(range(1, len(stats)), key=lambda n: -stats[n, cv2.CC_STAT_AREA])
    found = []
    for number in order:
        part = parts == number
        width, height, area = (int(stats[number, k]) for k in (cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_AREA))
        sizes = (width * step[0], height * step[1], area * step.prod())
        found.append(Lesion(part, outline(part), longest_diameter(part, step), *map(float, sizes)))
    return found


def outline(part: np.ndarray) -> np.ndarray:
    """The outer outline of one part, closed but for its first point; at most half a pixel off the border."""
    double = np.kron(part.astype(np.uint8), np.ones((2, 2), np.uint8))  # so that a single pixel has four corners
    (contour, *_), _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return (cv2.approxPolyDP(contour, 0.5, True)[:, 0] + 0.5) / 2


def longest_diameter(part: np.ndarray, step: np.ndarray) -> float:
    """The largest distance between two corners of pixels (Feret's), ``step`` being the sides of a pixel."""
    (contour, *_), _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    corners = [contour[:, 0] + offset for offset in ((0, 0), (0, 1), (1, 0), (1, 1))]
    hull = cv2.convexHull(np.concatenate(corners).astype(np.float32))[:, 0] * step
    return float(np.linalg.norm(hull[:, None] - hull[None], axis=2).max())
