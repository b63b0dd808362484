"""The comparison of orders reveals labels in two orders, never reads the testing part, and goes on after a stop."""

import csv
import json

import pytest
from conftest import SMALL
from study.active_learning import compare_active_learning

OPTIONS = {"counts": (4, 8, 12), "seeds": (0,), "steps": 40, **SMALL}


@pytest.mark.slow
def test_labels_are_revealed_in_two_orders(prepared, tmp_path, capfd):
    dataset, output = tmp_path / "data", tmp_path / "out"
    dataset.mkdir()
    parts = json.loads((prepared / "datalist.json").read_text())
    for item in parts["training"] + parts["validation"]:
        item |= {key: str(prepared / item[key]) for key in ("image", "label")}
    for item in parts["testing"]:
        item |= {"image": "missing.png", "label": "missing.png"}
    (dataset / "datalist.json").write_text(json.dumps(parts))
    compare_active_learning(dataset, output, **OPTIONS)
    with open(output / "active_learning.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(strategy, count) for strategy in ("random", "uncertainty") for count in ("4", "8", "12")]
    assert [(row["strategy"], row["labels"]) for row in rows] == expected
    assert {row["epochs"] for row in rows} == {"40"} and rows[0]["lesion_dice"] == rows[3]["lesion_dice"]
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("lesion_dice", "macro_f1"))

    def chosen(name):
        content = json.loads((output / name / "datalist.json").read_text())
        assert content["validation"] == parts["validation"] and content["testing"] == []
        return [item["image"] for item in content["training"]]

    first = chosen("first_0")
    assert len(set(first)) == 4
    for strategy in ("random", "uncertainty"):
        assert chosen(f"{strategy}_0_8")[:4] == first
        assert chosen(f"{strategy}_0_12")[:8] == chosen(f"{strategy}_0_8")
    assert chosen("random_0_12") != chosen("uncertainty_0_12")

    table = (output / "active_learning.csv").read_bytes()
    capfd.readouterr()
    compare_active_learning(dataset, output, **OPTIONS)
    assert "Iter: " not in "".join(capfd.readouterr())  # finished runs are not repeated
    assert (output / "active_learning.csv").read_bytes() == table


def test_more_labels_than_pictures_are_refused(tiny_prepared, tmp_path):
    with pytest.raises(ValueError, match="use rising numbers up to 6, the training part"):
        compare_active_learning(tiny_prepared, tmp_path / "x", counts=(4, 400))
