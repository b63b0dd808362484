"""DICOM in: true colours of every encoding, regions that are checked, refusals by name, and the command as a whole."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.fileset import FileSet
from tools.dicom_files import BROKEN, ENCODINGS, picture, region, save, ultrasound
from tools.phantoms import write_phantom

from breast_ultrasound import Predictor
from breast_ultrasound.dicom import frame_numbers, list_dicom, open_dicom, read_header, tissue_region
from breast_ultrasound.images import image_problem, open_image, split_frame, to_grey
from conftest import ROOT, output_of, read_csv

PICTURE = picture()
CONFIGS = "['bundle/configs/inference.json','bundle/configs/inference_dicom.json']"
BOX = (30, 40)  # where the phantom lies in its picture, behind a banner


def expected(name):
    return to_grey(Image.fromarray(PICTURE)) if name.startswith("grey") else PICTURE


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_the_picture_in_its_colours(name, tmp_path):
    found = open_image(save(ENCODINGS[name](PICTURE), tmp_path / "x.dcm"))
    error = np.abs(np.asarray(found).astype(int) - expected(name))
    assert found.info["frames"] == (5 if name.startswith("cine") else 1)
    assert error.mean() < (0.8 if "JPEG" in name else 0.02), "middle frame of a cine"


def test_a_palette_whose_values_of_8_bits_fill_16_is_not_black(tmp_path):
    made = ENCODINGS["palette, uncompressed"](PICTURE)
    for name in ("Red", "Green", "Blue"):
        keyword = f"{name}PaletteColorLookupTableData"
        setattr(made, keyword, (np.frombuffer(made[keyword].value, np.uint16) // 257).tobytes())
    found = np.asarray(open_image(save(made, tmp_path / "x.dcm")))
    assert np.array_equal(found, open_image(save(ENCODINGS["palette, uncompressed"](PICTURE), tmp_path / "y.dcm")))


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("name", ["YBR_FULL_422, JPEG", "palette, RLE", "grey, JPEG Lossless", "cine, JPEG"])
def test_pictures_are_those_of_dcmtk(name, tmp_path):
    file = save(ENCODINGS[name](PICTURE), tmp_path / "x.dcm")
    frame = "3" if name.startswith("cine") else "1"
    output_of(["dcmj2pnm", "--write-png", "--frame", frame, file, tmp_path / "x.png"])
    error = np.abs(np.asarray(open_image(file)).astype(int) - np.asarray(Image.open(tmp_path / "x.png")))
    assert error.mean() < 1


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused_for_its_reason(name, tmp_path):
    make, reason = BROKEN[name]
    assert reason in image_problem(save(make(PICTURE), tmp_path / "x.dcm"))


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = save(ENCODINGS["YBR_FULL_422, JPEG"](PICTURE), tmp_path / "x.dcm").read_bytes()
    for length in (0, 100, 300, 900, len(whole) - 800):
        (tmp_path / "x.dcm").write_bytes(whole[:length])
        assert image_problem(tmp_path / "x.dcm"), length


def test_a_frame_is_named_behind_the_file_and_a_file_of_that_name_comes_first(tmp_path):
    file = save(ENCODINGS["cine, RLE"](PICTURE), tmp_path / "x.dcm")
    frames = [np.asarray(open_image(f"{file}#{n}")) for n in range(1, 6)]
    assert np.array_equal(frames[2], PICTURE) and np.array_equal(frames[3], np.roll(PICTURE, 9, axis=1))
    assert "frame 6 of 5" in image_problem(f"{file}#6")
    file.rename(tmp_path / "x.dcm#4")
    assert split_frame(tmp_path / "x.dcm#4") == (tmp_path / "x.dcm#4", None)


@pytest.mark.parametrize(
    "wanted, numbers",
    [("all", [1, 2, 3, 4, 5, 6]), ("middle", [3]), ("every4", [1, 5]), (2, [2]), ("6", [6])],
)
def test_frames_of_a_cine_are_chosen(wanted, numbers):
    assert frame_numbers(6, wanted) == numbers and frame_numbers(1, wanted) == [1]
    with pytest.raises(ValueError, match="frame 9 of 6"):
        frame_numbers(6, 9)


INSIDE = (20, 10, 100, 90)


@pytest.mark.parametrize(
    "attributes, box, step, doubt",
    [
        ({}, None, None, "tells no length"),
        ({"PixelSpacing": [0.2, 0.21]}, None, (0.21, 0.2), ""),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE, (0.1, 0.11))]}, INSIDE, (0.1, 0.11), ""),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE, (-0.1, 0.1))]}, INSIDE, (0.1, 0.1), ""),
        ({"SequenceOfUltrasoundRegions": [region((20, 10, 151, 90))]}, (20, 10, 150, 90), (0.1, 0.1), ""),
        ({"SequenceOfUltrasoundRegions": [region((20, 10, 153, 90))]}, None, None, "outside the picture"),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE, (2, 2))]}, INSIDE, None, "not plausible"),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE, (0.1, 0.2))]}, INSIDE, None, "not plausible"),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE, PhysicalUnitsXDirection=4)]}, INSIDE, None, "no length"),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE), region((0, 0, 9, 9))]}, INSIDE, (0.1, 0.1), ""),
        ({"SequenceOfUltrasoundRegions": [region(INSIDE, RegionSpatialFormat=5)]}, None, None, "tells no length"),
    ],
)
def test_millimetres_are_believed_where_the_region_fits_the_picture(attributes, box, step, doubt):
    found = tissue_region(ultrasound(PICTURE, **attributes))
    assert found.box == (box or (0, 0, 170, 120)) and doubt in found.doubt
    assert found.mm_per_pixel == (None if step is None else pytest.approx(step)) and bool(found.doubt) == (step is None)


@pytest.mark.parametrize("name, mode", [("examples_palette.dcm", "RGB"), ("examples_ybr_color.dcm", "RGB")])
def test_millimetres_of_real_pictures_that_were_changed_later_are_not_believed(name, mode):
    file = get_testdata_file(name, download=False)
    header = read_header(file)
    assert header.SequenceOfUltrasoundRegions and "outside the picture" in tissue_region(header).doubt
    assert open_dicom(file).size == (header.Columns, header.Rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of several series with what lies in real ones; `phantom` is the grey picture of its still, uint8."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "png").mkdir()
    write_phantom(folder / "png", "malignant", 1, 0)
    phantom = np.asarray(Image.open(next((folder / "png").rglob("malignant (1).png"))).convert("L"))
    rows, columns = phantom.shape
    whole = np.full((rows + 60, columns + 50, 3), 200, np.uint8)  # a banner that must not be seen
    whole[40 : 40 + rows, 30 : 30 + columns] = phantom[..., None]
    regions = [region((*BOX, columns, rows), (0.1, 0.12))]
    files = folder / "files"
    for series in ("1", "2"):
        (files / series).mkdir(parents=True)
    still = ultrasound(whole, "still", SequenceOfUltrasoundRegions=regions, PatientName="Petra")
    save(still, files / "1" / "still.dcm")
    save(ultrasound(whole, "twin", SequenceOfUltrasoundRegions=regions), files / "1" / "1.2.840.3")
    save(ultrasound(np.stack([whole[..., 0]] * 4), "cine", frames=4), files / "2" / "cine.dcm")
    save(BROKEN["truncated JPEG"][0](PICTURE), files / "2" / "cut.dcm")
    (files / "2" / "empty.dcm").touch()
    report = ultrasound(whole, "report", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
    save(report, files / "2" / "report.dcm")
    save(ultrasound(whole, "screen", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), files / "screen")
    (files / "notes.txt").write_text("no image")
    return files, phantom


def names_of(items, root):
    return [str(Path(item["image"]).relative_to(root)) for item in items]


def test_a_folder_with_several_series_gives_its_images_and_names_the_rest(study, caplog):
    files, _ = study
    with caplog.at_level("INFO"):
        items = names_of(list_dicom(str(files), frames="every2"), files)
    assert items == ["1/1.2.840.3", "1/still.dcm", "2/cine.dcm#1", "2/cine.dcm#3", "2/cut.dcm", "2/empty.dcm"]
    for told in ("1 Comprehensive SR Storage (report.dcm)", "Secondary Capture Image Storage (screen)", "1 other file"):
        assert told in caplog.text
    with pytest.raises(ValueError, match="would get the masks"):
        list_dicom(str(files), str(files))


def test_a_dicomdir_gives_the_files_that_it_names(study, tmp_path):
    files, phantom = study
    media = FileSet()
    for name in ("1/still.dcm", "2/cine.dcm", "1/1.2.840.3"):
        media.add(files / name)
    media.write(tmp_path / "media")
    listed = list_dicom(str(tmp_path / "media" / "DICOMDIR"))
    assert len(listed) == 3 and all(open_image(item["image"]) for item in listed)
    assert list_dicom(str(tmp_path / "media")) == sorted(listed, key=lambda item: item["image"])
    Path(split_frame(listed[0]["image"])[0]).unlink()
    again = list_dicom(str(tmp_path / "media" / "DICOMDIR"))
    assert len(again) == 3 and "No such file" in image_problem(again[0]["image"])


def test_a_dicomdir_on_a_disc_in_small_letters_gives_its_files_once_and_none_outside(study, tmp_path):
    files, _ = study
    media = FileSet()
    media.add(files / "1" / "still.dcm")
    media.write(tmp_path / "media")
    directory = dcmread(tmp_path / "media" / "DICOMDIR")
    records = [record for record in directory.DirectoryRecordSequence if "ReferencedFileID" in record]
    small = tmp_path / "small" / "/".join(records[0].ReferencedFileID).lower()
    small.parent.mkdir(parents=True)
    shutil.copy(files / "1" / "still.dcm", small)
    directory.DirectoryRecordSequence.append(records[0])
    directory.save_as(tmp_path / "small" / "dicomdir")
    assert list_dicom(str(tmp_path / "small" / "dicomdir")) == [{"image": str(small)}]
    for outside in (["..", "IMAGE"], [str(files / "screen")]):
        records[0]["ReferencedFileID"]._value = outside
        directory.save_as(tmp_path / "media" / "DICOMDIR")
        with pytest.raises(ValueError, match="names files outside its folder"):
            list_dicom(str(tmp_path / "media" / "DICOMDIR"))


def test_objects_of_one_uid_are_all_answered_and_told_and_endless_frames_are_refused_by_name(tmp_path, caplog):
    for name in ("a.dcm", "b.dcm"):
        save(ultrasound(PICTURE, "same"), tmp_path / name)
    save(BROKEN["frames without end"][0](PICTURE), tmp_path / "c.dcm")
    assert names_of(list_dicom(str(tmp_path), frames="all"), tmp_path) == ["a.dcm", "b.dcm", "c.dcm"]
    assert "1 UIDs stand in several files, such as a.dcm and b.dcm" in caplog.text


@pytest.fixture(scope="module")
def predicted(study, tmp_path_factory):
    """Output folder and log of the command on the study."""
    output = tmp_path_factory.mktemp("predicted")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", CONFIGS, "--bundle_root", "bundle"]
    where = ["--dataset_dir", study[0], "--output_dir", output, "--ckpt_dir", "bundle/models/small"]
    log = output_of([*command, *where, "--frames", "4"], cwd=ROOT)
    return output, log


def test_the_command_gives_masks_a_table_and_objects_and_names_what_it_cannot_read(study, predicted):
    (output, log), (rows, columns) = predicted, study[1].shape
    table = {row["filename"]: row for row in read_csv(output / "predictions.csv")}
    refused = {name: row["reason"] for name, row in table.items() if row["check"] == "refused"}
    assert sorted(refused) == ["2/cut.dcm", "2/empty.dcm"] and "cannot be decoded" in refused["2/cut.dcm"]
    assert [name for name in table if name not in refused] == ["1/1.2.840.3", "1/still.dcm", "2/cine.dcm#4"]
    for told in ("2/cut.dcm: no prediction, its pixels cannot be decoded", "2/empty.dcm: no prediction"):
        assert told in log
    assert "3 of 5 images" in log and "2 without prediction" in log
    assert "Phantom" not in log and "Petra" not in log, "no name of a patient"
    still = table["1/still.dcm"]
    assert still["unit"] == "mm" and float(still["mm_per_pixel_y"]) == pytest.approx(0.12)
    assert float(still["area"]) == pytest.approx(int(still["lesion_area_px"]) * 0.012, rel=1e-3)
    assert still["objects"].split() == ["still_seg.dcm", "still_sr.dcm", "still_sc.dcm"]
    answered = [row for row in table.values() if row["class"]]
    assert len({row["study_instance_uid"] for row in answered}) == 1 and refused.keys() & table.keys()
    for row in answered:
        assert float(row["suspicion"]) == pytest.approx(float(row["p_malignant"]), abs=1e-5)
        assert float(row["study_suspicion"]) == max(float(other["suspicion"]) for other in answered)
    assert {table[name]["study_suspicion"] for name in refused} == {""}
    cine = table["2/cine.dcm#4"]
    assert (cine["frame"], cine["unit"], cine["mm_per_pixel_x"]) == ("4", "px", "")
    mask = np.asarray(Image.open(output / "1" / "still_seg.png"))
    assert mask.shape == (rows + 60, columns + 50) and mask.any()
    inner = np.zeros_like(mask)
    inner[40 : 40 + rows, 30 : 30 + columns] = 1
    assert not mask[inner == 0].any(), "the banner is no lesion"
    stored = dcmread(output / "1" / "still_seg.dcm").pixel_array
    assert np.array_equal(stored > 0, mask > 0)
    names = {file.name for file in output.rglob("*.dcm")}
    assert {"1.2.840.3_seg.dcm", "cine_frame4_sr.dcm"} <= names and len(names) == 9


def test_python_gives_what_the_command_gives_and_the_banner_has_no_say(study, predicted):
    files, phantom = study
    predictor = Predictor(device="cpu", ckpt_dir=str(ROOT / "bundle/models/small"))
    found = [predictor(source) for source in (files / "1" / "still.dcm", dcmread(files / "1" / "still.dcm"))]
    (row,) = [row for row in read_csv(predicted[0] / "predictions.csv") if row["filename"] == "1/still.dcm"]
    alone = predictor(phantom)
    rows, columns = phantom.shape
    for prediction in found:
        assert prediction.class_name == row["class"] and int(prediction.mask.sum()) == int(row["lesion_area_px"])
        assert prediction.class_probabilities == pytest.approx(alone.class_probabilities)
        inner = prediction.lesion_probability[40 : 40 + rows, 30 : 30 + columns]
        assert np.array_equal(inner, alone.lesion_probability)
    with pytest.raises(ValueError, match="Secondary Capture Image Storage, no ultrasound image"):
        predictor(files / "screen")


def test_without_the_packages_one_line_names_the_remedy(study, tmp_path):
    blocked = "import runpy, sys; sys.modules['pydicom'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    command = [sys.executable, "-c", blocked, "run", "--config_file", CONFIGS, "--bundle_root", "bundle"]
    command += ["--dataset_dir", study[0], "--output_dir", tmp_path / "out"]
    told = output_of(command, code=1, cwd=ROOT)
    assert told.strip().splitlines()[-1].endswith("pip install 'breast-ultrasound[dicom]'")


def test_prepare_makes_images_and_a_table_that_name_no_patient(study, tmp_path):
    files, phantom = study
    output = tmp_path / "prepared"
    command = [sys.executable, "scripts/prepare.py", "--layout", "dicom", "--source", files, "--output_dir", output]
    told = output_of([*command, "--frames", "every3"], cwd=ROOT)
    assert "4 images, patients: 1: " in told and "cut.dcm: its pixels cannot be decoded" in told
    assert "2 images are whole" in told
    rows = read_csv(output / "table.csv")
    assert [row["frame"] for row in rows] == ["", "", "1", "4"] and {row["patient"] for row in rows} == {"P1"}
    assert rows[0]["device"] == "Phantom Scanner 1" and rows[0]["laterality"] == "L" and rows[0]["cropped"] == "yes"
    assert (float(rows[0]["mm_per_pixel_x"]), rows[2]["mm_per_pixel_x"]) == (pytest.approx(0.1), "")
    assert np.array_equal(np.asarray(Image.open(output / rows[0]["file"])), phantom)
    assert sorted(file.name for file in output.iterdir()) == ["images", "table.csv"]
    everything = b"".join(file.read_bytes() for file in output.rglob("*.*"))
    assert b"Petra" not in everything and b"still" not in everything and b"1.2.826" not in everything
    keys = read_csv(tmp_path / "prepared_key.csv")
    assert len(keys) == 6 and keys[1]["source"].endswith("still.dcm") and keys[1]["file"] == rows[1]["file"]
    assert "--layout dicom takes --source" in output_of([*command, "--folds", "3"], code=1, cwd=ROOT)
