"""Predictions as DICOM objects: a segmentation, a structured report and a picture, which highdicom writes.

The same image and algorithm give the same bytes: UIDs follow from both, dates are the image's. The report follows
template TID 1500 (PS3.16), as IHE's profile AI Results asks; the picture is for viewers that show nothing else.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from monai.transforms import Transform
from PIL import Image, ImageDraw, ImageFont

from . import bundle_version
from .calibration import suspicion
from .dicom import MAKER, STILL, Region, laterality, middle, number_of_frames, read_header, tissue_region
from .files import output_stem, shown, write_whole
from .images import open_image, split_frame
from .measurements import Lesion, lesions

try:
    import highdicom as hd
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
    from pydicom import Sequence as Items
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid
    from pydicom.valuerep import DA, TM
except ImportError:
    raise ModuleNotFoundError("DICOM objects need highdicom: pip install 'breast-ultrasound[dicom]'") from None

logger = logging.getLogger(__name__)
# It warns of patients' names that have one part only, with the names.
warnings.filterwarnings("ignore", module="highdicom")
logging.getLogger("highdicom").setLevel(logging.ERROR)
WARNING = "RESEARCH USE ONLY"
SERIES_NUMBERS = {"seg": 901, "sr": 902, "sc": 903}  # behind the scanner's own
DESCRIPTIONS = {"seg": "AI lesion outline", "sr": "AI measurements", "sc": "AI outline, picture"}
UTF8 = "ISO_IR 192"
NO_DATE = "19000101"  # of an image without any date
# What highdicom reads of an image that need not have it
OPTIONAL = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")
OPTIONAL += ("StudyTime", "ReferringPhysicianName")
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
GEOMETRY = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames")
MOST = 2**31 - 1  # what an integer string holds
PIXELS = CodedConcept("{pixels}", "UCUM", "pixels")


class Algorithm(NamedTuple):
    """What made a prediction.

    Attributes:
        version: of the bundle.
        weights_sha256: in hexadecimal digits.
        parameters: by name, such as ``mask_threshold``.
    """

    version: str
    weights_sha256: str
    parameters: Mapping[str, object]

    def texts(self) -> list[str]:
        """The parameters as lines."""
        return [f"weights SHA-256 {self.weights_sha256}", *(f"{k} {v}" for k, v in self.parameters.items()), WARNING]


class Source(NamedTuple):
    """The frame that was predicted.

    Attributes:
        header: of its object, without pixels.
        frame: its number from 1; None of a still.
        region: where it shows tissue.
    """

    header: Dataset
    frame: int | None
    region: Region


def read_source(name: str) -> Source:
    """The frame that ``FILE`` or ``FILE#FRAME`` names, as ``dicom.open_dicom`` reads it.

    Raises:
        ValueError: its header names no study, series or object.
    """
    file, frame = split_frame(name)
    return source_of(read_header(file), frame)


def source_of(header: Dataset, frame: int | None = None) -> Source:
    """A frame of an object, the middle one where none is named.

    Args:
        header: of the object, without pixels.
        frame: its number, from 1.

    Raises:
        ValueError: the header names no study, series or object.
    """
    missing = [name for name in NEEDED if not header.get(name)]
    if missing:
        raise ValueError(f"its header lacks {missing[0]}, without which nothing can refer to it")
    frames = number_of_frames(header)
    return Source(header, (frame or middle(frames)) if frames > 1 else None, tissue_region(header))


class SaveDicomd(Transform):
    """Write an item's DICOM objects beside its mask, as ``STEM_seg.dcm``, ``STEM_sr.dcm`` and ``STEM_sc.dcm``.

    ``result`` gets the entries ``columns``: of the object and the largest lesion, whose lengths are in ``unit`` (mm
    where the header can be believed, else px), the probability of the suspicious classes (``suspicion``), which
    ``complete`` follows by the largest one of the study, and the names of the objects. An image whose header does not
    suffice for objects keeps its mask and its row; the log names it.

    Args:
        objects: which of ``seg``, ``sr`` and ``sc``.
        weights_sha256: of the network.
        parameters: of the prediction, by name, that the objects are to tell.
        suspicious_classes: whose probabilities add up to ``suspicion``.
    """

    columns = ("study_instance_uid", "sop_instance_uid", "frame", "mm_per_pixel_x", "mm_per_pixel_y", "lesions")
    columns += ("longest_diameter", "width", "height", "taller_than_wide", "area", "unit", "suspicion")
    columns += ("study_suspicion", "objects")

    def __init__(
        self,
        objects: Sequence[str],
        weights_sha256: str,
        parameters: Mapping[str, object],
        suspicious_classes: Sequence[str] = (),
    ) -> None:
        self.make = DicomObjects(Algorithm(bundle_version(), weights_sha256, parameters), objects)
        self.suspicious_classes = suspicious_classes

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entries added to its ``result``; ``pred`` is its mask (W, H)."""
        item = dict(data)
        if "class" not in item["result"]:  # refused
            return item
        name = item["image"].meta["filename_or_obj"]
        folder = Path(item["pred"].meta["saved_to"]).parent
        mask = np.asarray(item["pred"].cpu()).T > 0
        result, files = dict(item["result"]), []
        try:
            source = read_source(name)
            result |= _row(source, mask)
            scores = {entry["label"]: entry["score"] for entry in result["classification"]}
            if (together := suspicion(scores, self.suspicious_classes)) is not None:
                result["suspicion"] = together
            for kind, made in self.make(source, mask, result, lambda: open_image(name)).items():
                files.append(f"{output_stem(Path(name))}_{kind}.dcm")
                write_whole(folder / files[-1], lambda p, made=made: made.save_as(p, enforce_file_format=True))
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # highdicom raises all of these
            logger.error(f"{shown(name)}: no DICOM objects, {error}; the mask and the row are written")
        item["result"] = result | {"objects": " ".join(files)}
        return item

    @staticmethod
    def complete(rows: Sequence[dict]) -> None:
        """Fill in ``study_suspicion``, the largest of a study's images, where all rows of a table are there."""
        answered = [row for row in rows if row["suspicion"] not in ("", None)]
        largest: dict[str, float] = {}
        for row in answered:
            uid = row["study_instance_uid"]
            largest[uid] = max(largest.get(uid, 0.0), float(row["suspicion"]))
        for row in answered:
            row["study_suspicion"] = largest[row["study_instance_uid"]]


def _row(source: Source, mask: np.ndarray) -> dict:
    """The entries ``SaveDicomd.columns`` of an image, but for the objects."""
    step = source.region.mm_per_pixel
    found = lesions(mask, step)
    header = source.header
    row = {"study_instance_uid": str(header.StudyInstanceUID), "sop_instance_uid": str(header.SOPInstanceUID)}
    row |= {"frame": source.frame or "", "lesions": len(found)}
    row |= {"unit": "mm" if step else "px"}
    row |= {"mm_per_pixel_x": step[0], "mm_per_pixel_y": step[1]} if step else {}
    for lesion in found[:1]:
        row |= {k: getattr(lesion, k) for k in ("longest_diameter", "width", "height", "area")}
        row["taller_than_wide"] = "yes" if lesion.taller_than_wide else "no"
    return row


class DicomObjects:
    """Makes the objects of predictions.

    Args:
        algorithm: that made them.
        kinds: which of ``seg``, ``sr`` and ``sc`` (secondary capture).
    """

    def __init__(self, algorithm: Algorithm, kinds: Sequence[str] = tuple(SERIES_NUMBERS)) -> None:
        self.algorithm = algorithm
        self.kinds = list(kinds)

    def __call__(self, source: Source, mask: np.ndarray, result: Mapping, picture: Callable[[], Image.Image]) -> dict:
        """The objects of one image by kind; an image without an outline has no ``seg``.

        Args:
            source: the image.
            mask: bool (rows, columns).
            result: as ``transforms.ClassResultd`` and ``Disagreementd`` make it.
            picture: gives the image.
        """
        found = lesions(mask, source.region.mm_per_pixel)
        header = _plain_header(source.header)
        made = {}
        if "seg" in self.kinds and found:
            made["seg"] = self._segmentation(header, source, found)
        if "sr" in self.kinds:
            made["sr"] = self._report(header, source, found, result)
        if "sc" in self.kinds:
            made["sc"] = self._picture(header, source, mask, result, picture())
        letters = "".join(entry["label"] for entry in result["classification"])
        for kind, made_object in made.items():
            _settle(made_object, source, letters)
            made_object.SeriesDescription = f"{DESCRIPTIONS[kind]} - {WARNING}"
        return made

    def _identity(self, source: Source, kind: str) -> dict:
        """What each object says of itself and its maker."""
        header, maker = source.header, (kind, self.algorithm.version, *self.algorithm.texts())
        number = max(1, int(header.get("InstanceNumber") or 1))
        if source.frame:
            number = number * 10_000 + source.frame if number * 10_000 < MOST - source.frame else source.frame
        number = min(number, MOST)
        return {
            "series_instance_uid": generate_uid(entropy_srcs=[header.SeriesInstanceUID, *maker]),
            "series_number": SERIES_NUMBERS[kind],
            "sop_instance_uid": generate_uid(entropy_srcs=[header.SOPInstanceUID, str(source.frame), *maker]),
            "instance_number": number,
            "manufacturer": MAKER,
        }

    def _tracking(self, source: Source, number: int) -> dict[str, str]:
        """What a lesion is called in all objects."""
        seeds = [source.header.SOPInstanceUID, str(source.frame), *self.algorithm.texts(), str(number)]
        return {"uid": generate_uid(entropy_srcs=seeds), "identifier": f"AI lesion {number}"}

    def _segmentation(self, header: Dataset, source: Source, found: Sequence[Lesion]) -> Dataset:
        algorithm = hd.AlgorithmIdentificationSequence(
            name=MAKER, version=self.algorithm.version, family=codes.DCM.ArtificialIntelligence
        )
        descriptions = []
        for number in range(1, len(found) + 1):
            tracking = self._tracking(source, number)
            descriptions.append(
                hd.seg.SegmentDescription(
                    segment_number=number,
                    segment_label=tracking["identifier"],
                    segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                    segmented_property_type=codes.SCT.Lesion,
                    algorithm_type="AUTOMATIC",
                    algorithm_identification=algorithm,
                    anatomic_regions=[codes.SCT.Breast],
                    tracking_uid=tracking["uid"],
                    tracking_id=tracking["identifier"],
                )
            )
        made = hd.seg.Segmentation(
            source_images=[header],
            pixel_array=np.stack([lesion.mask for lesion in found], axis=-1)[None].astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            manufacturer_model_name=MAKER,
            software_versions=self.algorithm.version,
            device_serial_number=self.algorithm.weights_sha256[:16] or "0",
            content_label="AI_LESION",
            content_description="Research use only",
            **self._identity(source, "seg"),
        )
        made.ContentQualification = "RESEARCH"
        made.ContentCreatorName = None  # dcmqi: type 2
        made.PatientOrientation = None  # dciodvfy: type 2C, and it cannot be known
        shared = made.SharedFunctionalGroupsSequence[0]
        if "SegmentIdentificationSequence" in shared:  # where older programs do not look for it
            for frame in made.PerFrameFunctionalGroupsSequence:
                frame.SegmentIdentificationSequence = copy.deepcopy(shared.SegmentIdentificationSequence)
            del shared.SegmentIdentificationSequence
        return made

    def _context(self) -> hd.sr.ObservationContext:
        """Who observed: this bundle."""
        observer = hd.sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=generate_uid(entropy_srcs=self.algorithm.texts()),
                name=MAKER,
                manufacturer_name=MAKER,
                model_name=f"{MAKER} {self.algorithm.version}",
            ),
        )
        return hd.sr.ObservationContext(observer_device_context=observer)

    def _report(self, header: Dataset, source: Source, found: Sequence[Lesion], result: Mapping) -> Dataset:
        algorithm = hd.sr.AlgorithmIdentification(
            name=MAKER,
            version=self.algorithm.version,
            parameters=self.algorithm.texts(),
            family=codes.DCM.ArtificialIntelligence,
        )
        side = {"L": codes.SCT.Left, "R": codes.SCT.Right}.get(laterality(header))
        sites = [hd.sr.FindingSite(codes.SCT.Breast, laterality=side)]
        # Of the image, but told with its largest lesion: PixelMed's validator takes groups of one template alone.
        measured, stated = _probabilities(result), _statements(result)
        groups = []
        for number, lesion in enumerate(found, 1):
            taller = _yes_or_no("AI-TALLER", "Taller than wide", lesion.taller_than_wide)
            groups.append(
                hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                    tracking_identifier=hd.sr.TrackingIdentifier(**self._tracking(source, number)),
                    referenced_region=_region(lesion, header),
                    finding_type=codes.SCT.Lesion,
                    finding_category=codes.SCT.MorphologicallyAbnormalStructure,
                    algorithm_id=algorithm,
                    finding_sites=sites,
                    measurements=_sizes(lesion, source.region.mm_per_pixel is not None) + measured * (number == 1),
                    qualitative_evaluations=[taller] + stated * (number == 1),
                )
            )
        if not found:
            groups.append(
                hd.sr.MeasurementsAndQualitativeEvaluations(
                    tracking_identifier=hd.sr.TrackingIdentifier(self._tracking(source, 0)["uid"], "AI class"),
                    algorithm_id=algorithm,
                    finding_sites=sites,
                    source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(header)],
                    measurements=measured,
                    qualitative_evaluations=stated,
                )
            )
        content = hd.sr.MeasurementReport(
            observation_context=self._context(),
            procedure_reported=codes.SCT.UltrasonographyOfBreast,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
            referenced_images=[header],
        )
        made = hd.sr.ComprehensiveSR(
            evidence=[header],
            content=content[0],
            is_complete=True,
            is_final=False,
            is_verified=False,
            **self._identity(source, "sr"),
        )
        made.ContentQualification = "RESEARCH"
        return made

    def _picture(
        self, header: Dataset, source: Source, mask: np.ndarray, result: Mapping, image: Image.Image
    ) -> Dataset:
        whole = source.region.box == (0, 0, header.Columns, header.Rows)
        made = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=header,
            pixel_array=drawn(image, mask, result, source.region.box),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            **self._identity(source, "sc"),
        )
        made.PatientOrientation = None
        made.Laterality = laterality(header) or None
        if whole:  # with whatever the scanner wrote beside the tissue
            made.BurnedInAnnotation = "YES"
        made.DerivationDescription = f"Outline by {MAKER} {self.algorithm.version}, {WARNING.lower()}"
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        made.SourceImageSequence = Items([reference])
        return made


def _plain_header(header: Dataset) -> Dataset:
    """A copy as highdicom takes it: a still without geometry, with all attributes that need not be there."""
    plain = copy.deepcopy(header)
    plain.decode()
    plain.SpecificCharacterSet = UTF8  # highdicom takes none of several parts, as Japan and Korea have; see _settle
    for name in GEOMETRY:
        if name in plain:
            delattr(plain, name)
    for name in OPTIONAL:
        if name not in plain:
            setattr(plain, name, None)
    if plain.PatientSex not in ("M", "F", "O"):
        plain.PatientSex = None
    for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        setattr(plain, name, _valid(plain, name, kind))
    plain.SOPClassUID, plain.Modality = STILL, "US"
    return plain


def _valid(header: Dataset, name: str, kind: type[DA] | type[TM]) -> str | None:
    """A date or time of a header; None where it is none."""
    try:
        return header.get(name) if kind(header.get(name) or "") else None
    except (ValueError, TypeError):
        return None


def _settle(made: Dataset, source: Source, letters: str) -> None:
    """Give an object the image's letters, its date in place of now, and references to its true class and frame.

    Where `letters`, those of the classes, are not of ASCII, it stays in UTF-8, which holds them and the image's too.
    """
    header = source.header
    if not letters.isascii():
        made.SpecificCharacterSet = UTF8
    elif header.get("SpecificCharacterSet"):
        made.SpecificCharacterSet = header.SpecificCharacterSet
    else:
        del made.SpecificCharacterSet
    days = (("ContentDate", "ContentTime"), ("AcquisitionDate", "AcquisitionTime"), ("StudyDate", "StudyTime"))
    dated = ((_valid(header, d, DA), _valid(header, t, TM)) for d, t in days)
    day, time = next((pair for pair in dated if pair[0]), (NO_DATE, None))
    for date_name, time_name in (
        ("ContentDate", "ContentTime"),
        ("InstanceCreationDate", "InstanceCreationTime"),
        ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
    ):
        if date_name in made:
            setattr(made, date_name, day)
            setattr(made, time_name, time or "000000")
    for item in made.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    for item in (*made.get("DimensionOrganizationSequence", ()), *made.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = generate_uid(entropy_srcs=[made.SOPInstanceUID, "dimensions"])
    for item, frames in _references(made, True):
        if item.ReferencedSOPInstanceUID == header.SOPInstanceUID:
            item.ReferencedSOPClassUID = header.SOPClassUID
            if source.frame and frames:
                item.ReferencedFrameNumber = source.frame


def _references(dataset: Dataset, frames: bool) -> Iterator[tuple[Dataset, bool]]:
    """The items below a dataset that name another object, and whether they may name a frame of it."""
    for element in dataset:
        if element.VR == "SQ":
            inner = frames and element.keyword not in (
                "ReferencedSeriesSequence",
                "CurrentRequestedProcedureEvidenceSequence",
            )
            for item in element.value:
                if "ReferencedSOPInstanceUID" in item:
                    yield item, inner
                yield from _references(item, inner)


def _own(value: str, meaning: str) -> CodedConcept:
    """A code of this project's own, where no scheme has one that claims as little."""
    return CodedConcept(value, "99BREASTUS", meaning)


def _yes_or_no(value: str, meaning: str, answer: bool) -> hd.sr.QualitativeEvaluation:
    return hd.sr.QualitativeEvaluation(_own(value, meaning), codes.SCT.Yes if answer else codes.SCT.No)


def _statements(result: Mapping) -> list[hd.sr.QualitativeEvaluation]:
    """The class and what else is said of an image."""
    name = result["class"]
    value = {"benign": codes.SCT.Benign, "malignant": codes.SCT.Malignant}.get(name) or _own(f"CLASS-{name}"[:16], name)
    found = [
        hd.sr.QualitativeEvaluation(_own("AI-CLASS", "AI suggested class of the image (research use only)"), value)
    ]
    for key, meaning in (("suspicious", "Suspicious"), ("unsure", "Class unsure")):
        if key in result:
            found.append(_yes_or_no(f"AI-{key.upper()}"[:16], meaning, result[key]))
    found.append(_yes_or_no("AI-DISAGREE", "Outline and class disagree", bool(result.get("disagreement"))))
    return found


def _probabilities(result: Mapping) -> list[hd.sr.Measurement]:
    """The probability of each class, in percent."""
    found = []
    for number, entry in enumerate(result["classification"]):
        malignant = entry["label"] == "malignant"
        name = (
            codes.DCM.ProbabilityOfCancer if malignant else _own(f"AI-P-{number}", f"Probability of {entry['label']}")
        )
        percent = round(100 * entry["score"], 2)
        found.append(hd.sr.Measurement(name, percent, codes.UCUM.Percent))
    return found


def _sizes(lesion: Lesion, in_mm: bool) -> list[hd.sr.Measurement]:
    """The lengths and the area of a lesion, in millimetres where these can be believed, else in pixels."""
    length, square = (codes.UCUM.Millimeter, codes.UCUM.SquareMillimeter) if in_mm else (PIXELS, PIXELS)
    values = (
        (codes.SCT.LongAxis, lesion.longest_diameter, length),
        (codes.SCT.Width, lesion.width, length),
        (_own("AI-HEIGHT", "Height"), lesion.height, length),
        (codes.SCT.Area, lesion.area, square),
    )
    return [hd.sr.Measurement(name, round(value, 2), unit) for name, value, unit in values]


def _region(lesion: Lesion, header: Dataset) -> hd.sr.ImageRegion:
    """The outline of a lesion."""
    return hd.sr.ImageRegion(
        graphic_type="POLYLINE",
        graphic_data=np.concatenate([lesion.outline, lesion.outline[:1]]),
        source_image=hd.sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID),
    )


def drawn(image: Image.Image, mask: np.ndarray, result: Mapping, box: tuple[int, int, int, int]) -> np.ndarray:
    """What an image shows of tissue with the outline, and under it what it is; RGB uint8 (rows, columns, 3)."""
    left, top, width, height = box
    inner = np.s_[top : top + height, left : left + width]
    pixels = np.array(image.convert("RGB"))[inner].copy()
    contours, _ = cv2.findContours(mask[inner].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, contours, -1, (255, 220, 0), max(1, width // 400))
    probabilities = ", ".join(f"{entry['label']} {entry['score']:.0%}" for entry in result["classification"])
    lines = [f"{WARNING}, NOT A MEDICAL DEVICE", f"AI: {probabilities}"]
    lines += [] if mask.any() else ["AI: no outline"]
    font = ImageFont.load_default(max(8, min(18, width // 22)))
    step = int(font.size * 1.4)
    whole = Image.new("RGB", (width, height + step * len(lines) + 4))
    whole.paste(Image.fromarray(pixels))
    for number, line in enumerate(lines):
        ImageDraw.Draw(whole).text((4, height + step * number + 2), line, (255, 220, 0), font)
    return np.asarray(whole)
