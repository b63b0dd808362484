"""What the tools of the annotation page are worth: a simulated reader who knows the true masks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from command_line import run_bundle
from PIL import Image

from lib.box import Box, ellipse, fuse, surroundings
from scripts.data import read_datalist
from scripts.files import write_csv
from scripts.transforms import open_image, to_grey

BOX_ERRORS = (0.0, 0.05, 0.1)  # standard deviation, as a fraction of the box's width and height
THRESHOLDS = np.arange(1, 20) / 20  # of the slider
COLUMNS = ["tool", "box_error", "dice", "dice_from_0_9", "dice_below_0_5", "lesions"]
# The lesion's probabilities in place of its mask, as PNG with 255 for 1
AS_MAP = {"output_dtype": "$np.float32", "lesion_mask": {"_target_": "Identityd", "keys": "pred"}}


def simulate_annotation(dataset_dir: Path, ckpt_dir: Path, output: Path, split: str = "testing", seed: int = 0) -> None:
    """Ask the bundle for masks and probability maps of a split's lesions, use the tools on them, and write the table.

    The tools are the suggestion as it is, the threshold slider at its best, an ellipse in the lesion's box without a
    model, and the box tool (the model asked again about the surroundings of the box, joined with the ellipse). The
    edges of the box are off by nothing, 5 % and 10 % of its size (standard deviation of a normal distribution). Since
    truth sets box and slider, each figure is an upper bound for a person.

    Args:
        dataset_dir: prepared folder.
        ckpt_dir: folder of the weights.
        output: CSV file to write: mean Dice by tool, and the fractions of lesions with a good and with a poor one.
        split: part of the folder's datalist.
        seed: of the errors of the boxes.

    Raises:
        ValueError: the split has no lesion, or an inference failed.
    """
    items = read_datalist(dataset_dir / "datalist.json")[split]
    images = {f"{i}.png": dataset_dir / item["image"] for i, item in enumerate(items)}
    true = {f"{i}.png": read(dataset_dir / item["label"]) > 0.5 for i, item in enumerate(items)}
    true = {name: mask for name, mask in true.items() if mask.any()}
    if not true:
        raise ValueError(f"{dataset_dir}: no lesion in the {split} split")
    random = np.random.default_rng(seed)
    boxes = {error: {name: drawn_box(mask, error, random) for name, mask in true.items()} for error in BOX_ERRORS}

    with tempfile.TemporaryDirectory() as work:
        whole, ids = Path(work) / "whole", {"ckpt_dir": ckpt_dir.resolve()}
        crops = {error: Path(work) / f"crops_{error}" for error in BOX_ERRORS}
        for folder in (whole, *crops.values()):
            folder.mkdir()
        for name in true:
            image = Image.fromarray(to_grey(open_image(images[name])))
            image.save(whole / name)
            for error, folder in crops.items():
                image.crop(surroundings(boxes[error][name], *image.size)).save(folder / name)
        suggestions = infer("suggestions", whole, ids)
        maps = infer("maps", whole, {**ids, **AS_MAP})
        inside = {error: infer(f"maps of crops, {error}", folder, {**ids, **AS_MAP}) for error, folder in crops.items()}

    scores: dict[tuple[str, float | str], list[float]] = {}
    for name, mask in true.items():

        def add(tool: str, error: float | str, value: float) -> None:
            scores.setdefault((tool, error), []).append(value)

        add("suggestion", "", dice(suggestions[name] > 0.5, mask))
        add("suggestion, slider", "", best(maps[name], mask))
        for error in BOX_ERRORS:
            box = boxes[error][name]
            fused = fuse(maps[name], inside[error][name], box)
            add("ellipse", error, dice(ellipse(mask.shape, box) < 1, mask))
            add("box", error, dice(fused >= 0.5, mask))
            add("box, slider", error, best(fused, mask))
    write_csv(output, [row(*key, values) for key, values in scores.items()], COLUMNS)
    for key, values in scores.items():
        print(f"{key[0]:45} {key[1]!s:5} {np.mean(values):.3f}")


def infer(title: str, folder: Path, ids: dict[str, object]) -> dict[str, np.ndarray]:
    """What the bundle's own inference writes for a folder of images, in [0, 1], by name."""
    output = folder.with_name(f"out_{title}")
    run_bundle(title, "run", "inference", dataset_dir=folder, output_dir=output, **ids)
    return {file.name: read(output / f"{file.stem}_seg.png") for file in folder.iterdir()}


def read(file: Path) -> np.ndarray:
    """An image (height, width) in [0, 1]."""
    return to_grey(open_image(file)) / np.float32(255)


def drawn_box(mask: np.ndarray, error: float, random: np.random.Generator) -> Box:
    """The box of a mask (height, width), each edge off by a fraction of the box's size, within the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    exact = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    size = np.tile(exact[2:] - exact[:2], 2)
    left, top, right, bottom = np.round(exact + error * size * random.normal(size=4)).astype(int)
    left, top = (min(max(0, value), side - 2) for value, side in ((left, mask.shape[1]), (top, mask.shape[0])))
    return left, top, max(left + 2, min(right, mask.shape[1])), max(top + 2, min(bottom, mask.shape[0]))


def dice(mask: np.ndarray, true: np.ndarray) -> float:
    """Dice of two masks of which the second is not empty."""
    return 2 * float((mask & true).sum()) / float(mask.sum() + true.sum())


def best(probability: np.ndarray, true: np.ndarray) -> float:
    """Dice at the threshold that suits the true mask best."""
    return max(dice(probability >= threshold, true) for threshold in THRESHOLDS)


def row(tool: str, error: float | str, values: list[float]) -> dict:
    """A tool's line of the table: mean Dice, and the fractions of lesions with a good and with a poor one."""
    found = np.array(values)
    figures = {"dice": found.mean(), "dice_from_0_9": (found >= 0.9).mean(), "dice_below_0_5": (found < 0.5).mean()}
    return {"tool": tool, "box_error": error, **{k: float(v) for k, v in figures.items()}, "lesions": len(found)}
