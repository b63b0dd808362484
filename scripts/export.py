"""Export trained weights as TorchScript, ONNX and INT8 ONNX, and compare the files with PyTorch on real images.

    python scripts/export.py --dataset_dir runs/busi [--ckpt_dir bundle/models] [--output_dir dist/exports]

Out: `model.ts` and `model.onnx` through MONAI's exporters, `model_int8.onnx` quantised by ONNX Runtime on training
images; batch size, height and width are free, the latter in multiples of 32, which inference pads to.
`predictor.onnx` and `predictor_int8.onnx` hold preprocessing and postprocessing too: they take an image of any size
and give its mask and its probabilities. Each ONNX file says in its metadata what it takes and gives. `exports.json`
has the size of each file and its largest difference from PyTorch, or from the bundle's inference, on validation images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from command_line import BUNDLE, CONFIGS, load_network, run
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from predictor_onnx import compare_with_bundle, metadata, write_predictor
from tqdm import tqdm

from scripts.data import read_datalist
from scripts.files import NOTICE, sha256, write_json, write_whole
from scripts.networks import OnnxNetwork
from scripts.predictor import Predictor

FILES = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.json")}
NAMES = ["pred", "class_logits"]
PREDICTORS = {"model.onnx": "predictor.onnx", "model_int8.onnx": "predictor_int8.onnx"}
ODD_SIZES = ((97, 131), (1024, 40), (20, 20))  # rows, columns
QUANTISATION_PICTURES = 100
TRACED = [1, 1, 256, 320]  # any shape that inference may pad to; batch, width and height are free in the file


def export(dataset_dir: Path, ckpt_dir: Path = BUNDLE / "models", output_dir: Path = Path("dist/exports")) -> dict:
    """Write the files and their comparison.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        ckpt_dir: folder of the weights, `model.pt`.
        output_dir: folder to write to.

    Returns:
        dict: the content of `exports.json`.

    Raises:
        FileNotFoundError: the weights or the datalist are missing.
    """
    dataset, weights, output = dataset_dir, ckpt_dir / "model.pt", output_dir
    if not (dataset / "datalist.json").is_file():
        raise FileNotFoundError(f"{dataset / 'datalist.json'}: missing; prepare the folder first")
    parser = load_network(ckpt_dir, device="cpu")
    common = {"net_id": "network_def", "ckpt_file": str(weights), "ckpt_dir": str(ckpt_dir), **FILES}
    write_whole(output / "model.ts", lambda p: ckpt_export(filepath=p, **common))
    shape = {0: "batch", 2: "width", 3: "height"}  # MONAI loads a PNG as (W, H)
    free = {"image": shape, "pred": shape, "class_logits": {0: "batch"}}
    kwargs = {"input_names": ["image"], "output_names": NAMES, "dynamic_axes": free}
    write_whole(
        output / "model.onnx",
        lambda p: onnx_export(filepath=p, use_trace=True, input_shape=TRACED, converter_kwargs=kwargs, **common),
    )
    datalist = read_datalist(dataset / "datalist.json")
    training, files = ([dataset / item["image"] for item in datalist[part]] for part in ("training", "validation"))
    few = _pictures(parser, evenly_spaced(training, QUANTISATION_PICTURES))
    write_whole(output / "model_int8.onnx", lambda p: _quantise(output / "model.onnx", p, few))
    for name, whole in PREDICTORS.items():
        bare = onnx.load(output / name)
        onnx.helper.set_model_props(bare, metadata(parser, whole=False))
        write_whole(output / name, lambda p: onnx.save(bare, p))
        write_whole(output / whole, lambda p: write_predictor(output / name, p, parser))

    network, validation = parser.get_parsed_content("network"), _pictures(parser, files)
    content = {"notice": NOTICE, "weights_sha256": sha256(weights)}
    content |= {"weights_bytes": weights.stat().st_size, "pictures": len(validation), "files": {}}
    for name in ("model.ts", "model.onnx", "model_int8.onnx"):
        file = output / name
        if name.endswith(".ts"):
            exported = torch.jit.load(str(file))
        else:
            onnx.checker.check_model(str(file), full_check=True)
            exported = OnnxNetwork(str(file))
        content["files"][name] = {"bytes": file.stat().st_size, **_compare(network, exported, validation)}
    predictor = Predictor(ckpt_dir=str(ckpt_dir), device="cpu", amp=False)
    content["predictors"] = {}
    for name in PREDICTORS.values():
        file = output / name
        content["predictors"][name] = {"bytes": file.stat().st_size} | _compare_predictor(file, predictor, files)
    write_json(output / "exports.json", content)
    settings = parser.get_parsed_content("settings")
    write_json(output / "model.json", {"weights_sha256": content["weights_sha256"], **settings})
    for name, found in content["files"].items():
        print(f"{name}: {found['bytes'] / 1e6:.1f} MB, {found['largest_probability_difference']:.1e} from PyTorch")
    for name, found in content["predictors"].items():
        difference, iou = found["largest_class_probability_difference"], found["mean_mask_iou"]
        print(f"{name}: {found['bytes'] / 1e6:.1f} MB, {difference:.1e} from the bundle, IoU of the masks {iou:.4f}")
    return content


def evenly_spaced(items: list, count: int) -> list:
    """Exactly `count` of the items, at equal distances but for rounding; all where they are fewer."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _pictures(parser: ConfigParser, files: list[Path]) -> list[torch.Tensor]:
    """Images as the network takes them, float32 (1, 1, M, N)."""
    prepare = parser.get_parsed_content("preprocessing")
    return [prepare({"image": str(file)})["image"].as_tensor()[None] for file in tqdm(files, desc="images")]


def _compare_predictor(file: Path, predictor: Predictor, images: list[Path]) -> dict[str, float | dict]:
    """`compare_with_bundle` on images as they are, and on some of them resized to each of the odd sizes."""
    few = [cv2.imread(str(image), cv2.IMREAD_GRAYSCALE) for image in evenly_spaced(images, 10)]
    odd = [cv2.resize(image, (columns, rows)) for rows, columns in ODD_SIZES for image in few]
    return {**compare_with_bundle(file, predictor, images), "odd_sizes": compare_with_bundle(file, predictor, odd)}


def _quantise(source: Path, target: str, pictures: list[torch.Tensor]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pictures)

        def get_next(self) -> dict | None:
            picture = next(self.left, None)
            return None if picture is None else {"image": picture.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quantization.quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(prepared, target, Reader(), per_channel=True)


@torch.no_grad()
def _compare(network: torch.nn.Module, exported: torch.nn.Module, pictures: list[torch.Tensor]) -> dict[str, float]:
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
    run(export)
