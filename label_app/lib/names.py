"""Names that clients give: of labels' tags, and of image files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from breast_ultrasound.images import is_image_name, masks_among

from .errors import RequestError

TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
SUGGESTIONS = "original"  # MONAI Label's tag of the model's answers
LONGEST_NAME = 220  # bytes; a file system takes 255, and a file's name is longer while it is written


def check_tag(tag: object) -> None:
    """Refuse a label's tag that could lead out of its folder.

    Raises:
        RequestError: it has other signs than letters, digits, - and _.
    """
    if not isinstance(tag, str) or not TAG.fullmatch(tag):
        raise RequestError(400, f"tag {tag!r} is not valid; use letters, digits, - and _")


def check_suggestion_tag(tag: object) -> None:
    """``check_tag`` for the answers of a model.

    Raises:
        RequestError: the tag is not valid, or that of a person's labels, whose place the answers would take.
    """
    check_tag(tag)
    if tag == "final":
        raise RequestError(400, "label_tag final is for labels of a person; use original or another name")


def image_names(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of a folder's images, and of the masks among them that the bundle's inference leaves out as well, sorted.

    Hidden files are still being written, or of another system.
    """
    named = [name for name in sorted(os.listdir(folder)) if is_image_name(name) and not name.startswith(".")]
    files = [Path(name) for name in named if os.path.isfile(os.path.join(folder, name))]  # a pipe would never end
    masks = masks_among(files)
    return [str(file) for file in files if file not in masks], sorted(map(str, masks))


def name_problem(name: str) -> str:
    """Why a file's name cannot be used; empty where it can."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    if "\\" in name:  # parts folders in archives and datalists
        return "the name has a backslash"
    return f"the name has {size} bytes, more than {LONGEST_NAME}" if size > LONGEST_NAME else ""


def check_image_id(image_id: str, extension: str) -> None:
    """Refuse a new image's id, its file name without extension, that leads out of the folder or cannot be written.

    Raises:
        RequestError: saying so.
    """
    unusable = not image_id or image_id.startswith(".") or re.search(r"[/\\\0]", image_id)
    if unusable or name_problem(f"{image_id}{extension}"):
        raise RequestError(400, f"{image_id!r} is not a valid name for an image; use a plain file name")
