"""compare_recipes never reads the testing part, trains each recipe twice and goes on after an interruption."""

import csv
import json
import subprocess
import sys

import pytest
from conftest import ROOT

BASE = {"image_size": 64, "epochs": 1, "features": [4, 4, 8, 8, 16, 4], "batch_size": 4, "downscale_factor": 1}


def run(*options):
    command = [sys.executable, "scripts/compare_recipes.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


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
def test_recipes_are_trained_on_thirds_without_the_testing_part(dataset, tmp_path):
    recipes, output = tmp_path / "recipes.json", tmp_path / "search"
    content = {"base": BASE, "recipes": {"batch": {"network_def#norm": "batch"}, "warm": {"warm_up_epochs": 1}}}
    recipes.write_text(json.dumps(content))
    options = ["--recipes", recipes, "--dataset_dir", dataset, "--output_dir", output]
    done = run(*options, "--only", "warm")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with open(output / "recipes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["run"]) for row in rows] == [(n, k) for n in ("base", "warm") for k in ("0", "1")]
    assert all(0 <= float(row["lesion_dice"]) <= 1 and row["epochs"] == "1" for row in rows)
    assert (output / "warm_1" / "warm_up.pt").is_file() and not (output / "base_1" / "warm_up.pt").exists()
    every = []
    for k in (0, 1):
        parts = json.loads((output / f"third_{k}.json").read_text())
        groups = [{item["group"] for item in parts[part]} for part in ("training", "validation")]
        assert not groups[0] & groups[1] and groups[0] | groups[1] == {f"G{n}" for n in range(18)}
        every.append(groups[1])
    assert not every[0] & every[1]

    again = run(*options, "--only", "warm")
    assert again.returncode == 0 and "Iter: " not in again.stdout + again.stderr  # finished runs are not repeated
    unknown = run(*options, "--only", "other")
    assert unknown.returncode != 0 and "no recipe other; it has base, batch, warm" in unknown.stderr
