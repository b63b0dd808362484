"""Images of the folder, decoded once while somebody works on them: to show one, predict it and check its label."""

from __future__ import annotations

import os
import threading
from functools import lru_cache

import numpy as np

from breast_ultrasound.images import open_image, to_contrasted_grey

IN_USE = 8  # images that are kept decoded
_lock = threading.Lock()  # of two that ask for the same image, the second one waits for the first


def read_grey(path: str) -> np.ndarray:
    """An image as model and page see it: uint8 (height, width).

    Raises:
        ValueError: it cannot be predicted, saying why.
        OSError: there is no such file.
    """
    with _lock:
        return _decoded(*_state(path))


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
def _decoded(path: str, changed_ns: int, size: int) -> np.ndarray:
    return to_contrasted_grey(open_image(path))


@lru_cache(100_000)
def _size(path: str, changed_ns: int, size: int) -> tuple[int, int]:
    height, width = _decoded(path, changed_ns, size).shape
    return width, height
