"""From a source to a prepared folder: list, convert, group, split, write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from preparation.burned_in import Blanks
from preparation.conversion import (
    building,
    check_places,
    convert,
    lesion_free_classes,
    name_outputs,
    remove,
)
from preparation.item import Item, natural, some
from preparation.sources import Found, Layout, read_layout, scan, settle_classes, settle_groups
from preparation.split import SPLITS, apply_facts, join_groups, leave_out, make_datalists, read_facts
from preparation.summary import as_text, summarise, write_files
from preparation.tables import Names, read_table

from breast_ultrasound.images import near_duplicates, open_image, thumbnail, to_grey

NO_PATIENTS = "Grouped by scan: no patients are named, so one patient may still stand in several splits."


@dataclass
class Options:
    """What a command was asked for; scripts/prepare.py explains each."""

    layout: str
    table: str | None = None
    class_names: list[str] = field(default_factory=list)
    without_lesions: list[str] = field(default_factory=list)
    protocol: str | None = None
    folds: int | Literal["official"] = 0
    testing_only: bool = False
    compare_with: list[str] = field(default_factory=list)
    seed: int = 0
    strict: bool = False
    blank: Path | None = None


def prepare_set(source: Path, output_dir: Path, options: Options) -> dict[str, int]:
    """Convert a set into images, labels, datalists and a summary.

    Returns:
        Number of images found, used, in each split or fold, left out, and of files refused.

    Raises:
        ValueError: an option or the layout is wrong, nothing can be used, too little for the splits, or something not
            although `strict`.
        OSError: the source cannot be read, or the output not be written.
    """
    layout = read_layout(options.layout)
    layout.table = options.table or layout.table
    layout.testing_only |= options.testing_only
    _check(source, output_dir, layout, options)
    blanks = Blanks(options.blank) if options.blank else None
    items, found = scan(source, layout)
    items, class_names = settle_classes(items, found, options.class_names or layout.class_names)
    if layout.class_names and not layout.table:
        items.sort(key=lambda item: class_names.index(item.class_name))
    lesion_free = lesion_free_classes(class_names, [*layout.without_lesions, *options.without_lesions])
    settle_groups(items, found, layout.groups)
    if options.folds == "official":
        items = _published_folds(items, source, layout, found)
    name_outputs(items)
    with building(output_dir.resolve()) as folder:
        usable = convert(items, source, folder, found.refused, lesion_free, layout.any_colour, blanks)
        found.notes += blanks.notes() if blanks else []
        if options.strict and found.refused:
            count = len(found.refused)
            raise ValueError("\n".join([f"--strict: {count} files refused, nothing was written", *found.refused]))
        if not usable:
            first = (found.refused or ["all are left out"])[0]
            raise ValueError(f"{source}: none of its images can be used; the first: {first}")
        found.notes += [note for other in options.compare_with for note in copies_of(Path(other).expanduser(), usable)]
        about = _group(usable, source, layout, options, found)
        for item in usable:
            if item.left_out:
                remove(item, folder)
        used = [item for item in usable if not item.left_out]
        try:
            datalists = _split(used, class_names, about["protocol"], layout, options)
        except ValueError as error:
            raise ValueError(_few(error, len(usable), len(items), found)) from None
        told = usable + [item for item in items if item.left_out and item.thumb is None]
        summary = summarise(told, datalists["datalist.json"], found.refused, class_names, about)
        write_files(folder, datalists, summary)
    print(as_text(summary))
    counts = {split: sum(row.values()) for split, row in summary["counts"].items()}
    return {**counts, "left_out": len(summary["left_out"]), "refused": len(found.refused)}


def _check(source: Path, output_dir: Path, layout: Layout, options: Options) -> None:
    """Raise ValueError or OSError at options that cannot hold."""
    folds, seed = options.folds, options.seed
    if folds == "official" and not layout.folds:
        raise ValueError("--folds official: this layout knows none; pass their number, or another --layout")
    if folds != "official" and (folds < 0 or folds == 1):
        raise ValueError(f"--folds {folds}: pass 0 for one split in three, 2 or more, or official")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed}: pass a whole number from 0 to {2**32 - 1}")
    if layout.testing_only and folds:
        raise ValueError(f"--folds {folds}: the set is for testing only; leave one of the two out")
    if options.table and not layout.columns:
        raise ValueError(f"--table {options.table}: layout {options.layout} reads none; leave one of the two out")
    if options.protocol == "clean" and not layout.facts:
        raise ValueError("--protocol clean: nobody has published a list of this set's scans; leave it out")
    if not source.is_dir():
        wanted = (
            f"the folder that holds {', '.join(layout.class_names)}" if layout.class_names else "the folder of the set"
        )
        raise FileNotFoundError(f"{source}: no such folder; pass {wanted} as --source")
    for other in options.compare_with:
        if not (Path(other).expanduser() / "images").is_dir():
            raise FileNotFoundError(f"--compare_with {other}: no prepared folder; it holds no images")
    check_places(source, output_dir)


def copies_of(other: Path, items: list[Item]) -> list[str]:
    """A line on the images of another prepared folder that show the same scan as some of these, if there are any."""
    files = sorted((other / "images").iterdir(), key=lambda path: natural(path.name))
    thumbs = np.array([thumbnail(to_grey(open_image(file))) for file in files])
    pairs = np.argwhere(near_duplicates(np.array([item.thumb for item in items]), thumbs))
    copies = [f"{items[k].file} = {files[n].name}" for k, n in pairs]
    told = f"Copies of images of {other} ({len(copies)} pairs), a leak where one set trains and the other tests: "
    return [f"{told}{some(copies)}."] if copies else []


def _published_folds(items: list[Item], source: Path, layout: Layout, found: Found) -> list[Item]:
    """Set the published fold of each image; those without one are refused by name."""
    columns = {name: column for name, column in layout.folds.items() if name != "table"}
    rows, refused = read_table(source / layout.folds["table"], columns, columns)
    found.refused += refused
    files = Names(item.file for item in items)
    folds = {file: row["fold"] for row in rows.values() for file in files.find(row["image"])}
    for item in items:
        item.fold = folds.get(item.file, "")
        if not item.fold:
            found.refused.append(f"{item.file}: no fold in {layout.folds['table']}; add it, or pass another --folds")
    return [item for item in items if item.fold]


def _group(items: list[Item], source: Path, layout: Layout, options: Options, found: Found) -> dict:
    """Group the usable images, mark those that the protocol leaves out, and say what is known of the set."""
    by_patient = any(item.group for item in items)
    name, reference = layout.name or source.resolve().name, layout.reference
    if layout.facts and not apply_facts(items, read_facts(layout.facts)):
        name, reference = f"images in the layout of {name}", ""  # of another set: nothing published is said of them
    protocol = options.protocol or ("clean" if layout.facts else "grouped")
    protocol = "patients" if by_patient and protocol != "random" else protocol
    unnamed = sum(not item.group for item in items)
    some_patients = f"{unnamed} images name no patient, so one of theirs may still stand in several splits."
    notes = [NO_PATIENTS] if not by_patient else [some_patients] if unnamed else []
    notes += found.notes + join_groups(items, protocol)
    leave_out(items, protocol)
    about = {"name": name, "reference": reference, "ignored": found.ignored, "notes": notes}
    made_by = {"prepared_by": layout.command, "protocol": protocol, "folds": options.folds, "seed": options.seed}
    return about | made_by


def _split(
    used: list[Item], class_names: list[str], protocol: str, layout: Layout, options: Options
) -> dict[str, dict[str, list[Item]]]:
    """The datalists of the images that are used. Raises ValueError where these are too few."""
    if layout.testing_only:
        return {"datalist.json": {split: used if split == "testing" else [] for split in SPLITS}}
    return make_datalists(used, protocol, options.folds, options.seed, class_names)


def _few(error: ValueError, usable: int, number: int, found: Found) -> str:
    """Why the images do not suffice: what the split says, after what happened to those that could not be used."""
    lost = number - usable
    if not lost or not found.refused:
        return str(error)
    first = f"the first of {len(found.refused)} problems: {found.refused[0]}"
    return f"{lost} of {number} images cannot be used, {first}; {error}"
