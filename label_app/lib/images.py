"""Images of the folder, decoded once while somebody works on them: to show one, predict it and check its label."""

from __future__ import annotations

import os
import threading
from functools import lru_cache

import numpy as np
from PIL import Image

from breast_ultrasound.images import is_deep, open_image, to_contrasted_grey

IN_USE = 8  # images that are kept decoded
TINT = 8  # of 256; channels differ no more in a grey image that was stored in colours with loss
_lock = threading.Lock()  # of two that ask for the same image, the second one waits for the first


def read_grey(path: str) -> np.ndarray:
    """An image as model and page see it: uint8 (height, width).

    Raises:
        ValueError: it cannot be predicted, saying why.
        OSError: there is no such file.
    """
    with _lock:
        return _decoded(*_state(path))[0]


def read_shown(path: str) -> np.ndarray:
    """An image as the page shows it: in its colours, uint8 (height, width, 3), where it has any; else ``read_grey``.

    Raises:
        ValueError, OSError: as ``read_grey``.
    """
    with _lock:
        grey, colours = _decoded(*_state(path))
    return grey if colours is None else colours


def image_size(path: str) -> tuple[int, int]:
    """Width and height, in pixels.

    Raises:
        ValueError, OSError: as ``read_grey``.
    """
    with _lock:
        return _size(*_state(path))


def image_problem(path: str) -> str:
    """Why an image cannot be used; empty where it can."""
    try:
        image_size(path)
    except (ValueError, OSError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _state(path: str) -> tuple[str, int, int]:
    """A file as long as nobody changes it."""
    found = os.stat(path)
    return path, found.st_mtime_ns, found.st_size


@lru_cache(IN_USE)
def _decoded(path: str, changed_ns: int, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    image = open_image(path)
    return to_contrasted_grey(image), _colours(image)


def _colours(image: Image.Image) -> np.ndarray | None:
    """Red, green and blue of an image; None where it is grey."""
    if is_deep(image) or image.mode in ("1", "L", "LA"):
        return None
    colours = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))[..., :3]
    return colours if np.ptp(colours, axis=2).max() > TINT else None


@lru_cache(100_000)
def _size(path: str, changed_ns: int, size: int) -> tuple[int, int]:
    height, width = _decoded(path, changed_ns, size)[0].shape
    return width, height
