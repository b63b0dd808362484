"""Temperature, operating point and calibration error against values worked out by hand, and the command for them."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from tools.cli import parse_bundle
from tools.fitting import calibrated, fit_calibration, mean_log_loss, threshold_for_sensitivity, uncalibrated

from breast_ultrasound.calibration import MASK, load_calibration, no_calibration, offsets, suspicion
from breast_ultrasound.checks import RULES
from breast_ultrasound.files import read_csv, sha256, write_csv, write_json
from breast_ultrasound.predictor import Predictor
from breast_ultrasound.transforms import ClassResultd
from conftest import CLASS_NAMES, ROOT


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def test_temperature_and_offsets_move_the_logits_and_can_be_undone():
    logits = np.random.default_rng(0).normal(size=(50, 3))
    shift = {"normal": -0.5, "benign": 0.6, "malignant": 0.1}
    moved = calibrated(softmax(logits), 2.5, list(shift.values()))
    assert moved == pytest.approx(softmax(logits / 2.5 + [-0.5, 0.6, 0.1]), abs=1e-9)
    told = {"temperature": 2.5, "class_offsets": shift}
    assert uncalibrated(moved, told, CLASS_NAMES) == pytest.approx(softmax(logits), abs=1e-9)
    assert uncalibrated(softmax(logits / 2.5), {"temperature": 2.5}, CLASS_NAMES) == pytest.approx(softmax(logits))


@pytest.mark.parametrize("true, prior", [(0.5, (1, 1, 1)), (1, (0.2, 2.0, 0.8)), (3, (0.4, 1.7, 0.9))])
def test_what_made_probabilities_too_sure_and_of_another_mix_is_found(true, prior):
    random = np.random.default_rng(1)
    logits = random.normal(size=(20000, 3))
    classes = np.array([random.choice(3, p=p) for p in softmax(logits + np.log(prior))])
    sure = softmax(logits * true)
    temperature, shift = fit_calibration(sure, classes)
    assert temperature == pytest.approx(true, rel=0.05)
    assert shift == pytest.approx(np.log(prior) - np.log(prior).mean(), abs=0.07)
    held = calibrated(sure, temperature, shift)
    assert held.mean(0) == pytest.approx(np.bincount(classes) / 20000, abs=1e-3)
    assert mean_log_loss(held, classes) <= mean_log_loss(sure, classes) + 1e-9


def test_too_few_images_of_a_class_get_a_temperature_alone():
    random = np.random.default_rng(1)
    logits = random.normal(size=(3000, 3))
    classes = np.array([random.choice(3, p=p) for p in softmax(logits)])
    some = (classes > 0) | (np.cumsum(classes == 0) <= 9)
    temperature, shift = fit_calibration(softmax(2 * logits[some]), classes[some])
    assert shift == [] and temperature > 1.5


def test_another_prevalence_is_a_prior_and_moves_no_operating_point():
    mix = {"normal": 0.2, "benign": 0.5, "malignant": 0.3}
    asked = {"normal": 0.9, "benign": 0.1, "malignant": 0.0}
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for own, fitted in (({}, {}), ({"normal": 0.1, "benign": 0.2, "malignant": -0.3}, mix)):
        found = {"temperature": 1.5, "class_offsets": own, "fitted_prevalence": fitted, "malignancy_threshold": 0.35}
        found |= {"unsure_below": 0.5}
        before = softmax(logits / 1.5 + [own.get(name, 0) for name in CLASS_NAMES])
        expected = before * list(asked.values()) / (list(fitted.values()) or 1 / 3)
        expected /= expected.sum(axis=1, keepdims=True)
        plain, shifted = (ClassResultd(CLASS_NAMES, found | more) for more in ({}, {"prevalence": asked}))
        for row, p in zip(logits, expected):
            answers = [of({"class_logits": torch.tensor(row)}) for of in (plain, shifted)]
            assert answers[1]["class_probs"].numpy() == pytest.approx(p, abs=1e-6)
            assert answers[1]["result"]["classification"][2]["score"] == 0
            for name in ("suspicious", "unsure"):
                assert answers[0]["result"][name] == answers[1]["result"][name]
    assert offsets({"temperature": 1}, CLASS_NAMES) == [0, 0, 0]


def test_prevalence_and_offsets_have_to_name_the_classes(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    path, weights = str(tmp_path / "calibration.json"), str(tmp_path / "model.pt")
    write_json(path, no_calibration(weights) | {"class_offsets": {"cyst": 1.0}})
    with pytest.raises(
        ValueError, match="calibration.json: class_offsets .*: the classes are normal, benign, malignant"
    ):
        load_calibration(path, weights, class_names=CLASS_NAMES)
    for wrong in ([1, 2], {"normal": "a"}, {"normal": float("nan")}):
        write_json(path, no_calibration(weights) | {"class_offsets": wrong})
        with pytest.raises(ValueError, match="class_offsets .*a number for each class is due"):
            load_calibration(path, weights)
    write_json(path, no_calibration(weights))
    with pytest.raises(ValueError, match="--prevalence .*give a fraction for each of normal, benign, malignant"):
        load_calibration(path, weights, prevalence={"benign": 0.5, "malignant": 0.5}, class_names=CLASS_NAMES)
    asked = {"normal": 0.5, "benign": 0.4, "malignant": 0.1}
    assert load_calibration(path, weights, prevalence=asked, class_names=CLASS_NAMES)["prevalence"] == asked
    for files in (["inference"], ["train", "evaluate"]):
        found = parse_bundle(files, ckpt_dir=str(tmp_path), class_names=list(CLASS_NAMES), prevalence=asked)
        assert found.get_parsed_content("calibration")["prevalence"] == asked
    with pytest.raises(ValueError, match="--prevalence .*give a fraction for each of normal, benign, malignant"):
        Predictor(prevalence={"benign": 0.5, "malignant": 0.5})
    for right in ({}, asked):
        assert RULES["prevalence"].fits(right)
    for wrong in ({"normal": 1.1}, {"normal": 0.5}, {"normal": -0.1, "benign": 1.1}, [0.5, 0.5], "0.5", 0.5):
        assert not RULES["prevalence"].fits(wrong)


def test_where_no_class_is_suspicious_no_probability_says_so():
    found = {"normal": 0.2, "benign": 0.3, "malignant": 0.5}
    assert suspicion(found, ["malignant"]) == 0.5 and suspicion(found, ["benign", "malignant"]) == 0.8
    assert suspicion({"cyst": 0.6, "solid": 0.4}, ["malignant"]) is None and suspicion(found, []) is None


def test_log_loss_may_lack_a_class():
    found = mean_log_loss(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), [1, 2])
    assert found == pytest.approx(-(np.log(0.3) + np.log(0.8)) / 2)


def test_the_threshold_finds_the_share_of_positives_and_no_more_than_it_must():
    scores = np.arange(20) / 20
    assert threshold_for_sensitivity(scores, [True] * 20, 0.95) == scores[1]
    assert threshold_for_sensitivity(scores, [True] * 20, 1.0) == scores[0]
    assert threshold_for_sensitivity([0.9, 0.2, 0.1], [True, True, False], 0.5) == 0.9
    assert threshold_for_sensitivity([0.9, 0.2, 0.1], [True, True, False], 0.5, [1, 3, 1]) == 0.2
    assert threshold_for_sensitivity(scores, [True] * 20, 0.95, [7] * 20) == scores[1]
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
    with open(folder / "images.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = {"split": "validation", "weights_sha256": sha256(tmp_path / "model.pt"), "temperature": 1.0}
    source["images_by_class"] = dict.fromkeys(CLASS_NAMES, 100)
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
    before, after = content["fitted_on"]["before"], content["fitted_on"]["after"]
    assert after["log_loss"] < before["log_loss"] and content["fitted_on"]["malignancy_sensitivity"] >= 0.95
    assert abs(after["malignant"]["excess"]) < 0.001 and abs(after["malignant"]["slope"] - 1) < 0.2
    assert before["malignant"]["slope"] < 0.5
    assert sum(content["fitted_prevalence"].values()) == pytest.approx(1)
    assert "not a medical device" in content["notice"]
    path, weights = str(evaluated / "calibration.json"), str(evaluated / "model.pt")
    assert load_calibration(path, weights)["temperature"] == content["temperature"]

    # An evaluation that used this calibration leads to the same temperature again.
    table, metrics = evaluated / "validation" / "images.csv", evaluated / "validation" / "metrics.json"
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    p = np.array([[float(r[f"p_{n}"]) for n in CLASS_NAMES] for r in rows])
    p = calibrated(p, content["temperature"], offsets(content, CLASS_NAMES))
    for row, values in zip(rows, p):
        row |= {f"p_{n}": f"{v:.6f}" for n, v in zip(CLASS_NAMES, values)}
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    applied = {name: content[name] for name in ("temperature", "class_offsets")}
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | applied))
    assert run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated).returncode == 0
    again = json.loads((evaluated / "calibration.json").read_text())
    assert again["temperature"] == pytest.approx(content["temperature"], rel=0.01)
    assert again["class_offsets"] == pytest.approx(content["class_offsets"], abs=0.01)
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"prevalence": content["fitted_prevalence"]}))
    assert "evaluate without --prevalence" in run("--evaluation", metrics.parent, "--ckpt_dir", evaluated).stderr

    (evaluated / "model.pt").write_bytes(b"other weights")
    assert load_calibration(path, weights)["temperature"] == 1
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode != 0 and "made with other weights" in done.stderr


def test_the_rule_of_the_mask_is_kept_with_the_calibration_and_has_one_default(evaluated):
    path, weights = evaluated / "calibration.json", evaluated / "model.pt"
    options = ["--evaluation", evaluated / "validation", "--ckpt_dir", evaluated]
    assert run(*options).returncode == 0
    content = json.loads(path.read_text())
    assert {name: content[name] for name in MASK} == MASK
    path.write_text(json.dumps(content | {"mask_threshold": 0.45, "component_threshold": 0}))
    assert run(*options).returncode == 0
    kept = json.loads(path.read_text())
    assert kept["temperature"] == content["temperature"]
    assert (kept["mask_threshold"], kept["component_threshold"]) == (0.45, 0)
    for files in (["inference"], ["train", "evaluate"]):
        found = parse_bundle(files, ckpt_dir=str(evaluated), class_names=list(CLASS_NAMES))
        assert [found.get_parsed_content(name) for name in MASK] == [0.45, 0.002, 0], files

    older = {name: value for name, value in kept.items() if name not in MASK}
    path.write_text(json.dumps(older))
    assert load_calibration(str(path), str(weights)).items() >= MASK.items()
    for wrong in (1.5, "0.3", None, True):
        path.write_text(json.dumps(kept | {"smallest_fraction": wrong}))
        with pytest.raises(ValueError, match="calibration.json: smallest_fraction .*; run scripts/calibrate.py"):
            load_calibration(str(path), str(weights))
    for damaged in ("[1]", "{}", '{"temperature": 1'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="calibration.json: not a calibration .*remove the file"):
            load_calibration(str(path), str(weights))
    weights.write_bytes(b"others")
    path.write_text(json.dumps(kept))
    assert load_calibration(str(path), str(weights)).items() >= MASK.items()


def test_without_a_calibration_nothing_changes(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    found = load_calibration(str(tmp_path / "calibration.json"), str(tmp_path / "model.pt"))
    assert (found["temperature"], found["malignancy_threshold"], found["unsure_below"]) == (1, None, None)


def test_without_malignant_images_there_is_a_temperature_and_no_threshold(evaluated):
    table = evaluated / "validation" / "images.csv"
    table.write_text("".join(x for x in table.read_text().splitlines(True) if ",malignant," not in x))
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode == 0 and "no malignant image, so no threshold" in done.stdout, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["malignancy_threshold"] is None and content["temperature"] > 1


def test_other_class_names_get_a_temperature_and_the_lack_of_an_operating_point_is_said(evaluated):
    for file in ("images.csv", "metrics.json"):
        path = evaluated / "validation" / file
        path.write_text(path.read_text().replace("malignant", "solid").replace("benign", "cyst"))
    done = run("--evaluation", evaluated / "validation", "--ckpt_dir", evaluated)
    assert done.returncode == 0 and "no class called malignant, so no threshold" in done.stdout, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["malignancy_threshold"] is None and content["temperature"] > 1 and content["unsure_below"] > 0


def test_which_classes_are_suspicious_is_an_option_that_stays_with_the_weights(evaluated):
    options = ["--evaluation", evaluated / "validation", "--ckpt_dir", evaluated]
    done = run(*options, "--suspicious_classes", "['benign','malignant']")
    assert done.returncode == 0 and "threshold of benign, malignant 0." in done.stdout, done.stderr
    found = load_calibration(str(evaluated / "calibration.json"), str(evaluated / "model.pt"))
    assert found["suspicious_classes"] == ["benign", "malignant"]
    result = ClassResultd(CLASS_NAMES, found | {"temperature": 1.0, "malignancy_threshold": 0.6, "class_offsets": {}})
    for logits, suspicious in (([0.0, 0.0, 0.0], True), ([2.0, 0.0, 0.0], False)):  # 0.67 and 0.21 together
        assert result({"class_logits": torch.tensor(logits)})["result"]["suspicious"] == suspicious
    done = run(*options, "--suspicious_classes", "['solid']")
    assert "--suspicious_classes solid: no such class; there are normal, benign, malignant" in done.stderr


def test_few_images_to_calibrate_on_are_told_in_one_line(evaluated):
    options = ["--evaluation", evaluated / "validation", "--ckpt_dir", evaluated]
    assert run(*options).stderr == ""
    table = evaluated / "validation" / "images.csv"
    table.write_text("".join(table.read_text().splitlines(True)[:7]))
    done = run(*options)
    assert done.returncode == 0 and re.fullmatch(r"warning: 6 images \(normal .*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    "name, value", [("temperature", 0), ("temperature", -1), ("temperature", float("nan")), ("unsure_below", "high")]
)
def test_values_that_would_answer_nonsense_are_refused(name, value, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    path, weights = str(tmp_path / "calibration.json"), str(tmp_path / "model.pt")
    write_json(path, no_calibration(weights) | {name: value})
    with pytest.raises(ValueError, match=f"calibration.json: {name} "):
        load_calibration(path, weights)


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
    assert done.returncode != 0 and "evaluate with --split validation" in done.stderr
    assert not (evaluated / "calibration.json").exists()


def test_of_a_cross_validation_only_images_outside_the_testing_part_are_taken(evaluated):
    rows = read_csv(evaluated / "validation" / "images.csv")
    figures = json.loads((evaluated / "validation" / "metrics.json").read_text())
    for fold in (0, 1):
        folder = evaluated / "folds" / f"fold_{fold}" / "uncalibrated"
        write_csv(folder / "images.csv", rows[fold::2], list(rows[0]))
        write_json(folder / "metrics.json", {**figures, "split": "testing", "weights_sha256": "another network's"})
    parts = {"training": rows[:200], "validation": rows[200:250], "testing": rows[250:]}
    datalist = {part: [{"image": f"images/{row['filename']}"} for row in found] for part, found in parts.items()}
    (evaluated / "datalist.json").write_text(json.dumps(datalist))
    options = ["--cross_validation", evaluated / "folds", "--ckpt_dir", evaluated]
    done = run(*options, "--datalist", evaluated / "datalist.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((evaluated / "calibration.json").read_text())
    assert content["fitted_on"]["images"] == 250 and "out-of-fold" in content["fitted_on"]["split"]
    p = np.array([[float(row[f"p_{name}"]) for name in CLASS_NAMES] for row in rows[:250]])
    expected, shift = fit_calibration(p, np.array([CLASS_NAMES.index(row["true_class"]) for row in rows[:250]]))
    assert content["temperature"] == pytest.approx(expected, rel=1e-3)
    assert list(content["class_offsets"].values()) == pytest.approx(shift, abs=1e-3)
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


def test_hospitals_that_were_left_out_weigh_the_same_and_give_a_temperature_alone(evaluated):
    rows = read_csv(evaluated / "validation" / "images.csv")
    made = json.loads((evaluated / "validation" / "metrics.json").read_text())
    parts = {"large": rows[:260], "small": rows[260:]}
    for name, part in parts.items():
        write_csv(evaluated / name / "images.csv", part, list(rows[0]))
        content = {**made, "split": "training+validation+testing", "weights_sha256": f"without {name}"}
        write_json(evaluated / name / "metrics.json", content)
    folders = [str(evaluated / name) for name in parts]
    done = run("--left_out", folders, "--ckpt_dir", evaluated)
    assert done.returncode == 0 and "no class offsets, which take one hospital's mix of classes" in done.stdout
    content = json.loads((evaluated / "calibration.json").read_text())
    p = np.array([[float(row[f"p_{name}"]) for name in CLASS_NAMES] for row in rows])
    y = np.array([CLASS_NAMES.index(row["true_class"]) for row in rows])
    w = np.concatenate([np.full(len(part), 1 / len(part)) for part in parts.values()])
    assert content["temperature"] == pytest.approx(fit_calibration(p, y, w, with_offsets=False)[0], rel=1e-3)
    assert content["temperature"] != pytest.approx(fit_calibration(p, y, with_offsets=False)[0], rel=1e-3)
    assert content["class_offsets"] == {} and content["fitted_on"]["images"] == 300
    malignant = calibrated(p, content["temperature"])[:, 2]
    found = malignant >= content["malignancy_threshold"] - 1e-9
    reached = np.average(found[y == 2], weights=w[y == 2])
    assert reached >= 0.95 and content["fitted_on"]["malignancy_sensitivity"] == pytest.approx(reached)
    unsure = calibrated(p, content["temperature"]).max(axis=1) < content["unsure_below"]
    assert np.average(unsure, weights=w) == pytest.approx(0.2, abs=0.02)

    done = run("--left_out", folders, "--ckpt_dir", evaluated, "--evaluation", evaluated / "validation")
    assert "--evaluation, --cross_validation and --left_out: give one of them" in done.stderr
    file = evaluated / "small" / "metrics.json"
    told = json.loads(file.read_text())
    for change, message in (
        ({"split": "testing"}, "evaluate with --split training+validation+testing"),
        ({"weights_sha256": sha256(evaluated / "model.pt")}, "evaluate weights that have not seen this hospital"),
    ):
        write_json(file, {**told, **change})
        assert message in run("--left_out", folders, "--ckpt_dir", evaluated).stderr


def test_an_evaluation_that_is_missing_is_named(evaluated):
    done = run("--evaluation", "nowhere", "--ckpt_dir", evaluated)
    assert done.returncode != 0 and "nowhere/metrics.json: missing; evaluate with --split validation" in done.stderr
