"""What a study of several readers came to: agreement with intervals, and what suggestions were worth in time."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.stats import bootstrap

from breast_ultrasound.files import read_csv

from .consensus import dice, is_read
from .readers import LOG_FILE, PREFIX, name_of

if TYPE_CHECKING:
    from .datastore import Kept

SHOWN, WITHHELD = "shown", "withheld"
RESAMPLES = 2000  # of the images, for the interval of kappa


def interval(values: list[float]) -> dict:
    """Mean and its 95 % interval by bootstrap (BCa), ``low`` and ``high`` None where values are few or all the same."""
    if not values:
        return {"n": 0, "mean": None, "low": None, "high": None}
    found = {"n": len(values), "mean": float(np.mean(values)), "low": None, "high": None}
    if len(values) > 2 and np.ptp(values):
        ends = bootstrap((values,), np.mean, rng=0).confidence_interval
        found |= {"low": float(ends.low), "high": float(ends.high)}
    return found


def hd95(first: np.ndarray, second: np.ndarray) -> float | None:
    """95th percentile of the distances from the rim of either mask (height, width), bool, to that of the other, pixels.

    The larger of the two directions, as MONAI's ``HausdorffDistanceMetric`` has it; None where a mask is empty.
    """
    if not (first.any() and second.any()):
        return None
    both = first | second
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    rims = [mask[part] & ~binary_erosion(mask[part]) for mask in (first, second)]
    ways = [np.percentile(distance_transform_edt(~to)[of], 95) for of, to in (rims, rims[::-1])]
    return float(max(ways))


def fleiss_kappa(said: list[list[str]]) -> dict:
    """Agreement of as many readers for each image beyond chance, as ``interval`` has it; None where it is not defined.

    Fleiss, Psychological Bulletin 76 (1971); the interval by the percentiles of a bootstrap over the images.

    Args:
        said: the classes that the readers gave to each image.
    """
    found = {"n": len(said), "mean": None, "low": None, "high": None}
    if not said or len(said[0]) < 2:
        return found
    names = sorted(set(itertools.chain(*said)))
    table = np.array([[classes.count(name) for name in names] for classes in said], float)
    found["mean"] = _kappa(table)
    draws = np.random.default_rng(0).integers(0, len(said), (RESAMPLES, len(said)))
    values = [value for draw in draws if (value := _kappa(table[draw])) is not None]
    if len(said) > 2 and values and np.ptp(values):
        found["low"], found["high"] = map(float, np.percentile(values, (2.5, 97.5)))
    return found


def _kappa(table: np.ndarray) -> float | None:
    """Fleiss' kappa of a table (images, classes) that counts readers; None where all say the same of all images."""
    readers = table[0].sum()
    alike = ((table**2).sum(1) - readers) / (readers * (readers - 1))
    chance = ((table.sum(0) / table.sum()) ** 2).sum()
    return None if chance == 1 else float((alike.mean() - chance) / (1 - chance))


def summary(found: dict[str, dict[str, Kept]], folder: str | Path) -> dict:
    """Figures of a study, each with its number and 95 % interval.

    Args:
        found: labels by tag and image; of readers' first answers.
        folder: of the images, with the log.

    Returns:
        ``dice`` and ``hd95`` (pixels) of each two readers of an image, a mean for each image; Fleiss' ``kappa`` of the
        class on the images that all readers gave one; ``seconds``, by whether a suggestion was ``shown`` or
        ``withheld``, and ``saved``: seconds without less seconds with, of the same images.
    """
    first = {tag: labels for tag, labels in found.items() if tag.startswith(PREFIX)}
    overlaps, distances, classes = [], [], []
    for image in sorted(set(itertools.chain(*first.values()))):
        given = [labels[image] for labels in first.values() if image in labels and is_read(labels[image].info)]
        masks = [kept.mask() for kept in given]
        for values, measure in ((overlaps, dice), (distances, hd95)):
            of_pairs = [measure(*pair) for pair in itertools.combinations(masks, 2)]
            of_pairs = [value for value in of_pairs if value is not None]
            values += [float(np.mean(of_pairs))] if of_pairs else []
        said = [kept.info["class"] for kept in given if kept.info.get("class")]
        if len(said) == len(first) > 1:
            classes.append(said)
    return {
        "readers": [name_of(tag, labels) for tag, labels in first.items()],
        "dice": interval(overlaps),
        "hd95": interval(distances),
        "kappa": fleiss_kappa(classes),
        **times(Path(folder) / LOG_FILE),
    }


def times(log: Path) -> dict:
    """``seconds`` and ``saved`` of ``summary``, from the first submission of each image by each reader."""
    seconds: dict[str, dict[str, list[float]]] = {SHOWN: defaultdict(list), WITHHELD: defaultdict(list)}
    for line in read_csv(log) if log.is_file() else []:
        first = line.get("revision") == "0" and line.get("again") == "0"
        if first and line.get("suggestion") in seconds and line.get("seconds"):
            seconds[line["suggestion"]][line["image"]].append(float(line["seconds"]))
    all_of = {way: list(itertools.chain(*by_image.values())) for way, by_image in seconds.items()}
    both = seconds[SHOWN].keys() & seconds[WITHHELD].keys()
    saved = [float(np.mean(seconds[WITHHELD][name]) - np.mean(seconds[SHOWN][name])) for name in sorted(both)]
    return {"seconds": {way: interval(values) for way, values in all_of.items()}, "saved": interval(saved)}
