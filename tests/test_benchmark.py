"""benchmark compares the three settings in one run and writes their ratios."""

import json
import subprocess
import sys

import onnx
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser

NETWORK = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle/configs/inference.json")).get_parsed_content(
    "network_def"
)


def run(*options):
    """Run the command in the repository's root."""
    command = [sys.executable, "scripts/benchmark.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_ratios_follow_from_the_times(tiny_prepared, tmp_path):
    output = tmp_path / "bench mark.json"
    options = ["--image_size", "64", "--pictures", "5", "--rounds", "1"]
    done = run("--dataset_dir", str(tiny_prepared), "--output", str(output), *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert (figures["image_size"], figures["pictures"], figures["rounds"]) == (64, 5, 1)
    settings = figures["settings"]
    assert set(settings) == {"plain", "same", "bundle"}
    # Folding 2 x 2 and thinner layers: far fewer operations for the bundle, the same number for the same network
    assert settings["same"]["gflop_per_picture"] == settings["plain"]["gflop_per_picture"]
    assert settings["bundle"]["gflop_per_picture"] < settings["plain"]["gflop_per_picture"] / 4
    for name in ("same", "bundle"):
        for what, ratio in figures["faster_than_plain"][name].items():
            assert ratio["median"] == pytest.approx(settings["plain"][what] / settings[name][what], rel=0.02)
            assert f"{ratio['median']} times as fast as plain" in done.stdout
    assert [f.name for f in tmp_path.iterdir()] == [output.name]


@pytest.mark.slow
def test_onnx_runtime_is_measured_beside_pytorch(prepared, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    torch.save(NETWORK.state_dict(), models / "model.pt")
    exports = tmp_path / "exports"
    command = [sys.executable, "scripts/export.py", "--dataset_dir", str(prepared), "--ckpt_dir", str(models)]
    done = subprocess.run([*command, "--output_dir", str(exports)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((exports / "exports.json").read_text())["files"]
    assert found["model.ts"]["largest_probability_difference"] < 1e-6
    assert found["model.onnx"]["largest_probability_difference"] < 1e-4
    assert found["model.onnx"]["differing_mask_pixels"] < 1e-4
    assert found["model_int8.onnx"]["bytes"] < 3e6 < found["model.onnx"]["bytes"] < 10e6
    inputs = onnx.load(exports / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert inputs[0].dim_param and [d.dim_value for d in inputs[1:]] == [1, 256, 256]  # a free batch size

    output = tmp_path / "inference.json"
    options = ["--exports", str(exports), "--output", str(output), "--pictures", "5", "--rounds", "1"]
    done = run("--dataset_dir", str(prepared), *options)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(output.read_text())
    shared = {"2 x bundle", "2 x onnx", "2 x int8"}
    assert set(figures["settings"]) == {"plain", "bundle", "once", "onnx", "int8", *shared}
    for name in shared:
        assert set(figures["faster_than_plain"][name]) == {"inference_s"}
        assert figures["settings"][name]["peak_memory_mb"] > 200
    for name in ("bundle", "once", "onnx", "int8"):
        assert set(figures["faster_than_plain"][name]) == {"inference_s", "latency_s"}
        assert figures["settings"][name]["peak_memory_mb"] > 100
    missing = run("--dataset_dir", str(prepared), "--exports", str(tmp_path))
    assert "model.onnx: missing; write it with scripts/export.py" in missing.stderr and missing.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--dataset", "x"], "unknown option --dataset; valid options: --dataset_dir"),
        (["--dataset_dir", "nowhere"], "datalist.json does not exist; give --dataset_dir a folder of scripts/prepare"),
    ],
)
def test_wrong_options_end_with_one_line(options, message):
    done = run(*options)
    assert done.returncode != 0
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_folder_of_any_size_is_predicted_in_the_same_memory(prepared, tmp_path):
    (tmp_path / "models").mkdir()
    torch.save(NETWORK.state_dict(), tmp_path / "models" / "model.pt")
    output = tmp_path / "folders.json"
    options = ["--dataset_dir", prepared, "--ckpt_dir", tmp_path / "models", "--sizes", "[40,400]", "--output", output]
    command = [sys.executable, "scripts/benchmark_folders.py", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(output.read_text())
    assert set(figures) == {"40", "400"}
    for size, found in figures.items():
        assert found["pictures_a_second"] == pytest.approx(int(size) / found["seconds"], rel=0.05)
    assert figures["400"]["peak_memory_mb"] < 1.2 * figures["40"]["peak_memory_mb"]
    missing = subprocess.run([*command[:2], "--dataset_dir", "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert "no pictures; give --dataset_dir" in missing.stderr and missing.stderr.count("\n") == 1
