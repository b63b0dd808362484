"""list_external lists what can be used of an external set and names the rest."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image


def run(*options):
    command = [sys.executable, "scripts/list_external.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def external(tmp_path):
    """Four pictures: two that can be used, one without mask, one whose mask has another size."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in ("one", "two", "three", "four"):
        Image.new("L", (30, 20)).save(tmp_path / "images" / f"{name}.png")
    for name, size in (("one", (30, 20)), ("two", (30, 20)), ("four", (20, 30))):
        Image.new("L", size).save(tmp_path / "labels" / f"{name}.png")
    table = "name,class,case\none,benign,7\ntwo,malignant,7\nthree,benign,8\nfour,benign,9\nfive,odd,9\n"
    (tmp_path / "classes.csv").write_text(table)
    return tmp_path


def test_usable_pictures_are_listed_for_testing_and_others_named(external):
    output = external / "out" / "external.json"
    done = run("--dataset_dir", external, "--output", output)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text()) == {
        "training": [],
        "validation": [],
        "testing": [
            {"image": "images/one.png", "label": "labels/one.png", "class": 1, "group": "7"},
            {"image": "images/two.png", "label": "labels/two.png", "class": 2, "group": "7"},
        ],
    }
    for name in ("three", "four", "five"):
        assert f"{name}: left out, " in done.stdout
    assert "2 pictures (0 normal, 1 benign, 1 malignant), 3 left out" in done.stdout


def test_a_table_without_usable_pictures_is_an_error(external):
    (external / "classes.csv").write_text("name,class\nfive,benign\n")
    done = run("--dataset_dir", external, "--output", external / "x.json")
    assert done.returncode != 0 and "no usable picture" in done.stderr and not (external / "x.json").exists()
    done = run("--dataset_dir", "nowhere", "--output", "x")
    assert done.returncode != 0 and "nowhere/classes.csv: missing" in done.stderr and done.stderr.count("\n") == 1
