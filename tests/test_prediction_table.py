"""The table of an inference: every image has a row or a reason, and a resumed run trusts no stale row."""

import csv
import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from breast_ultrasound.data import list_images
from breast_ultrasound.inferers import AutocastInferer
from breast_ultrasound.predictions import PredictionTable

NAMES = ("normal", "benign", "malignant")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "=c.png", "d/a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 20)).save(path)
    return tmp_path


SOURCE = {"weights_sha256": "1", "unsure_below": 0.6, "component_threshold": 0.6}


def table(folder, resume=False, **source):
    images = list_images(str(folder / "images"), recursive=True)
    root = str(folder / "images")
    return PredictionTable(str(folder / "out"), NAMES, images, root, {**SOURCE, **source}, resume=resume)


def predict(made, only=None, bad=()):
    """Run a table on an engine that writes a mask of five pixels for each image."""

    def step(engine, item):
        if item["image"].endswith(tuple(bad)):
            made.refuse(item["image"], "not an image; replace the file")
            engine.state.batch, engine.state.output = [], []
            return []
        mask = made.folder / item["image"].removeprefix(f"{made.root}/")
        mask.parent.mkdir(exist_ok=True)
        Image.new("L", (30, 20)).save(mask)
        result = {"class": "benign", "classification": [{"label": name, "score": 0.25} for name in NAMES]}
        pred = MetaTensor(torch.eye(5), meta={"saved_to": str(mask)})
        image = MetaTensor(
            torch.ones(1),
            meta={"filename_or_obj": item["image"], "unseen_frames": int(item["image"].endswith("/a.png"))},
        )
        engine.state.batch = [{"image": image}]
        return [{"pred": pred, "result": result, "erased": item["image"].endswith("d/a.png")}]

    engine = Engine(step)
    items = made.to_do()[:only]
    made.attach(engine)
    runner = SimpleNamespace(data_loader=SimpleNamespace(dataset=items), run=lambda: engine.run(items))
    runner.inferer = AutocastInferer(amp=True)
    made.run(runner)
    return [item["image"].removeprefix(f"{made.root}/") for item in items]


def rows(folder):
    with open(folder / "out" / "predictions.csv", newline="") as file:
        return {row["filename"]: row for row in csv.DictReader(file)}


def test_every_image_has_a_row_or_a_reason(folder, caplog):
    with caplog.at_level("INFO"):
        predict(table(folder), bad=["b.png"])
    # A spreadsheet takes =c.png for a formula
    assert sorted(rows(folder)) == ["'=c.png", "a.png", "b.png", "d/a.png"]
    assert rows(folder)["b.png"].items() >= {"check": "refused", "reason": "not an image; replace the file"}.items()
    assert not any(rows(folder)["b.png"][name] for name in ("class", "p_benign", "lesion_area_px", "suspicious"))
    assert "images/b.png: no prediction, not an image" in caplog.text
    assert "3 of 4 images: masks and predictions.csv" in caplog.text and "1 without prediction" in caplog.text
    assert not list((folder / "out").glob(".*"))


def test_what_made_the_predictions_lies_beside_them_and_counts_what_a_resumed_run_has_in_all(folder):
    about = folder / "out" / "predictions.json"
    with pytest.raises(RuntimeError):
        predict(table(folder), only=3, bad=["b.png"])
    assert not about.exists()
    assert sorted(predict(table(folder, resume=True), bad=["b.png"])) == ["b.png", "d/a.png"]
    found = json.loads(about.read_text())
    assert (found["images"], found["refused"], found["erased_masks"]) == (3, 1, 1)
    assert found["of_several_frames"] == 2 and found["bfloat16"] is True
    assert found.items() >= SOURCE.items() and "not a medical device" in found["notice"]
    assert set(found["versions"]) == {"bundle", "monai", "torch", "numpy"}
    assert datetime.fromisoformat(found["finished"]).tzinfo
    # What was made otherwise is not gone on with
    with pytest.raises(RuntimeError):
        predict(table(folder), only=3)
    assert not about.exists()
    assert len(predict(table(folder, resume=True, component_threshold=0.7))) == 4
    assert json.loads(about.read_text())["component_threshold"] == 0.7


def test_an_image_without_row_and_reason_is_an_error_and_no_table_is_written(folder):
    with pytest.raises(RuntimeError, match="3 of 4 images have no prediction, .*--resume True goes on"):
        predict(table(folder), only=1)
    assert not (folder / "out" / "predictions.csv").exists()
    assert len(predict(table(folder, resume=True))) == 3
    assert len(rows(folder)) == 4


def test_a_folder_of_which_nothing_can_be_read_is_an_error(folder):
    with pytest.raises(ValueError, match="none of 4 images can be predicted"):
        predict(table(folder), bad=[".png"])


def test_a_resumed_run_takes_over_only_rows_of_the_same_file_with_a_mask(folder):
    with pytest.raises(RuntimeError):
        predict(table(folder), only=3)  # =c.png, a.png, b.png
    Image.new("L", (31, 20)).save(folder / "images" / "a.png")
    (folder / "out" / "b.png").unlink()
    assert sorted(predict(table(folder, resume=True))) == ["a.png", "b.png", "d/a.png"]


def test_masks_of_an_earlier_run_are_told(folder, caplog):
    predict(table(folder))
    (folder / "images" / "a.png").unlink()
    with caplog.at_level("WARNING"):
        predict(table(folder))
    assert "1 more images there are not of this run: a.png" in caplog.text
