"""Export trained weights as TorchScript, ONNX and INT8 ONNX, and compare the files with PyTorch on real pictures.

    python scripts/export.py --dataset_dir runs/busi [--ckpt_dir bundle/models] [--output_dir dist/exports]

Out: `model.ts` and `model.onnx` through MONAI's exporters, `model_int8.onnx` quantised by ONNX Runtime on training
pictures, and `exports.json`: size of each file and its largest difference from PyTorch on validation pictures. The
batch size of the ONNX files is free. Research software, not a medical device.
"""

import json
import sys
import tempfile
from pathlib import Path

import fire
import numpy as np
import onnx
import torch
from command_line import asked_for_help
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.files import sha256  # noqa: E402
from scripts.files import write_json, write_whole  # noqa: E402
from scripts.networks import OnnxNetwork  # noqa: E402

CONFIG = str(ROOT / "bundle/configs/inference.json")
METADATA = str(ROOT / "bundle/configs/metadata.json")
NAMES = ["pred", "class_logits"]
QUANTISATION_PICTURES = 100


def export(dataset_dir="", ckpt_dir="bundle/models", output_dir="dist/exports", *extra, **unknown):
    """Write the files and their comparison.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        ckpt_dir: folder of the weights, `model.pt`.
        output_dir: folder to write to.

    Returns:
        dict: the content of `exports.json`.

    Raises:
        ValueError: an option is unknown or missing.
        FileNotFoundError: the weights or the datalist are missing.
    """
    if asked_for_help(export, extra, unknown):
        return None
    if dataset_dir in ("", True):
        raise ValueError("--dataset_dir needs a folder made by scripts/prepare_busi.py")
    dataset, weights, output = Path(str(dataset_dir)), Path(str(ckpt_dir)) / "model.pt", Path(str(output_dir))
    for file, remedy in ((weights, "pass the --ckpt_dir of the weights"), (dataset / "datalist.json", "prepare first")):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    parser = ConfigParser()
    parser.read_config(CONFIG)
    size = [1, 1, *[parser["image_size"]] * 2]
    common = {"net_id": "network_def", "ckpt_file": str(weights), "meta_file": METADATA, "config_file": CONFIG}
    write_whole(output / "model.ts", lambda p: ckpt_export(filepath=p, **common))
    free = {name: {0: "batch"} for name in ("image", *NAMES)}
    kwargs = {"input_names": ["image"], "output_names": NAMES, "dynamic_axes": free}
    write_whole(
        output / "model.onnx",
        lambda p: onnx_export(filepath=p, use_trace=True, input_shape=size, converter_kwargs=kwargs, **common),
    )
    training, validation = (_pictures(parser, dataset, part) for part in ("training", "validation"))
    few = evenly_spaced(training, QUANTISATION_PICTURES)
    write_whole(output / "model_int8.onnx", lambda p: _quantise(output / "model.onnx", p, few))

    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    content = {"notice": "research software, not a medical device", "weights_sha256": sha256(weights)}
    content |= {"weights_bytes": weights.stat().st_size, "pictures": len(validation), "files": {}}
    for name in ("model.ts", "model.onnx", "model_int8.onnx"):
        file = output / name
        if name.endswith(".ts"):
            exported = torch.jit.load(str(file))
        else:
            onnx.checker.check_model(str(file), full_check=True)
            exported = OnnxNetwork(str(file))
        content["files"][name] = {"bytes": file.stat().st_size, **_compare(network, exported, validation)}
    write_json(output / "exports.json", content)
    for name, found in content["files"].items():
        print(f"{name}: {found['bytes'] / 1e6:.1f} MB, {found['largest_probability_difference']:.1e} from PyTorch")
    return content


def evenly_spaced(items, count):
    """Exactly `count` of the items, at equal distances but for rounding; all where they are fewer."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _pictures(parser, dataset, part):
    """Pictures of a part as the network takes them, float32 (1, 1, M, N)."""
    items = json.loads((dataset / "datalist.json").read_text(encoding="utf-8"))[part]
    prepare = parser.get_parsed_content("preprocessing")
    files = [str(dataset / item["image"]) for item in items]
    return [prepare({"image": file})["image"].as_tensor()[None] for file in tqdm(files, desc=part)]


def _quantise(source, target, pictures):
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(pictures)

        def get_next(self):
            picture = next(self.left, None)
            return None if picture is None else {"image": picture.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quantization.quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(prepared, target, Reader(), per_channel=True)


@torch.no_grad()
def _compare(network, exported, pictures):
    """Largest difference of any probability, and the share of mask pixels that differ."""
    largest, differing = {name: 0.0 for name in NAMES}, []
    for picture in tqdm(pictures, desc="comparison", leave=False):
        expected, found = network(picture), exported(picture)
        expected, found = ({n: a[n].softmax(1).numpy() for n in NAMES} for a in (expected, found))
        for name in NAMES:
            largest[name] = max(largest[name], float(np.abs(expected[name] - found[name]).max()))
        differing.append(float((expected["pred"].argmax(1) != found["pred"].argmax(1)).mean()))
    return {
        "largest_probability_difference": max(largest.values()),
        "largest_class_probability_difference": largest["class_logits"],
        "differing_mask_pixels": float(np.mean(differing)),
    }


if __name__ == "__main__":
    try:
        fire.Fire(export, serialize=lambda _: None)
    except (OSError, ValueError) as error:
        sys.exit(f"export: {error}")
