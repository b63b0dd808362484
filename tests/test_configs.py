"""Configs and metadata: the schema, the zoo's required properties, and facts that stand in more than one file."""

import json
import re
from importlib.metadata import version

import jsonschema
import pytest
import torch
from conftest import CLASS_NAMES, ROOT
from monai.bundle import ConfigParser, ConfigWorkflow

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
    for name in ("LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt", "scripts/__init__.py"):
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
    import prepare_busi

    train, inference, metadata = load("train"), load("inference"), load("metadata")
    assert tuple(prepare_busi.CLASSES) == CLASS_NAMES == tuple(train["class_names"]["default"])
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


def test_pictures_are_prepared_alike_everywhere():
    def steps(config, transforms):
        """What each transform does to the image, whatever it does to the mask besides."""
        found = []
        for step in transforms:
            step = config[step[1:]] if isinstance(step, str) else step
            step = {k: v for k, v in step.items() if k not in ("_desc_", "allow_missing_keys")}
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
    assert len(training) == 7 and config["train"]["cached_side"] == "@image_size"
    for step in training:
        if step.get("side") == "@train#cached_side":
            step["side"] = "@image_size"
    config = load("inference")
    assert training == steps(config, config["preprocessing"]["transforms"])


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
