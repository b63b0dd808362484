"""show_predictions draws every picture of the table and names what it cannot draw."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

COLUMNS = ["filename", "class", "p_normal", "p_benign", "p_malignant", "lesion_area_px"]


@pytest.fixture
def folders(tmp_path):
    """Pictures of 40 x 60 pixels with predicted and true masks: one alone, two that share a stem."""
    for name in ("images", "labels", "pre dictions"):
        (tmp_path / name).mkdir()
    rows = []
    for file, mask_name in (("a.png", "a_seg.png"), ("b.png", "b.png_seg.png"), ("b.jpg", "b.jpg_seg.png")):
        Image.new("L", (60, 40), 90).save(tmp_path / "images" / file)
        for name, folder, left in ((mask_name, "pre dictions", 10), (file, "labels", 30)):
            mask = np.zeros((40, 60), np.uint8)
            mask[10:30, left : left + 20] = 255
            Image.fromarray(mask).save(tmp_path / folder / name)
        rows.append([file, "malignant", 0.1, 0.2, 0.7, 400])
    with open(tmp_path / "pre dictions" / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return tmp_path


def run(folders, *more):
    """Run the command in the repository's root."""
    command = [sys.executable, "scripts/show_predictions.py", "--predictions", str(folders / "pre dictions")]
    command += ["--images", str(folders / "images"), "--output", str(folders / "drawings"), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_outlines_stand_where_the_masks_are(folders):
    done = run(folders, "--labels", str(folders / "labels"))
    assert done.returncode == 0, done.stderr
    drawings = folders / "drawings"
    assert sorted(f.name for f in drawings.iterdir()) == ["a.png", "b.jpg.png", "b.png.png"]
    drawn = np.asarray(Image.open(drawings / "a.png").convert("RGB")).astype(int)
    assert drawn.shape[0] > 40 and drawn.shape[1] >= 60  # the strip of text stands below
    assert drawn[40:, 100:].max() > 100  # and reaches beyond a narrow picture
    assert tuple(drawn[20, 10]) == (213, 94, 0)  # left border of the predicted mask, Okabe and Ito's vermilion
    assert tuple(drawn[20, 49]) == (255, 255, 255)  # right border of the true mask
    assert tuple(drawn[20, 20]) == (90, 90, 90)  # the picture inside stays as it is


def test_pictures_are_read_and_named_as_by_the_inference(folders):
    (folders / "images" / "a.png").rename(folders / "images" / "a.png.jpg")  # its outputs are called a.png...
    deep = np.full((40, 60), 2000, np.uint16)
    deep[0, 0] = 4000
    Image.fromarray(deep).save(folders / "images" / "a.tif")  # ... and those of this one a...
    rows = [["a.png.jpg", "benign", 0, 1, 0, 400], ["a.tif", "other", 0, 1, 0, 400]]
    for row in rows:
        row[2:5] = [0.1, 0.8, 0.1]
    with open(folders / "pre dictions" / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*COLUMNS, "p_other"], *[[*row, 0.5] for row in rows]])
    (folders / "pre dictions" / "a_seg.png").rename(folders / "pre dictions" / "a.png_seg.png")
    Image.new("L", (60, 40)).save(folders / "pre dictions" / "a_seg.png")
    done = run(folders)
    assert done.returncode == 0, done.stderr
    assert sorted(f.name for f in (folders / "drawings").iterdir()) == ["a.png", "a.png.png"]
    grey = np.asarray(Image.open(folders / "drawings" / "a.png").convert("L"))
    assert abs(int(grey[20, 20]) - 128) <= 1  # 2000 of 4000


def test_what_cannot_be_drawn_is_named(folders):
    (folders / "images" / "a.png").write_bytes(b"no picture")
    (folders / "pre dictions" / "b.jpg_seg.png").unlink()
    done = run(folders)
    assert done.returncode == 0, done.stderr
    assert "a.png: left out" in done.stdout + done.stderr and "b.jpg: left out" in done.stdout + done.stderr
    assert [f.name for f in (folders / "drawings").iterdir()] == ["b.png.png"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--label", "x"], "unknown option --label; valid options: --predictions"),
        (["--predictions", "nowhere"], "predictions.csv does not exist; run the bundle's inference first"),
        (["--output="], "--output needs a folder"),
    ],
)
def test_wrong_options_end_with_one_line(folders, options, message):
    done = run(folders, *options)
    assert done.returncode != 0
    assert message in done.stderr.replace("\\", "/") and done.stderr.count("\n") == 1
    assert not (folders / "drawings").exists()
