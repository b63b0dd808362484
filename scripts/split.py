"""Which images belong together, and which go to training, validation and testing: groups, near-duplicates, folds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from prepare_busi import Picture

CLASSES = ("normal", "benign", "malignant")  # of BUSI, in the order of their indices
PARTS = {"training": 0.7, "validation": 0.15, "testing": 0.15}  # shares of the images; 546/117/117 of 780
FOLD_VALIDATION = 1 / 8  # share of the images outside the tested fold
SPLITS = {
    "clean": "grouped by scan; scans that stand in several classes, axilla and needle images left out",
    "grouped": "grouped by scan; scans that stand in several classes left out",
    "patients": "all images of a patient in one split",
    "random": "every image on its own, stratified by class; copies of one scan may stand in several parts",
}
FACTS = Path(__file__).with_name("busi_groups.csv")
# Of the images that bear a listed name, this share must also have the listed size before the list is believed:
# another set in BUSI's layout may well hold a "benign (1).png".
LISTED_SHARE = 0.9
THUMB = 48  # pixels
# On BUSI, 183 pairs inside the published groups reach this Pearson correlation of thumbnails and no pair across groups
# does (highest 0.955). For left-right mirrored pairs the highest is 0.92, so looking for them costs no false join.
NEAR_DUPLICATE = 0.96


def read_facts() -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of `busi_groups.csv` by (class, filename); its head names the source of the facts."""
    with FACTS.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {(row["class"], row["filename"]): row for row in rows}


def near_duplicates(thumbs: np.ndarray) -> np.ndarray:
    """Return which of N images show the same scan, upright or mirrored: bool (N, N) from thumbnails (N, h, w)."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    mirrored = flat.reshape(thumbs.shape)[:, :, ::-1].reshape(flat.shape)
    return np.maximum(flat @ flat.T, flat @ mirrored.T) >= NEAR_DUPLICATE


def join_groups(pictures: list[Picture], facts: dict) -> None:
    """Set each image's group: the published groups, where they apply, joined with near-duplicates on the pixels.

    A published row applies to an image of its class, file name and size, given that at least 90 % of the images with
    listed names have the listed sizes; other images are grouped by pixels alone. Groups keep their published name
    `G...`; those without one get `P...`. The published objection and burned-in marks are set as well.
    """
    rows = [facts.get((picture.class_name, Path(picture.file).name)) for picture in pictures]
    listed = [(picture, row) for picture, row in zip(pictures, rows) if row]
    fitting = [(picture, row) for picture, row in listed if picture.size == (int(row["width"]), int(row["height"]))]
    if len(fitting) >= LISTED_SHARE * len(listed):
        for picture, row in fitting:
            picture.group, picture.objection = row["group"], row["objection"]
            picture.burned_in_marks = row["burned_in_marks"]
    published = np.array([picture.group for picture in pictures])
    same = near_duplicates(np.array([picture.thumb for picture in pictures]))
    same |= (published[:, None] == published) & (published != "")
    _, component = connected_components(same, directed=False)
    names: dict[int, str] = {}
    for name, number in sorted(zip(published, component)):
        if name:
            names.setdefault(number, str(name))
    for picture, number in zip(pictures, component):
        picture.group = names.setdefault(number, f"P{len(names) + 1:04d}")


def leave_out(pictures: list[Picture], split: str) -> None:
    """Set `left_out` to the reason in the images that `split` does not use."""
    classes: dict[str, set[str]] = {}
    for picture in pictures:
        classes.setdefault(picture.group, set()).add(picture.class_name)
    for picture in pictures:
        # The list speaks also where the folder holds only one side of such a scan.
        if split != "random" and (len(classes[picture.group]) > 1 or picture.objection == "multiclass"):
            picture.left_out = "scan stands in several classes"
        elif split == "clean" and picture.objection in ("axilla", "needle"):
            picture.left_out = picture.objection


def allocate(classes: Sequence[int], groups: Sequence[str], shares: Sequence[float], seed: int) -> np.ndarray:
    """Distribute groups over parts so that every class keeps its share in every part.

    Class by class, groups go from large to small, in drawn order among equals, to the part that still misses most: most
    of its own target for groups of several images, so that these spread over all parts; most images for single
    ones, which also even out the rounding of the classes before. On BUSI no class is off its target by a whole image
    in any part, where scikit-learn's StratifiedGroupKFold (20 folds joined to 70/15/15) is off by up to 2.9.

    Args:
        classes: class number of each image, (N,).
        groups: group of each image, (N,); a group has one class.
        shares: wanted share of each part, summing to 1.
        seed: draws the order; numpy's RandomState, whose stream is fixed for good.

    Returns:
        Number of the part of each image, int (N,).
    """
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    class_of = np.zeros(len(sizes), int)
    class_of[group_of] = classes
    order = np.random.RandomState(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    shares, carried, part = np.array(shares), np.zeros(len(shares)), np.zeros(len(sizes), int)
    for number in np.unique(class_of):
        members = order[class_of[order] == number]
        missing = shares * sizes[members].sum()
        for group in members:
            # 0.7: with all of `carried`, classes of BUSI are off by up to 0.95 images in place of 0.65. Clipped, so
            # that a large group which could not be placed well in one class does not pull the others off.
            need = missing / shares if sizes[group] > 1 else missing + 0.7 * np.clip(carried, -1, 1)
            part[group] = np.argmax(need)
            missing[part[group]] -= sizes[group]
        carried += missing
    return part[group_of]


def split_pictures(
    pictures: list[Picture], shares: Sequence[float], split: str, seed: int, class_names: Sequence[str] = CLASSES
) -> list[list[Picture]]:
    """Return the images of each part in their old order, and check that no group crosses.

    Raises ValueError when there are too few groups, so that a part stays empty.
    """
    units = [picture.name if split == "random" else picture.group for picture in pictures]
    numbers = allocate([class_names.index(picture.class_name) for picture in pictures], units, shares, seed)
    parts = [[picture for picture, n in zip(pictures, numbers) if n == k] for k in range(len(shares))]
    if not all(parts):
        raise ValueError(f"{len(set(units))} groups cannot fill {len(shares)} parts; add images")
    if len(set(zip(units, numbers.tolist()))) != len(set(units)):
        raise RuntimeError("a group stands in several parts")  # our own mistake, never the user's
    return parts


def make_datalists(
    pictures: list[Picture], split: str, folds: int, seed: int, class_names: Sequence[str] = CLASSES
) -> dict[str, dict[str, list[Picture]]]:
    """Return the lists of each datalist file: training, validation and testing, or fold_0, fold_1, ...

    With folds, file k beside `datalist.json` has fold k for testing and an eighth of the rest for validation. Raises
    ValueError when a class has fewer groups than folds, or a part stays empty.
    """
    if not folds:
        return {
            "datalist.json": dict(zip(PARTS, split_pictures(pictures, list(PARTS.values()), split, seed, class_names)))
        }
    for name in class_names:
        units = {p.name if split == "random" else p.group for p in pictures if p.class_name == name}
        if 0 < len(units) < folds:
            few = f"class {name} has no more groups than {len(units)}"
            raise ValueError(f"--folds {folds}: {few}; pass fewer folds or add images")
    parts = split_pictures(pictures, [1 / folds] * folds, split, seed, class_names)
    files = {"datalist.json": {f"fold_{k}": part for k, part in enumerate(parts)}}
    for k, tested in enumerate(parts):
        rest = [picture for picture in pictures if picture not in tested]
        shares = [1 - FOLD_VALIDATION, FOLD_VALIDATION]
        training, validation = split_pictures(rest, shares, split, seed, class_names)
        files[f"datalist_fold_{k}.json"] = dict(zip(PARTS, (training, validation, tested)))
    return files
