"""DICOM out: sizes, objects in place and the same each time, and what other programs' readers and validators say."""

import json
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from pydicom import Dataset, dcmread
from tools.dicom_files import ENCODINGS, picture, region, save, ultrasound

from breast_ultrasound.dicom_results import WARNING, Algorithm, DicomObjects, SaveDicomd, read_source
from breast_ultrasound.images import open_image
from breast_ultrasound.measurements import lesions
from conftest import CLASS_NAMES, output_of

PICTURE = picture()
ALGORITHM = Algorithm("1.2.3", "ab" * 32, {"mask_threshold": 0.3})
MAKE = DicomObjects(ALGORITHM)
PIXELMED = Path("/usr/share/java/pixelmed.jar")  # of Debian's libpixelmed-java
RESULT = {
    "class": "malignant",
    "classification": [{"label": n, "score": p} for n, p in zip(CLASS_NAMES, (0.0625, 0.25, 0.6875))],
    "suspicious": True,
    "unsure": False,
    "disagreement": "",
}


def l_shape():
    """A mask that no turn or mirror maps onto itself."""
    mask = np.zeros(PICTURE.shape[:2], bool)
    mask[30:80, 60:70] = mask[70:80, 60:110] = True
    return mask


def objects(file, mask, make=MAKE, **result):
    """The objects of a file or a frame of it."""
    return make(read_source(str(file)), mask, RESULT | result, lambda: open_image(file))


def still(folder, name="still", **attributes):
    """A still of the picture, whose region leaves 10 pixels at each side."""
    regions = [region((10, 10, 150, 100), (0.1, 0.12))]
    attributes = {"SequenceOfUltrasoundRegions": regions} | attributes
    return save(ultrasound(PICTURE, name, **attributes), folder / f"{name}.dcm")


def groups(report):
    """The measurements of a report as {tracking identifier: {name: (value, unit)}}, and its codes likewise."""
    (measured,) = (i for i in report.ContentSequence if _name(i) == "Imaging Measurements")
    found = {}
    for group in measured.ContentSequence:
        values = {}
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                value = item.MeasuredValueSequence[0]
                values[_name(item)] = float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue
            elif item.ValueType == "CODE":
                values[_name(item)] = item.ConceptCodeSequence[0].CodeMeaning
            elif item.ValueType in ("TEXT", "SCOORD"):
                text = item.TextValue if item.ValueType == "TEXT" else list(item.GraphicData)
                values.setdefault(_name(item), []).append(text)
        found[values["Tracking Identifier"][0]] = values
    return found


def _name(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""


def test_sizes_of_drawn_lesions_are_exact():
    mask = np.zeros((80, 100), bool)
    mask[10:40, 20:30] = mask[30:40, 20:60] = True  # an L of 30 rows and 40 columns
    mask[70, 90] = True
    large, small = lesions(mask, (0.1, 0.2))
    assert (large.width, large.height, large.area) == pytest.approx((4.0, 6.0, (300 + 300) * 0.02))
    assert large.longest_diameter == pytest.approx(np.hypot(4.0, 6.0)) and large.taller_than_wide
    assert (small.width, small.height, small.area) == pytest.approx((0.1, 0.2, 0.02))
    assert not lesions(mask)[0].taller_than_wide, "in pixels it is wider"
    assert lesions(np.zeros((9, 9))) == []
    rows, columns = np.mgrid[:200, :300]
    ellipse = ((columns - 150) / 100) ** 2 + ((rows - 100) / 30) ** 2 <= 1
    (found,) = lesions(ellipse, (0.1, 0.1))
    assert found.longest_diameter == pytest.approx(20, abs=0.15) and found.width == pytest.approx(20.1)
    assert found.area == pytest.approx(np.pi * 10 * 3, rel=0.01)


def test_an_outline_lies_on_the_border_of_its_lesion():
    mask = l_shape()
    (found,) = lesions(mask)
    left, top = found.outline.min(axis=0)
    right, bottom = found.outline.max(axis=0)
    assert (left, top, right, bottom) == pytest.approx((60, 30, 110, 80), abs=0.5)
    x, y = found.outline.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(mask.sum(), rel=0.06)


def test_an_l_shaped_lesion_comes_back_in_place(tmp_path):
    made = objects(still(tmp_path), l_shape())
    segmentation = hd.seg.segread(save(made["seg"], tmp_path / "seg.dcm"))
    source = segmentation.get_source_image_uids()[0][2]
    stored = segmentation.get_pixels_by_source_instance(source_sop_instance_uids=[source], segment_numbers=[1])
    assert np.array_equal(stored[0, ..., 0] > 0, l_shape())
    assert source == dcmread(tmp_path / "still.dcm").SOPInstanceUID
    assert segmentation.SegmentSequence[0].SegmentAlgorithmName == "breast-ultrasound"
    lesion = groups(made["sr"])["AI lesion 1"]
    x, y = np.array(lesion["Image Region"][0]).reshape(-1, 2).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((60, 110, 30, 80), abs=0.5)
    assert (x[0], y[0]) == (x[-1], y[-1])
    capture = made["sc"].pixel_array
    drawn = (capture == (255, 220, 0)).all(axis=2)[:100]
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 69, 50, 99), "in the region's own pixels"
    assert capture.shape[1] == 150 and "BurnedInAnnotation" not in made["sc"]


def test_the_report_tells_class_sizes_and_what_made_them(tmp_path):
    report = hd.sr.srread(save(objects(still(tmp_path), l_shape())["sr"], tmp_path / "sr.dcm"))
    found = groups(report)
    whole = lesion = found["AI lesion 1"]
    assert whole["Probability of cancer"] == (68.75, "%") and whole["Probability of normal"] == (6.25, "%")
    assert whole["AI suggested class of the image (research use only)"] == "Malignant" and whole["Suspicious"] == "Yes"
    assert {"weights SHA-256 " + "ab" * 32, "mask_threshold 0.3", WARNING} <= set(whole["Algorithm Parameters"])
    assert (whole["Algorithm Name"], whole["Algorithm Version"]) == (["breast-ultrasound"], ["1.2.3"])
    assert lesion["Width"] == (5.0, "mm") and lesion["Height"] == (6.0, "mm") and lesion["Taller than wide"] == "Yes"
    assert lesion["Area"] == (pytest.approx(900 * 0.012), "mm2")
    assert lesion["Long axis"] == (pytest.approx(np.hypot(5, 6), abs=0.01), "mm")
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert WARNING in report.SeriesDescription and report.ContentQualification == "RESEARCH"


def test_sizes_are_in_pixels_where_the_region_cannot_be_believed(tmp_path):
    file = still(tmp_path, SequenceOfUltrasoundRegions=[region((0, 0, 400, 300))])
    lesion = groups(objects(file, l_shape())["sr"])["AI lesion 1"]
    assert lesion["Width"] == (50.0, "{pixels}") and lesion["Area"] == (900.0, "{pixels}")
    assert lesion["Taller than wide"] == "No"


def test_the_same_image_twice_gives_the_same_bytes_and_other_weights_other_objects(tmp_path):
    def stored(make):
        made = objects(still(tmp_path), l_shape(), make)
        return {kind: save(o, tmp_path / "x.dcm").read_bytes() for kind, o in made.items()}, made

    (first, made), (again, _) = stored(MAKE), stored(MAKE)
    assert first == again and set(first) == {"seg", "sr", "sc"}
    assert {o.ContentDate for k, o in made.items() if k != "sc"} == {"20240203"}
    _, others = stored(DicomObjects(ALGORITHM._replace(weights_sha256="cd" * 32)))
    for kind in made:
        assert made[kind].SOPInstanceUID != others[kind].SOPInstanceUID
        assert made[kind].SeriesInstanceUID != others[kind].SeriesInstanceUID
        assert made[kind].StudyInstanceUID == others[kind].StudyInstanceUID


def test_two_lesions_are_two_segments_and_two_groups_and_none_is_none(tmp_path):
    mask = l_shape()
    mask[20:26, 120:130] = True
    made = objects(still(tmp_path), mask)
    assert made["seg"].number_of_segments == 2
    found = groups(made["sr"])
    assert found["AI lesion 1"]["Area"][0] > found["AI lesion 2"]["Area"][0]
    assert "Probability of cancer" in found["AI lesion 1"] and "Probability of cancer" not in found["AI lesion 2"]
    tracked = [s.TrackingUID for s in made["seg"].SegmentSequence]
    assert all(uid in made["sr"].to_json() for uid in tracked)
    empty = objects(still(tmp_path), np.zeros_like(mask), **{"class": "normal"})
    assert set(empty) == {"sr", "sc"} and set(groups(empty["sr"])) == {"AI class"}
    assert groups(empty["sr"])["AI class"]["Probability of cancer"] == (68.75, "%")


@pytest.mark.parametrize("name", ["cine, JPEG", "RGB, retired class"])
def test_references_name_the_true_class_and_the_frame(name, tmp_path):
    file = save(ENCODINGS[name](PICTURE), tmp_path / "x.dcm")
    address = f"{file}#2" if "cine" in name else file
    for kind, made in objects(address, l_shape()).items():
        text = made.to_json_dict()
        references = list(_references(text, dcmread(file).SOPInstanceUID))
        assert references, kind
        assert {r["00081150"]["Value"][0] for r in references} == {str(dcmread(file).SOPClassUID)}
        frames = {r["00081160"]["Value"][0] for r in references if "00081160" in r}
        assert frames == ({2} if "cine" in name else set())


def _references(content, uid):
    """All items below one that name an object."""
    if isinstance(content, dict):
        if content.get("00081155", {}).get("Value") == [uid]:
            yield content
        content = list(content.values())
    for part in content if isinstance(content, list) else ():
        yield from _references(part, uid)


def test_headers_with_gaps_suffice_and_one_without_a_study_is_told(tmp_path):
    made = ultrasound(PICTURE, "poor")
    kept = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PixelData")
    for element in list(made):
        if element.tag.group != 0x28 and element.keyword not in kept:
            del made[element.tag]
    made.StudyDate, made.PatientSex = "2024.02.03", "X"
    made["StudyDate"]._value = "not a date"
    found = objects(save(made, tmp_path / "poor.dcm"), l_shape())
    assert set(found) == {"seg", "sr", "sc"}
    del made.StudyInstanceUID
    with pytest.raises(ValueError, match="lacks StudyInstanceUID"):
        read_source(str(save(made, tmp_path / "poorer.dcm")))


@pytest.mark.parametrize(
    "charset, name",
    [
        (None, "Phantom^Petra"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_keep_their_letters(charset, name, tmp_path):
    file = still(tmp_path, SpecificCharacterSet=charset, PatientName=name)
    kept = dcmread(file)["PatientName"].value.original_string
    for kind, made in objects(file, l_shape()).items():
        stored = dcmread(save(made, tmp_path / f"{kind}.dcm"))
        assert stored.PatientName == name and stored.PatientName.original_string == kept, kind
        assert stored.get("SpecificCharacterSet") == charset


@pytest.mark.parametrize("charset", [None, "ISO_IR 100"])
def test_classes_keep_their_letters_too(charset, tmp_path):
    classes = [{"label": "bösartig 悪性", "score": 0.9}, {"label": "gutartig", "score": 0.1}]
    file = still(tmp_path, SpecificCharacterSet=charset, PatientName="Phantom^Petra")
    made = objects(file, l_shape(), **{"class": "bösartig 悪性", "classification": classes})["sr"]
    stored = dcmread(save(made, tmp_path / "sr.dcm"))
    assert "bösartig 悪性" in str(stored) and stored.PatientName == "Phantom^Petra"


def test_numbers_and_dates_that_cannot_be_are_left_out(tmp_path):
    """A count of frames behind the largest number; a 99th of month 99."""
    made = ENCODINGS["cine, RLE"](PICTURE)
    made.InstanceNumber = 2**31 - 1
    made["StudyDate"]._value, made["StudyTime"]._value = "20249999", "999999"
    for kind, found in objects(f"{save(made, tmp_path / 'x.dcm')}#2", l_shape()).items():
        assert found.InstanceNumber == 2 and not found.StudyDate and not found.StudyTime, kind
        assert found.get("ContentDate", "19000101") == "19000101" and found.get("ContentTime", "000000") == "000000"


def test_an_image_that_nothing_can_refer_to_keeps_its_row_and_is_named(tmp_path, caplog):
    made = ultrasound(PICTURE, "lone")
    del made.StudyInstanceUID
    for file in (save(made, tmp_path / "lone.dcm"), still(tmp_path)):
        image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": str(file)})
        mask = MetaTensor(torch.from_numpy(l_shape().T), meta={"saved_to": str(tmp_path / "out" / "seg.png")})
        item = SaveDicomd(["seg"], "ab" * 32, {})({"image": image, "pred": mask, "result": RESULT})
        assert item["result"]["class"] == "malignant"
        assert item["result"]["objects"] == ("still_seg.dcm" if "still" in file.name else "")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["still_seg.dcm"]
    assert "lone.dcm: no DICOM objects, its header lacks StudyInstanceUID" in caplog.text


def test_of_a_cine_without_a_number_it_is_the_middle_frame(tmp_path):
    assert read_source(str(save(ENCODINGS["cine, RLE"](PICTURE), tmp_path / "x.dcm"))).frame == 3


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("name", ["still", "pixels", "normal", "cine", "retired"])
def test_validators_have_no_complaint(name, tmp_path):
    file = tmp_path / "x.dcm"
    if name == "cine":
        save(ENCODINGS["cine, JPEG"](PICTURE), file)
    elif name == "retired":
        save(ENCODINGS["RGB, retired class"](PICTURE), file)
    else:
        file = still(tmp_path, **({"SequenceOfUltrasoundRegions": []} if name == "pixels" else {}))
    mask = l_shape() * (name != "normal")
    made = objects(f"{file}#2" if name == "cine" else file, mask)
    for kind, written in made.items():
        path = save(written, tmp_path / f"{kind}.dcm")
        said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True).stderr
        assert not [line for line in said.splitlines() if line.startswith("Error")], said
    if shutil.which("dsrdump"):
        told = output_of(["dsrdump", tmp_path / "sr.dcm"])
        assert WARNING in told and not [line for line in told.splitlines() if line.startswith(("E:", "W:"))]
    output_of(["dcentvfy", file, *(tmp_path / f"{kind}.dcm" for kind in made)])


@pytest.mark.slow
@pytest.mark.skipif(not PIXELMED.is_file() or shutil.which("java") is None, reason="libpixelmed-java is not installed")
def test_pixelmed_objects_to_nothing_but_the_procedure(tmp_path):
    file = save(objects(still(tmp_path), l_shape())["sr"], tmp_path / "sr.dcm")
    flags = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
    said = output_of(["java", *flags, "-cp", PIXELMED, "com.pixelmed.validate.DicomSRValidator", file])
    assert "Found Root Template TID_1500" in said and "IOD validation complete" in said
    errors = [line for line in said.splitlines() if line.startswith("Error")]
    assert len(errors) == 1 and errors[0].endswith("not found in context group 100"), said


@pytest.mark.skipif(shutil.which("tid1500reader") is None, reason="dcmqi is not installed")
@pytest.mark.parametrize("lesions_drawn", [True, False])
def test_dcmqi_reads_the_measurements(lesions_drawn, tmp_path):
    file = save(objects(still(tmp_path), l_shape() * lesions_drawn)["sr"], tmp_path / "sr.dcm")
    output_of(["tid1500reader", "--inputDICOM", file, "--outputMetadata", tmp_path / "sr.json"])
    (group,) = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    values = {item["quantity"]["CodeMeaning"]: float(item["value"]) for item in group["measurementItems"]}
    assert values["Probability of cancer"] == 68.75
    assert not lesions_drawn or (values["Width"], values["Height"]) == (5.0, 6.0)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_the_validator_sees_an_object_without_its_segments(tmp_path):
    broken = objects(still(tmp_path), l_shape())["seg"]
    del broken.SegmentSequence
    path = tmp_path / "broken.dcm"
    Dataset.save_as(broken, path, enforce_file_format=True)
    assert "Error" in subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True).stderr


def test_the_picture_is_the_image_where_nothing_is_outlined(tmp_path):
    made = objects(still(tmp_path, SequenceOfUltrasoundRegions=[]), np.zeros_like(l_shape()))["sc"]
    assert made.BurnedInAnnotation == "YES", "the whole picture, with whatever the scanner wrote into it"
    assert np.array_equal(made.pixel_array[:120], np.asarray(Image.fromarray(PICTURE)))
