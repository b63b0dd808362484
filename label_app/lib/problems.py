"""What in the folder cannot be used, and why: a line for each file."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from breast_ultrasound.images import is_image_name

from .images import image_problem
from .names import image_names, name_problem

if TYPE_CHECKING:
    from .datastore import ImageDatastore


def problems(datastore: ImageDatastore, folder: str | Path) -> list[str]:
    """A line for each file that cannot be used: unreadable, of the same id as another, or no label of an image.

    Masks beside their images are counted in one line.

    Args:
        datastore: of the folder.
        folder: of the images, with ``labels`` in it.
    """
    found, masks = image_names(folder)
    lines = [f"{masks[0]}: mask of another image by its name; {len(masks)} such files"] if masks else []
    lines += [f"{name}: {problem}; rename the file" for name in found if (problem := name_problem(name))]
    files = [name for name in found if not name_problem(name)]
    unreadable = [(name, image_problem(os.path.join(folder, name))) for name in files]
    lines += [f"{name}: not a readable image ({problem})" for name, problem in unreadable if problem]
    for image_id, count in Counter(os.path.splitext(name)[0] for name in files).items():
        if count > 1:
            used = os.path.basename(datastore.get_image_uri(image_id))
            lines.append(f"{image_id}: several files of this name, only {used} is used")
    for file in sorted(Path(folder, "labels").glob("[!.]*/[!.]*")):
        if problem := label_problem(datastore, file):
            lines.append(f"{file.relative_to(folder)}: {problem}")
    return [line.encode("utf-8", "backslashreplace").decode("utf-8") for line in lines]


def label_problem(datastore: ImageDatastore, file: str | Path) -> str:
    """Why a label's file, which a person may have put there by hand, cannot be used; empty where it can."""
    image_id, extension = os.path.splitext(os.path.basename(file))
    if not is_image_name(file):
        return f"not an image ({extension}); send it with PUT /datastore/label, which makes a PNG of it"
    try:
        datastore.read_label(image_id, file)
    except Exception as error:  # whatever it is, the other labels go on
        return str(error) or type(error).__name__
    return ""
