"""Three simulated readers with known errors: how far majority, STAPLE and an adjudicator are from the true masks.

    .venv-label/bin/python study/simulated_readers.py --dataset_dir runs/clean --output study/results/readers.csv

It runs in the environment of the annotation page, whose STAPLE is SimpleITK's.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import affine_transform, center_of_mass

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bundle"), str(ROOT / "label_app")]

from breast_ultrasound.cli import run  # noqa: E402
from breast_ultrasound.data import read_datalist  # noqa: E402
from breast_ultrasound.files import write_csv  # noqa: E402
from breast_ultrasound.images import open_image, to_mask  # noqa: E402
from lib.consensus import common_class, dice, differ, majority, staple  # noqa: E402

CLASSES = ("benign", "malignant")


class Reader(NamedTuple):
    """What a simulated reader does wrong: sizes of her outlines, as fractions of the true ones; the standard deviation
    of the shift along each axis, as a fraction of the lesion's diameter; how often she misses a lesion or its class."""

    size: float = 1.0
    shift: float = 0.03
    missed: float = 0.0
    wrong_class: float = 0.05


READERS = {
    "wide": Reader(size=1.1),
    "tight": Reader(size=0.9),
    "hasty": Reader(shift=0.12, missed=0.1, wrong_class=0.2),
}


class Label(NamedTuple):
    """A mask (height, width), bool, and the class."""

    mask: np.ndarray
    said: str


def simulated_readers(dataset_dir: Path, output: Path, split: str = "testing", seed: int = 0) -> None:
    """Let the readers outline a split's lesions, and compare what becomes of their labels with the truth.

    Args:
        dataset_dir: prepared folder.
        output: CSV file to write, a line for each reader and for what is made of two and of three of them: mean Dice,
            the fractions of lesions with a good and with a poor one, that of right classes (where there is one),
            and of the images in which the readers differ, so that the page asks an adjudicator.
        split: part of the folder's datalist.
        seed: of the errors.

    Raises:
        ValueError: the split has no lesion, or an image cannot be read.
    """
    found = read_datalist(dataset_dir / "datalist.json")
    lesions = []
    for item in found[split]:
        mask = to_mask(open_image(dataset_dir / item["label"])) > 0
        if mask.any():
            lesions.append(Label(mask, CLASSES[item["class"] - 1]))
    if not lesions:
        raise ValueError(f"{dataset_dir}: no lesion in the {split} split")
    random = np.random.default_rng(seed)
    scores: dict[tuple[str, str], list[tuple]] = {}
    for truth in lesions:
        drawn = {name: read(truth, reader, random) for name, reader in READERS.items()}
        for of in (("wide", "tight"), tuple(READERS)):
            given = {name: drawn[name] for name in of}
            differing = any(
                differ({"class": a.said}, {"class": b.said}, dice(a.mask, b.mask))
                for a, b in itertools.combinations(given.values(), 2)
            )
            for name, label in consensus(given, truth):
                right = label.said == truth.said if label.said else np.nan
                scores.setdefault((name, ", ".join(of)), []).append((dice(label.mask, truth.mask), right, differing))
    rows = [row(*key, values) | {"commit": commit()} for key, values in scores.items()]
    write_csv(output, rows, list(rows[0]))
    for line in rows:
        print(f"{line['label']:12} of {line['readers']:20} {line['dice']:.3f}")


def read(truth: Label, reader: Reader, random: np.random.Generator) -> Label:
    """What a reader says of a lesion."""
    shift = reader.shift * 2 * np.sqrt(truth.mask.sum() / np.pi) * random.normal(size=2)
    centre, scale = np.array(center_of_mass(truth.mask)), np.eye(2) / reader.size
    missed, wrong = random.random(2) < (reader.missed, reader.wrong_class)
    if missed:
        return Label(np.zeros_like(truth.mask), "normal")
    mask = affine_transform(truth.mask.astype(np.float32), scale, centre - scale @ (centre + shift), order=1) >= 0.5
    return Label(mask, CLASSES[1 - CLASSES.index(truth.said)] if wrong else truth.said)


def consensus(given: dict[str, Label], truth: Label) -> Iterator[tuple[str, Label]]:
    """What readers say of a lesion, and what is made of it; the adjudicator takes the best of all and its true class,
    so that she is an upper bound for one who draws nothing."""
    yield from given.items()
    masks, said = [label.mask for label in given.values()], common_class([{"class": g.said} for g in given.values()])
    made = {"majority": Label(majority(masks), said), "STAPLE": Label(staple(masks), said)}
    yield from made.items()
    best = max([*given.values(), *made.values()], key=lambda label: dice(label.mask, truth.mask))
    yield "adjudicator", Label(best.mask, truth.said)


def row(label: str, readers: str, values: list[tuple]) -> dict:
    """A line of the table, from Dice, whether the class is right (NaN: none), and whether the readers differ."""
    scores, right, differing = np.array(values, float).T
    figures = {"dice": scores.mean(), "dice_from_0_9": (scores >= 0.9).mean(), "dice_below_0_5": (scores < 0.5).mean()}
    figures |= {"class_right": np.nanmean(right), "no_class": np.isnan(right).mean(), "differing": differing.mean()}
    return {"label": label, "readers": readers, **{k: float(v) for k, v in figures.items()}, "lesions": len(values)}


def commit() -> str:
    """The repository's commit; empty outside of git."""
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    run(simulated_readers)
