"""DICOM ultrasound: which objects of a folder hold an image, its true colours, and what one of its pixels measures.

Nothing here trusts a header that the picture contradicts. Names of patients are never read into a log or a table.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .images import check_pixels, is_dicom

try:
    import pydicom
    from pydicom.pixels import apply_color_lut, convert_color_space, pixel_array
    from pydicom.uid import UID
except ImportError:  # older pydicoms, which leave YBR as it is without a word, have no pydicom.pixels
    raise ModuleNotFoundError("DICOM needs pydicom 3 and decoders: pip install 'breast-ultrasound[dicom]'") from None

logger = logging.getLogger(__name__)
# Its warnings quote values of the header.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.ERROR)
MAKER = "breast-ultrasound"  # the manufacturer of this bundle's own objects
# Ultrasound and Ultrasound Multi-frame Image Storage, and the retired pair before them
STILL, CINE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
ULTRASOUND = {STILL: STILL, "1.2.840.10008.5.1.4.1.1.6": STILL, CINE: CINE, "1.2.840.10008.5.1.4.1.1.3": CINE}
DEFLATED = "1.2.840.10008.1.2.1.99"  # whose pixels pydicom finds in a whole object only
# The decoder of each transfer syntax. pydicom's own choice may end at one that decodes half a truncated JPEG silently.
DECODERS = {
    **dict.fromkeys(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED], ""),
    **dict.fromkeys(["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"], "pillow"),  # JPEG
    **dict.fromkeys(["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"], "gdcm"),  # JPEG Lossless
    **dict.fromkeys(["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"], "pyjpegls"),  # JPEG-LS
    **dict.fromkeys(["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"], "pillow"),  # JPEG 2000
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
}
# Of a region: 2D; tissue, colour flow; centimetres (PS3.3 C.8.5.5)
TWO_DIMENSIONAL, TISSUE, CENTIMETRES = 1, 1, 3
FORMATS = {2: "M-mode", 3: "spectral Doppler"}
DATA_TYPES = {2: "colour Doppler", 3: "PW Doppler", 4: "CW Doppler"}
MM_PER_PIXEL = (0.02, 1.0)  # what a breast scanner's picture can have
SQUARE = 1.25  # largest proportion of a pixel's sides
# Retired ones, such as HSV and CMYK, would be taken for RGB.
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
MOST_FRAMES = 100_000  # of a cine, an hour of it; a damaged number is larger


class Region(NamedTuple):
    """Where the picture shows tissue, and what a pixel measures there.

    Attributes:
        box: left, top, width and height, in pixels.
        mm_per_pixel: along x and y; None where the header does not say so, or cannot be believed.
        doubt: why there are no millimetres; empty where there are.
    """

    box: tuple[int, int, int, int]
    mm_per_pixel: tuple[float, float] | None
    doubt: str


def read_header(file: str | Path | BinaryIO) -> pydicom.Dataset:
    """The attributes of an object without its pixels.

    Args:
        file: its path, or an open one.

    Raises:
        ValueError: no DICOM, or damaged.
        OSError: the system cannot read it.
    """
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except OSError:
        raise
    except Exception as error:  # pydicom raises half a dozen types
        raise ValueError(f"no readable DICOM object ({_said(error)})") from None


def open_dicom(source: str | Path | pydicom.Dataset, frame: int | None = None) -> Image.Image:
    """Decode one frame of an ultrasound object, grey or RGB, whole.

    ``info["frames"]`` is the number of its frames, ``info["box"]`` the part that shows tissue (``Region.box``).

    Args:
        source: a file, or an object in memory.
        frame: its number, from 1; the middle one by default.

    Raises:
        ValueError: no ultrasound image, one that does not show one B-mode picture, or damaged. The caller names it.
        OSError: the system cannot read the file; the message names it.
    """
    try:
        return _opened(source, frame)
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged header holds in place of numbers
        raise ValueError(f"its header is damaged ({_said(error)})") from None


def _opened(source: str | Path | pydicom.Dataset, frame: int | None) -> Image.Image:
    header = source if isinstance(source, pydicom.Dataset) else read_header(source)
    check_header(header)
    frames = number_of_frames(header)
    frame = frame or middle(frames)
    if frame > frames:
        raise ValueError(f"frame {frame} of {frames}")
    region = tissue_region(header)
    image = Image.fromarray(_decoded(source, header, frame - 1))
    if not isinstance(source, pydicom.Dataset):
        image.filename = str(source)
    image.info |= {"frames": frames, "box": region.box}
    return image


def check_header(header: pydicom.Dataset) -> None:
    """Refuse what is no ultrasound image that can be decoded, before anything of it is.

    Raises:
        ValueError: saying why.
    """
    kind = str(header.get("SOPClassUID", ""))
    if kind not in ULTRASOUND:
        raise ValueError(f"{UID(kind).name or 'an object without a class'}, no ultrasound image")
    syntax = transfer_syntax(header)
    if syntax not in DECODERS:
        raise ValueError(f"encoded as {syntax.name}, which nothing here decodes; convert it, e.g. with gdcmconv --raw")
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PhotometricInterpretation"):
        if not header.get(name):
            raise ValueError(f"its header lacks {name}")
    check_pixels((header.Columns, header.Rows))
    samples, bits, photometric = header.SamplesPerPixel, header.BitsStored, header.PhotometricInterpretation
    if photometric not in PHOTOMETRIC:
        raise ValueError(f"colours as {photometric}, which nothing here converts")
    deep = bits != 8 and photometric != "PALETTE COLOR"
    shifted = header.get("HighBit") is not None and header.HighBit != bits - 1
    if header.get("PixelRepresentation") or deep or shifted or samples not in (1, 3):
        stored = f"{samples} x {bits} bits{', shifted' * shifted}"
        raise ValueError(f"pixels of {stored}; an ultrasound image has 8 bits without sign, grey or RGB")


def transfer_syntax(header: pydicom.Dataset) -> UID:
    """How an object's pixels are encoded."""
    meta = getattr(header, "file_meta", None)
    return UID(meta.get("TransferSyntaxUID", "") if meta is not None else "")


def number_of_frames(header: pydicom.Dataset) -> int:
    """The frames that a header declares, at least 1.

    Raises:
        ValueError, TypeError: no number that can be one.
    """
    frames = max(1, int(header.get("NumberOfFrames") or 1))
    if frames > MOST_FRAMES:
        raise ValueError(f"its header tells of {frames} frames")
    return frames


def middle(frames: int) -> int:
    """The number of the middle frame, from 1."""
    return (frames + 1) // 2


def frame_numbers(frames: int, wanted: str | int) -> list[int]:
    """The numbers of the frames that are wanted, from 1: ``all``, the ``middle`` one, ``every10`` or one by its number.

    Raises:
        ValueError: there is no such frame.
    """
    wanted = str(wanted)
    if frames == 1:
        return [1]
    if wanted == "middle":
        return [middle(frames)]
    if wanted.isdigit():
        if int(wanted) > frames:
            raise ValueError(f"frame {wanted} of {frames}")
        return [int(wanted)]
    return list(range(1, frames + 1, int(wanted.removeprefix("every")) if wanted != "all" else 1))


def _decoded(source: str | Path | pydicom.Dataset, header: pydicom.Dataset, index: int) -> np.ndarray:
    """One frame as uint8, (rows, columns) or (rows, columns, 3) in RGB."""
    plugin = DECODERS[transfer_syntax(header)]
    if transfer_syntax(header) == DEFLATED and not isinstance(source, pydicom.Dataset):
        source = pydicom.dcmread(source)

    def decode(raw: bool = False) -> np.ndarray:
        try:
            return pixel_array(source, index=index, raw=raw, decoding_plugin=plugin, allow_excess_frames=False)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # StopIteration of a missing frame among them
            raise ValueError(f"its pixels cannot be decoded ({_said(error)})") from None

    pixels = decode()
    if header.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, header)[..., :3]
        brightest = apply_color_lut(np.arange(2**16, dtype=np.uint16), header)[..., :3].max()
        # Some scanners fill a table of 16 bits with values of 8.
        return (colours // 257 if brightest > 255 else colours).astype(np.uint8)
    pixels = pixels.astype(np.uint8, copy=False)
    if pixels.ndim == 2:
        return 255 - pixels if header.PhotometricInterpretation == "MONOCHROME1" else pixels
    return true_colour(pixels, lambda: decode(raw=True))


def true_colour(pixels: np.ndarray, raw: Callable[[], np.ndarray]) -> np.ndarray:
    """RGB (rows, columns, 3) of a picture whose label may be wrong: every scan has black around or in it.

    Black of YCbCr that a label calls RGB has its second and third channel near 128; black of RGB that was converted as
    YCbCr is the green (0, 135, 0).

    Args:
        pixels: decoded as the label says.
        raw: decodes it as it is stored.
    """
    dark = pixels[pixels[..., 0] < 40]
    if len(dark) < 0.01 * pixels[..., 0].size:
        return pixels
    green, blue = np.median(dark[:, 1]), np.median(dark[:, 2])
    if abs(green - 128) < 8 and abs(blue - 128) < 8:
        return convert_color_space(pixels, "YBR_FULL", "RGB")
    if abs(green - 135) < 8 and blue < 8:
        return raw()
    return pixels


def tissue_region(header: pydicom.Dataset) -> Region:
    """The one region of B-mode tissue, checked against the picture; the whole picture where no region is told.

    Raises:
        ValueError: the header tells of colour flow, spectral Doppler, M-mode, or several pictures side by side.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    whole = (0, 0, columns, rows)
    regions = list(header.get("SequenceOfUltrasoundRegions") or [])
    for region in regions:
        kind = FORMATS.get(region.get("RegionSpatialFormat")) or DATA_TYPES.get(region.get("RegionDataType"))
        if kind:
            raise ValueError(f"shows {kind}, no B-mode image alone")
    tissue = [
        r for r in regions if (r.get("RegionSpatialFormat"), r.get("RegionDataType")) == (TWO_DIMENSIONAL, TISSUE)
    ]
    boxes = [_box(region) for region in tissue]
    if not tissue:
        return _by_spacing(header, whole)
    if None in boxes or any(not _inside(box, columns, rows) for box in boxes):
        return Region(whole, None, "its ultrasound region lies outside the picture, which was cropped or resized")
    large = [b for b in boxes if b[2] * b[3] > 0.25 * max(other[2] * other[3] for other in boxes)]
    if len(set(large)) > 1:
        raise ValueError(f"shows {len(set(large))} pictures side by side; export them one by one")
    left, top, width, height = large[0]
    box = (left, top, min(width, columns - left), min(height, rows - top))
    steps = {_step(region) for region, b in zip(tissue, boxes) if b == large[0]}
    if len(steps) > 1 or None in steps:
        return Region(box, None, "its ultrasound region tells no length of a pixel")
    return _plausible(box, steps.pop())


def _box(region: pydicom.Dataset) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of a region, whose corners both belong to it."""
    names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
    corners = [region.get(name) for name in names]
    if None in corners or corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None
    left, top, right, bottom = map(int, corners)
    return left, top, right - left + 1, bottom - top + 1


def _inside(box: tuple[int, int, int, int], columns: int, rows: int) -> bool:
    """Whether a box lies in the picture, but for the pixel that writers count from 1 or exclusively."""
    return box[0] + box[2] <= columns + 1 and box[1] + box[3] <= rows + 1


def _step(region: pydicom.Dataset) -> tuple[float, float] | None:
    """Millimetres of a pixel along x and y, as a region tells them."""
    if (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")) != (CENTIMETRES, CENTIMETRES):
        return None
    deltas = [region.get("PhysicalDeltaX"), region.get("PhysicalDeltaY")]
    return None if None in deltas else (10 * abs(float(deltas[0])), 10 * abs(float(deltas[1])))


def _by_spacing(header: pydicom.Dataset, box: tuple[int, int, int, int]) -> Region:
    """The whole picture with the spacing that some archives write in place of regions: rows first."""
    spacing = header.get("PixelSpacing")
    if spacing is None or len(spacing) != 2:
        return Region(box, None, "it tells no length of a pixel")
    return _plausible(box, (float(spacing[1]), float(spacing[0])))


def _plausible(box: tuple[int, int, int, int], step: tuple[float, float]) -> Region:
    """A region with its millimetres, where a breast scanner can have made such pixels."""
    usual = all(math.isfinite(s) and MM_PER_PIXEL[0] <= s <= MM_PER_PIXEL[1] for s in step)
    if usual and 1 / SQUARE <= step[0] / step[1] <= SQUARE:
        return Region(box, step, "")
    return Region(box, None, f"a pixel of {step[0]:g} x {step[1]:g} mm is not plausible")


def laterality(header: pydicom.Dataset) -> str:
    """``L``, ``R`` or empty; never guessed from what is written into the picture."""
    found = str(header.get("ImageLaterality") or header.get("Laterality") or "")
    return found if found in ("L", "R") else ""


def list_dicom(dataset_dir: str, output_dir: str | None = None, frames: str | int = "middle") -> list[dict[str, str]]:
    """``data.list_images`` for DICOM: an item for each wanted frame of each ultrasound object, as ``FILE#FRAME``.

    A folder is searched with all folders in it, whatever its files are called; of a ``DICOMDIR`` the files it names are
    taken. Objects that are no ultrasound images (reports, documents, screenshots, this bundle's own results) are left
    out, counted and named in the log.

    Args:
        dataset_dir: a folder, a DICOMDIR or one object; ``~`` is expanded.
        output_dir: where results go; not searched.
        frames: of a cine: ``all``, ``middle``, ``every10`` (any number) or the number of one.

    Raises:
        FileNotFoundError: no such folder or file, or no ultrasound image in it.
        ValueError: the results would go among the images.
    """
    from .data import check_places, walk  # which need PyTorch

    given, root, output = check_places(dataset_dir, output_dir)
    if given.is_dir():
        files, ignored = walk(root, output, True, is_dicom)
    else:
        files, ignored = directory_files(given) if given.name.upper() == "DICOMDIR" else [given], {}
    items, others = ultrasound_frames(sorted(files), frames)
    told = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in sorted(others.items())
    ]
    told += [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in sorted(ignored.items()) if n]
    if not items:
        raise FileNotFoundError(f"{given}: no ultrasound image{'; ignored: ' * bool(told)}{', '.join(told)}")
    if told:
        logger.info(f"{given}: {len(items)} images; ignored: {', '.join(told)}")
    return [{"image": name} for name in items]


def directory_files(directory: Path) -> list[Path]:
    """The files that a DICOMDIR names, whether or not they are there; in small letters where Linux mounts a disc so.

    Raises:
        ValueError: it is no DICOMDIR, or names files outside its folder.
    """
    records = read_header(directory).get("DirectoryRecordSequence") or []
    names = [record.ReferencedFileID for record in records if record.get("ReferencedFileID")]
    if not names:
        raise ValueError(f"{directory}: names no files; pass the folder it lies in")
    files = {}
    for name in names:
        parts = [name] if isinstance(name, str) else list(name)
        if any(part in ("", ".", "..") or "/" in part for part in parts):
            raise ValueError(f"{directory}: names files outside its folder; pass the folder it lies in")
        file = directory.parent.joinpath(*parts)
        small = directory.parent.joinpath(*(part.lower() for part in parts))
        files[small if small.exists() and not file.exists() else file] = None
    return list(files)


def ultrasound_frames(files: Sequence[Path], frames: str | int) -> tuple[list[str], dict[str, list[str]]]:
    """Sort files into frames of ultrasound objects, ``FILE`` or ``FILE#FRAME``, and names of others by their class.

    What cannot be read stays among the former, so that it is refused by name. The log tells of objects of one UID.
    """
    items: list[str] = []
    others: dict[str, list[str]] = defaultdict(list)
    uids: dict[str, list[str]] = defaultdict(list)
    for file in files:
        try:
            header = read_header(file)
            kind = str(header.get("SOPClassUID", ""))
            if kind in ULTRASOUND:
                uids[str(header.get("SOPInstanceUID", ""))].append(file.name)
                count = number_of_frames(header)
                items += [f"{file}#{n}" if count > 1 else str(file) for n in frame_numbers(count, frames)]
            else:
                others[UID(kind).name or "objects without a class"].append(file.name)
        except (ValueError, TypeError, OSError):
            items.append(str(file))
    same = [names for uid, names in uids.items() if uid and len(names) > 1]
    if same:
        logger.warning(
            f"{len(same)} UIDs stand in several files, such as {' and '.join(same[0][:2])}: each is answered, a PACS "
            "keeps one of the results"
        )
    return items, others


def _said(error: Exception) -> str:
    """The last line of what pydicom says, where the decoder's own reason stands."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
