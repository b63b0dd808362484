"""DICOM ultrasound made on the fly, for tests and the study: each encoding and photometric form that scanners write.

`ENCODINGS` are right, or labelled wrongly in ways that can be seen; `BROKEN` cannot be used, each for its reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from breast_ultrasound.dicom import CINE, STILL


def picture(rows: int = 120, columns: int = 170, shift: int = 0) -> np.ndarray:
    """RGB uint8 (rows, columns, 3) as a scanner makes it: black around a smooth grey sector, and a colour bar."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    grey = 110 + 70 * np.sin((x + shift) / 19) * np.cos(y / 13)
    inside = (abs(x - columns / 2) < columns * 0.36) & (abs(y - rows / 2) < rows * 0.4)
    image = np.repeat((grey * inside)[..., None], 3, axis=2)
    bar = np.linspace(0, 255, rows * 7 // 10)
    colours = np.stack([bar, 60 + 0 * bar, bar[::-1]], axis=1)
    image[rows // 7 : rows // 7 + len(bar), columns - 14 : columns - 4] = colours[:, None]
    return image.round().astype(np.uint8)


def region(box: Sequence[int], step_mm: Sequence[float] = (0.1, 0.1), **attributes: object) -> Dataset:
    """A region of B-mode tissue: left, top, width and height in pixels, and millimetres of a pixel along x and y."""
    left, top, width, height = box
    made = Dataset()
    made.RegionSpatialFormat = made.RegionDataType = 1
    made.RegionFlags = 0
    made.RegionLocationMinX0, made.RegionLocationMinY0 = left, top
    made.RegionLocationMaxX1, made.RegionLocationMaxY1 = left + width - 1, top + height - 1
    made.PhysicalUnitsXDirection = made.PhysicalUnitsYDirection = 3
    made.PhysicalDeltaX, made.PhysicalDeltaY = (step / 10 for step in step_mm)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def ultrasound(pixels: np.ndarray, name: str = "image", frames: int = 1, **attributes: object) -> Dataset:
    """An ultrasound object of grey (rows, columns) or colour (rows, columns, 3), uncompressed; frames come first.

    Its UIDs follow from the name.
    """
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = STILL if frames == 1 else CINE
    made.SOPInstanceUID = generate_uid(entropy_srcs=["image", name])
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(entropy_srcs=["study"]), generate_uid(
        entropy_srcs=["1"]
    )
    made.PatientName, made.PatientID, made.PatientSex = "Phantom^Petra", "P-1", "F"
    made.PatientBirthDate, made.ReferringPhysicianName, made.AccessionNumber, made.StudyID = "19700101", "", "", "1"
    made.StudyDate, made.StudyTime, made.Modality, made.Manufacturer = "20240203", "101112", "US", "Phantom"
    made.ManufacturerModelName = "Scanner 1"
    made.SeriesNumber = made.InstanceNumber = 1
    made.ImageType, made.PatientOrientation, made.Laterality = ["ORIGINAL", "PRIMARY"], None, "L"
    made.LossyImageCompression = "00"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    made.Rows, made.Columns = shape[:2]
    made.SamplesPerPixel = 3 if len(shape) == 3 else 1
    made.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        made.PlanarConfiguration = 0
    if frames > 1:
        made.NumberOfFrames, made.FrameTime, made.FrameIncrementPointer = frames, 40, 0x00181063
    made.PixelData = padded(pixels.tobytes())
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def save(made: Dataset, path: Path) -> Path:
    """Write an object to a file."""
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)
    return path


def wrap(image: str, target: str) -> Path:
    """Write an image file, grey and upright, as an ultrasound object that says nothing of a patient."""
    from breast_ultrasound.images import open_image, to_grey

    return save(ultrasound(to_grey(open_image(image)), Path(image).name), Path(target))


def padded(data: bytes) -> bytes:
    """Bytes, made even in number."""
    return data + b"\0" * (len(data) % 2)


def _encoded(made: Dataset, syntax: str, frames: Sequence[bytes], photometric: str | None = None) -> Dataset:
    """An object with compressed frames in place of its own."""
    made.PixelData = encapsulate([padded(frame) for frame in frames])
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = syntax
    made.PhotometricInterpretation = photometric or made.PhotometricInterpretation
    if photometric and photometric.startswith("YBR"):
        made.LossyImageCompression, made.LossyImageCompressionRatio = "01", 10
        made.LossyImageCompressionMethod = "ISO_10918_1"
    return made


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    """A JPEG by Pillow, whose colours are YCbCr 4:2:2 unless `keep_rgb` is given."""
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "JPEG", **{"quality": 95, "subsampling": 1, **options})
    return memory.getvalue()


def without_jfif(data: bytes) -> bytes:
    """A JPEG without the marker that says that its colours are YCbCr."""
    length = int.from_bytes(data[4:6], "big")
    return data[:2] + data[4 + length :]


def _jpeg2000(pixels: np.ndarray, **options: object) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "JPEG2000", no_jp2=True, **options)
    return memory.getvalue()


def _compressed(made: Dataset, syntax: str, **options: object) -> Dataset:
    """An object compressed by pydicom."""
    made.compress(syntax, generate_instance_uid=False, **options)
    return made


def _lossless_jpeg(made: Dataset) -> Dataset:
    """An object in JPEG Lossless, by GDCM."""
    import gdcm

    with TemporaryDirectory() as folder:
        source, target = str(save(made, Path(folder) / "a.dcm")), str(Path(folder) / "b.dcm")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(source)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        found = dcmread(target)
        found.PixelData  # read before the folder is gone
    assert found.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return found


def _as(made: Dataset, syntax: str) -> Dataset:
    made.file_meta.TransferSyntaxUID = syntax
    return made


def _palette(colour: np.ndarray) -> Dataset:
    """The picture in 256 colours, whose table has 16 bits."""
    image = Image.fromarray(colour).quantize(256)
    made = ultrasound(np.asarray(image), PhotometricInterpretation="PALETTE COLOR")
    table = np.array(image.getpalette()).reshape(-1, 3).astype(np.uint16) * 257
    table = np.pad(table, ((0, 256 - len(table)), (0, 0)))
    for number, name in enumerate(("Red", "Green", "Blue")):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", table[:, number].tobytes())
    return made


def _ybr_422(colour: np.ndarray) -> Dataset:
    """Uncompressed YBR_FULL_422: two pixels share their colour, as Y1 Y2 Cb Cr."""
    ybr = convert_color_space(colour, "RGB", "YBR_FULL")
    y, pairs = ybr[..., 0], ybr[:, ::2, 1:]
    values = np.stack([y[:, ::2], y[:, 1::2], pairs[..., 0], pairs[..., 1]], axis=-1)
    return ultrasound(colour, PhotometricInterpretation="YBR_FULL_422", PixelData=values.tobytes())


def _ybr(colour: np.ndarray) -> Dataset:
    ybr = convert_color_space(colour, "RGB", "YBR_FULL")
    return ultrasound(ybr, PhotometricInterpretation="YBR_FULL")


def _grey(colour: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)


def _planes(colour: np.ndarray) -> Dataset:
    return ultrasound(colour, PlanarConfiguration=1, PixelData=padded(np.moveaxis(colour, 2, 0).tobytes()))


def _clip(colour: np.ndarray) -> np.ndarray:
    """Five frames, the middle one being the picture."""
    return np.stack([np.roll(colour, 9 * k, axis=1) for k in (-2, -1, 0, 1, 2)])


# Each makes an object of a colour picture, or of its grey (those with `grey` in their name).
ENCODINGS: dict[str, Callable[[np.ndarray], Dataset]] = {
    "grey, uncompressed": lambda c: ultrasound(_grey(c)),
    "grey, MONOCHROME1": lambda c: ultrasound(255 - _grey(c), PhotometricInterpretation="MONOCHROME1"),
    "grey, implicit VR": lambda c: _as(ultrasound(_grey(c)), ImplicitVRLittleEndian),
    "grey, big endian": lambda c: _as(ultrasound(_grey(c)), ExplicitVRBigEndian),
    "grey, RLE": lambda c: _compressed(ultrasound(_grey(c)), RLELossless, encoding_plugin="pydicom"),
    "grey, JPEG": lambda c: _encoded(ultrasound(_grey(c)), JPEGBaseline8Bit, [jpeg(_grey(c))]),
    "grey, JPEG Extended": lambda c: _encoded(ultrasound(_grey(c)), JPEGExtended12Bit, [jpeg(_grey(c))]),
    "grey, JPEG Lossless": lambda c: _lossless_jpeg(ultrasound(_grey(c))),
    "grey, JPEG-LS": lambda c: _compressed(ultrasound(_grey(c)), JPEGLSLossless, encoding_plugin="pyjpegls"),
    "grey, JPEG 2000": lambda c: _encoded(ultrasound(_grey(c)), JPEG2000Lossless, [_jpeg2000(_grey(c))]),
    "RGB, uncompressed": ultrasound,
    "RGB, by planes": _planes,
    "RGB, deflated": lambda c: _as(ultrasound(c), DeflatedExplicitVRLittleEndian),
    "RGB, RLE": lambda c: _compressed(ultrasound(c), RLELossless, encoding_plugin="pydicom"),
    "RGB, JPEG": lambda c: _encoded(ultrasound(c), JPEGBaseline8Bit, [jpeg(c, keep_rgb=True, subsampling=0)], "RGB"),
    "RGB, JPEG Lossless": lambda c: _lossless_jpeg(ultrasound(c)),
    "RGB, JPEG-LS": lambda c: _compressed(ultrasound(c), JPEGLSLossless, encoding_plugin="pyjpegls"),
    "RGB, JPEG-LS near-lossless": lambda c: _compressed(
        ultrasound(c), JPEGLSNearLossless, encoding_plugin="pyjpegls", jls_error=2
    ),
    "RGB, retired class": lambda c: ultrasound(c, SOPClassUID="1.2.840.10008.5.1.4.1.1.6"),
    "palette, uncompressed": _palette,
    "palette, RLE": lambda c: _compressed(_palette(c), RLELossless, encoding_plugin="pydicom"),
    "YBR_FULL, uncompressed": _ybr,
    "YBR_FULL, RLE": lambda c: _compressed(_ybr(c), RLELossless, encoding_plugin="pydicom"),
    "YBR_FULL_422, uncompressed": _ybr_422,
    "YBR_FULL_422, JPEG": lambda c: _encoded(ultrasound(c), JPEGBaseline8Bit, [jpeg(c)], "YBR_FULL_422"),
    "YBR_FULL, JPEG": lambda c: _encoded(ultrasound(c), JPEGBaseline8Bit, [jpeg(c, subsampling=0)], "YBR_FULL"),
    "YBR_RCT, JPEG 2000": lambda c: _encoded(ultrasound(c), JPEG2000Lossless, [_jpeg2000(c, mct=1)], "YBR_RCT"),
    "YBR_ICT, JPEG 2000": lambda c: _encoded(
        ultrasound(c), JPEG2000, [_jpeg2000(c, mct=1, irreversible=True, quality_layers=[5])], "YBR_ICT"
    ),
    "cine, uncompressed": lambda c: ultrasound(_clip(c), frames=5),
    "cine, JPEG": lambda c: _encoded(
        ultrasound(_clip(c), frames=5), JPEGBaseline8Bit, [jpeg(f) for f in _clip(c)], "YBR_FULL_422"
    ),
    "cine, RLE": lambda c: _compressed(ultrasound(_clip(c), frames=5), RLELossless, encoding_plugin="pydicom"),
    "JPEG of YCbCr labelled RGB": lambda c: _encoded(ultrasound(c), JPEGBaseline8Bit, [jpeg(c)], "RGB"),
    "JPEG of YCbCr labelled RGB, no JFIF": lambda c: _encoded(
        ultrasound(c), JPEGBaseline8Bit, [without_jfif(jpeg(c))], "RGB"
    ),
    "JPEG of RGB labelled YBR_FULL": lambda c: _encoded(
        ultrasound(c), JPEGBaseline8Bit, [jpeg(c, keep_rgb=True, subsampling=0)], "YBR_FULL"
    ),
    "uncompressed YBR_FULL labelled RGB": lambda c: ultrasound(convert_color_space(c, "RGB", "YBR_FULL")),
    "uncompressed RGB labelled YBR_FULL": lambda c: ultrasound(c, PhotometricInterpretation="YBR_FULL"),
}
# What each lacks, as a pattern of its refusal
BROKEN: dict[str, tuple[Callable[[np.ndarray], Dataset], str]] = {
    "truncated JPEG": (
        lambda c: _encoded(ultrasound(c), JPEGBaseline8Bit, [jpeg(c)[: len(jpeg(c)) // 2]], "YBR_FULL_422"),
        "cannot be decoded",
    ),
    "truncated JPEG Lossless": (
        lambda c: _half(_lossless_jpeg(ultrasound(c))),
        "cannot be decoded",
    ),
    "truncated pixels": (lambda c: ultrasound(c, PixelData=c.tobytes()[:3000]), "cannot be decoded"),
    "truncated RLE": (
        lambda c: _half(_compressed(ultrasound(c), RLELossless, encoding_plugin="pydicom")),
        "cannot be decoded",
    ),
    "fewer frames than told": (
        lambda c: _encoded(ultrasound(_clip(c), frames=5), JPEGBaseline8Bit, [jpeg(c)], "YBR_FULL_422"),
        "cannot be decoded",
    ),
    "a box without numbers": (
        lambda c: ultrasound(c, SequenceOfUltrasoundRegions=[region((0, 0, 99, 99), RegionLocationMaxX1=[1, 2])]),
        "its header is damaged",
    ),
    "no rows": (lambda c: ultrasound(c, Rows=0), "lacks Rows"),
    "too large": (lambda c: ultrasound(c, Rows=60000, Columns=60000), "megapixels"),
    "16 bits": (lambda c: ultrasound(_grey(c), BitsAllocated=16, BitsStored=12, HighBit=11), "1 x 12 bits"),
    "RGB of 16 bits": (
        lambda c: ultrasound(
            c, BitsAllocated=16, BitsStored=16, HighBit=15, PixelData=(c.astype(np.uint16) * 200).tobytes()
        ),
        "3 x 16 bits",
    ),
    "8 bits in the upper half of 16": (
        lambda c: ultrasound(
            _grey(c), BitsAllocated=16, HighBit=15, PixelData=(_grey(c).astype(np.uint16) << 8).tobytes()
        ),
        "1 x 8 bits, shifted",
    ),
    "retired colours": (lambda c: ultrasound(c, PhotometricInterpretation="HSV"), "colours as HSV"),
    "frames without end": (
        lambda c: ultrasound(_clip(c), frames=5, NumberOfFrames=2**31 - 1),
        "tells of 2147483647 frames",
    ),
    "no pixels": (lambda c: _without_pixels(ultrasound(c)), "no pixel data"),
    "HTJ2K": (lambda c: _encoded(ultrasound(c), HTJ2K, [b"\xff\x4f"]), "nothing here decodes"),
    "spectral Doppler": (
        lambda c: ultrasound(c, SequenceOfUltrasoundRegions=[region((0, 0, 99, 99), RegionSpatialFormat=3)]),
        "spectral Doppler",
    ),
    "colour Doppler": (
        lambda c: ultrasound(
            c, SequenceOfUltrasoundRegions=[region((0, 0, 99, 99)), region((9, 9, 50, 50), RegionDataType=2)]
        ),
        "colour Doppler",
    ),
    "two pictures": (
        lambda c: ultrasound(c, SequenceOfUltrasoundRegions=[region((0, 0, 80, 99)), region((85, 0, 80, 99))]),
        "2 pictures side by side",
    ),
}


def _without_pixels(made: Dataset) -> Dataset:
    del made.PixelData
    return made


def _half(made: Dataset) -> Dataset:
    """An object whose only compressed frame ends in the middle."""
    from pydicom.encaps import generate_frames

    (frame,) = generate_frames(made.PixelData, number_of_frames=1)
    made.PixelData = encapsulate([padded(frame[: len(frame) // 2])])
    return made
