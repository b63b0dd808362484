"""The benchmark compares the settings of inference in one run and writes their ratios."""

import contextlib
import json
import shutil
import subprocess
import sys

import onnx
import pytest
import torch
from monai.bundle import ConfigParser
from tools.exports import evenly_spaced

from conftest import ROOT
from study import benchmark

NETWORK = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle/configs/inference.json")).get_parsed_content(
    "network_def"
)


@pytest.mark.slow
def test_every_setting_is_measured_beside_plain(prepared, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    torch.save(NETWORK.state_dict(), models / "model.pt")
    exports = tmp_path / "exports"
    command = [sys.executable, "scripts/export.py", "--dataset_dir", str(prepared), "--ckpt_dir", str(models)]
    done = subprocess.run([*command, "--output_dir", str(exports)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((exports / "exports.json").read_text())["files"]
    assert found["model.ts"]["largest_probability_difference"] < 1e-5
    assert found["model.onnx"]["largest_probability_difference"] < 1e-4
    assert found["model.onnx"]["differing_mask_pixels"] < 1e-4
    assert found["model_int8.onnx"]["bytes"] < 3e6 < found["model.onnx"]["bytes"] < 10e6
    inputs = onnx.load(exports / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in inputs] == ["batch", "", "width", "height"] and inputs[1].dim_value == 1

    output = tmp_path / "inference.json"
    benchmark.benchmark(prepared, exports, models, output, images=5, rounds=1)
    figures = json.loads(output.read_text())
    assert (figures["images"], figures["rounds"]) == (5, 1)
    assert figures["weights_sha256"] == json.loads((exports / "exports.json").read_text())["weights_sha256"]
    alone = {"bundle", "small", "onnx", "int8", "predictor", "predictor onnx", "predictor.onnx", "predictor_int8.onnx"}
    assert set(figures["settings"]) == {"plain", "stock", *alone}
    for name in ("stock", *alone):
        assert set(figures["faster_than_plain"][name]) == {"inference_s", "latency_s"}
        assert figures["settings"][name]["peak_memory_mb"] > 100
    for name, ratios in figures["faster_than_plain"].items():
        for what, ratio in ratios.items():
            seconds = [figures["settings"][setting][what] for setting in ("plain", name)]
            assert ratio["median"] == pytest.approx(seconds[0] / seconds[1], rel=0.02)
    for parts in figures["stages_ms"].values():
        assert len(parts) == 4 and min(parts.values()) > 0
    (exports / "predictor_int8.onnx").unlink()
    assert not benchmark.Work("predictor_int8.onnx", tmp_path, exports, models).possible
    assert benchmark.Work("int8", tmp_path, exports, models).possible
    with pytest.raises(FileNotFoundError, match="model.onnx: missing; write it with scripts/export.py"):
        benchmark.benchmark(prepared, tmp_path)
    with pytest.raises(FileNotFoundError, match="model.pt: missing; name the folder of the weights"):
        benchmark.benchmark(prepared, exports, tmp_path)
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="made from other weights than"):
        benchmark.benchmark(prepared, exports, tmp_path)


def test_the_stock_setting_is_plain_with_the_bundles_network():
    plain, stock = (benchmark.INFERENCE[name] for name in ("plain", "stock"))
    assert plain == {**stock, **benchmark.PLAIN_NETWORK} and not stock.keys() & benchmark.PLAIN_NETWORK.keys()
    assert "channels_last" not in stock["network"] and stock["inferer"] == {"_target_": "SimpleInferer"}


class Pipe:
    """The worker's end of a pipe whose other end ends the work before the first round."""

    def recv(self):
        return "stop"

    def send(self, message):
        assert message


@pytest.mark.parametrize("name", ["plain", "stock", "bundle"])
def test_the_bundles_network_has_the_given_weights_and_plain_settings_the_default_allocator(
    name, tiny_prepared, tmp_path, monkeypatch
):
    for folder in ("images", "single"):
        (tmp_path / folder).mkdir()
        shutil.copy(next((tiny_prepared / "images").iterdir()), tmp_path / folder / "0.png")
    torch.save({"foreign": torch.zeros(1)}, tmp_path / "model.pt")
    kept = []
    monkeypatch.setattr("breast_ultrasound.command.keep_freed_memory", lambda: kept.append(name))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the worker silences it
    expected = contextlib.nullcontext() if name == "plain" else pytest.raises(ValueError, match="does not fit")
    with expected:
        benchmark._work(Pipe(), benchmark.Work(name, tmp_path, tmp_path, tmp_path))
    assert kept == ([name] if name == "bundle" else [])


def test_int8_is_quantised_on_a_fixed_number_of_images():
    chosen = evenly_spaced(range(479), 100)
    assert len(chosen) == 100 and chosen[0] == 0
    assert {b - a for a, b in zip(chosen, chosen[1:])} == {4, 5}
    assert evenly_spaced(range(7), 100) == list(range(7))
