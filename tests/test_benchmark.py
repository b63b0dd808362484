"""benchmark compares the three settings in one run and writes their ratios."""

import contextlib
import json
import shutil
import subprocess
import sys

import onnx
import pytest
import torch
from conftest import ROOT
from export import evenly_spaced
from monai.bundle import ConfigParser
from study import benchmark, tables

NETWORK = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle/configs/inference.json")).get_parsed_content(
    "network_def"
)


@pytest.mark.slow
def test_ratios_follow_from_the_times(tiny_prepared, tmp_path, capfd):
    output = tmp_path / "bench mark.json"
    benchmark.benchmark(tiny_prepared, image_size=64, pictures=5, rounds=1, output=output)
    shown = capfd.readouterr().out
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
            assert f"{ratio['median']} times as fast as plain" in shown
    assert [f.name for f in tmp_path.iterdir()] == [output.name]


@pytest.mark.slow
def test_onnx_runtime_is_measured_beside_pytorch(prepared, tmp_path, monkeypatch):
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
    benchmark.benchmark(prepared, exports=exports, ckpt_dir=models, output=output, pictures=5, rounds=1)
    figures = json.loads(output.read_text())
    assert figures["weights_sha256"] == json.loads((exports / "exports.json").read_text())["weights_sha256"]
    alone = {"bundle", "onnx", "int8", "predictor", "predictor onnx", "predictor.onnx", "predictor_int8.onnx"}
    shared = {"2 x bundle", "2 x onnx", "2 x int8"}
    assert set(figures["settings"]) == {"plain", "stock", *alone, *shared}
    for name in shared:
        assert set(figures["faster_than_plain"][name]) == {"inference_s"}
        assert figures["settings"][name]["peak_memory_mb"] > 200
    for name in ("stock", *alone):
        assert set(figures["faster_than_plain"][name]) == {"inference_s", "latency_s"}
        assert figures["settings"][name]["peak_memory_mb"] > 100
    monkeypatch.setattr(tables, "results", lambda name: figures)
    titles = [line.split(" | ")[0] for line in tables.inference_speed().splitlines()[2:] if " | " in line]
    assert titles == [
        "| plain",
        "| plain settings, this network",
        "| this bundle",
        "| ONNX Runtime",
        "| ONNX Runtime, INT8",
        "| `Predictor`",
        "| `Predictor`, ONNX Runtime",
        "| `predictor.onnx`",
        "| `predictor_int8.onnx`",
        "| two processes of this bundle",
        "| two processes of ONNX Runtime",
        "| two processes of ONNX Runtime, INT8",
    ]
    for parts in figures["stages_ms"].values():
        assert len(parts) == 4 and min(parts.values()) > 0
    assert len(tables.predictor_time().splitlines()) >= 4
    with pytest.raises(FileNotFoundError, match="model.onnx: missing; write it with scripts/export.py"):
        benchmark.benchmark(prepared, exports=tmp_path)
    with pytest.raises(FileNotFoundError, match="model.pt: missing; name the folder of the weights"):
        benchmark.benchmark(prepared, exports=exports, ckpt_dir=tmp_path)
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="made from other weights than"):
        benchmark.benchmark(prepared, exports=exports, ckpt_dir=tmp_path)


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
    monkeypatch.setattr("scripts.command.keep_freed_memory", lambda: kept.append(name))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the worker silences it
    arguments = (str(tmp_path), str(tiny_prepared), 64, "auto", str(tmp_path), str(tmp_path))
    expected = contextlib.nullcontext() if name == "plain" else pytest.raises(ValueError, match="does not fit")
    with expected:
        benchmark._work(Pipe(), name, (0, 1), *arguments)
    assert kept == ([name] if name == "bundle" else [])


def test_int8_is_quantised_on_a_fixed_number_of_pictures():
    chosen = evenly_spaced(range(479), 100)
    assert len(chosen) == 100 and chosen[0] == 0
    assert {b - a for a, b in zip(chosen, chosen[1:])} == {4, 5}
    assert evenly_spaced(range(7), 100) == list(range(7))


@pytest.mark.slow
def test_a_folder_of_any_size_is_predicted_in_the_same_memory(prepared, tmp_path):
    (tmp_path / "models").mkdir()
    torch.save(NETWORK.state_dict(), tmp_path / "models" / "model.pt")
    output = tmp_path / "folders.json"
    benchmark.benchmark_folders(prepared, (40, 400), tmp_path / "models", output)
    figures = json.loads(output.read_text())
    assert set(figures) == {"40", "400"}
    for size, found in figures.items():
        assert found["pictures_a_second"] == pytest.approx(int(size) / found["seconds"], rel=0.05)
    assert figures["400"]["peak_memory_mb"] < 1.2 * figures["40"]["peak_memory_mb"]
    with pytest.raises(FileNotFoundError, match="no images; give --dataset_dir"):
        benchmark.benchmark_folders(tmp_path)
