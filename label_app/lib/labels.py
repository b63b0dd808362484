"""Label files of any client as masks, masks as label files, and which class a label may have."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from PIL import Image, PngImagePlugin

from breast_ultrasound.files import write_whole
from breast_ultrasound.images import open_image, to_mask, two_values
from breast_ultrasound.transforms import disagreement

from .errors import RequestError

HEADER_BYTES = 2**20  # of a volume, extensions among them
ALMOST_ALL = 0.9  # a lesion of a larger fraction of its image is more often a mistake than a lesion
INFO = "label_info"  # PNG text entry: class and mask change together, or not at all


def read_mask(file: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read a label file of an image's size (width, height) as bool array (height, width).

    Volumes (NIfTI, NRRD) hold one slice, indexed (column, row, slice) as 3D Slicer writes them.

    Raises:
        RequestError: the file is no image and no volume of one slice, of another size, or no mask by the bundle's
            ``to_mask``. A volume's size is that in its header; nothing larger than the image is unpacked.
    """
    name = str(file).lower()
    try:
        if name.endswith((".nii.gz", ".nii")):
            values = read_nifti(file, size)
        elif name.endswith(".nrrd"):
            values = read_nrrd(file, size)
        else:
            image = open_image(file)
            check_shape(image.size, size)
            return to_mask(image) > 0
        if values.dtype.kind not in "biuf":
            raise ValueError(f"values of type {values.dtype}")
        return two_values(values.reshape(values.shape[:2]).T) > 0
    except RequestError:
        raise
    except Exception as error:  # each library has its own
        problem = str(error) or type(error).__name__
        raise RequestError(422, f"the label cannot be read ({problem}); send PNG, .nii.gz or .nrrd") from error


def read_kept(file: str | Path, size: Callable[[], tuple[int, int]]) -> np.ndarray:
    """``read_mask`` of a label that the server keeps; what ``write_label`` wrote needs no look at the image.

    Args:
        file: of the label.
        size: gives width and height of its image.

    Raises:
        RequestError: as ``read_mask``.
    """
    try:
        with Image.open(file) as image:
            if image.mode == "L" and INFO in image.info:
                return np.asarray(image) > 127
    except Exception:  # whatever it is, read_mask says it better
        pass
    return read_mask(file, size())


def check_shape(shape: Sequence[int], size: tuple[int, int]) -> None:
    """Refuse a label whose header tells another size than the image has, before its pixels are read.

    Raises:
        RequestError: the shape (width, height, ...) is not one slice of the size (width, height).
    """
    shape = tuple(int(side) for side in shape)
    if len(shape) < 2 or any(side != 1 for side in shape[2:]):
        raise RequestError(422, f"the label has the shape {shape}; send one slice")
    if shape[:2] != size:
        found, own = f"{shape[0]} x {shape[1]}", f"{size[0]} x {size[1]}"
        raise RequestError(422, f"the label has {found} pixels, the image {own}; send its own size")


def read_nifti(file: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Values of a NIfTI file, of which no more is unpacked than a slice of that size (width, height) has.

    Raises:
        RequestError: the slice has another size.
    """
    most = HEADER_BYTES + 16 * size[0] * size[1]  # no type of value has more bytes
    with gzip.open(file) if str(file).lower().endswith(".gz") else open(file, "rb") as opened:
        content = opened.read(HEADER_BYTES)
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content), check=False)
        check_shape(header.get_data_shape(), size)
        content += opened.read(most - len(content))
    return np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)


def read_nrrd(file: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Values of an NRRD file, of which no more is unpacked than a slice of that size (width, height) has.

    Raises:
        RequestError: the slice has another size, or the pixels are in another file, which may be any of the server's.
    """
    with open(file, "rb") as opened:
        header = nrrd.read_header(opened)
        if "data file" in header or "datafile" in header:
            raise RequestError(422, "the label names another file as its data; send .nrrd with its pixels inside")
        check_shape(header["sizes"], size)
        content = opened.read()
    most = HEADER_BYTES + 16 * size[0] * size[1]
    if header["encoding"] in ("gzip", "gz"):
        content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, most)
    elif header["encoding"] in ("bzip2", "bz2"):
        content = bz2.BZ2Decompressor().decompress(content, most)
    packed = {"encoding": "raw"} if header["encoding"] not in ("ascii", "ASCII", "text", "txt") else {}
    return nrrd.read_data({**header, **packed}, io.BytesIO(content))


def write_label(file: Path, mask: np.ndarray, info: dict) -> None:
    """Write a mask (height, width) as PNG of 0 and 255 that carries its info, whole or not at all."""
    text = PngImagePlugin.PngInfo()
    text.add_text(INFO, json.dumps(info, default=str))
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    write_whole(file, lambda path: image.save(path, pnginfo=text), durable=True)


def read_info(file: Path) -> dict:
    """Info that ``write_label`` put into a PNG; empty for other files.

    Version 0.3.1 kept a warning for the client among it, which is left out.
    """
    try:
        with Image.open(file) as image:
            info = json.loads(image.info.get(INFO, "{}"))
    except Exception:  # what is no image, whatever Pillow says of it, has no info
        return {}
    return {name: value for name, value in info.items() if name != "warning"} if isinstance(info, dict) else {}


def check_class(info: dict, mask: np.ndarray, class_names: list[str], earlier: str | None = None) -> dict:
    """Return the info with its class as ``class_names`` spells it, or with the one given earlier where it has none.

    Upper and lower case are the same.

    Raises:
        RequestError: the class has no such name, or contradicts the mask.
    """
    given = " ".join(str(info.get("class") or "").split())
    info = {name: value for name, value in info.items() if name not in ("warning", "class")}
    if not (given or earlier):
        return info
    name = {known.casefold(): known for known in class_names}.get((given or earlier).casefold())
    if name is None:
        raise RequestError(422, f"class {given or earlier!r} is unknown; use {', '.join(class_names)}")
    if problem := disagreement(name, bool(mask.any()), class_names):
        remedy = "correct one of them" if given else "the class was given before: send the right one with the mask"
        raise RequestError(422, f"{problem}: class and mask contradict each other; {remedy}")
    return {key: value for key, value in info.items() if key != "class_unknown"} | {"class": name}


def warnings(info: dict, mask: np.ndarray, class_names: list[str]) -> list[str]:
    """What the client should hear about a label that was kept."""
    found = []
    if not info.get("class"):
        names = ", ".join(class_names)
        found.append(f'no class: the mask is learnt, the class is not; send params {{"class": ...}}: {names}')
    if mask.mean() > ALMOST_ALL:
        found.append(f"{mask.mean():.0%} of the image are lesion: is the mask inverted?")
    return found
