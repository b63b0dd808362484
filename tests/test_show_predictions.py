"""show_predictions draws every image of the table, names what it cannot draw, and lists the errors."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from show_predictions import show_predictions
from tools import drawings
from tools.grad_cam import Explainer, GradCAM, score

from conftest import ROOT

COLUMNS = ["filename", "class", "p_normal", "p_benign", "p_malignant", "lesion_area_px"]


@pytest.fixture
def folders(tmp_path):
    """Images of 40 x 60 pixels with predicted and true masks: one alone, two that share a stem."""
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
    command += ["--images", str(folders / "images"), "--output_dir", str(folders / "drawings"), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_outlines_stand_where_the_masks_are(folders):
    done = run(folders, "--labels", str(folders / "labels"))
    assert done.returncode == 0, done.stderr
    drawings = folders / "drawings"
    assert sorted(f.name for f in drawings.iterdir()) == [
        "a.png",
        "b.jpg.png",
        "b.png.png",
        "index.html",
        "plain",
        "run.json",
    ]
    assert "true in white" in (drawings / "index.html").read_text()
    drawn = np.asarray(Image.open(drawings / "a.png").convert("RGB")).astype(int)
    assert drawn.shape[0] > 40 and drawn.shape[1] >= 60  # the strip of text stands below
    assert drawn[40:, 100:].max() > 100  # and reaches beyond a narrow image
    assert tuple(drawn[20, 10]) == (213, 94, 0)  # left border of the predicted mask, Okabe and Ito's vermilion
    assert tuple(drawn[20, 49]) == (255, 255, 255)  # right border of the true mask
    assert tuple(drawn[20, 20]) == (90, 90, 90)  # the image inside stays as it is
    plain = np.asarray(Image.open(drawings / "plain" / "a.png").convert("RGB"))
    assert plain.shape == drawn.shape and (plain[:40, :60] == 90).all()


def test_images_are_read_and_named_as_by_the_inference(folders):
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
    assert sorted(f.name for f in (folders / "drawings").iterdir()) == [
        "a.png",
        "a.png.png",
        "index.html",
        "plain",
        "run.json",
    ]
    grey = np.asarray(Image.open(folders / "drawings" / "a.png").convert("L"))
    assert abs(int(grey[20, 20]) - 128) <= 1  # 2000 of 4000


def test_what_cannot_be_drawn_is_named(folders):
    (folders / "images" / "a.png").write_bytes(b"no image")
    (folders / "pre dictions" / "b.jpg_seg.png").unlink()
    done = run(folders)
    assert done.returncode == 0, done.stderr
    assert "a.png: left out" in done.stdout + done.stderr and "b.jpg: left out" in done.stdout + done.stderr
    assert sorted(f.name for f in (folders / "drawings").iterdir()) == ["b.png.png", "index.html", "plain", "run.json"]
    assert "a.png: left out" in (folders / "drawings" / "index.html").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": Path("nowhere")}, "nowhere: no such folder; give --labels"),
        ({"datalist": Path("nowhere")}, "nowhere: missing; give --datalist"),
        ({"grad_cam": True, "ckpt_dir": Path("nowhere")}, "nowhere/model.pt: missing; name weights"),
        ({"grad_cam": True, "imagesize": "64"}, "imagesize: no id of .*inference.json"),
        ({"output_dir": Path("images")}, "the drawings would replace what lies there"),
    ],
)
def test_wrong_values_are_refused_before_any_drawing(folders, options, message, monkeypatch):
    monkeypatch.chdir(folders)
    places = {"predictions": Path("pre dictions"), "images": Path("images"), "output_dir": Path("drawings")}
    before = (folders / "images" / "a.png").read_bytes()
    with pytest.raises((OSError, ValueError), match=message):
        show_predictions(**places | options)
    assert (folders / "images" / "a.png").read_bytes() == before and not (folders / "drawings").exists()


def rows_by_name(folders, **options):
    found, _ = drawings.read_rows(folders / "pre dictions", options.get("datalist"))
    return {row["filename"]: row for row in found}


def test_true_classes_come_from_the_datalist_and_errors_follow(folders):
    items = [{"image": "images/a.png", "class": 2}, {"image": "images\\b.png", "class": 1}, {"image": "images/b.jpg"}]
    (folders / "list.json").write_text(json.dumps({"training": items[:1], "fold_1": items[1:], "name": "x"}))
    rows = rows_by_name(folders, datalist=folders / "list.json")
    assert [rows[name]["true_class"] for name in ("a.png", "b.png", "b.jpg")] == ["malignant", "benign", ""]
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:30] = 255
    apart, empty = np.roll(mask, 25, axis=1), np.zeros_like(mask)
    for name, true, errors, dice in (
        ("a.png", mask, [], 1),
        ("a.png", apart, ["missed malignant", "missed lesion"], 0),
        ("b.png", np.roll(mask, 10, axis=1), ["wrong class"], 0.5),
        ("b.jpg", empty, ["false mask"], 0),
        ("b.jpg", None, [], None),
    ):
        row = dict(rows[name])
        drawings.measure(row, mask, true)
        assert (row["errors"], row.get("dice"), row["predicted_area_px"]) == (errors, dice, 400), name
    row = dict(rows["a.png"]) | {"class": "benign"}
    drawings.measure(row, mask, mask)
    assert row["errors"] == ["wrong class", "missed malignant"]


def test_an_evaluation_is_marked_by_the_limits_that_it_was_made_with(folders):
    place = folders / "pre dictions"
    (place / "predictions.csv").unlink()
    columns = ["filename", "true_class", "predicted_class", "p_normal", "p_benign", "p_malignant"]
    rows = [["a.png", "malignant", "benign", 0.2, 0.5, 0.3, 400, 0.25], ["b.png", "", "normal", 0.9, 0.1, 0, 0, 1]]
    with open(place / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*columns, "true_area_px", "dice"], *rows])
    (place / "metrics.json").write_text(json.dumps({"malignancy_threshold": 0.3, "unsure_below": 0.6}))
    found = rows_by_name(folders)
    assert [(r["suspicious"], r["unsure"], r["dice"]) for r in found.values()] == [
        ("yes", "yes", 0.25),
        ("no", "no", 1),
    ]
    (place / "metrics.json").write_text(json.dumps({"malignancy_threshold": None, "unsure_below": None}))
    assert {(row["suspicious"], row["unsure"]) for row in rows_by_name(folders).values()} == {("", "")}
    for file in place.glob("*_seg.png"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="without masks; run it with --save_masks True"):
        rows_by_name(folders)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folder with untrained weights of the bundle's network."""
    folder = tmp_path_factory.mktemp("weights")
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle/configs/inference.json"))
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    return folder


def test_maps_are_drawn_and_scored_on_request(folders, weights):
    for file in (folders / "images").iterdir():
        with Image.open(file) as image:
            image.paste(200, (20, 10, 40, 30))
            image.save(file)
    options = ["--labels", str(folders / "labels"), "--grad_cam", "True", "--probability_map", "True"]
    done = run(folders, *options, "--ckpt_dir", str(weights), "--image_size", "64")
    assert done.returncode == 0, done.stderr
    for name in ("grad_cam/b.jpg.jpg", "probability/a.jpg"):
        assert Image.open(folders / "drawings" / name).size[0] >= 60
        assert f'src="{name}"' in (folders / "drawings" / "index.html").read_text()
    with open(folders / "drawings" / "grad_cam.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((folders / "drawings" / "grad_cam.json").read_text())
    assert content["images"] == len(rows) == 3 and "not a medical device" in content["notice"]
    for name in ("pointing_game", "energy_inside", "chance"):
        assert content[name] == pytest.approx(np.mean([float(row[name]) for row in rows]), abs=1e-6)
    assert content["chance"] == pytest.approx(400 / 2400)
    assert "pointing game" in (folders / "drawings" / "index.html").read_text()


class Copy(torch.nn.Module):
    """A network that sees a class, and a lesion, where the image is bright."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)

    def forward(self, x):
        x = self.layer(x)
        return {"pred": torch.cat([-x, x], 1), "class_logits": x.mean((2, 3)).repeat(1, 3)}


def test_maps_lie_on_the_image_as_it_stands(weights, tmp_path):
    image = np.full((50, 90), 40, np.uint8)
    image[5:15, 60:80] = 240  # above, on the right
    Image.fromarray(image).save(tmp_path / "a.png")
    explainer = Explainer(weights, image_size=64)
    probability = explainer.lesion_probability(tmp_path / "a.png")
    explainer.grad_cam(tmp_path / "a.png", "benign")
    # MONAI's Grad-CAM switches between training and evaluation.
    assert np.array_equal(probability, explainer.lesion_probability(tmp_path / "a.png"))
    explainer.predictor.network = network = Copy()
    scores = torch.nn.Sequential(network)
    scores.forward = lambda x: network(x)["class_logits"]
    explainer.cam = GradCAM(scores.eval(), "0.layer", postprocessing=lambda x: x)
    bright = image > 100
    for heat in (explainer.grad_cam(tmp_path / "a.png", "benign"), explainer.lesion_probability(tmp_path / "a.png")):
        assert heat.shape == image.shape
        assert bright[np.unravel_index(heat.argmax(), heat.shape)]
        found = heat > heat.max() / 2
        assert (found & bright).sum() / (found | bright).sum() > 0.7  # what was padded is cut off again


def test_the_score_of_a_map_is_that_of_its_definition():
    mask = np.zeros((10, 20), bool)
    mask[2:4, 5:15] = True
    inside, outside = np.zeros((10, 20)), np.zeros((10, 20))
    inside[3, 6], outside[9, 0] = 1, 1
    assert score(inside, mask) == {"pointing_game": 1, "energy_inside": 1, "centre": 0, "chance": 0.1}
    assert score(inside + 3 * outside, mask) == {"pointing_game": 0, "energy_inside": 0.25, "centre": 0, "chance": 0.1}
    assert score(0 * inside, mask)["pointing_game"] == score(0 * inside, mask)["energy_inside"] == 0
    assert score(np.ones((10, 20)), mask)["energy_inside"] == pytest.approx(0.1)


def test_without_the_truth_the_page_begins_with_its_table_and_its_limits_are_those_of_the_run(folders):
    rows = [["a.png", "solid", 0.2, 0.8, 400, "no"], ["b.png", "<fluid>", 0.55, 0.45, 400, "yes"]]
    with open(folders / "pre dictions" / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["filename", "class", "p_<fluid>", "p_solid", "lesion_area_px", "unsure"], *rows])
    about = {"unsure_below": 0.6, "malignancy_threshold": None}
    (folders / "pre dictions" / "predictions.json").write_text(json.dumps(about))
    assert run(folders).returncode == 0
    html = (folders / "drawings" / "index.html").read_text()
    assert html.count("<h2") == 1 and "All images" in html and "<fluid>" not in html and "&lt;fluid&gt;" in html
    assert "largest probability below 0.600" in html and "no stored limit of malignancy" in html
    assert "Dice" not in html.split("<main>")[1].split("</main>")[0] and "benign" not in html
    (folders / "pre dictions" / "predictions.json").unlink()  # of an older version
    assert run(folders).returncode == 0
    html = (folders / "drawings" / "index.html").read_text()
    assert "no stored limit of doubt" in html and "scripts/calibrate.py" in html and "true in white" not in html
