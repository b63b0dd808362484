"""What the tools of the annotation page are worth: a simulated reader who knows the true masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage
from tools.cli import BUNDLE
from tqdm import tqdm

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import sha256, write_csv
from breast_ultrasound.images import open_image, to_grey, to_mask
from breast_ultrasound.predictor import Predictor
from lib.box import RULE, Box, ask, ellipse
from lib.clicks import TOUCHING, Click, ask_at
from study.experiments import commit

BOX_ERRORS = (0.0, 0.05, 0.1)  # standard deviation, as a fraction of the box's width and height
TOO_LARGE = 0.5  # the same, of a box that is right but for its size
OUTWARDS = np.array([-1, -1, 1, 1])
CLICKS = 2
THRESHOLDS = np.arange(1, 20) / 20  # of the slider


def simulate_annotation(dataset_dir: Path, ckpt_dir: Path, output: Path, split: str = "testing", seed: int = 0) -> None:
    """Ask the bundle for masks and probability maps of a split's lesions, use the tools on them, and write the table.

    The tools are the suggestion as it is, the threshold slider at its best, clicks in the middle of the largest wrong
    region, an ellipse in the lesion's box without a model, and the box tool (the model asked again about the
    surroundings of the box, joined with the ellipse). The edges of the box are off by nothing, 5 % and 10 % of its size
    (standard deviation of a normal distribution), or the box is 50 % too large. Since truth sets clicks, box and
    slider, each figure is an upper bound for a person.

    Args:
        dataset_dir: prepared folder.
        ckpt_dir: folder of the weights.
        output: CSV file to write: mean Dice by tool, and the fractions of lesions with a good and with a poor one.
        split: part of the folder's datalist.
        seed: of the errors of the boxes.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the split has no lesion, or an image cannot be read.
    """
    items = read_datalist(dataset_dir / "datalist.json")[split]
    truths = [(dataset_dir / item["image"], to_mask(open_image(dataset_dir / item["label"])) > 0) for item in items]
    lesions = [(image, truth) for image, truth in truths if truth.any()]
    if not lesions:
        raise ValueError(f"{dataset_dir}: no lesion in the {split} split")
    random = np.random.default_rng(seed)
    boxes: dict[tuple[str, float | str], list[Box]] = {
        ("", error): [drawn_box(truth, error * random.normal(size=4)) for _, truth in lesions] for error in BOX_ERRORS
    }
    boxes[f" {100 * TOO_LARGE:.0f} % too large", ""] = [
        drawn_box(truth, TOO_LARGE / 2 * OUTWARDS) for _, truth in lesions
    ]
    predictor = Predictor(BUNDLE, ckpt_dir=str(ckpt_dir.resolve()), predict_refused=True)
    scores: dict[tuple[str, float | str], list[float]] = {}
    for number, (file, truth) in enumerate(tqdm(lesions, desc="Simulated reader")):
        drawn = {of: list_of[number] for of, list_of in boxes.items()}
        for tool, error, value in annotate(predictor, to_grey(open_image(file)), truth, drawn):
            scores.setdefault((tool, error), []).append(value)
    made_by = {"weights_sha256": sha256(ckpt_dir / "model.pt"), **predictor.mask_rule, "commit": commit()}
    rows = [row(*key, values) | made_by for key, values in scores.items()]
    write_csv(output, rows, list(rows[0]))
    for key, values in scores.items():
        print(f"{key[0]:45} {key[1]!s:5} {np.mean(values):.3f}")


def annotate(
    predictor: Predictor, image: np.ndarray, truth: np.ndarray, boxes: dict[tuple[str, float | str], Box]
) -> Iterator[tuple[str, float | str, float]]:
    """Every tool on one lesion: its name, the error of its box (empty: it has none), and the Dice it reaches.

    Args:
        predictor: the model.
        image: 8-bit grey (height, width).
        truth: true mask (height, width), bool, not empty.
        boxes: what the reader draws, by what is said of it behind the tool's name, and by its error.
    """
    whole = predictor(image)
    yield "suggestion", "", dice(whole.mask, truth)
    yield "suggestion, slider", "", best(predictor, whole.lesion_probability, truth, {})
    mask, clicks = whole.mask, []
    for number in range(1, CLICKS + 1):
        if (mask != truth).any():
            clicks.append(click(mask, truth))
            probability, rule = ask_at(predictor, image, mask, clicks)
            mask = predictor.mask(probability, **rule)
        yield f"{number} click{'s' * (number > 1)}", "", dice(mask, truth)
    for (said, error), box in boxes.items():
        fused = ask(predictor, image, whole.lesion_probability, box)
        yield f"ellipse{said}", error, dice(ellipse(truth.shape, box) < 1, truth)
        yield f"box{said}", error, dice(predictor.mask(fused, **RULE), truth)
        yield f"box{said}, slider", error, best(predictor, fused, truth, RULE)


def click(mask: np.ndarray, true: np.ndarray) -> Click:
    """Where a person clicks who sees both masks (height, width): the middle of the largest region that is wrong."""
    missed, _ = ndimage.label(true & ~mask, TOUCHING)
    wrong, _ = ndimage.label(mask & ~true, TOUCHING)
    regions = np.where(wrong, wrong + missed.max(), missed)
    largest = np.bincount(regions[regions > 0]).argmax()
    inner = ndimage.distance_transform_edt(np.pad(regions == largest, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(inner.argmax(), inner.shape)
    return int(x), int(y), bool(true[y, x])


def drawn_box(mask: np.ndarray, errors: np.ndarray) -> Box:
    """The box of a mask (height, width), within the image; its left, top, right and bottom edge are off by these
    fractions of its width or height."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    exact = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    size = np.tile(exact[2:] - exact[:2], 2)
    left, top, right, bottom = np.round(exact + errors * size).astype(int)
    left, top = (min(max(0, value), side - 2) for value, side in ((left, mask.shape[1]), (top, mask.shape[0])))
    return left, top, max(left + 2, min(right, mask.shape[1])), max(top + 2, min(bottom, mask.shape[0]))


def dice(mask: np.ndarray, true: np.ndarray) -> float:
    """Dice of two masks of which the second is not empty."""
    return 2 * float((mask & true).sum()) / float(mask.sum() + true.sum())


def best(predictor: Predictor, probability: np.ndarray, true: np.ndarray, rule: dict[str, float]) -> float:
    """Dice at the threshold of the slider that suits the true mask best, the mask made by a rule as the page does."""
    masks = (predictor.mask(probability, **{**rule, "mask_threshold": float(t)}) for t in THRESHOLDS)
    return max(dice(mask, true) for mask in masks)


def row(tool: str, error: float | str, values: list[float]) -> dict:
    """A tool's line of the table: mean Dice, and the fractions of lesions with a good and with a poor one."""
    found = np.array(values)
    figures = {"dice": found.mean(), "dice_from_0_9": (found >= 0.9).mean(), "dice_below_0_5": (found < 0.5).mean()}
    return {"tool": tool, "box_error": error, **{k: float(v) for k, v in figures.items()}, "lesions": len(found)}
