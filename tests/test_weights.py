"""What lies beside weights and what is checked when they are loaded; classes of one's own, from data to prediction."""

import json
import logging
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tools.cli import parse_bundle
from torch import nn

from breast_ultrasound.calibration import MASK, NEUTRAL
from breast_ultrasound.data import class_index, load_datalist
from breast_ultrasound.files import write_json
from breast_ultrasound.networks import BasicUNetClassifier
from breast_ultrasound.predictor import Predictor
from breast_ultrasound.weights import LoadWeights, load_pretrained, read_settings, stored_settings, write_weights
from conftest import ROOT, output_of, read_csv

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
    models = ROOT / "bundle" / "models"
    assert read_settings(models / "small" / "model.pt") == stored_settings(models / "small" / "model.pt")
    released = read_settings(models / "model.pt")
    assert released["image_size"] == 160 and released.items() <= stored_settings(models / "model.pt").items()


def test_a_training_takes_the_image_size_of_the_weights_that_it_starts_from():
    for start, size in (("", 256), ("model.pt", 160), ("small/model.pt", 256)):
        pretrained = str(ROOT / "bundle" / "models" / start) if start else ""
        assert parse_bundle("train", pretrained=pretrained).get_parsed_content("image_size") == size
    own = parse_bundle("train", pretrained=str(ROOT / "bundle/models/model.pt"), image_size=192)
    assert own.get_parsed_content("image_size") == 192


def test_weights_are_loaded_with_and_without_settings(tmp_path):
    network, path = saved(tmp_path)
    for settings in (SETTINGS, {}):
        other = nn.Linear(3, 2)
        LoadWeights(other, str(path), settings)()
        assert torch.equal(other.weight, network.weight)
    (tmp_path / "model.json").unlink()
    LoadWeights(nn.Linear(3, 2), str(path), {"image_size": 64})()


def test_weights_are_left_alone_on_request_with_a_warning(tmp_path, caplog):
    network, path = saved(tmp_path)
    other = nn.Linear(3, 2)
    before = other.weight.clone()
    LoadWeights(other, path, SETTINGS, load=False)()
    assert torch.equal(other.weight, before) and not torch.equal(before, network.weight)
    assert caplog.messages == ["--load_pretrain False: random weights, whose predictions mean nothing"]


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


def test_weights_of_whole_numbers_are_refused(tmp_path):
    network = nn.Linear(3, 2)
    state = {name: (value * 100).to(torch.int8) for name, value in network.state_dict().items()}
    write_weights(tmp_path / "model.pt", state, SETTINGS)
    with pytest.raises(ValueError, match="model.pt: weight does not fit"):
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
    write_weights(tmp_path / "named.pt", three.state_dict(), {"class_names": ["a", "b", "c"]})
    for names, taken in ((["a", "b", "c"], True), (["b", "a", "c"], False)):  # another order is another meaning
        other = BasicUNetClassifier(num_classes=3, **small)
        load_pretrained(other, str(tmp_path / "named.pt"), names)
        assert torch.equal(other.classifier[1].weight, three.classifier[1].weight) == taken
    damaged = dict(three.state_dict()) | {"classifier.1.bias": torch.full((3,), float("nan"))}
    for name, state, told in (("nan", damaged, "NaN or infinite"), ("empty", {}, "holds nothing")):
        torch.save(state, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=f"{name}.pt: .*{told}"):
            load_pretrained(two, str(tmp_path / f"{name}.pt"))
    torch.save({"trainer": {"epoch": 3}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="foreign.pt: trainer does not fit"):
        load_pretrained(two, str(tmp_path / "foreign.pt"))


def onnx_network(path, **told):
    """A file that always answers its first class, and says of its weights what it is told."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 1, "w", "h"])
    pred = helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["b", 2, "w", "h"])
    logits = helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, ["b", 3])
    constants = [helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [0.0] * 3)]
    constants += [helper.make_tensor("c", TensorProto.FLOAT, [3], [2.0, 0.0, 0.0])]
    steps = [("Neg", ["image"], "n", {}), ("Concat", ["n", "image"], "pred", {"axis": 1})]
    steps += [("GlobalAveragePool", ["image"], "g", {}), ("Flatten", ["g"], "f", {})]
    steps += [("MatMul", ["f", "w"], "m", {}), ("Add", ["m", "c"], "class_logits", {})]
    nodes = [helper.make_node(kind, given, [name], **more) for kind, given, name, more in steps]
    graph = helper.make_graph(nodes, "network", [image], [pred, logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items()})
    onnx.save(model, path)


def test_an_onnx_file_brings_its_own_classes_size_and_calibration(tmp_path, caplog):
    """And not those of the weights in --ckpt_dir, which are the released ones here."""
    names, digest = ["malignant", "benign", "normal"], "1" * 64
    values = {"temperature": 2.0, "malignancy_threshold": 0.4, "unsure_below": 0.7, **MASK}
    onnx_network(tmp_path / "own.onnx", class_names=names, image_size=64, weights_sha256=digest, **values)
    image = np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8)
    predictor = Predictor(onnx_file=tmp_path / "own.onnx", predict_refused=True)  # noise
    found = predictor(image)
    assert predictor.class_names == names and found.class_name == "malignant"
    assert found.suspicious and found.unsure  # e / (e + 2) = 0.576
    assert predictor.config.get_parsed_content("image_size") == 64
    assert predictor.config.get_parsed_content("calibration")["weights_sha256"] == digest
    # A later calibration of the same weights goes before that in the file; one of others does not
    (tmp_path / "models").mkdir()
    for other, suspicious in ((digest, False), ("2" * 64, True)):
        write_json(tmp_path / "models" / "calibration.json", NEUTRAL | {"weights_sha256": other, "temperature": 9.0})
        found = Predictor(onnx_file=tmp_path / "own.onnx", ckpt_dir=tmp_path / "models", predict_refused=True)(image)
        assert bool(found.suspicious) == suspicious
    onnx_network(tmp_path / "bare.onnx")
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    Predictor(onnx_file=tmp_path / "bare.onnx")
    assert "bare.onnx: does not tell its classes" in caplog.text
    (tmp_path / "damaged.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="damaged.onnx: not readable as ONNX"):
        Predictor(onnx_file=tmp_path / "damaged.onnx")


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
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *options]
    return output_of(command, code, cwd=ROOT / "bundle")


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
    assert list(metrics["images_by_class"]) == FOUR
    bundle(INFER, *paths(four, "predictions"), "--dataset_dir", four / "data" / "images")
    rows = {row["filename"]: row for row in read_csv(four / "predictions" / "predictions.csv")}
    assert [name for name in next(iter(rows.values())) if name.startswith("p_")] == [f"p_{name}" for name in FOUR]
    for row in read_csv(four / "testing" / "images.csv"):
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
