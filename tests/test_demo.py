"""The demo goes the whole way and names what it wrote."""

import csv
import json
import re
import subprocess
import sys

import pytest

from conftest import ROOT


def run(*options):
    """Run the command in the repository's root."""
    return subprocess.run([sys.executable, "scripts/demo.py", *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_demo_learns_on_phantoms_and_says_where_everything_lies(tmp_path):
    output = tmp_path / "de mo"
    done = run("--output_dir", str(output))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    end = done.stdout[done.stdout.rindex("Done in") :]
    assert "synthetic phantoms" in end and "not a medical device" in end
    for name in ("evaluation/metrics.json", "evaluation/images.csv", "predictions/predictions.csv", "drawings"):
        assert str(output / name) in end and (output / name).exists()
    figures = json.loads((output / "evaluation" / "metrics.json").read_text())
    assert f"lesion Dice {figures['lesion_dice']:.2f}, accuracy {figures['accuracy']:.2f}" in end
    # A network that learnt nothing reaches 0.2 and 0.4 here.
    assert figures["lesion_dice"] > 0.5 and figures["accuracy"] > 0.5
    with open(output / "predictions" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == figures["images"] == len(list((output / "drawings").glob("*.png")))
    # Every step is shown as a command before it runs.
    assert len(re.findall(r"^\$ python ", done.stdout, re.MULTILINE)) == 6


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = run("--output_dir", str(tmp_path))
    assert done.returncode != 0 and "holds something else; give an empty or a new folder" in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_source_is_never_replaced(tmp_path):
    source = tmp_path / "demo" / "phantoms"
    source.mkdir(parents=True)
    (tmp_path / "demo" / "demo.txt").touch()  # as an earlier demo leaves it
    done = run("--source", str(source), "--output_dir", str(tmp_path / "demo"))
    assert done.returncode != 0 and "holds the source and would be replaced" in done.stderr
    done = run("--source", str(tmp_path / "typo"), "--output_dir", str(tmp_path / "demo"))
    assert done.returncode != 0 and "typo: no such folder; give --source" in done.stderr
    assert source.is_dir()
