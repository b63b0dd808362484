"""Recipes are compared without the testing split, each in two runs; an interrupted comparison is resumed."""

import csv
import json

import pytest
from study.recipes import compare_recipes

BASE = {"image_size": 64, "epochs": 1, "features": [4, 4, 8, 8, 16, 4], "batch_size": 4, "downscale_factor": 1}


@pytest.fixture
def dataset(tiny_prepared, tmp_path):
    """The tiny folder's pictures with six groups a class to train and validate on, and no file for testing."""
    parts = json.loads((tiny_prepared / "datalist.json").read_text())
    for part in parts.values():
        for number, item in enumerate(part):
            item |= {k: str(tiny_prepared / item[k]) for k in ("image", "label")} | {"group": f"{number // 2}"}
    for number, item in enumerate(items := parts["training"] * 2 + parts["validation"]):
        items[number] = {**item, "group": f"G{number}"}
    folder = tmp_path / "data"
    folder.mkdir()
    testing = [{"image": "missing.png", "label": "missing.png", "class": 0, "group": "T"}]
    (folder / "datalist.json").write_text(json.dumps({"training": items, "validation": [], "testing": testing}))
    return folder


@pytest.mark.slow
def test_recipes_are_trained_on_thirds_without_the_testing_part(dataset, tmp_path, capfd):
    recipes, output = tmp_path / "recipes.json", tmp_path / "search"
    content = {"base": BASE, "recipes": {"batch": {"network_def#norm": "batch"}}}
    recipes.write_text(json.dumps(content))
    compare_recipes(recipes, dataset, output, ["batch"])
    with open(output / "recipes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["run"]) for row in rows] == [(n, k) for n in ("base", "batch") for k in ("0", "1")]
    assert all(0 <= float(row["lesion_dice"]) <= 1 and row["epochs"] == "1" for row in rows)
    every = []
    for k in (0, 1):
        parts = json.loads((output / f"third_{k}.json").read_text())
        groups = [{item["group"] for item in parts[part]} for part in ("training", "validation")]
        assert not groups[0] & groups[1] and groups[0] | groups[1] == {f"G{n}" for n in range(18)}
        every.append(groups[1])
    assert not every[0] & every[1]

    capfd.readouterr()
    compare_recipes(recipes, dataset, output, ["batch"])
    assert "Iter: " not in "".join(capfd.readouterr())  # finished runs are not repeated
    with pytest.raises(ValueError, match="no recipe other; it has base, batch"):
        compare_recipes(recipes, dataset, output, ["other"])
