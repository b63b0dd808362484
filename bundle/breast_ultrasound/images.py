"""The rules for pixels: what an image is, its 8-bit grey, the two values of a mask; by NumPy and Pillow alone."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)
NORMAL = "normal"  # the class whose images show no lesion
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
FRAMES = re.compile(r"all|middle|every[1-9]\d*|[1-9]\d*")  # of a cine: which are wanted
DICOM_EXTENSIONS = (".dcm", ".dicom")  # others are known by their content
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # by content; EPS would start Ghostscript
MOST_PIXELS = 100_000_000  # a file of a few kilobytes can unpack to gigabytes
LONGEST = 1000  # times the other side; a line of pixels, resized to an area, grows without bound
FEW_GREYS = 16  # that are left of more than 8 bits
MASK_STEM = re.compile(r"(.+)_(?:mask(?:_\d+)?|seg)")
THUMB = 48  # pixels
# On BUSI, 183 pairs inside the published groups reach this Pearson correlation of thumbnails and no pair across groups
# does (highest 0.955). For left-right mirrored pairs the highest is 0.92, so looking for them costs no false join.
NEAR_DUPLICATE = 0.96
FEW_VALUES = 8  # a mask of no more values than this holds labels; soft edges and JPEG bring more


def is_image_name(name: str | Path) -> bool:
    """Whether a file's extension, in any case, is that of an image."""
    return Path(name).suffix.lower() in EXTENSIONS


def masks_among(files: Sequence[Path]) -> set[Path]:
    """Those of some image files that are by their names masks of others: ``x_mask.png``, ``x_mask_1.png`` and
    ``x_seg.png`` beside an ``x`` of any type, as BUSI and this bundle's own inference write them; in any case."""
    images = {(file.parent, file.stem.casefold()) for file in files}
    named = {file: MASK_STEM.fullmatch(file.stem.casefold()) for file in files}
    return {file for file, found in named.items() if found and (file.parent, found[1]) in images}


def is_dicom(file: str | Path) -> bool:
    """Whether a file is a DICOM object, by its extension or its content."""
    if Path(file).suffix.lower() in DICOM_EXTENSIONS:
        return True
    try:
        with open(file, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def split_frame(name: str | Path) -> tuple[str | Path, int | None]:
    """File and frame number, from 1, of ``FILE#FRAME``; no number where there is a file of the whole name."""
    file, _, number = str(name).rpartition("#")
    if file and number.isdecimal() and int(number) and not Path(name).exists():
        return file, int(number)
    return name, None


def open_image(file: str | Path) -> Image.Image:
    """Decode the first frame of an image file, turned as its EXIF orientation says: as a viewer shows it.

    ``filename`` is the file, ``info["frames"]`` the number of its frames. Of a DICOM object it is the frame that
    ``split_frame`` reads from its name, as ``dicom.open_dicom`` decodes it.

    Raises:
        ValueError: the file is damaged, of a format that is not in ``FORMATS``, of a size that ``check_pixels``
            refuses, which its header tells, or a TIFF whose numbers Pillow reads as others. The caller names the file.
        OSError: the system cannot read the file; the message names it.
    """
    path, frame = split_frame(file)
    if is_dicom(path):
        try:
            from .dicom import open_dicom
        except ImportError as error:
            raise ValueError(str(error)) from None
        return open_dicom(path, frame)
    try:
        # By name, Pillow 13 maps an uncompressed TIFF into memory and mixes up width and height of a turned one.
        with open(file, "rb") as stream, Image.open(stream, formats=FORMATS) as image:
            check_pixels(image.size)
            if image.format == "PNG":  # whose checksums decoding does not look at
                with Image.open(file, formats=FORMATS) as again:
                    again.verify()
            frames = getattr(image, "n_frames", 1)
            tags = dict(getattr(image, "tag_v2", {}))
            ImageOps.exif_transpose(image, in_place=True)  # decodes it
            _check_tiff(image, tags)
            image.filename, image.info["frames"] = str(file), frames
            return image
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MOST_PIXELS // 10**6} megapixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        reason = "empty file (0 bytes)" if not Path(file).stat().st_size else "not PNG, JPEG, BMP, TIFF, WebP or GIF"
        raise ValueError(reason) from None
    except Exception as error:  # Pillow raises half a dozen types, SyntaxError and struct.error among them
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise
        raise ValueError(str(error) or type(error).__name__) from None


def check_pixels(size: Sequence[int]) -> None:
    """Refuse a size (width, height, ...) above ``MOST_PIXELS``, or of sides too unlike, before it is decoded.

    Raises:
        ValueError: saying so.
    """
    if math.prod(size) > MOST_PIXELS:
        sides = " x ".join(map(str, size))
        raise ValueError(f"{sides} is more than {MOST_PIXELS // 10**6} megapixels; make it smaller")
    if max(size[:2]) > LONGEST * min(size[:2]) > 0:
        raise ValueError(f"{size[0]} x {size[1]}: one side is more than {LONGEST} times the other; cut it")


def _check_tiff(image: Image.Image, tags: dict[int, object]) -> None:
    """Refuse what Pillow gives as other numbers than the file's: 8 bits with a sign, large whole numbers, and white as
    zero where it turns 8 bits alone."""
    photometric, sample_format = tags.get(262), tags.get(339, (1,))
    if is_deep(image) and photometric == 0:
        raise ValueError("white is zero in this TIFF of more than 8 bits; save it as a grey PNG")
    if not is_deep(image) and 2 in sample_format:
        raise ValueError("numbers of 8 bits with a sign; save it as a grey PNG")
    if image.mode == "I" and sample_format[0] == 1 and image.getextrema()[0] < 0:
        raise ValueError("whole numbers above 2147483647; save it as a grey PNG of 8 or 16 bits")


def image_problem(file: str | Path) -> str:
    """Why an image cannot be predicted; empty where it can."""
    try:
        to_contrasted_grey(open_image(file))
    except (ValueError, OSError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def to_grey(image: Image.Image) -> np.ndarray:
    """The one rule for grey: an image of any mode as uint8 (height, width).

    Grey of 8 bits stays as it is. Colour is weighted as in ITU-R BT.601 (Pillow's ``L``), a palette by its colours,
    other colour spaces (CMYK, LAB, HSV, YCbCr) through Pillow's RGB; alpha is ignored. Integers of more bits and floats
    stay as they are where all of them are whole numbers from 0 to 255; otherwise the largest becomes 255 and 0 (or the
    smallest, where there are negative ones) becomes 0.

    Raises:
        ValueError: NaN or infinite values, or no pixel.
    """
    if min(image.size) == 0:
        raise ValueError("no pixel in it")
    if is_deep(image):
        grey = _deep_to_grey(np.asarray(image))
        if (left := len(np.unique(grey))) < FEW_GREYS:
            name = getattr(image, "filename", "") or "image"
            logger.warning(f"{name}: {left} greys left of more than 8 bits; scale its values to 0 to 255")
        return grey
    return np.asarray(_plain(image).convert("L"))


def check_contrast(grey: np.ndarray) -> np.ndarray:
    """Return the image as it is. Of one grey alone, standardising would leave the network scaled rounding noise.

    Raises:
        ValueError: every pixel has the same value.
    """
    if grey.min() == grey.max():
        raise ValueError("one grey alone, no image of anything")
    return grey


def to_contrasted_grey(image: Image.Image) -> np.ndarray:
    """``to_grey`` for what the network is to see.

    Raises:
        ValueError: as ``to_grey`` and ``check_contrast``.
    """
    return check_contrast(to_grey(image))


def array_to_grey(array: np.ndarray) -> np.ndarray:
    """``to_grey`` for an array of any number type: grey (rows, columns), or colour (rows, columns, channels) with one
    channel, red, green and blue, or these and alpha.

    Raises:
        ValueError: another shape or type, NaN or infinite values, no pixel, or more than ``MOST_PIXELS``.
    """
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ValueError(f"an array of shape {array.shape}; pass (rows, columns) or (rows, columns, 3 or 4)")
    if array.dtype.kind not in "buif":
        raise ValueError(f"an array of {array.dtype}; pass whole or floating-point numbers")
    check_pixels(array.shape[1::-1])
    if array.dtype in (np.uint8, bool) or not array.size:
        return to_grey(Image.fromarray(array))
    if array.ndim == 3:
        array = array[..., :3] @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    return _deep_to_grey(array)


def _deep_to_grey(values: np.ndarray) -> np.ndarray:
    """``to_grey`` for integers of more than 8 bits and for floats."""
    values = values.astype(np.float64)
    _check_finite(values)
    low, high = min(0.0, values.min()), values.max()
    if low < 0 or high > 255 or (values % 1).any():
        values = (values - low) * (255 / (high - low or 1))
    return values.round().astype(np.uint8)


def to_mask(image: Image.Image, note: Callable[[str], object] | None = None) -> np.ndarray:
    """The one rule for masks: an image of any mode as uint8 (height, width) of 0 and 255 (lesion).

    A mask has 0 and one other value, whichever (0/1, 0/255, 1 bit, a colour on black, a palette by its colours). What
    is transparent is background; where the rest has one colour, it is the lesion. Soft edges and the noise of JPEG
    around two values are cut in the middle.

    Args:
        image: as ``open_image`` gives it.
        note: is told where a mask was cut; the log by default.

    Raises:
        ValueError: several greys or colours, NaN or infinite values, or no pixel.
    """
    if min(image.size) == 0:
        raise ValueError("no pixel in it")
    note = note or (lambda text: logger.info(f"{getattr(image, 'filename', 'mask')}: {text}"))
    if is_deep(image):
        return two_values(np.asarray(image), note)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return two_values(np.asarray(image.convert("L")), note)
    colours = np.asarray(_plain(image).convert("RGBA"))
    opaque, values = colours[..., 3] > 127, colours[..., :3].max(axis=2)
    if not opaque.all():
        inside = colours[opaque, :3]
        if not len(inside) or not np.ptp(inside, axis=0).any():
            return opaque * np.uint8(255)
        values = values * opaque
    mask = two_values(values, note)
    lesion = colours[mask > 0, :3] / values[mask > 0, None]  # brightness apart, as soft edges vary it
    if len(lesion) and (np.abs(lesion - np.median(lesion, axis=0)).max(axis=1) > 0.5).mean() > 0.02:
        raise ValueError("several colours; paint the lesion in one colour on black")
    return mask


def two_values(values: np.ndarray, note: Callable[[str], object] = logger.info) -> np.ndarray:
    """``to_mask`` for numbers of any shape and kind: 0 and 255 in uint8.

    Raises:
        ValueError: several values that are no noise around two, or NaN or infinite ones.
    """
    _check_finite(values)
    found, counts = np.unique(values, return_counts=True)
    if len(found) == 1 or (len(found) == 2 and found[0] == 0):
        return np.where(values != 0, np.uint8(255), np.uint8(0))
    middle, top = found[-1] / 2, found[-1]
    if len(found) > FEW_VALUES and found[0] >= 0 and found[0] < 0.1 * top:
        low, high = (found[part][counts[part].argmax()] for part in (found <= middle, found > middle))
        between = counts[(found > low) & (found < high)]
        soft = counts[(found > 0.25 * top) & (found < 0.75 * top)].sum()
        near = low < 0.1 * top and high > 0.9 * top and soft < counts[found > middle].sum() / 2
        if near and between.max() < between.sum() / 2:
            cut = (low + high) / 2
            note(f"greys around {low:g} and {high:g}, cut at {cut:g}")
            return np.where(values > cut, np.uint8(255), np.uint8(0))
    some = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
    raise ValueError(f"several greys ({some}); paint the lesion in one value and the rest in 0")


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """What near-duplicates are looked for on: uint8 (48, 48) of uint8 (rows, columns)."""
    return np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX))


def near_duplicates(thumbs: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Return which of N images show the same scan as which of M others (the same images without them), upright or
    mirrored: bool (N, M) from thumbnails (N, h, w) and (M, h, w)."""
    one, two = (_standardised(found) for found in (thumbs, thumbs if others is None else others))
    mirrored = two[:, :, ::-1].reshape(len(two), -1)
    one, two = one.reshape(len(one), -1), two.reshape(len(two), -1)
    return np.maximum(one @ two.T, one @ mirrored.T) >= NEAR_DUPLICATE


def _standardised(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails (N, h, w) of mean 0 and length 1, float32, so that their products are Pearson correlations."""
    centred = thumbs - thumbs.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return centred / np.maximum(np.linalg.norm(centred, axis=(1, 2), keepdims=True), 1e-6)


def is_deep(image: Image.Image) -> bool:
    """Whether an image holds integers of more than 8 bits, or floats."""
    return image.mode.startswith(("I", "F"))


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite values; save it as a grey PNG")


def _plain(image: Image.Image) -> Image.Image:
    """An image of a mode that Pillow converts to grey and to RGBA."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
