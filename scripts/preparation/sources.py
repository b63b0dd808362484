"""What a folder holds: which file is an image or a mask, by a layout, and what a table says of each image."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from preparation.annotations import Outline, read_outlines
from preparation.item import CLASSES, UNKNOWN, Item, Unusable, clean, identity, natural, patient_identity, some
from preparation.tables import Names, read_table
from pydantic import BaseModel, ValidationError, field_validator, model_validator

from breast_ultrasound.images import EXTENSIONS, is_image_name

LAYOUTS = Path(__file__).with_name("layouts")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
OTHER_IMAGES = (".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".jp2", ".heic")


def compiled(pattern: str) -> re.Pattern:
    """A regular expression; ValueError where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern}: no regular expression ({error})") from None


class Layout(BaseModel, extra="forbid"):
    """Which file of a set is what, and what is known of a published one; scripts/prepare.py's docstring says how."""

    image: str
    mask: str = ""
    ignore: str = ""
    annotations: Literal["", "coco", "labelme", "cvat"] = ""
    table: str = ""
    columns: dict[str, str | list[str]] = {}
    further_columns: bool = True
    classes: dict[str, str] = {}
    class_names: list[str] = []
    without_lesions: list[str] = []
    groups: dict[str, str] = {}
    exclude: dict[str, dict[str, str]] = {}
    folds: dict[str, str] = {}
    facts: str = ""
    any_colour: bool = False
    testing_only: bool = False
    name: str = ""
    reference: str = ""
    command: str = "scripts/prepare.py"

    @field_validator("image", "mask")
    @classmethod
    def _has_key(cls, pattern: str) -> str:
        if pattern and "key" not in compiled(pattern).groupindex:
            raise ValueError(f"{pattern}: no group (?P<key>...), which an image and its masks have in common")
        return pattern

    @model_validator(mode="after")
    def _is_whole(self) -> Layout:
        if self.table and not {"image", "class"} <= self.columns.keys():
            raise ValueError("columns: give those of image and class")
        for pattern in (self.ignore, *(p for rule in self.exclude.values() for p in rule.values())):
            compiled(pattern)
        return self


def read_layout(name: str) -> Layout:
    """Read a layout of scripts/preparation/layouts by its name, or another one by its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, has other keys than a layout, or a regular expression without `key`.
    """
    file = Path(name) if name.endswith(".json") else LAYOUTS / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in LAYOUTS.glob("*.json")))
        raise FileNotFoundError(f"--layout {name}: no such layout; pass one of {known}, or a JSON file of one")
    try:
        return Layout.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{file}: no layout ({reason}); scripts/prepare.py --help says what is one")


@dataclass
class Found:
    """What is in a source."""

    images: dict[str, re.Match] = field(default_factory=dict)
    masks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by key
    annotations: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # no images, or masks of no interest
    refused: list[str] = field(default_factory=list)  # a line on each file or row that cannot be used
    notes: list[str] = field(default_factory=list)  # what was taken for the same


def list_files(source: Path) -> list[str]:
    """The files below a folder by their paths, in natural order; links are followed, hidden files left out.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise OSError(f"{error.filename}: {error.strerror}; make the folder readable or move it out")

    found = []
    for folder, folders, names in os.walk(source, onerror=fail, followlinks=True):
        above = {os.path.realpath(path) for path in (Path(folder), *Path(folder).parents)}  # where links go in circles
        inner = [f for f in folders if not f.startswith((".", "__"))]
        folders[:] = [f for f in inner if os.path.realpath(os.path.join(folder, f)) not in above]
        found += [Path(folder, name).relative_to(source).as_posix() for name in names if name[0] != "."]
    return sorted((f for f in found if PurePosixPath(f).name.lower() not in SYSTEM_FILES), key=natural)


def sort_files(source: Path, layout: Layout, tables: list[str]) -> Found:
    """Tell images, masks and annotations from each other by the layout, without opening them."""
    found = Found()
    ending = {"coco": ".json", "labelme": ".json", "cvat": ".xml"}.get(layout.annotations)
    for file in list_files(source):
        stem = file.removesuffix(PurePosixPath(file).suffix)
        if file in tables:
            continue
        if not file.isprintable():  # bytes that are no UTF-8 among them
            found.refused.append(f"{ascii(file)}: name holds characters that cannot be written; rename the file")
        elif not (source / file).is_file():
            found.refused.append(f"{file}: a link to a file that is not here, or no file; fetch it or move it out")
        elif ending and file.lower().endswith(ending):
            found.annotations.append(file)
        elif not is_image_name(file) and file.lower().endswith(OTHER_IMAGES):
            remedy = "--layout dicom converts it" if file.lower().endswith((".dcm", ".dicom")) else "convert it"
            found.refused.append(f"{file}: not an image file ({' '.join(EXTENSIONS)}); {remedy} or move it out")
        elif not is_image_name(file) or layout.ignore and re.fullmatch(layout.ignore, stem, re.IGNORECASE):
            found.ignored.append(file)
        elif layout.mask and (match := re.fullmatch(layout.mask, stem, re.IGNORECASE)):
            found.masks[match["key"]].append(file)
        elif match := re.fullmatch(layout.image, stem, re.IGNORECASE):
            found.images[file] = match
        else:
            found.refused.append(f"{file}: neither image nor mask in this layout; move it out or pass another --layout")
    return found


def scan(source: Path, layout: Layout) -> tuple[list[Item], Found]:
    """List the images of a set with their classes, masks and groups, in a fixed order, without opening them.

    Raises:
        ValueError: there is no image, a class folder is unknown, or the table lacks a column.
        FileNotFoundError: there is no table.
    """
    if layout.class_names and not layout.table:
        _check_class_folders(source, layout.class_names)
    table = _table_file(source, layout.table) if layout.table else ""
    found = sort_files(source, layout, [table] if table else [])
    rows = _rows(source / table, layout, found) if table else [({}, file) for file in found.images]
    outlines = _outlines(source, layout, found)
    classes = {identity(name): meant for name, meant in layout.classes.items()}
    masks, items = _Masks(found), []
    for row, file in rows:
        known = {**found.images[file].groupdict(), **row}
        own, missing = masks.of(known["key"], known.get("mask") or "")
        named = clean(known.get("class") or "")
        item = Item(file, classes.get(identity(named), named) if named else "", own)
        item.group, item.outlines = clean(known.get("group") or ""), outlines.get(file, [])
        kept = set(layout.columns) if not layout.further_columns else set(row)
        item.columns = {name: row[name] for name in row if name in kept - {"class", "mask", "group"}}
        problem = f"its mask {missing}: no such file, or several; give its path below the source" if missing else ""
        problem = problem or _class_from_outlines(item, classes)
        if problem:
            found.refused.append(f"{file}: {problem}")
            continue
        item.left_out = next((r for r, rule in layout.exclude.items() if _fits(rule, {"file": file, **known})), "")
        items.append(item)
    found.ignored += [mask for mask in masks.passed_over if mask not in masks.used]  # the table names others
    _name_the_rest(found, {file for _, file in rows}, masks.used, table)
    if not items:
        first = f"; the first of {len(found.refused)} problems: {found.refused[0]}" if found.refused else ""
        raise ValueError(f"{source}: no image ({' '.join(EXTENSIONS)}) of this layout in it{first}")
    return items, found


class _Masks:
    """Finds the masks of images, and keeps which were asked for."""

    def __init__(self, found: Found) -> None:
        self.by_key, self.used, self.passed_over = found.masks, set(), []
        images = {match["key"] for match in found.images.values()}
        self.alike = {identity(key): own for key, own in found.masks.items() if key not in images}
        self.files = (Names(file for own in found.masks.values() for file in own), Names(found.images))

    def of(self, key: str, cell: str) -> tuple[list[str], str]:
        """The masks that a table's cell names, else those of the key; and the first that is not there."""
        own = []
        for name in filter(None, (name.strip() for name in cell.split(";"))):
            candidates = self.files[0].find(name) or self.files[1].find(name)
            if len(candidates) != 1:
                return [], name
            own += candidates
        if own:
            self.passed_over += [mask for mask in self.by_key.get(key, []) if mask not in own]
        own = own or list(self.by_key.get(key) or self.alike.get(identity(key), []))
        self.used |= set(own)
        return own, ""


def _name_the_rest(found: Found, listed: set[str], used: set[str], table: str) -> None:
    """Refuse by name what no image claims: masks, and images that a table does not list."""
    keys = {identity(match["key"]) for match in found.images.values()}
    for key, own in found.masks.items():
        free = [file for file in own if file not in used and identity(key) not in keys]
        found.refused += [f"{file}: mask without an image; add the image or remove the mask" for file in free]
    rest = [file for file in found.images if file not in listed | used]
    found.refused += [f"{file}: not in {table}; add a row or remove the file" for file in rest]


def _check_class_folders(source: Path, class_names: list[str]) -> None:
    """Raise ValueError where the folders are not those of a set whose classes are known."""
    classes, wanted = {identity(name) for name in class_names}, ", ".join(class_names)
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if not any(identity(folder.name) in classes for folder in folders):
        inside = [f.name for f in folders if any((f / name).is_dir() for name in class_names)]
        advice = f"pass {source / inside[0]}" if inside else f"pass the folder that holds {wanted}"
        raise ValueError(f"{source}: none of the folders {wanted} in it; {advice} as --source")
    for folder in folders:
        if identity(folder.name) not in classes:
            raise ValueError(f"{folder}: no class; rename it to one of {wanted} or move it out")


def _table_file(source: Path, table: str) -> str:
    """The table's path below the source: as it is given, or the only file that the pattern fits."""
    if (source / table).is_file():
        return table
    fitting = [file for file in list_files(source) if PurePosixPath(file).match(table)]
    if len(fitting) > 1:
        raise ValueError(f"{source}: several tables ({some(fitting)}); name one with --table")
    return fitting[0] if fitting else table


def _rows(file: Path, layout: Layout, found: Found) -> list[tuple[dict[str, str], str]]:
    """The rows of the set's table, each with the path of its image; those without one are refused by name."""
    table, refused = read_table(file, layout.columns, ("image", "class"))
    found.refused += refused
    files, rows, taken = Names(found.images), [], set()
    for number, row in table.items():
        name = row.pop("image")
        candidates = files.find(name)
        if len(candidates) != 1 or candidates[0] in taken:
            problem = "several images have this name" if len(candidates) > 1 else "no such image"
            problem = "its image has an earlier row" if len(candidates) == 1 else problem
            found.refused.append(f"{file.name}, line {number}, {name or 'no name'}: {problem}")
            continue
        taken.add(candidates[0])
        rows.append((row, candidates[0]))
    return rows


def _outlines(source: Path, layout: Layout, found: Found) -> dict[str, list[Outline]]:
    """What annotation files say, by image."""
    files, outlines = Names(found.images), defaultdict(list)
    for file in found.annotations:
        try:
            for outline in read_outlines(file, source, layout.annotations):
                candidates = files.find(outline.image)
                candidates = candidates or files.find(PurePosixPath(outline.image.replace("\\", "/")).name)
                if len(candidates) == 1:
                    outlines[candidates[0]].append(outline)
                else:
                    problem = "several images have this name" if candidates else "no such image"
                    found.refused.append(f"{file}, {outline.image}: {problem}")
        except Unusable as error:
            found.refused.append(f"{file}: {error}")
    return outlines


def _class_from_outlines(item: Item, classes: dict[str, str]) -> str:
    """Give an image the class of its outlines where nothing else names one; returns what is wrong, or nothing."""
    if identity(item.class_name) in UNKNOWN and item.outlines:
        labels = {identity(label): label for outline in item.outlines for label in outline.labels}
        if len(labels) > 1:
            return f"outlines of several classes ({', '.join(labels.values())}); give the image one"
        for name, label in labels.items():
            item.class_name = classes.get(name, label)
        if not labels and not any(outline.problem for outline in item.outlines):
            item.class_name = classes.get("", "")
    if identity(item.class_name) in UNKNOWN:
        return "no class; give it one in the table"
    return "" if item.class_name.isprintable() else f"class {item.class_name!r}: holds what does not print; rename it"


def _fits(rule: dict[str, str], known: dict[str, str | None]) -> bool:
    return all(re.fullmatch(pattern, known.get(name) or "", re.IGNORECASE) for name, pattern in rule.items())


def settle_classes(items: list[Item], found: Found, given: list[str]) -> tuple[list[Item], list[str]]:
    """Give every image a class of one spelling, and refuse by name those of classes that are not wanted.

    Args:
        items: the images.
        found: gets a line on each image that is refused, and notes.
        given: names in the order of the class indices; without them the bundle's own where these cover all that are
            found, else those found, sorted.

    Returns:
        the images of these classes, and the classes' names.

    Raises:
        ValueError: names are doubled, cannot be printed, or there is one alone.
    """
    spellings: dict[str, list[str]] = {}
    for item in items:
        own = spellings.setdefault(identity(item.class_name), [])
        own += [item.class_name] * (item.class_name not in own)
    if not given and spellings.keys() <= set(CLASSES):
        given = list(CLASSES)
    given = given or sorted((own[0] for own in spellings.values()), key=natural)
    names = {identity(name): name for name in given}
    if len(names) < len(given) or not all(name.isprintable() and identity(name) for name in given):
        raise ValueError(f"--class_names {given}: each needs a name of its own that can be printed")
    if len(names) < 2:
        raise ValueError(f"one class alone ({given[0]}); name all classes with --class_names, or add images of others")
    for name, own in spellings.items():
        if len(own) > 1 and name in names:
            found.notes.append(f"Taken for one class, {names[name]}: {', '.join(own)}.")
    kept = []
    for item in items:
        name = names.get(identity(item.class_name))
        if name is None:
            found.refused.append(f"{item.file}: class {item.class_name!r} is not among {', '.join(given)}")
        else:
            item.class_name = name
            kept.append(item)
    return kept, list(given)


def settle_groups(items: list[Item], found: Found, same: dict[str, str]) -> None:
    """Give the images of a patient one spelling of that patient, and none where the patient is unknown.

    Args:
        items: the images.
        found: gets a note where several spellings were taken for one patient.
        same: patients known by two names, the one as the other.
    """
    spellings: dict[str, list[str]] = {}
    same = {patient_identity(name): other for name, other in same.items()}
    for item in items:
        name = same.get(patient_identity(item.group), item.group)
        known = patient_identity(name)
        own = spellings.setdefault(known, [])
        own += [name] * (name not in own)
        item.group = own[0] if known else ""
    spellings.pop("", None)
    several = [" = ".join(own) for own in spellings.values() if len(own) > 1]
    if several:
        found.notes.append(f"Taken for one patient each ({len(several)}): {some(several)}.")
