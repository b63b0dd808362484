"""Turn a set of images into one folder that training, MONAI Label and every other command read.

In:  a folder of images with, for each, its masks (any number) and a class: from class folders of any names, or from a
     table (CSV). A layout says which file is what; the source is only read. The layouts of scripts/layouts are
         class_folders   `CLASS/NAME.png` beside `NAME_mask.png`, `NAME_mask_1.png`, ... (the default)
         table           a CSV table with the columns file, class and, where known, mask (several joined by `;`) and
                         patient; further columns are kept for subgroups. The default with --table
         bus_bra         BUS-BRA as published
         breast          `images/NAME.png`, `labels/NAME.png` and `classes.csv`; every image is for testing
Out: `images/` (8-bit grey PNG, size unchanged), `labels/` (0/255 PNG, the union of an image's masks), `datalist.json`
     (MONAI's decathlon form, with the names of the classes; with `--folds` also `datalist_fold_0.json`, ...),
     `summary.json` and `summary.txt`. The folder may be moved: its files are named relative to it.

    python scripts/prepare_dataset.py --source BUSBRA --layout bus_bra --output_dir data/bus_bra

Another set is another JSON file. Its keys: `image` and `mask`, regular expressions of the files' paths below the source
without extension, where `(?P<key>...)` is what an image and its masks have in common and `(?P<class>...)` and
`(?P<group>...)` read class and patient; `table`, a CSV file; `columns`, the table's columns by what they hold: `image`
(path, file name, or file name without extension), `class`, `mask`, `group`, and others under the names that the
datalist gives them; `classes`, names of classes by what stands in the source (`{"M": "malignant"}`); `name` and
`reference` of the set; `testing_only`. Images of one group stay in one split; without groups, near-duplicates do.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from command_line import run
from prepare_busi import CLASSES, NO_PATIENTS, Picture, build, check, join_groups, leave_out, natural

from scripts.data import names_a_picture

LAYOUTS = Path(__file__).with_name("layouts")
RESERVED = {"key", "image", "label", "class_name", "source", "sources"}  # the datalist's own entries


@dataclass
class Layout:
    """Which file of a set is what, and what is known of it; the module's docstring says how."""

    image: str
    mask: str
    table: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    name: str = ""
    reference: str = ""
    testing_only: bool = False


def prepare_dataset(
    source: Path,
    output_dir: Path,
    layout: str | None = None,
    table: str | None = None,
    class_names: list[str] | None = None,
    testing_only: bool = False,
    folds: int = 0,
    seed: int = 0,
    strict: bool = False,
) -> dict[str, int]:
    """Convert a set into images, labels, `datalist.json` and a summary.

    Args:
        source: folder of the set; never changed.
        output_dir: folder to make; appears whole or not at all, and replaces nothing. Same input and options, same
            bytes.
        layout: name of a layout, or a JSON file of one; class_folders, or table with --table.
        table: CSV table below the source, in place of the layout's.
        class_names: names in the order of the class indices; by default those of the bundle where they cover all that
            are found, else those found, sorted.
        testing_only: put every image into the testing split, as an external test set wants it.
        folds: 0 for training, validation and testing (70/15/15 %), or the number of folds, 2 or more.
        seed: whole number from 0 to 4294967295 that draws the splits.
        strict: stop when files cannot be used, in place of leaving them out by name.

    Returns:
        Number of images found, used, in each split, left out, and of files refused.

    Raises:
        ValueError: an option or the layout is wrong, or the source or its files cannot be used.
        OSError: the source or the layout cannot be read, or the output not be written.
    """
    plan = read_layout(layout or ("table" if table else "class_folders"))
    plan.table = table or plan.table
    if (testing_only or plan.testing_only) and folds:
        raise ValueError(f"--folds {folds}: the set is for testing only; leave one of the two out")
    check(source, output_dir, folds, seed, "the folder of the set")
    pictures, refused, others = scan(source, plan)
    names = choose_names(pictures, class_names)
    for picture in pictures:
        if picture.class_name not in names:
            refused.append(f"{picture.file}: class {picture.class_name!r} is not among {', '.join(names)}")
    pictures = [picture for picture in pictures if picture.class_name in names]
    by_patient = any(picture.group for picture in pictures)

    def group(found: list[Picture]) -> dict:
        if by_patient:
            for picture in found:
                picture.group = picture.group or picture.name
        else:
            join_groups(found, {})
            leave_out(found, "grouped")
        notes = [] if by_patient else [NO_PATIENTS]
        name = plan.name or source.resolve().name
        return {"name": name, "reference": plan.reference, "ignored": others, "notes": notes}

    split = "patients" if by_patient else "grouped"
    made_by = {"prepared_by": "scripts/prepare_dataset.py", "split": split, "folds": folds, "seed": seed}
    only = testing_only or plan.testing_only
    return build(source, output_dir, pictures, refused, names, group, made_by, strict, only)


def read_layout(name: str) -> Layout:
    """Read a layout of scripts/layouts by its name, or another one by its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, has other keys than a layout, or a regular expression without `key`.
    """
    file = Path(name) if name.endswith(".json") else LAYOUTS / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in LAYOUTS.glob("*.json")))
        raise FileNotFoundError(f"--layout {name}: no such layout; pass one of {known}, or a JSON file of one")
    try:
        layout = Layout(**json.loads(file.read_text(encoding="utf-8")))
        for pattern in (layout.image, layout.mask):
            if "key" not in re.compile(pattern).groupindex:
                raise ValueError(f"{pattern}: no group (?P<key>...), which an image and its masks have in common")
        if layout.table and not {"image", "class"} <= layout.columns.keys():
            raise ValueError("columns: give those of image and class")
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"{file}: no layout ({error}); scripts/prepare_dataset.py --help says what is one") from None
    return layout


def scan(source: Path, layout: Layout) -> tuple[list[Picture], list[str], list[str]]:
    """List the images of a set with their classes, masks and groups, in a fixed order, without opening them.

    Returns with them a line on each file or row that cannot be used, and the names of files that are no images.

    Raises:
        ValueError: there is no image, or the table lacks a column.
        FileNotFoundError: there is no table.
    """
    images: dict[str, re.Match] = {}
    masks: dict[str, list[str]] = {}
    refused, others = [], []
    paths = {path.relative_to(source).as_posix(): path for path in source.rglob("*")}
    for file in sorted(paths, key=natural):
        if not paths[file].is_file() or any(part.startswith(".") for part in file.split("/")) or file == layout.table:
            continue
        if not file.isprintable():  # bytes that are no UTF-8 among them
            refused.append(f"{ascii(file)}: name holds characters that cannot be written; rename the file")
        elif not names_a_picture(file):
            others.append(file)
        elif found := re.fullmatch(layout.mask, file.removesuffix(paths[file].suffix)):
            masks.setdefault(found["key"], []).append(file)
        elif found := re.fullmatch(layout.image, file.removesuffix(paths[file].suffix)):
            images[file] = found
        else:
            refused.append(f"{file}: neither image nor mask in this layout; move it out or pass another --layout")
    rows = [({}, file) for file in images]
    if layout.table:
        rows = read_table(source / layout.table, layout, images, refused)
    pictures, used = [], set()
    for row, file in rows:
        known = {**images[file].groupdict(), **row}
        named = (known.pop("class", None) or "").strip()
        own = [mask.strip().replace("\\", "/") for mask in (known.pop("mask", None) or "").split(";") if mask.strip()]
        picture = Picture(file, layout.classes.get(named, named), own or masks.get(known["key"], []))
        used |= set(picture.masks)
        picture.group = known.pop("group", None) or ""
        picture.columns = {name: value for name, value in known.items() if name in row}
        if picture.class_name:
            pictures.append(picture)
        else:
            refused.append(f"{file}: no class; give it one in the table")
    keys = {found["key"] for found in images.values()}
    orphans = [file for key, files in masks.items() if key not in keys for file in files if file not in used]
    refused += [f"{file}: mask without an image; add its image or remove the mask" for file in orphans]
    listed = {file for _, file in rows} | used
    refused += [f"{file}: not in {layout.table}; add a row or remove the file" for file in images if file not in listed]
    if not pictures:
        first = f"; the first of {len(refused)} problems: {refused[0]}" if refused else ""
        raise ValueError(f"{source}: no image of this layout in it{first}")
    return pictures, refused, others


def read_table(file: Path, layout: Layout, images: Collection[str], refused: list[str]) -> list[tuple[dict, str]]:
    """Read the table's rows with the image that each is about; add to `refused` those whose image is not there.

    Returns:
        the rows by what their columns hold, each with the path of its image.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; it lists the images and their classes")
    text = file.read_text(encoding="utf-8-sig")
    separator = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets of many countries write semicolons
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = {column: name for name, column in layout.columns.items()}
    found = table.fieldnames or []
    for name in ("image", "class"):
        if layout.columns[name] not in found:
            raise ValueError(f"{file}: no column {layout.columns[name]} ({name}); it has {', '.join(found)}")
    named: dict[str, list[str]] = {}
    for image in images:
        path = PurePosixPath(image)
        for name in {image, str(path.with_suffix("")), path.name, path.stem}:
            named.setdefault(name, []).append(image)
    rows, taken = [], set()
    for number, line in enumerate(table, start=2):
        row = {columns.get(name, name): value for name, value in line.items() if name is not None and value is not None}
        name = row.pop("image", "").strip().replace("\\", "/")
        candidates = named.get(name, [])
        if len(candidates) != 1 or candidates[0] in taken:
            problem = "several images have this name" if len(candidates) > 1 else "no such image"
            problem = "its image has an earlier row" if len(candidates) == 1 else problem
            refused.append(f"{file.name}, line {number}, {name or 'no name'}: {problem}")
            continue
        taken.add(candidates[0])
        rows.append((row, candidates[0]))
    clash = {name for row, _ in rows for name in row} & RESERVED
    if clash:
        raise ValueError(f"{file}: column {min(clash)} has the name of an entry of the datalist; rename it")
    return rows


def choose_names(pictures: list[Picture], class_names: list[str] | None) -> list[str]:
    """Return the names in the order of the class indices: those given, the bundle's own, or those found, sorted.

    The bundle's own are taken where they cover all that are found, in any case; the images get their spelling.
    """
    if class_names:
        return class_names
    found = {picture.class_name for picture in pictures}
    if not {name.casefold() for name in found} <= set(CLASSES):
        return sorted(found, key=natural)
    for picture in pictures:
        picture.class_name = picture.class_name.casefold()
    return list(CLASSES)


if __name__ == "__main__":
    run(prepare_dataset)
