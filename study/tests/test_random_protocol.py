"""The inflation of a split that parts scans, from two cross-validations."""

import json

import pytest

from breast_ultrasound.files import write_csv
from breast_ultrasound.metrics import AREAS
from conftest import read_csv
from study import random_protocol as experiment


def test_both_protocols_are_compared_on_the_images_that_both_have(tmp_path, monkeypatch):
    done, names = [], ("normal", "benign", "malignant")

    def run_command(title, script, *arguments):
        options = dict(zip(arguments[::2], arguments[1::2]))
        done.append((title, options["--epochs"]))
        rows = []
        for number in range(30 if title == "random" else 24):
            kind, sure = names[number % 3], 0.9 if title == "random" or number % 2 else 0.2
            overlap = 0 if kind == "normal" else 90 if title == "random" else 60 + number
            areas = (100 if overlap else 0, 0 if kind == "normal" else 100, overlap, 1000)
            p = {f"p_{name}": sure if name == kind else (1 - sure) / 2 for name in names}
            rows.append({"filename": f"{number}.png", "true_class": kind, **p, **dict(zip(AREAS, areas))})
        folder = tmp_path / "out" / title
        folder.mkdir(parents=True)
        write_csv(folder / "images.csv", rows[::-1], list(rows[0]))

    monkeypatch.setattr(experiment, "run_command", run_command)
    items = [{"image": f"images/{number}.png", "group": f"G{number // 2}"} for number in range(24)]
    lists = {"training": items[:10], "validation": items[10:12], "testing": items[12:]}
    (tmp_path / "datalist_fold_0.json").write_text(json.dumps(lists), encoding="utf-8")
    folds = {"clean": tmp_path, "random": tmp_path}
    experiment.random_protocol(folds, tmp_path / "out", tmp_path / "table.csv", draws=50, epochs=2)
    assert done == [("clean", "2"), ("random", "2")]
    rows = {row["figure"]: row for row in read_csv(tmp_path / "table.csv")}
    dice = rows["lesion_dice"]
    lesions = [number for number in range(24) if number % 3]
    clean = sum(0.6 + number / 100 for number in lesions) / len(lesions)
    assert float(dice["clean"]) == pytest.approx(clean, abs=1e-4) and float(dice["random"]) == pytest.approx(0.9)
    assert float(dice["difference"]) == pytest.approx(0.9 - clean, abs=1e-3) and dice["images"] == "24"
    assert float(dice["low"]) < float(dice["difference"]) < float(dice["high"])
    assert float(rows["accuracy"]["difference"]) == pytest.approx(0.5) and dice["epochs"] == "2"
