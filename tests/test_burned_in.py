"""Burned-in text: a mask is suggested from a scanner's screens; what it shows white is black in what prepare writes."""

import io
import shutil
import sys

import cv2
import numpy as np
import pytest
from find_text import find_text
from label_server import serve_app
from PIL import Image
from preparation.burned_in import suggest
from prepare import prepare
from tools.dicom_files import region, save, ultrasound
from tools.phantoms import screen

from conftest import ROOT, output_of, read_csv

NUMBER = 24
MASK = "blank_640x480.png"
UNLABELLED = {"class_names": ["unlabelled", "other"], "without_lesions": ["unlabelled"], "testing_only": True}


@pytest.fixture(scope="module")
def screens():
    """What a scanner shows of 24 patients."""
    return [screen(number) for number in range(NUMBER)]


@pytest.fixture(scope="module")
def exported(screens, tmp_path_factory):
    """Folder of the screens as PNG. Read it only."""
    folder = tmp_path_factory.mktemp("exported")
    for number, found in enumerate(screens):
        Image.fromarray(found.image).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def blank(screens):
    """What is suggested of the screens, bool (rows, columns)."""
    return suggest([found.image for found in screens]).blank


def command(name, *options, code=0):
    return output_of([sys.executable, f"scripts/{name}.py", *options], code, cwd=ROOT)


def pixels(path):
    return np.asarray(Image.open(path).convert("L"))


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def drawn(folder, mask, name=MASK):
    """Folder with a mask."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(mask).save(folder / name)
    return folder


def test_the_command_covers_the_text_of_other_patients_and_no_tissue(exported, blank, tmp_path):
    source, masks = tmp_path / "source", tmp_path / "masks"
    shutil.copytree(exported, source)
    Image.new("L", (300, 200), 90).save(source / "other.png")
    (source / "broken.png").write_bytes(b"no image")
    before = contents(source)
    told = command("find_text", "--source", source, "--output_dir", masks)
    assert "% of its tissue, from 24 images; look at it" in told
    assert "300x200: no mask, 1 images, fewer than 20" in told and "broken.png: left out" in told
    assert [file.name for file in masks.iterdir()] == [MASK] and contents(source) == before
    found = pixels(masks / MASK) > 0
    assert np.array_equal(found, blank) and found.mean() < 0.4
    for number in range(NUMBER, NUMBER + 8):
        other = screen(number)
        seen = {kind: (~found & text).sum() / text.sum() for kind, text in other.texts.items()}
        assert seen.pop("remark") == 1, "within the tissue nothing that moves is found"
        assert max(seen.values()) == 0 and found[other.tissue].mean() < 0.005
    again = command("find_text", "--source", source, "--output_dir", masks, code=1)
    assert f"{MASK} exists and may be edited" in again and "Traceback" not in again


def altered(screens, how):
    """The screens as other scanners show and store them."""
    images = [found.image.copy() for found in screens]
    for number, image in enumerate(images):
        if how == "JPEG":
            image[:] = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0)
        if how == "dark text on a light bar":
            image[:64] = 200 - image[:64] * (200 / 255)
        if how == "now and then deeper" and number % 8 == 0:
            image[404:430, 100:532] = image[200:226, 100:532]
        if how == "a sign in the tissue":
            cv2.putText(image, "SCAN", (110, 110), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1)
    return images


@pytest.mark.parametrize("how", ["JPEG", "dark text on a light bar", "now and then deeper", "a sign in the tissue"])
def test_other_scanners_are_no_harder(how, screens):
    images = altered(screens, how)
    found, tissue = suggest(images), screens[0].tissue
    written = np.any([t for s in screens for kind, t in s.texts.items() if kind != "remark"], axis=0)
    assert found.blank[written].all()
    if how == "a sign in the tissue":
        assert found.blank[tissue & (np.min(images, axis=0) > 200)].all()
    else:
        assert found.blank[tissue].mean() < 0.005, "the rim of the body mark alone"
    assert not found.blank[410:430, 100:532].any(), "deeper tissue is tissue"


def test_a_mask_that_would_cover_tissue_is_not_written(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "source")
    with pytest.raises(ValueError, match="% of the tissue would be blanked, more than --most 0.01; draw the mask"):
        find_text(tmp_path / "source", tmp_path / "masks", most=0.01)
    with pytest.raises(ValueError, match="lies inside the source"):
        find_text(tmp_path / "source", tmp_path / "source" / "masks")
    with pytest.raises(ValueError, match="--fewest needs a whole number from 3 on"):
        find_text(tmp_path / "source", tmp_path / "masks", fewest=2)
    assert not (tmp_path / "masks").exists()


def test_copies_of_one_image_suggest_nothing(exported, tmp_path):
    (tmp_path / "source").mkdir()
    for number in range(20):
        shutil.copy(exported / "0.png", tmp_path / "source" / f"{number}.png")
    with pytest.raises(ValueError, match="640x480: no mask, no tissue that changes from image to image"):
        find_text(tmp_path / "source", tmp_path / "masks")


def test_devices_of_one_size_get_masks_of_their_own(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "made" / "images")
    lines = [f"images/{number}.png,{'Maker A/1' if number % 2 else 'Maker B'}" for number in range(NUMBER)]
    (tmp_path / "made" / "table.csv").write_text("\n".join(["file,device", *lines]) + "\n", encoding="utf-8")
    assert find_text(tmp_path / "made", tmp_path / "masks", fewest=12) == {"masks": 2, "without": 0}
    names = sorted(file.name for file in (tmp_path / "masks").iterdir())
    assert names == ["blank_640x480_Maker_A_1.png", "blank_640x480_Maker_B.png"]


def test_prepare_blanks_exactly_and_tells_which_sizes_have_no_mask_and_which_masks_no_image(screens, tmp_path):
    source, masks = tmp_path / "source", np.zeros((480, 640), bool)
    masks[:60], masks[200:230, 300:420] = True, True
    for name in ("benign", "malignant"):
        (source / name).mkdir(parents=True)
    lesion = np.zeros((480, 640), np.uint8)
    lesion[100:150, 120:200] = 255
    over = np.roll(lesion, (100, 200), axis=(0, 1))
    for number, found in enumerate(screens[:12]):
        folder = source / ("benign" if number % 2 else "malignant")
        Image.fromarray(found.image).save(folder / f"{number}.png")
        Image.fromarray(over if number == 3 else lesion).save(folder / f"{number}_mask.png")
    Image.fromarray(screens[12].image[:400]).save(source / "benign" / "12.png")
    Image.fromarray(lesion[:400]).save(source / "benign" / "12_mask.png")
    before = contents(source)
    folder = drawn(drawn(tmp_path / "masks", masks), masks[:300], "blank_640x300.png")
    told = command("prepare", "--source", source, "--output_dir", tmp_path / "out", "--blank", folder)
    assert f"Blanked by {MASK}: 12 images." in told and "blank_640x300.png fits no image" in told
    assert "1 images have no mask of their size, and still show what is written into them: 1 of 640x400." in told
    assert f"{MASK} blanks part of its lesion, edit it (1): benign/3.png" in told
    assert contents(source) == before
    for number, found in enumerate(screens[:12]):
        assert np.array_equal(pixels(tmp_path / "out" / "images" / f"{number}.png"), np.where(masks, 0, found.image))
    assert np.array_equal(pixels(tmp_path / "out" / "images" / "12.png"), screens[12].image[:400])
    assert np.array_equal(pixels(tmp_path / "out" / "labels" / "3.png"), over)


@pytest.fixture(scope="module")
def blanked(screens, blank, tmp_path_factory):
    """Folder that the two commands make of the screens as DICOM, one of which tells its region of tissue."""
    folder = tmp_path_factory.mktemp("dicom")
    (folder / "study").mkdir()
    for number, found in enumerate(screens):
        place = {"SequenceOfUltrasoundRegions": [region((100, 60, 432, 344))]} if number == 1 else {}
        save(ultrasound(found.image, f"{number:02}", **place), folder / "study" / f"{number:02}.dcm")
    command("find_text", "--source", folder / "study", "--output_dir", folder / "masks")
    assert np.array_equal(pixels(folder / "masks" / MASK) > 0, blank)
    options = ["--layout", "dicom", "--source", folder / "study", "--blank", folder / "masks"]
    told = command("prepare", *options, "--output_dir", folder / "out")
    assert f"Blanked by {MASK}: 24 images." in told and "are whole" not in told
    return folder


def test_dicom_is_blanked_before_it_is_cut(screens, blank, blanked):
    rows = read_csv(blanked / "out" / "table.csv")
    assert len(rows) == NUMBER and {row["blanked"] for row in rows} == {"yes"}
    for number, (row, found) in enumerate(zip(rows, screens)):
        expected = np.where(blank, 0, found.image)
        expected = expected[60:404, 100:532] if number == 1 else expected
        assert np.array_equal(pixels(blanked / "out" / row["file"]), expected)


def test_the_mask_of_a_device_goes_before_that_of_the_size(screens, blanked, tmp_path):
    own = np.zeros((480, 640), bool)
    own[:100] = True
    masks = drawn(drawn(tmp_path / "masks", ~own), own, "blank_640x480_Phantom_Scanner_1.png")
    prepare(blanked / "study", tmp_path / "out", layout="dicom", blank=masks)
    found = pixels(tmp_path / "out" / "images" / "image_0001.png")
    assert np.array_equal(found, np.where(own, 0, screens[0].image))


@pytest.mark.parametrize(
    "name, mask, message",
    [
        ("", None, "no such folder; scripts/find_text.py makes one"),
        ("mask.png", np.ones((480, 640), bool), "no blank_WIDTHxHEIGHT.png in it"),
        ("blank_all.png", np.ones((480, 640), bool), "call it blank_WIDTHxHEIGHT.png"),
        (MASK, np.ones((400, 640), bool), "it has 640x400 pixels, not those of its name"),
        (MASK, np.arange(480 * 640, dtype=np.uint8).reshape(480, 640), "several greys"),
        (MASK, np.ones((480, 640), bool), "blanks all of it; edit that mask"),
    ],
)
def test_masks_that_cannot_be_used_are_named(name, mask, message, exported, tmp_path):
    if name:
        drawn(tmp_path / "masks", mask, name)
    shutil.copytree(exported, tmp_path / "source" / "unlabelled")
    with pytest.raises((ValueError, OSError), match=message):
        prepare(tmp_path / "source", tmp_path / "out", **UNLABELLED, blank=tmp_path / "masks")
    assert not (tmp_path / "out").exists()


def test_pictures_without_dicom_and_without_labels_are_blanked_by_the_documented_options(
    exported, blank, screens, tmp_path
):
    shutil.copytree(exported, tmp_path / "source" / "unlabelled")
    prepare(tmp_path / "source", tmp_path / "out", **UNLABELLED, blank=drawn(tmp_path / "masks", blank))
    assert np.array_equal(pixels(tmp_path / "out" / "images" / "0.png"), np.where(blank, 0, screens[0].image))
    options = "--class_names \"['unlabelled', 'other']\" --without_lesions unlabelled --testing_only True"
    assert options in (ROOT / "docs" / "hospital.md").read_text(encoding="utf-8").replace("\n", " ")


@pytest.mark.slow
def test_the_annotation_page_shows_the_blanked_images(screens, blank, blanked, label_venv, tmp_path):
    shutil.copytree(blanked / "out" / "images", tmp_path / "studies")
    with serve_app(label_venv, tmp_path / "studies", ROOT / "bundle", tmp_path / "log") as server:
        for path in ("/annotate/api/image", "/datastore/image"):
            content = server.request("GET", path, params={"image": "image_0001"}).content
            assert np.array_equal(pixels(io.BytesIO(content)), np.where(blank, 0, screens[0].image)), path
