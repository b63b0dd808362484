"""What the Model Zoo's own checks do with a bundle, offline: see `ci/verify_bundle.py` of Project-MONAI/model-zoo."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import CLASS_NAMES, ROOT

BUNDLE = ROOT / "bundle"
METADATA = "configs/metadata.json"
SCHEMA = ROOT.parent / "shared" / "zoo" / "meta_schema_20240725.json"
LARGEST = 25e6  # bytes that the zoo takes in one file
WRAPPER = """
import torch

class SegmentationOnly(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)["pred"]
"""


def bundle_command(*arguments, **variables):
    """Run a command of `python -m monai.bundle` inside bundle/ and return what it prints."""
    command = [sys.executable, "-m", "monai.bundle", *map(str, arguments)]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, **variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_files_that_the_zoo_needs_or_prefers_are_there_and_small_enough():
    for name in ("LICENSE", METADATA, "configs/inference.json", "models/model.pt"):
        assert (BUNDLE / name).is_file(), name
    tracked = subprocess.run(["git", "ls-files", "."], cwd=BUNDLE, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        assert (BUNDLE / name).stat().st_size < LARGEST, name
        assert not name.startswith("large_files"), "the zoo would download what it lists"


def test_the_version_stands_in_the_changelog():
    metadata = json.loads((BUNDLE / METADATA).read_text(encoding="utf-8"))
    assert metadata["version"] == next(iter(metadata["changelog"]))


@pytest.mark.slow
@pytest.mark.skipif(not SCHEMA.is_file(), reason="the schema does not lie in ../shared/zoo")
def test_monais_own_command_takes_the_metadata(tmp_path):
    shutil.copy(SCHEMA, tmp_path / "schema.json")  # where it lies, nothing is downloaded
    text = bundle_command("verify_metadata", "--meta_file", METADATA, "--filepath", tmp_path / "schema.json")
    assert "metadata is verified with no error" in text


@pytest.mark.slow
def test_monais_own_command_takes_the_networks_input_and_output(tmp_path):
    """The command knows networks of one output: a wrapper leaves the first one."""
    (tmp_path / "segmentation_only.py").write_text(WRAPPER, encoding="utf-8")
    network = {"_target_": "segmentation_only.SegmentationOnly", "network": "@network_def"}
    (tmp_path / "overlay.json").write_text(json.dumps({"wrapped": network}), encoding="utf-8")
    configs = str(["configs/inference.json", str(tmp_path / "overlay.json")])
    options = ["--net_id", "wrapped", "--meta_file", METADATA, "--config_file", configs, "--device", "cpu"]
    text = bundle_command("verify_net_in_out", *options, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "data shape of network is verified with no error" in text


@pytest.mark.slow
def test_the_weights_that_ship_export_as_torchscript(tmp_path):
    file = tmp_path / "verify_model.ts"
    options = ["--net_id", "network_def", "--filepath", file, "--ckpt_file", "models/model.pt"]
    bundle_command("ckpt_export", *options, "--meta_file", METADATA, "--config_file", "configs/inference.json")
    with torch.no_grad():
        answer = torch.jit.load(str(file))(torch.rand(2, 1, 224, 320))
    assert answer["pred"].shape == (2, 2, 224, 320) and answer["class_logits"].shape == (2, len(CLASS_NAMES))
