"""Temperature, operating point and calibration error against values worked out by hand, and the command for them."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import CLASS_NAMES, ROOT

from scripts.calibration import (
    expected_calibration_error,
    fit_temperature,
    load_calibration,
    mean_log_loss,
    reliability,
    tempered,
    threshold_for_sensitivity,
)
from scripts.files import read_csv, sha256, write_csv, write_json


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_temperature_divides_the_logits_and_can_be_undone():
    logits = np.random.default_rng(0).normal(size=(50, 3))
    assert tempered(softmax(logits), 2.5) == pytest.approx(softmax(logits / 2.5), abs=1e-9)
    assert tempered(tempered(softmax(logits), 2.5), 1 / 2.5) == pytest.approx(softmax(logits), abs=1e-9)


@pytest.mark.parametrize("true", [0.5, 1, 3])
def test_the_temperature_that_made_probabilities_too_sure_is_found(true):
    random = np.random.default_rng(1)
    logits = random.normal(size=(20000, 3))
    classes = [random.choice(3, p=p) for p in softmax(logits)]
    sure = softmax(logits * true)
    found = fit_temperature(sure, classes)
    assert found == pytest.approx(true, rel=0.05)
    assert mean_log_loss(tempered(sure, found), classes) <= mean_log_loss(sure, classes) + 1e-9


def test_log_loss_may_lack_a_class():
    found = mean_log_loss(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), [1, 2])
    assert found == pytest.approx(-(np.log(0.3) + np.log(0.8)) / 2)


def test_calibration_error_weighs_the_gap_of_each_bin():
    # Two bins: confidences 0.5 and 0.6, one of two right; 0.9 and 1.0, both right.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]])
    bins = reliability(probabilities, [0, 1, 0, 0], bins=2)
    assert [b["confidence"] for b in bins] == pytest.approx([0.55, 0.95])
    assert [b["accuracy"] for b in bins] == [0.5, 1.0] and [b["share"] for b in bins] == [0.5, 0.5]
    assert expected_calibration_error(probabilities, [0, 1, 0, 0], bins=2) == pytest.approx((0.05 + 0.05) / 2)


def test_the_threshold_finds_the_share_of_positives_and_no_more_than_it_must():
    scores = np.arange(20) / 20
    assert threshold_for_sensitivity(scores, [True] * 20, 0.95) == scores[1]
    assert threshold_for_sensitivity(scores, [True] * 20, 1.0) == scores[0]
    assert threshold_for_sensitivity([0.9, 0.2, 0.1], [True, True, False], 0.5) == 0.9
    with pytest.raises(ValueError, match="no positive image"):
        threshold_for_sensitivity(scores, [False] * 20)


@pytest.fixture
def evaluated(tmp_path):
    """Weights, and an evaluation of them whose probabilities are far too sure."""
    (tmp_path / "model.pt").write_bytes(b"weights")
    folder = tmp_path / "validation"
    folder.mkdir()
    random = np.random.default_rng(2)
    logits = random.normal(size=(300, 3))
    rows = []
    for number, (p, sure) in enumerate(zip(softmax(logits), softmax(logits * 4))):
        true = CLASS_NAMES[random.choice(3, p=p)]
        rows.append(
            {
                "filename": f"{number}.png",
                "true_class": true,
                **{f"p_{name}": f"{v:.6f}" for name, v in zip(CLASS_NAMES, sure)},
            }
        )
    with open(folder / "pictures.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = {"part": "validation", "weights_sha256": sha256(tmp_path / "model.pt"), "temperature": 1.0}
    source["pictures_by_class"] = dict.fromkeys(CLASS_NAMES, 100)
    (folder / "metrics.json").write_text(json.dumps(source))
    return tmp_path


def run(*options):
    command = [sys.executable, "scripts/calibrate.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_keeps_what_the_bundle_reads(evaluated):
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode == 0 and str(evaluated / "calibration.json") in done.stdout, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["temperature"] == pytest.approx(4, rel=0.25)
    errors = content["fitted_on"]["expected_calibration_error"]
    assert errors["after"] < errors["before"] and content["fitted_on"]["malignancy_sensitivity"] >= 0.95
    assert "not a medical device" in content["notice"]
    path, weights = str(evaluated / "calibration.json"), str(evaluated / "model.pt")
    assert load_calibration(path, weights)["temperature"] == content["temperature"]

    # An evaluation that used this calibration leads to the same temperature again.
    table, metrics = evaluated / "validation" / "pictures.csv", evaluated / "validation" / "metrics.json"
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    p = tempered(np.array([[float(r[f"p_{n}"]) for n in CLASS_NAMES] for r in rows]), content["temperature"])
    for row, values in zip(rows, p):
        row |= {f"p_{n}": f"{v:.6f}" for n, v in zip(CLASS_NAMES, values)}
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "temperature": content["temperature"]}))
    assert run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated).returncode == 0
    again = json.loads((evaluated / "calibration.json").read_text())
    assert again["temperature"] == pytest.approx(content["temperature"], rel=0.01)

    (evaluated / "model.pt").write_bytes(b"other weights")
    assert load_calibration(path, weights)["temperature"] == 1
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode != 0 and "made with other weights" in done.stderr


def test_without_a_calibration_nothing_changes(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    found = load_calibration(str(tmp_path / "calibration.json"), str(tmp_path / "model.pt"))
    assert (found["temperature"], found["malignancy_threshold"], found["unsure_below"]) == (1, None, None)


def test_without_malignant_pictures_there_is_a_temperature_and_no_threshold(evaluated):
    table = evaluated / "validation" / "pictures.csv"
    table.write_text("".join(x for x in table.read_text().splitlines(True) if ",malignant," not in x))
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode == 0 and "no malignant image, so no threshold" in done.stdout, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["malignancy_threshold"] is None and content["temperature"] > 1


def test_other_class_names_get_a_temperature_and_the_lack_of_an_operating_point_is_said(evaluated):
    for file in ("pictures.csv", "metrics.json"):
        path = evaluated / "validation" / file
        path.write_text(path.read_text().replace("malignant", "solid").replace("benign", "cyst"))
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode == 0 and "no class called malignant, so no threshold" in done.stdout, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["malignancy_threshold"] is None and content["temperature"] > 1 and content["unsure_below"] > 0


def test_the_operating_point_and_the_doubt_follow_the_options(evaluated):
    options = ["--evaluation", evaluated / "validation", "--ckpt_dir", evaluated]
    found = []
    for more in ([], ["--sensitivity", "0.8", "--unsure_fraction", "0.5"]):
        assert run(*options, *more).returncode == 0
        found.append(json.loads((evaluated / "calibration.json").read_text()))
    assert found[1]["malignancy_threshold"] > found[0]["malignancy_threshold"]
    assert 0.8 <= found[1]["fitted_on"]["malignancy_sensitivity"] < 0.85
    assert found[1]["unsure_below"] > found[0]["unsure_below"]
    wrong = run(*options, "--sensitivity", "95")
    assert wrong.returncode != 0 and "--sensitivity 95.0: pass a number above 0 and up to 1" in wrong.stderr


def test_the_testing_part_is_refused(evaluated):
    metrics = evaluated / "validation" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"validation"', '"testing"'))
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode != 0 and "evaluate with --part validation" in done.stderr
    assert not (evaluated / "calibration.json").exists()


def test_of_a_cross_validation_only_pictures_outside_the_testing_part_are_taken(evaluated):
    rows = read_csv(evaluated / "validation" / "pictures.csv")
    figures = json.loads((evaluated / "validation" / "metrics.json").read_text())
    for fold in (0, 1):
        folder = evaluated / "folds" / f"fold_{fold}" / "uncalibrated"
        write_csv(folder / "pictures.csv", rows[fold::2], list(rows[0]))
        write_json(folder / "metrics.json", {**figures, "part": "testing", "weights_sha256": "another network's"})
    parts = {"training": rows[:200], "validation": rows[200:250], "testing": rows[250:]}
    datalist = {part: [{"image": f"images/{row['filename']}"} for row in found] for part, found in parts.items()}
    (evaluated / "datalist.json").write_text(json.dumps(datalist))
    options = ["--cross_validation", evaluated / "folds", "--ckpt_dir", evaluated]
    done = run(*options, "--datalist", evaluated / "datalist.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["fitted_on"]["pictures"] == 250 and "out-of-fold" in content["fitted_on"]["part"]
    p = np.array([[float(row[f"p_{name}"]) for name in CLASS_NAMES] for row in rows[:250]])
    expected = fit_temperature(p, [CLASS_NAMES.index(row["true_class"]) for row in rows[:250]])
    assert content["temperature"] == pytest.approx(expected, rel=1e-3)
    assert content["weights_sha256"] == sha256(evaluated / "model.pt")

    done = run(*options, "--datalist", evaluated / "none.json")
    assert "none.json: missing; give --datalist the one that the weights" in done.stderr
    (evaluated / "other.json").write_text('{"training": [{"image": "x.png"}], "validation": []}')
    done = run(*options, "--datalist", evaluated / "other.json")
    assert "other.json: its images are not those of the cross-validation" in done.stderr
    done = run(*options, "--datalist", evaluated / "datalist.json", "--evaluation", evaluated / "validation")
    assert "give one of them" in done.stderr
    done = run("--cross_validation", evaluated, *options[2:], "--datalist", evaluated / "datalist.json")
    assert "no fold_0/uncalibrated; run scripts/cross_validate.py first" in done.stderr


def test_an_evaluation_that_is_missing_is_named(evaluated):
    done = run("--evaluation", "nowhere", "--ckpt_dir", evaluated)
    assert done.returncode != 0 and "nowhere/metrics.json: missing; evaluate with --part validation" in done.stderr
