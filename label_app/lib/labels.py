"""Label files of any client as masks, masks as label files, and whether class and mask agree."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from PIL import Image, PngImagePlugin

from scripts.files import write_whole
from scripts.transforms import to_grey

from .errors import RequestError

INFO = "label_info"  # PNG text entry: class and mask change together, or not at all


def read_mask(file: str | Path) -> np.ndarray:
    """Read a label file as bool array (height, width).

    Volumes (NIfTI, NRRD) hold one slice, indexed (column, row, slice) as 3D Slicer writes them. Values above 127 are
    lesion where there are any, values above 0 otherwise: masks come as 0 and 255 and as segment numbers.

    Raises:
        RequestError: the file is no picture and no volume of one slice, or mixes the two kinds of values.
    """
    name = str(file).lower()
    try:
        if name.endswith((".nii.gz", ".nii")):
            values = np.asarray(nibabel.load(file).dataobj)
        elif name.endswith(".nrrd"):
            values = nrrd.read(str(file))[0]
        else:
            with Image.open(file) as picture:
                values = np.asarray(to_grey(picture) if picture.mode != "P" else picture).T
    except Exception as error:  # each library has its own
        raise RequestError(422, f"the label cannot be read ({error}); send PNG, .nii.gz or .nrrd") from error
    if values.ndim < 2 or any(side != 1 for side in values.shape[2:]):
        raise RequestError(422, f"the label has the shape {values.shape}; send one slice")
    values = values.reshape(values.shape[:2]).T
    if values.max(initial=0) <= 127:
        return values > 0
    # White painted onto a mask of 0 and 1. Soft edges and JPEG bring ones too, but as many other greys.
    if (values == 1).sum() > ((values > 1) & (values < 255)).sum():
        raise RequestError(422, "the label mixes 1 with values above 127; send one value for the lesion")
    return values > 127


def write_label(file: Path, mask: np.ndarray, info: dict) -> None:
    """Write a mask (height, width) as PNG of 0 and 255 that carries its info, whole or not at all."""
    text = PngImagePlugin.PngInfo()
    text.add_text(INFO, json.dumps(info, default=str))
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    write_whole(file, lambda path: picture.save(path, pnginfo=text))


def read_info(file: Path) -> dict:
    """Info that ``write_label`` put into a PNG; empty for other files."""
    try:
        with Image.open(file) as picture:
            return json.loads(picture.info.get(INFO, "{}"))
    except (OSError, ValueError):
        return {}


def check_class(info: dict, mask: np.ndarray, class_names: list[str]) -> dict:
    """Return the info with its class in lower case, and with a warning where it has none.

    Raises:
        RequestError: the class has no such name, or contradicts the mask.
    """
    info = {name: value for name, value in info.items() if name != "warning"}
    name = str(info.get("class") or "").strip().lower()
    if not name:
        names = ", ".join(class_names)
        info.pop("class", None)
        return info | {
            "warning": f'no class: the mask is learnt, the class is not; send params {{"class": ...}}: {names}'
        }
    if name not in class_names:
        raise RequestError(422, f"class {name!r} is unknown; use {', '.join(class_names)}")
    if (name == "normal") == bool(mask.any()):
        found = "a lesion" if mask.any() else "no lesion"
        raise RequestError(422, f"class {name} and a mask with {found} contradict each other; correct one of them")
    return info | {"class": name}
