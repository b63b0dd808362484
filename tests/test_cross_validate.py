"""cross_validate tests every image once, by a network that has not seen it, and goes on after an interruption."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT

OPTIONS = [
    "--image_size",
    "64",
    "--epochs",
    "2",
    "--features",
    "[4,4,8,8,16,4]",
    "--batch_size",
    "4",
]


def run(*options):
    """Run the command in the repository's root."""
    command = [sys.executable, "scripts/cross_validate.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Phantoms prepared with two folds."""
    folder = tmp_path_factory.mktemp("folds")
    phantoms, output = folder / "phantoms", folder / "two folds"
    for command in (
        ["scripts/make_phantoms.py", "--output_dir", phantoms, "--count", "24"],
        ["scripts/prepare_busi.py", "--source", phantoms, "--output_dir", output, "--folds", "2"],
    ):
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, check=True)
    return output


@pytest.mark.slow
def test_every_image_is_tested_once_and_a_second_run_only_joins(folds, tmp_path):
    output = tmp_path / "cross validation"
    done = run("--dataset_dir", folds, "--output_dir", output, *OPTIONS, "--only", "1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "finished but for fold_0" in done.stdout and not (output / "images.csv").exists()
    done = run("--dataset_dir", folds, "--output_dir", output, *OPTIONS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "fold 0, training" in done.stdout and "fold 1, training" not in done.stdout
    lists = json.loads((folds / "datalist.json").read_text())
    expected = {(str(k), item["image"].split("/")[1]) for k in (0, 1) for item in lists[f"fold_{k}"]}
    with open(output / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["fold"], row["filename"]) for row in rows} == expected and len(rows) == len(expected)
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["images"] == len(rows) == sum(fold["images"] for fold in figures["folds"])
    right = [row["true_class"] == row["predicted_class"] for row in rows]
    assert figures["accuracy"] == pytest.approx(sum(right) / len(right))
    for k in (0, 1):
        # Calibrated on the other fold's test images, which are this fold's training and validation images
        calibration = json.loads((output / f"fold_{k}" / "calibration.json").read_text())
        assert calibration["fitted_on"]["images"] == figures["folds"][1 - k]["images"]
        alone = json.loads((output / f"fold_{k}" / "testing" / "metrics.json").read_text())
        # The joined metrics keep what each fold says of its weights, options and calibration
        assert figures["folds"][k] == alone and alone["temperature"] == calibration["temperature"]

    before = (output / "images.csv").read_bytes()
    # As if the second fold had been cut off between its training and its evaluation
    for part in ("uncalibrated", "testing"):
        (output / "fold_1" / part / "metrics.json").unlink()
    (output / "fold_1" / "calibration.json").unlink()
    again = run("--dataset_dir", folds, "--output_dir", output, *OPTIONS)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "fold 0, training" not in again.stdout and "fold 1, training" in again.stdout
    assert "Epoch: " not in again.stdout + again.stderr  # finished, so nothing is trained again
    assert (output / "images.csv").read_bytes() == before

    # Rounds from these weights, and their mean
    rounds = [tmp_path / "round 0", tmp_path / "round 1"]
    for seed, folder in enumerate(rounds):
        more = ["--after", output, "--seed", seed, "--only", "1", "--epochs", "1"]
        done = run("--dataset_dir", folds, "--output_dir", folder, *OPTIONS, *more)
        assert done.returncode == 0, done.stderr[-2000:]
        assert str(output / "fold_1" / "model.pt") in done.stdout + done.stderr
    mean, network = tmp_path / "mean", [*OPTIONS[:2], *OPTIONS[4:6]]
    members = [str(rounds[0] / "fold_1"), str(rounds[1])]  # weights of every fold, and folds
    options = ["--dataset_dir", folds, "--output_dir", mean, "--mean_of", str(members), *network]
    done = run(*options, "--only", "1")
    assert done.returncode == 0 and "Epoch: " not in done.stdout + done.stderr, done.stderr[-2000:]
    first, second, both = (torch.load(f / "fold_1" / "model.pt", weights_only=True) for f in (*rounds, mean))
    for name, value in both.items():
        assert torch.allclose(value, (first[name] + second[name]) / 2, atol=1e-7)
    assert json.loads((mean / "fold_1" / "uncalibrated" / "metrics.json").read_text())["images"]
    done = run("--dataset_dir", folds, "--output_dir", mean, *network, "--only", "1")
    assert done.returncode and "an earlier run had other options" in done.stderr

    absent = run("--dataset_dir", folds, "--output_dir", output, *OPTIONS, "--only", "[0,2]")
    assert "--only [0, 2]: " in absent.stderr and "has folds 0 to 1" in absent.stderr
    misspelt = run("--dataset_dir", folds, "--output_dir", tmp_path / "new", "--epoch", "3")
    assert "did you mean --epochs?" in misspelt.stderr and not (tmp_path / "new").exists()
    other = run("--dataset_dir", folds, "--output_dir", output, *OPTIONS, "--seed", "1")
    assert other.returncode != 0 and "options.json: an earlier run had other options (seed)" in other.stderr
    anew = shutil.copytree(folds, tmp_path / "anew")
    shutil.copy(folds / "datalist_fold_1.json", anew / "datalist_fold_0.json")
    other = run("--dataset_dir", anew, "--output_dir", output, *OPTIONS)
    assert other.returncode != 0 and "had other data (its folds were drawn anew)" in other.stderr


@pytest.mark.slow
def test_other_sets_train_beside_each_fold(folds, tmp_path):
    output, beside = tmp_path / "cross validation", folds / "datalist_fold_1.json"
    options = [*OPTIONS, "--epochs", "1", "--only", "0", "--with_sets", str({str(beside): 1})]
    done = run("--dataset_dir", folds, "--output_dir", output, *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((output / "fold_0" / "run.json").read_text())
    assert str(beside) in str(record["options"]["datalist"])
