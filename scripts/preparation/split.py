"""Which images belong together, and which go to training, validation and testing: groups, near-duplicates, folds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from preparation.item import Item, natural, some
from scipy.sparse.csgraph import connected_components

from breast_ultrasound.images import near_duplicates

SPLITS = {"training": 0.7, "validation": 0.15, "testing": 0.15}  # fractions of the images; 546/117/117 of 780
FOLD_VALIDATION = 1 / 8  # fraction of the images outside the tested fold
PROTOCOLS = {
    "clean": "grouped by scan; scans that stand in several classes, axilla and needle images left out",
    "grouped": "grouped by scan; scans that stand in several classes left out",
    "patients": "all images of a patient in one split",
    "random": "every image on its own, stratified by class; copies of one scan may stand in several splits",
}
# Of the images that bear a listed name, this share must also have the listed size before the list is believed:
# another set in BUSI's layout may well hold a "benign (1).png".
LISTED_FRACTION = 0.9


def read_facts(name: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of a list of published facts, such as `busi_groups.csv`, by (class, filename); the list's head
    names the source of the facts."""
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {(row["class"], row["filename"]): row for row in rows}


def apply_facts(items: list[Item], facts: dict) -> bool:
    """Set group, objection and burned-in marks as published; return whether the list applies to any image.

    A published row applies to an image of its class, file name and size, given that at least 90 % of the images with
    listed names have the listed sizes.
    """
    rows = [facts.get((item.class_name, Path(item.file).name)) for item in items]
    listed = [(item, row) for item, row in zip(items, rows) if row]
    fitting = [(item, row) for item, row in listed if item.size == (int(row["width"]), int(row["height"]))]
    if len(fitting) < LISTED_FRACTION * len(listed):
        return False
    for item, row in fitting:
        item.group, item.objection = row["group"], row["objection"]
        item.burned_in_marks = row["burned_in_marks"]
    return bool(fitting)


def join_groups(items: list[Item], protocol: str) -> list[str]:
    """Join the known groups (patients, or published scans) with near-duplicates on the pixels, and name the rest.

    Joined groups bear the name of the first. Images without a known group get `P0001`, `P0002`, ...

    Returns:
        a line on what was joined although it bore several names, and on copies in classes that `protocol` keeps.
    """
    known = np.array([item.group for item in items])
    copies = near_duplicates(np.array([item.thumb for item in items]))
    _, component = connected_components(copies | (known[:, None] == known) & (known != ""), directed=False)
    names: dict[int, str] = {}
    joined: dict[int, dict[str, None]] = {}
    for name, number in sorted(zip(known.tolist(), component)):
        if name:
            names.setdefault(number, name)
            joined.setdefault(number, {})[name] = None
    for item, number in zip(items, component):
        if number not in names:
            name = f"P{len(names) + 1:04d}"
            while name in known:
                name += "_"
            names[number] = name
        item.group = names[number]
    notes = []
    if several := [" = ".join(sorted(own, key=natural)) for own in joined.values() if len(own) > 1]:
        notes.append(f"Copies of one scan under several names, kept together ({len(several)}): {some(several)}.")
    classes = np.unique([item.class_name for item in items], return_inverse=True)[1]
    pairs = np.argwhere(np.triu(copies & (classes[:, None] != classes)))
    if len(pairs) and protocol in ("patients", "random"):
        files = [f"{items[a].file} = {items[b].file}" for a, b in pairs]
        notes.append(f"Copies of one scan in several classes, check which is right ({len(pairs)}): {some(files)}.")
    return notes


def leave_out(items: list[Item], protocol: str) -> None:
    """Set `left_out` to the reason in the images that `protocol` does not use.

    A patient may have lesions of several classes, a scan may not.
    """
    classes: dict[str, set[str]] = {}
    for item in items:
        classes.setdefault(item.group, set()).add(item.class_name)
    for item in items:
        # The list speaks also where the folder holds only one side of such a scan.
        if protocol in ("clean", "grouped") and (len(classes[item.group]) > 1 or item.objection == "multiclass"):
            item.left_out = "scan stands in several classes"
        elif protocol == "clean" and item.objection in ("axilla", "needle"):
            item.left_out = item.objection


def allocate(classes: Sequence[int], groups: Sequence[str], fractions: Sequence[float], seed: int) -> np.ndarray:
    """Distribute groups over splits so that every class keeps its fraction in every split.

    Class by class, groups go from large to small, in drawn order among equals, to the split that still misses most:
    most of its own target for groups of several images, so that these spread over all splits; most images for single
    ones, which also even out the rounding of the classes before. On BUSI no class is off its target by a whole image
    in any split, where scikit-learn's StratifiedGroupKFold (20 folds joined to 70/15/15) is off by up to 2.9. Groups of
    several classes, as patients may be, go first: each to the split that misses most of its classes, counted by how
    much of each class the group holds.

    Args:
        classes: class number of each image, (N,).
        groups: group of each image, (N,).
        fractions: wanted fraction of each split, summing to 1.
        seed: draws the order; numpy's RandomState, whose stream is fixed for good.

    Returns:
        Number of the split of each image, int (N,).
    """
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    names, class_of_image = np.unique(classes, return_inverse=True)
    held = np.zeros((len(sizes), len(names)), int)  # images of each class in each group
    np.add.at(held, (group_of, class_of_image), 1)
    order = np.random.RandomState(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fractions, carried, split = np.array(fractions), np.zeros(len(fractions)), np.zeros(len(sizes), int)
    all_missing = held.sum(axis=0)[:, None] * fractions
    mixed = (held > 0).sum(axis=1) > 1
    for group in order[mixed[order]]:
        split[group] = np.argmax(held[group] / held.sum(axis=0) @ (all_missing / fractions / held.sum(axis=0)[:, None]))
        all_missing[:, split[group]] -= held[group]
    for number, missing in enumerate(all_missing):
        members = order[~mixed[order] & (held[order, number] > 0)]
        for group in members:
            # 0.7: with all of `carried`, classes of BUSI are off by up to 0.95 images in place of 0.65. Clipped, so
            # that a large group which could not be placed well in one class does not pull the others off.
            need = missing / fractions if sizes[group] > 1 else missing + 0.7 * np.clip(carried, -1, 1)
            split[group] = np.argmax(need)
            missing[split[group]] -= sizes[group]
        carried += missing
    return split[group_of]


def split_items(
    items: list[Item], fractions: Sequence[float], protocol: str, seed: int, class_names: Sequence[str]
) -> list[list[Item]]:
    """Return the images of each split in their old order, and check that no group crosses.

    Raises ValueError when there are too few groups, so that a split stays empty.
    """
    units = [item.name if protocol == "random" else item.group for item in items]
    numbers = allocate([class_names.index(item.class_name) for item in items], units, fractions, seed)
    splits = [[item for item, n in zip(items, numbers) if n == k] for k in range(len(fractions))]
    if not all(splits):
        raise ValueError(f"{len(set(units))} groups cannot fill {len(fractions)} splits; add images")
    if len(set(zip(units, numbers.tolist()))) != len(set(units)):
        raise RuntimeError("a group stands in several splits")  # our own mistake, never the user's
    return splits


def make_datalists(
    items: list[Item], protocol: str, folds: int | str, seed: int, class_names: Sequence[str]
) -> dict[str, dict[str, list[Item]]]:
    """Return the lists of each datalist file: training, validation and testing, or fold_0, fold_1, ...

    With folds, file k beside `datalist.json` has fold k for testing and an eighth of the rest for validation. The
    `official` ones are taken as they were published, in natural order; validation is drawn here all the same.

    Raises:
        ValueError: a class has fewer groups than folds, or a split stays empty.
    """
    if folds == "official":
        names = sorted({item.fold for item in items}, key=natural)
        parts = [[item for item in items if item.fold == name] for name in names]
        if len(parts) < 2:
            raise ValueError(f"--folds official: these images are of {len(parts)} fold alone; pass another --folds")
    elif not folds:
        found = split_items(items, list(SPLITS.values()), protocol, seed, class_names)
        return {"datalist.json": dict(zip(SPLITS, found))}
    else:
        for name in class_names:
            units = {p.name if protocol == "random" else p.group for p in items if p.class_name == name}
            if 0 < len(units) < folds:
                few = f"class {name} has no more groups than {len(units)}"
                raise ValueError(f"--folds {folds}: {few}; pass fewer folds or add images")
        parts = split_items(items, [1 / folds] * folds, protocol, seed, class_names)
    files = {"datalist.json": {f"fold_{k}": part for k, part in enumerate(parts)}}
    for k, tested in enumerate(parts):
        rest = [item for item in items if item not in tested]
        fractions = [1 - FOLD_VALIDATION, FOLD_VALIDATION]
        training, validation = split_items(rest, fractions, protocol, seed, class_names)
        files[f"datalist_fold_{k}.json"] = dict(zip(SPLITS, (training, validation, tested)))
    return files
