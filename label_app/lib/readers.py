"""Several readers: labels of their own, the one of each image that trains, a log of their work, how well they agree."""

from __future__ import annotations

import csv
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import cohen_kappa_score

from breast_ultrasound.files import append_csv

from .consensus import dice, differ, is_read, majority, says, staple
from .errors import RequestError
from .study import hash_fraction, slug

if TYPE_CHECKING:  # which imports MONAI Label
    from .datastore import ImageDatastore, Kept

AGAIN_AFTER = 10  # other labels, before a reader sees an image for the second time
PREFIX, AGAIN = "reader_", "again_"  # of the labels' tags: what a reader said at first, and when asked again
FINAL = "final"  # tag of the labels that train
GOLD = "gold"  # tag of labels that are known to be right, which readers are measured by
LOG_FILE = "annotation_log.csv"
SETTLED = ("majority", "staple", "adjudicator")  # sources of a final label that no reader's label replaces


class Answer(BaseModel):
    """What is said of an image beside its outline."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    class_: str = Field("", alias="class")
    class_unknown: bool = False  # there is a lesion, but the class cannot be told
    not_readable: bool = False
    class_unsure: bool = False
    flag: bool = False  # somebody should look at it again
    comment: str = Field("", max_length=1000)
    fields: dict[str, str] = {}  # of study.json
    submission: str = Field("", max_length=64)  # the page's mark of it: what is sent twice is kept once
    replaces: str | None = None  # mark of the label that the page has seen, if any

    def info(self, reader: str) -> dict:
        """What is kept with the mask, empty values left out.

        Raises:
            RequestError: no class, or more than one answer.
        """
        said = [bool(self.class_), self.class_unknown, self.not_readable]
        if sum(said) != 1:
            raise RequestError(422, "no class; say a class, that it is unknown, or that the image is not readable")
        kept = self.model_dump(by_alias=True, include=set(Answer.model_fields) - {"replaces"})
        return {"reader": reader, **{name: value for name, value in kept.items() if value}}


class Reading(Answer):
    """What the page sends of an image's reading along with the mask; most of it goes into the log."""

    class_model: str | None = None
    class_before: str | None = None  # what the reader said before the model's class was shown
    blind: bool | None = None  # whether the model's class was held back until then
    suggestion: str | None = None  # shown, withheld, or none where the model gave no answer
    weights: str | None = None  # first digits of the SHA-256 of the weights that made the suggestion
    threshold: float | None = None
    seconds: float | None = None  # of pauses, half a minute each at most
    strokes: int | None = None
    edits: int | None = None  # strokes, and every other change of the mask
    undone: int | None = None  # of them, and not done again
    tools: str | None = None  # of what is left of them
    suggestion_dice: float | None = None  # of the suggestion and the submitted mask; none where both are empty


COUNTED = [name for name in Reading.model_fields if name not in Answer.model_fields and name != "class_model"]
LOG = ["time", "reader", "image", "again", "revision", "class", "class_unsure", "class_model", "area_px", *COUNTED]
LOG += ["flag", "comment"]
_log = Lock()


def tag(reader: str, again: bool = False) -> str:
    """Tag of a reader's labels."""
    return f"{AGAIN if again else PREFIX}{slug(reader)}"


def name_of(label_tag: str, labels: dict[str, Kept]) -> str:
    """Name of the reader whose labels have a tag."""
    if label_tag == GOLD:
        return GOLD
    named = next((kept.info["reader"] for kept in labels.values() if kept.info.get("reader")), None)
    name = named or label_tag.removeprefix(AGAIN).removeprefix(PREFIX)
    return f"{name}, again" if label_tag.startswith(AGAIN) else name


def reader_tags(datastore: ImageDatastore) -> list[str]:
    """Tags of all readers' labels, sorted."""
    return [name for name in datastore.tags() if name.startswith((PREFIX, AGAIN))]


def to_repeat(datastore: ImageDatastore, reader: str, images: list[str], fraction: float, skip: set[str]) -> str | None:
    """Which of her images a reader should label for the second time now, if any; a fraction of all gets its turn."""
    first, again = datastore.labels(tag(reader)), datastore.labels(tag(reader, True))
    order = sorted(first, key=lambda name: first[name].info.get("ts", 0))
    waiting = [n for n in order if hash_fraction("again", reader, n) < fraction and n not in again and n not in skip]
    rest = any(name not in first for name in images)
    return next((n for n in waiting if not rest or len(order) - order.index(n) > AGAIN_AFTER), None)


def keep(datastore: ImageDatastore, folder: str | Path, image: str, reader: str, again: bool, read: Reading, mask):
    """Keep what a reader says of an image, add a line to the log, and settle which label trains.

    Args:
        datastore: of the folder.
        folder: of the images.
        image: id.
        reader: her name.
        again: whether she was asked for the second time.
        read: what she says.
        mask: her outline, (height, width), bool.

    Raises:
        RequestError: 409 where she has labelled the image in another window meanwhile; 422 where class and outline
            contradict each other, or what she says is not complete.
    """
    info, label_tag = read.info(reader), tag(reader, again)
    earlier = datastore.label(image, label_tag)
    if earlier and read.submission and earlier.info.get("submission") == read.submission:
        return
    check_outline(read, mask)
    check_replaced(earlier, read)
    revision = len(datastore.versions(image, label_tag)) + bool(earlier)
    datastore.keep_label(image, mask, label_tag, info | {"suggestion": read.suggestion or ""}, anew=True)
    if not again:
        settle(datastore, image)
    add_to_log(folder, image, reader, again, revision, read, int(mask.sum()))


def check_outline(read: Answer, mask: np.ndarray) -> None:
    """Refuse an answer that needs an outline and has none, or has one that nobody asked for.

    Raises:
        RequestError: saying so.
    """
    if read.class_unknown and not mask.any():
        raise RequestError(422, "class unknown without a mask: outline the lesion, or say that there is none")
    if read.not_readable and mask.any():
        raise RequestError(422, "not readable, with a mask: clear it, or say the class")


def check_replaced(earlier: Kept | None, read: Answer) -> None:
    """Refuse to replace a label that the page has not seen.

    Raises:
        RequestError: another label was kept meanwhile.
    """
    if earlier and read.submission and mark(earlier) != read.replaces:
        minutes = max(0, round((time.time() - earlier.info.get("ts", 0)) / 60))
        raise RequestError(409, f"labelled {minutes} min ago in another window")


def mark(kept: Kept) -> str:
    """What tells a label from the one that replaces it."""
    return str(kept.info.get("submission") or kept.info.get("ts", ""))


def settle(datastore: ImageDatastore, image: str) -> None:
    """Let the first reader's label of an image train, as long as no other one differs and nobody has settled it."""
    final = datastore.label(image, FINAL)
    if final and (final.info.get("adjudicator") or final.info.get("source") in SETTLED):
        return
    given = [kept for name in datastore.tags() if name.startswith(PREFIX) if (kept := datastore.label(image, name))]
    given.sort(key=lambda kept: kept.info.get("ts", 0))
    masks = [kept.mask() for kept in given]
    alike = not any(
        differ(given[i].info, given[j].info, dice(masks[i], masks[j]))
        for i, j in itertools.combinations(range(len(given)), 2)
    )
    if given and alike and is_read(given[0].info):
        datastore.keep_label(image, masks[0], FINAL, {**given[0].info, "source": "reader"}, anew=True)
    elif final and final.info.get("reader"):
        datastore.remove_label(image, FINAL)


def adjudicate(datastore: ImageDatastore, image: str, adjudicator: str, said: Answer, mask: np.ndarray) -> dict:
    """Keep the final label of an image, and where it comes from, and return its info.

    ``source`` is ``reader`` where mask and class are those of one (``reader``), ``majority`` or ``staple`` where the
    mask is that of all (``readers``), ``adjudicator`` where it was drawn.

    Raises:
        RequestError: class and outline contradict each other, or another label was kept meanwhile.
    """
    info = said.info(adjudicator)
    check_outline(said, mask)
    check_replaced(datastore.label(image, FINAL), said)
    given = outlines(datastore, image)
    same = [one for one in given if says(one["info"]) == says(info) and np.array_equal(one["mask"], mask)]
    drawn = [one["mask"] for one in given if is_read(one["info"])]
    if same:
        source, info["reader"] = "reader", same[0]["reader"]
    else:
        ways = {"majority": majority, "staple": staple} if len(drawn) > 1 else {}
        source = next((name for name, way in ways.items() if np.array_equal(way(drawn), mask)), "adjudicator")
        info["readers"] = [one["reader"] for one in given]
    info |= {"source": source, "adjudicator": adjudicator}
    datastore.keep_label(image, mask, FINAL, info, anew=True)
    return info


def outlines(datastore: ImageDatastore, image: str) -> list[dict]:
    """What each reader said at first of an image: ``reader``, ``info``, ``mask`` (height, width), bool."""
    found = []
    for name in datastore.tags():
        if name.startswith(PREFIX) and (kept := datastore.label(image, name)):
            found.append({"reader": name_of(name, {image: kept}), "info": kept.info, "mask": kept.mask()})
    return found


def add_to_log(folder, image: str, reader: str, again: bool, revision: int, read: Reading, area_px: int) -> None:
    """Add a line to ``annotation_log.csv`` in the folder of the images; one of an earlier version is put aside."""
    line = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "reader": reader,
        "image": image,
        "again": int(again),
        "revision": revision,
        "class": says(read.model_dump(by_alias=True)),
        "area_px": area_px,
        **read.model_dump(exclude_none=True, include={"class_model", *COUNTED, "comment"}),
        **{name: int(getattr(read, name)) for name in ("class_unsure", "flag")},
    }
    file = Path(folder) / LOG_FILE
    with _log:
        if file.is_file():
            with open(file, newline="", encoding="utf-8", errors="surrogateescape") as opened:
                columns = next(csv.reader(opened), [])
            if columns != LOG:
                os.replace(file, file.with_stem(f"{file.stem}_until_{time.strftime('%Y%m%d_%H%M%S')}"))
        append_csv(file, [line], LOG)


class Agreement:
    """How alike readers' labels are; each two masks are compared once as long as their files stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple, float | None] = {}

    def pairs(self, found: dict[str, dict[str, Kept]]) -> list[dict]:
        """How well each two readers agree, and each with herself where she saw images twice.

        Args:
            found: labels by tag and image; a copy, nothing is asked of the datastore.

        Returns:
            for each pair with images in common ``first``, ``second``, ``images``, mean ``dice`` over those where
            either drew a lesion, Cohen's ``kappa`` of the class (None where it is not defined), and ``differing``:
            images with another class or a Dice under ``consensus.SAME_LESION``, least Dice first.
        """
        names = {name: name_of(name, labels) for name, labels in found.items()}
        read = {name: {n: kept for n, kept in labels.items() if is_read(kept.info)} for name, labels in found.items()}
        overlap: dict[tuple[str, str], dict[str, float | None]] = {}
        for image in sorted(set(itertools.chain(*read.values()))):
            for first, second, value in self._of_image({n: read[n][image] for n in read if image in read[n]}):
                overlap.setdefault((first, second), {})[image] = value
        result = []
        for first, second in itertools.combinations(read, 2):
            if values := overlap.get((first, second)):
                infos = {name: (read[first][name].info, read[second][name].info) for name in values}
                both = {"first": names[first], "second": names[second], "images": len(values)}
                result.append({**both, **_compare(values, infos)})
        return result

    def _of_image(self, given: dict[str, Kept]) -> Iterator[tuple[str, str, float | None]]:
        """Dice of each two labels of an image; their masks are read where it is not known."""
        times = {name: (kept.file, os.stat(kept.file).st_mtime_ns) for name, kept in given.items()}
        masks: dict[str, np.ndarray] = {}
        for first, second in itertools.combinations(given, 2):
            key = times[first], times[second]
            if key not in self._known:
                for name in (first, second):
                    if name not in masks:
                        masks[name] = given[name].mask()
                self._known[key] = dice(masks[first], masks[second])
            yield first, second, self._known[key]


def _compare(overlap: dict[str, float | None], infos: dict[str, tuple[dict, dict]]) -> dict:
    """What ``pairs`` says of two readers, from both Dice (None: no lesion) and infos by image."""
    of_lesions = [value for value in overlap.values() if value is not None]
    differing = [name for name, (one, other) in infos.items() if differ(one, other, overlap[name])]
    both = [(one.get("class"), other.get("class")) for one, other in infos.values()]
    classes = [(one, other) for one, other in both if one and other]
    defined = len(set(itertools.chain(*classes))) > 1
    return {
        "dice": float(np.mean(of_lesions)) if of_lesions else None,
        "kappa": float(cohen_kappa_score(*zip(*classes))) if defined else None,
        "differing": sorted(differing, key=lambda name: 1.0 if overlap[name] is None else overlap[name]),
    }
