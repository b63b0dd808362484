"""Configs and metadata: the schema, the zoo's required properties, and facts that stand in more than one file."""

import json
import re
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jsonschema
import onnx
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from tools.cli import parse_bundle

from breast_ultrasound.calibration import NEUTRAL
from breast_ultrasound.files import sha256
from breast_ultrasound.metrics import LATER
from breast_ultrasound.weights import load_pretrained, write_weights
from conftest import CLASS_NAMES, ROOT

CONFIGS = ROOT / "bundle" / "configs"
FILES = sorted(f.name for f in CONFIGS.glob("*.json"))
SCHEMA = ROOT.parent / "shared" / "zoo" / "meta_schema_20240725.json"
IDS = ["dataset_dir", "output_dir", "ckpt_dir", "epochs", "image_size", "batch_size", "learning_rate", "seed"]


def load(name):
    """A config as plain JSON."""
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def expressions(content):
    """All strings inside a config."""
    if isinstance(content, dict):
        content = list(content.values())
    return [t for part in content for t in expressions(part)] if isinstance(content, list) else [str(content)]


def test_the_bundle_has_the_files_of_the_zoo():
    for name in ("evaluate", "inference", "metadata", "multi_gpu_evaluate", "multi_gpu_train", "train", "train_quick"):
        assert f"{name}.json" in FILES
    for name in (
        "LICENSE",
        "configs/logging.conf",
        "docs/README.md",
        "docs/data_license.txt",
        "breast_ultrasound/__init__.py",
    ):
        assert (ROOT / "bundle" / name).is_file(), name
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "bundle" / "LICENSE").read_bytes()


@pytest.mark.skipif(not SCHEMA.is_file(), reason="the schema does not lie in ../shared/zoo")
def test_metadata_follows_the_schema():
    jsonschema.validate(load("metadata"), json.loads(SCHEMA.read_text()))
    assert load("metadata")["schema"].endswith(SCHEMA.name)


def test_no_config_overrides_by_the_place_in_a_list():
    assert not [
        f"{name}: {key}" for name in FILES for key in load(name.removesuffix(".json")) if re.search(r"(#|::)\d", key)
    ]


def test_declared_versions_are_the_required_and_the_installed_ones():
    metadata = load("metadata")
    declared = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    declared |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))
    for name, number in declared.items():
        assert required[name] == number == version(name).partition("+")[0]


def test_classes_size_and_channels_agree():
    from preparation.item import CLASSES

    train, inference, metadata = load("train"), load("inference"), load("metadata")
    assert CLASSES == CLASS_NAMES == tuple(train["class_names"]["default"])
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["spatial_shape"] == pred["spatial_shape"] == ["64*n"] * 2
    assert image["num_channels"] == train["network_def"]["in_channels"]
    assert pred["num_channels"] == train["network_def"]["out_channels"] == len(pred["channel_def"])
    assert train["settings"] == inference["settings"]  # their values lie beside the weights
    for name in ("amp", "device"):
        assert train[name] == inference[name], name
    for config in (train["network_def"], inference["network_def"]):
        config.pop("norm")
        config.pop("weights")
    assert train["network_def"] == inference["network_def"]


def test_the_network_gives_what_metadata_declares():
    declared = load("metadata")["network_data_format"]
    image, outputs = declared["inputs"]["image"], declared["outputs"]
    network = ConfigParser(load("inference")).get_parsed_content("network_def").eval()
    with torch.no_grad():
        found = network(torch.rand(1, image["num_channels"], 128, 192))
    assert list(found) == list(outputs) and next(iter(outputs)) == "pred"  # MONAI Label takes the first
    for name, value in found.items():
        assert value.shape == (
            1,
            outputs[name]["num_channels"],
            *((128, 192) if outputs[name]["spatial_shape"] else ()),
        )
        assert str(value.dtype) == f"torch.{outputs[name]['dtype']}"
    names = {str(number): name for number, name in enumerate(CLASS_NAMES)}
    processed = declared["post_processed_outputs"]
    assert outputs["class_logits"]["channel_def"] == processed["class_probs"]["channel_def"] == names
    assert processed["pred"]["dtype"] == load("inference")["output_dtype"].rpartition(".")[2]


def test_images_are_prepared_alike_everywhere():
    def steps(config, transforms):
        """What each transform does to the image, whatever it does to the mask besides."""
        found = []
        for step in transforms:
            step = config[step[1:]] if isinstance(step, str) else step
            step = {k: v for k, v in step.items() if k not in ("_desc_", "allow_missing_keys", "look")}
            keys = step.pop("keys")
            if step["_target_"] != "SelectItemsd" and "image" in keys:
                pairs = isinstance(keys, list)
                found.append(
                    {k: v[0] if pairs and isinstance(v, list) and k != "spatial_size" else v for k, v in step.items()}
                )
        return found

    config = load("train")
    validation = [*config["train"]["deterministic_transforms"], "@standardize", "@pad"]
    training = steps(config, validation)
    assert len(training) == 7
    config = load("inference")
    assert training == steps(config, config["preprocessing"]["transforms"])


def test_validation_in_training_measures_what_an_evaluation_measures(tiny_prepared, tmp_path, caplog):
    ids = {"image_size": 64, "features": [8, 8, 16, 16, 32, 8], "dataset_dir": str(tiny_prepared), "amp": False}
    ids |= {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "mask_threshold": 0.5}

    def measured(files, **more):
        config = parse_bundle(files, **ids, **more)
        torch.manual_seed(1)
        network, settings = config.get_parsed_content("network"), config.get_parsed_content("settings")
        if "evaluate" in files:
            config.get_parsed_content("checkpointloader")()
        else:
            write_weights(tmp_path / "model.pt", network.state_dict(), settings)
        evaluator = config.get_parsed_content("validate#evaluator")
        evaluator.run()
        return {k: v for k, v in evaluator.state.metrics.items() if isinstance(v, float) and v == v}

    for component_threshold in (0.0, 0.99):
        more = {"component_threshold": component_threshold}
        with caplog.at_level("INFO"):
            training = measured(["train"], **more)
            evaluation = measured(["train", "evaluate"], split="validation", **more)
        # A training does without what takes longer and nothing is chosen by
        shared = {name: value for name, value in evaluation.items() if name not in LATER}
        assert training == pytest.approx(shared) and len(training) > 10 and {"nsd", "hd95"} <= set(evaluation)
        assert (training["lesion_dice"] > 0) == (component_threshold == 0)
        counted = re.findall(r"(\d) of 6 masks erased: doubtful by component_threshold", caplog.text)
        assert len(counted) == (2 if component_threshold else 0), caplog.text


def test_the_released_recipe_trains_on_two_sets_and_its_rounds_start_from_its_first_weights(tiny_prepared, tmp_path):
    for name in ("busi", "bus_bra"):
        shutil.copytree(tiny_prepared, tmp_path / name)
    found = {}
    for name in ("train_joint", "train_round"):
        config = parse_bundle(["train", name], dataset_dir=str(tmp_path), bundle_root=str(tmp_path))
        found[name] = config.get_parsed_content("train#dataset#data")
        assert config.get_parsed_content("epochs") == config.get_parsed_content("val_interval"), "the last epoch counts"
    assert found["train_joint"] == found["train_round"]
    folders = Counter(Path(item["image"]).parents[1].name for item in found["train_joint"])
    assert folders == {"busi": 12, "bus_bra": 12}  # training and validation
    assert {item["set_weight"] for item in found["train_joint"]} == {1}
    with pytest.raises(FileNotFoundError, match="first/model.pt: missing; name weights with --pretrained"):
        load_pretrained(config.get_parsed_content("network_def"), config.get_parsed_content("pretrained"))


def test_predictions_tell_what_made_them_an_exported_network_by_its_file(tmp_path):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["pred"])],
        "nothing",
        [value("image", onnx.TensorProto.FLOAT, [1])],
        [value("pred", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    ids = {"onnx_file": str(tmp_path / "model.onnx"), "dataset_dir": str(ROOT / "docs"), "mask_threshold": 0.4}
    source = parse_bundle(["inference", "inference_onnx"], **ids).get_parsed_content("table").source
    released = json.loads((ROOT / "bundle/models/calibration.json").read_text(encoding="utf-8"))
    assert source["onnx_sha256"] == sha256(tmp_path / "model.onnx")
    assert (source["mask_threshold"], source["image_size"], source["class_names"]) == (0.4, 160, list(CLASS_NAMES))
    assert {n: source[n] for n in NEUTRAL if n in released and n != "mask_threshold"}.items() <= released.items()


def test_evaluate_json_alone_says_what_to_use():
    with pytest.raises(KeyError, match=r"pass \['configs/train.json','configs/evaluate.json'\] to --config_file"):
        ConfigParser.load_config_files([str(CONFIGS / "evaluate.json")])


def test_what_people_change_is_an_id_at_the_top():
    assert set(IDS + ["num_workers", "device"]) <= set(load("train"))
    assert load("train")["training"] == "%run"


@pytest.mark.parametrize(
    "kind, files",
    [("train", ["train"]), ("train", ["train", "evaluate"]), ("inference", ["inference"])],
    ids=["training", "evaluation", "inference"],
)
def test_monai_finds_the_properties_of_a_workflow(kind, files, tiny_prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "bundle")
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=[str(CONFIGS / f"{name}.json") for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        dataset_dir=str(tiny_prepared / "images" if kind == "inference" else tiny_prepared),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    for name in workflow.properties:
        if name not in ("initialize", "run", "finalize"):
            getattr(workflow, name)  # raises where an id cannot be built


@pytest.mark.parametrize("name", FILES)
def test_configs_are_readable(name):
    text = (CONFIGS / name).read_text(encoding="utf-8")
    content = json.loads(text)
    assert re.search(r'^    "\w|^    "\+', text, re.MULTILINE) and "\t" not in text
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        assert indent % 4 == 0, line
    for value in expressions(content):
        assert not value.startswith("$") or len(value) <= 110, value
        assert not re.match(r"\$?'?/|[A-Z]:\\", value), value


@pytest.mark.parametrize("name", FILES)
def test_every_component_of_a_config_can_be_imported(name):
    targets = set(re.findall(r'"_target_": "([\w.]+)"', (CONFIGS / name).read_text(encoding="utf-8")))
    for target in targets:
        parser = ConfigParser({"component": {"_target_": target, "_mode_": "callable"}})
        assert callable(parser.get_parsed_content("component")), target


@pytest.mark.parametrize(
    "files",
    [
        ["train"],
        ["inference"],
        ["train", "evaluate"],
        ["train", "train_quick"],
        ["train", "train_joint"],
        ["train", "train_round"],
        ["train", "multi_gpu_train"],
        ["train", "evaluate", "multi_gpu_evaluate"],
    ],
    ids="+".join,
)
def test_every_reference_has_its_id(files):
    config = ConfigParser.load_config_files([str(CONFIGS / f"{name}.json") for name in files])
    parser = ConfigParser(config)
    for text in expressions(config):
        for name in re.findall(r"[@%]([a-z]\w*(?:(?:#|::)\w+)*)", text):
            assert name in parser, text
