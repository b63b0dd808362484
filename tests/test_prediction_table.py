"""The table of an inference: every image has a row or a reason, and a resumed run trusts no stale row."""

import csv
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from scripts.data import list_images
from scripts.handlers import PredictionTable

NAMES = ("normal", "benign", "malignant")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "=c.png", "d/a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 20)).save(path)
    return tmp_path


def table(folder, resume=False):
    images = list_images(str(folder / "images"), recursive=True)
    return PredictionTable(str(folder / "out"), NAMES, images, str(folder / "images"), resume=resume)


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
        image = MetaTensor(torch.ones(1), meta={"filename_or_obj": item["image"]})
        engine.state.batch = [{"image": image}]
        return [{"pred": pred, "result": result}]

    engine = Engine(step)
    items = made.to_do()[:only]
    made.attach(engine)
    runner = SimpleNamespace(data_loader=SimpleNamespace(dataset=items), run=lambda: engine.run(items))
    made.run(runner)
    return [item["image"].removeprefix(f"{made.root}/") for item in items]


def rows(folder):
    with open(folder / "out" / "predictions.csv", newline="") as file:
        return {row["filename"]: row for row in csv.DictReader(file)}


def test_every_image_has_a_row_or_a_reason(folder, caplog):
    with caplog.at_level("INFO"):
        predict(table(folder), bad=["b.png"])
    assert sorted(rows(folder)) == ["'=c.png", "a.png", "d/a.png"]  # a spreadsheet takes =c.png for a formula
    assert "images/b.png: no prediction, not an image" in caplog.text
    assert "3 of 4 images: masks and predictions.csv" in caplog.text and "1 without prediction" in caplog.text
    assert not list((folder / "out").glob(".*"))


def test_an_image_without_row_and_reason_is_an_error_and_no_table_is_written(folder):
    with pytest.raises(RuntimeError, match="3 of 4 images have no prediction, .*--resume True goes on"):
        predict(table(folder), only=1)
    assert not (folder / "out" / "predictions.csv").exists()
    assert len(predict(table(folder, resume=True))) == 3
    assert len(rows(folder)) == 4


def test_a_folder_of_which_nothing_can_be_read_is_an_error(folder):
    with pytest.raises(ValueError, match="none of 4 images can be read"):
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
