"""The files of scripts/export.py: the network for other runtimes, and how far its answers are from PyTorch's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from onnxruntime import quantization
from tools.cli import CONFIGS
from tools.predictor_onnx import compare_with_bundle, metadata, write_predictor
from tqdm import tqdm

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import write_whole
from breast_ultrasound.networks import OnnxNetwork
from breast_ultrasound.predictor import Predictor

FILES = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.json")}
NAMES = ["pred", "class_logits"]
PREDICTORS = {"model.onnx": "predictor.onnx", "model_int8.onnx": "predictor_int8.onnx"}
ODD_SIZES = ((97, 131), (1024, 40), (20, 20))  # rows, columns
QUANTISATION_IMAGES = 100
TRACED = [1, 1, 256, 320]  # any shape that inference may pad to; batch, width and height are free in the file


def split_images(dataset_dir: Path) -> tuple[list[Path], list[Path]]:
    """The training and the validation images of a prepared folder."""
    datalist = read_datalist(dataset_dir / "datalist.json")
    training, validation = ([dataset_dir / item["image"] for item in datalist[s]] for s in ("training", "validation"))
    return training, validation


def write_networks(ckpt_dir: Path, output: Path) -> list[str]:
    """Write the network by MONAI's exporters, with free batch, width and height; returns the files' names."""
    common = {"net_id": "network_def", "ckpt_file": str(ckpt_dir / "model.pt"), "ckpt_dir": str(ckpt_dir), **FILES}
    write_whole(output / "model.ts", lambda p: ckpt_export(filepath=p, **common))
    shape = {0: "batch", 2: "width", 3: "height"}  # MONAI loads a PNG as (W, H)
    free = {"image": shape, "pred": shape, "class_logits": {0: "batch"}}
    kwargs = {"input_names": ["image"], "output_names": NAMES, "dynamic_axes": free}
    write_whole(
        output / "model.onnx",
        lambda p: onnx_export(filepath=p, use_trace=True, input_shape=TRACED, converter_kwargs=kwargs, **common),
    )
    return ["model.ts", "model.onnx"]


def write_int8(output: Path, parser: ConfigParser, training: list[Path]) -> str:
    """Quantise the network of `model.onnx` on some of the training images; returns the file's name."""
    few = prepared_images(parser, evenly_spaced(training, QUANTISATION_IMAGES))
    write_whole(output / "model_int8.onnx", lambda p: quantise(output / "model.onnx", p, few))
    return "model_int8.onnx"


def write_whole_predictor(output: Path, name: str, parser: ConfigParser) -> str:
    """Put the metadata into a network's file, write the one around it that takes any image, and return its name."""
    bare = onnx.load(output / name)
    onnx.helper.set_model_props(bare, metadata(parser, whole=False))
    write_whole(output / name, lambda p: onnx.save(bare, p))
    write_whole(output / PREDICTORS[name], lambda p: write_predictor(output / name, p, parser))
    return PREDICTORS[name]


def load_export(file: Path) -> torch.nn.Module:
    """A network that was exported, checked, as PyTorch calls it."""
    if file.suffix == ".ts":
        return torch.jit.load(str(file))
    onnx.checker.check_model(str(file), full_check=True)
    return OnnxNetwork(str(file))


def told(content: dict) -> list[str]:
    """A line on each file of `exports.json`."""
    lines = []
    for name, found in (content["files"] | content["predictors"]).items():
        lines.append(f"{name}: {found['bytes'] / 1e6:.1f} MB")
        if "largest_probability_difference" in found:
            pixels = f"{100 * found['differing_mask_pixels']:.2f} % of the pixels of masks"
            lines[-1] += f", at most {found['largest_probability_difference']:.1e} from PyTorch, {pixels}"
        elif "mean_mask_iou" in found:
            difference, iou = found["largest_class_probability_difference"], found["mean_mask_iou"]
            lines[-1] += f", {difference:.1e} from the bundle, IoU of the masks {iou:.4f}"
    if not content["images"]:
        return [*lines, "INT8 and the comparison need images: give --dataset_dir"]
    return lines if "model_int8.onnx" in content["files"] else [*lines, "no INT8, which is made of a BasicUNet alone"]


def evenly_spaced(items: list, count: int) -> list:
    """Exactly `count` of the items, at equal distances but for rounding; all where they are fewer."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def prepared_images(parser: ConfigParser, files: list[Path]) -> list[torch.Tensor]:
    """Images as the network takes them, float32 (1, 1, M, N)."""
    prepare = parser.get_parsed_content("preprocessing")
    return [prepare({"image": str(file)})["image"].as_tensor()[None] for file in tqdm(files, desc="images")]


def compare_predictor(file: Path, predictor: Predictor, images: list[Path]) -> dict[str, float | dict]:
    """`compare_with_bundle` on images as they are, and on some of them resized to each of the odd sizes."""
    few = [cv2.imread(str(image), cv2.IMREAD_GRAYSCALE) for image in evenly_spaced(images, 10)]
    odd = [cv2.resize(image, (columns, rows)) for rows, columns in ODD_SIZES for image in few]
    return {**compare_with_bundle(file, predictor, images), "odd_sizes": compare_with_bundle(file, predictor, odd)}


def quantise(source: Path, target: str, images: list[torch.Tensor]) -> None:
    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict | None:
            image = next(self.left, None)
            return None if image is None else {"image": image.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quantization.quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(prepared, target, Reader(), per_channel=True)


@torch.no_grad()
def compare(network: torch.nn.Module, exported: torch.nn.Module, images: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference of any probability, and the share of mask pixels that differ."""
    largest, differing = {name: 0.0 for name in NAMES}, []
    for image in tqdm(images, desc="comparison", leave=False):
        expected, found = network(image), exported(image)
        expected, found = ({n: a[n].softmax(1).numpy() for n in NAMES} for a in (expected, found))
        for name in NAMES:
            largest[name] = max(largest[name], float(np.abs(expected[name] - found[name]).max()))
        differing.append(float((expected["pred"].argmax(1) != found["pred"].argmax(1)).mean()))
    return {
        "largest_probability_difference": max(largest.values()),
        "largest_class_probability_difference": largest["class_logits"],
        "differing_mask_pixels": float(np.mean(differing)),
    }
