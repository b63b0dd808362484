"""What lies beside weights and what is checked when they are loaded; classes of one's own, from data to prediction."""

import csv
import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from scripts.command import load_pretrained
from scripts.data import class_index, load_datalist
from scripts.networks import BasicUNetClassifier, LoadWeights, read_settings, stored_settings, write_weights

SETTINGS = {"image_size": 96, "class_names": ["a", "b"]}
TRAIN, EVALUATE, INFER = (
    "configs/train.json",
    "['configs/train.json','configs/evaluate.json']",
    "configs/inference.json",
)
FOUR = ["cyst", "fibroadenoma", "carcinoma", "phyllodes"]


def saved(folder, **settings):
    """A layer whose weights are saved with settings, and their file."""
    network = nn.Linear(3, 2)
    write_weights(folder / "model.pt", network.state_dict(), SETTINGS | settings)
    return network, folder / "model.pt"


def test_settings_lie_beside_the_weights_and_complete_those_of_the_config(tmp_path):
    _, path = saved(tmp_path)
    assert read_settings(path) == SETTINGS
    stored = stored_settings(path)
    assert (stored["image_size"], stored["class_names"]) == (96, ["a", "b"])
    assert {"features", "norm", "downscale_factor"} <= stored.keys()
    assert stored_settings(tmp_path / "older.pt")["image_size"] != 96
    assert torch.load(path, weights_only=True).keys() == {"weight", "bias"}


def test_the_released_weights_have_their_settings():
    weights = ROOT / "bundle" / "models" / "model.pt"
    assert read_settings(weights) == stored_settings(weights)


def test_weights_are_loaded_with_and_without_settings(tmp_path):
    network, path = saved(tmp_path)
    for settings in (SETTINGS, {}):
        other = nn.Linear(3, 2)
        LoadWeights(other, str(path), settings)()
        assert torch.equal(other.weight, network.weight)
    (tmp_path / "model.json").unlink()
    LoadWeights(nn.Linear(3, 2), str(path), {"image_size": 64})()


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    network, path = saved(tmp_path)
    with pytest.raises(ValueError, match="model.pt: trained with image_size 96, not 64; leave --image_size out"):
        LoadWeights(network, path, {"image_size": 64})()
    with pytest.raises(ValueError, match="model.pt: weight does not fit; .* for image_size, class_names"):
        LoadWeights(nn.Linear(3, 3), path, SETTINGS)()
    with pytest.raises(ValueError, match="model.pt: 0.weight does not fit"):
        LoadWeights(nn.Sequential(network), path, SETTINGS)()
    with pytest.raises(FileNotFoundError, match="nowhere.pt: missing"):
        LoadWeights(network, tmp_path / "nowhere.pt", {})()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    network = nn.Linear(3, 2)
    network.bias.data[1] = value
    write_weights(tmp_path / "model.pt", network.state_dict(), SETTINGS)
    with pytest.raises(ValueError, match="model.pt: bias holds NaN or infinite"):
        LoadWeights(network, tmp_path / "model.pt", SETTINGS)()


def test_damaged_weights_and_settings_are_refused(tmp_path):
    network, path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for load in (LoadWeights(network, path, {}), lambda: stored_settings(path)):
        with pytest.raises(ValueError, match="model.pt: damaged"):
            load()
    for text in ("no JSON", "[]", "{}", "3"):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ValueError, match="model.json: not the settings"):
            stored_settings(path)


def test_pretrained_weights_of_other_classes_give_all_but_the_head(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    small = {"features": [4, 4, 8, 8, 16, 4]}
    three, two = BasicUNetClassifier(num_classes=3, **small), BasicUNetClassifier(num_classes=2, **small)
    head = two.classifier[1].weight.clone()
    torch.save(three.state_dict(), tmp_path / "three.pt")
    load_pretrained(two, str(tmp_path / "three.pt"))
    assert torch.equal(two.classifier[1].weight, head)
    assert torch.equal(two.conv_0.conv_0.conv.weight, three.conv_0.conv_0.conv.weight)
    assert "classifier excluded" in caplog.text
    torch.save({"trainer": {"epoch": 3}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="foreign.pt: trainer does not fit"):
        load_pretrained(two, str(tmp_path / "foreign.pt"))


def test_a_class_is_given_by_name_or_index_and_the_name_decides(tmp_path):
    assert [class_index(given, FOUR) for given in ("carcinoma", 2, 0, -1)] == [2, 2, 0, -1]
    for given in ("normal", 4, -2, 1.0, True, None):
        with pytest.raises(ValueError):
            class_index(given, FOUR)
    items = [{"image": "a.png", "class": 0, "class_name": "carcinoma"}, {"image": "b.png", "class": "cyst"}, {}]
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"label": "x.png", **item} for item in items]}))
    found = load_datalist(str(tmp_path / "list.json"), "training", str(tmp_path), FOUR)
    assert [item.get("class") for item in found] == [2, 0, None]
    with pytest.raises(
        ValueError, match="list.json: 1 x class that is none of 0 cyst, -1 unknown: .*a.png 'carcinoma'"
    ):
        load_datalist(str(tmp_path / "list.json"), "training", str(tmp_path), FOUR[:1])


def bundle(config, *options, code=0):
    """Run a command of the bundle and return its whole output."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT / "bundle", capture_output=True, text=True, timeout=600)
    assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    return done.stdout + done.stderr


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def four(tiny_prepared, tmp_path_factory):
    """A training of four classes, given by name, with another size and network than the config's; and its folder."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(tiny_prepared, folder / "data")
    lists = json.loads((folder / "data" / "datalist.json").read_text())
    for number, item in enumerate(item for items in lists.values() for item in items):
        item["class"] = FOUR[number % 4]
    (folder / "data" / "datalist.json").write_text(json.dumps(lists))
    options = ["--epochs", 2, "--batch_size", 4, "--image_size", 64, "--features", "[8,8,16,16,32,8]"]
    options += ["--class_names", FOUR, "--downscale_factor", 1]
    bundle(TRAIN, *options, *paths(folder, "training"))
    return folder


def paths(folder, output):
    return ["--dataset_dir", folder / "data", "--ckpt_dir", folder / "models", "--output_dir", folder / output]


@pytest.mark.slow
def test_evaluation_and_inference_take_size_classes_and_network_from_beside_the_weights(four):
    bundle(EVALUATE, *paths(four, "testing"))
    metrics = json.loads((four / "testing" / "metrics.json").read_text())
    assert list(metrics["pictures_by_class"]) == FOUR
    bundle(INFER, *paths(four, "predictions"), "--dataset_dir", four / "data" / "images")
    rows = {row["filename"]: row for row in read_csv(four / "predictions" / "predictions.csv")}
    assert [name for name in next(iter(rows.values())) if name.startswith("p_")] == [f"p_{name}" for name in FOUR]
    for row in read_csv(four / "testing" / "pictures.csv"):
        for name in FOUR:
            assert float(row[f"p_{name}"]) == pytest.approx(float(rows[row["filename"]][f"p_{name}"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option, value", [("image_size", 128), ("class_names", "['a','b','c','d']"), ("features", "[8,8,16,16,32,16]")]
)
def test_an_option_that_contradicts_the_weights_is_refused_in_one_line(option, value, four):
    log = bundle(
        INFER, *paths(four, "refused"), "--dataset_dir", four / "data" / "images", f"--{option}", value, code=1
    )
    last = [line for line in log.splitlines() if line.strip()][-1]
    assert f"{four / 'models' / 'model.pt'}: trained with {option}" in last and f"leave --{option} out" in last


@pytest.mark.slow
def test_damaged_weights_answer_nothing(four, tmp_path):
    shutil.copytree(four / "models", tmp_path / "models")
    content = bytearray((tmp_path / "models" / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "models" / "model.pt").write_bytes(content)
    options = ["--dataset_dir", four / "data" / "images", "--ckpt_dir", tmp_path / "models"]
    log = bundle(INFER, *options, "--output_dir", tmp_path / "out", code=1)
    assert f"{tmp_path / 'models' / 'model.pt'}: damaged" in log.splitlines()[-1]
    assert not (tmp_path / "out" / "predictions.csv").exists()
