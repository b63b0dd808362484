"""Several readers: labels of their own, the next image of each, a log of their work, and how well they agree."""

from __future__ import annotations

import hashlib
import itertools
import time
from pathlib import Path
from threading import Lock

import numpy as np
from sklearn.metrics import cohen_kappa_score

from scripts.files import append_csv

from .datastore import PictureDatastore, check_tag
from .errors import RequestError

AGAIN_AFTER = 10  # other labels, before a reader sees an image for the second time
PREFIX, AGAIN = "reader_", "again_"  # of the labels' tags: what a reader said at first, and when asked again
# What the page tells of an image's reading, with the type that it must have
COUNTED = {
    "class_before": str,  # what the reader said before the model's class was shown
    "suggestion": str,  # shown, withheld, or none where the model gave no answer
    "weights": str,  # first digits of the SHA-256 of the weights that made the suggestion
    "threshold": float,
    "seconds": float,  # without pauses of more than half a minute
    "strokes": int,
    "edits": int,  # strokes, and every other change of the mask
    "undone": int,
    "tools": str,
    "suggestion_dice": float,  # of the suggestion and the submitted mask
}
LOG = ["time", "reader", "image", "again", "class", "class_model", "area_px", *COUNTED]
LOG_FILE = "annotation_log.csv"
_log = Lock()


def tag(reader: str, again: bool = False) -> str:
    """Tag of a reader's labels.

    Raises:
        RequestError: the name has other signs than letters, digits, - and _.
    """
    check_tag(reader)
    return f"{AGAIN if again else PREFIX}{reader}"


def chance(*parts: str) -> float:
    """A number in [0, 1) that is always the same for the same parts, and nobody can foretell from the image."""
    return int(hashlib.sha256("/".join(parts).encode()).hexdigest()[:8], 16) / 2**32


def labels(datastore: PictureDatastore, wanted: str) -> dict[str, dict]:
    """Info of all labels with a tag, by image."""
    objects = datastore.json()["objects"]
    return {name: entry["labels"][wanted]["info"] for name, entry in objects.items() if wanted in entry["labels"]}


def names(datastore: PictureDatastore) -> list[str]:
    """Tags of all readers' labels, sorted."""
    found = {tag for entry in datastore.json()["objects"].values() for tag in entry["labels"]}
    return sorted(tag for tag in found if tag.startswith((PREFIX, AGAIN)))


def to_repeat(datastore: PictureDatastore, reader: str, fraction: float, skip: set[str]) -> str | None:
    """An image that a reader should label for the second time now, if any; a fraction of all gets its turn."""
    first, again = labels(datastore, tag(reader)), labels(datastore, tag(reader, True))
    order = sorted(first, key=lambda name: first[name]["ts"])
    waiting = [n for n in order if chance("again", reader, n) < fraction and n not in again and n not in skip]
    rest = len(datastore.list_images()) > len(first)
    return next((n for n in waiting if not rest or len(order) - order.index(n) > AGAIN_AFTER), None)


def add_to_log(folder: str | Path, entry: dict) -> None:
    """Add a line to ``annotation_log.csv`` in the folder of the images."""
    with _log:
        append_csv(Path(folder) / LOG_FILE, [{"time": time.strftime("%Y-%m-%d %H:%M:%S"), **entry}], LOG)


def counted(values: dict) -> dict:
    """What the page told of a reading, of the types of ``COUNTED``; nothing else is kept.

    Raises:
        RequestError: a value has another type.
    """
    found = {name: values[name] for name in COUNTED if values.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, (int, float) if COUNTED[name] is float else COUNTED[name]):
            raise RequestError(400, f"{name} is {value!r}; send {COUNTED[name].__name__}")
    return found


def agreement(datastore: PictureDatastore) -> list[dict]:
    """How well each two readers agree, and each with herself where she saw images twice.

    Returns:
        for each pair with images in common ``first``, ``second``, ``images``, mean ``dice`` over those where either
        drew a lesion, Cohen's ``kappa`` of the class (None where it is not defined), and ``differing``: images with
        another class or a Dice under 0.8, least Dice first.
    """
    found = {name: labels(datastore, name) for name in names(datastore)}
    pairs = []
    for first, second in itertools.combinations(found, 2):
        told = [{n: i for n, i in found[t].items() if not i.get("cannot_tell")} for t in (first, second)]
        common = sorted(told[0].keys() & told[1].keys())
        if not common:
            continue
        scores = {name: _dice(datastore.mask(name, first), datastore.mask(name, second)) for name in common}
        classes = [[info[name].get("class", "") for name in common] for info in told]
        lesions = [score for score in scores.values() if score is not None]
        differ = [n for i, n in enumerate(common) if classes[0][i] != classes[1][i] or (scores[n] or 1) < 0.8]
        kappa = cohen_kappa_score(*classes) if len(set(classes[0] + classes[1])) > 1 else None
        pairs.append(
            {
                "first": first,
                "second": second,
                "images": len(common),
                "dice": float(np.mean(lesions)) if lesions else None,
                "kappa": None if kappa is None else float(kappa),
                "differing": sorted(differ, key=lambda name: scores[name] or 0),
            }
        )
    return pairs


def _dice(first: np.ndarray, second: np.ndarray) -> float | None:
    """Dice of two masks; None where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else None
