"""Turn BUSI, or a folder of the same layout, into one folder that training, MONAI Label and every other command read.

In:  a folder with the class folders `normal`, `benign`, `malignant`; in each, images `NAME.png` beside their masks
     `NAME_mask.png`, `NAME_mask_1.png`, ... (BUSI as published: W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy, "Dataset
     of breast ultrasound images", Data in Brief 28 (2020) 104863). The source is only read.
Out: `images/` (8-bit grey PNG, size unchanged), `labels/` (0/255 PNG, the union of an image's masks), `datalist.json`
     (MONAI's decathlon form; with `--folds` also `datalist_fold_0.json`, ...), `summary.json` and `summary.txt`.

    python scripts/prepare_busi.py --source Dataset_BUSI_with_GT --output_dir data/busi

How groups, splits and folds are made: scripts/split.py. For another data set: scripts/prepare_dataset.py.

"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from command_line import run
from PIL import Image
from split import CLASSES, PARTS, SPLITS, THUMB, join_groups, leave_out, make_datalists, read_facts
from tqdm import tqdm

from scripts.files import EXTENSIONS, cut_stem
from scripts.transforms import is_deep, open_image, to_contrasted_grey, to_mask

LESION_CLASSES = ("benign", "malignant")  # those of other names may hold images without a lesion
LAYOUT = f"the folder that holds {', '.join(CLASSES)}"
MASK_NAME = re.compile(r"(?P<stem>.+)_mask(_\d+)?", re.IGNORECASE)
NO_PATIENTS = "Grouped by scan: no patients are named, so one patient may still stand in several parts."
BUSI = {
    "name": "BUSI",
    "reference": "Al-Dhabyani et al., Data in Brief 28 (2020) 104863, doi 10.1016/j.dib.2019.104863",
    "notes": [
        "The shares 57.2/17.1/25.7 % (benign/malignant/normal) given in the original notebook are wrong: "
        "the full BUSI counts 56.0/26.9/17.1 %.",
        NO_PATIENTS,
    ],
}
SAME_LAYOUT = {"name": "images in the layout of BUSI", "reference": "", "notes": [NO_PATIENTS]}


class Unusable(ValueError):
    """A single file that cannot be used; the message says why and what to do."""


@dataclass(eq=False)
class Picture:
    """One image of the source; paths are relative to the source and use `/`."""

    file: str
    class_name: str
    masks: list[str]
    name: str = ""  # of its two files in the output, without folder and suffix
    repairs: list[str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    thumb: np.ndarray | None = None  # uint8 (48, 48)
    group: str = ""
    objection: str = ""
    burned_in_marks: str | None = None  # None: not in the published list
    columns: dict[str, str] = field(default_factory=dict)  # what else a table says of it
    left_out: str = ""  # the reason, empty for an image that is used

    def item(self, set_name: str, class_names: Sequence[str]) -> dict:
        """The image's entry in `datalist.json`."""
        item = {
            "image": f"images/{self.name}.png",
            "label": f"labels/{self.name}.png",
            "class": class_names.index(self.class_name),
            "class_name": self.class_name,
            "group": self.group,
            "source": set_name,
            "sources": [self.file, *self.masks],
            **self.columns,
        }
        return item if self.burned_in_marks is None else {**item, "burned_in_marks": self.burned_in_marks}


def prepare_busi(
    source: Path,
    output_dir: Path,
    split: Literal["clean", "grouped", "random"] = "clean",
    folds: int = 0,
    seed: int = 0,
    strict: bool = False,
) -> dict[str, int]:
    """Convert a BUSI folder into images, labels, `datalist.json` and a summary.

    Args:
        source: folder that holds normal, benign and malignant; never changed.
        output_dir: folder to make; appears whole or not at all, and replaces nothing. Same input and options, same
            bytes.
        split: clean (default), grouped or random. clean leaves out scans that stand in several classes, axilla and
            needle images; grouped only the former; random splits image by image, as the original notebook did.
        folds: 0 for training, validation and testing (70/15/15 %), or the number of folds, 2 or more.
        seed: whole number from 0 to 4294967295 that draws the parts.
        strict: stop when files cannot be used, in place of leaving them out by name.

    Returns:
        Number of images found, used, in each part, left out, and of files refused.

    Raises:
        ValueError: an option is wrong, or the source or its files cannot be used; the message names option or file.
        OSError: the source cannot be read, or the output not be written.
    """
    check(source, output_dir, folds, seed, LAYOUT)
    pictures, refused = scan(source)

    def group(found: list[Picture]) -> dict:
        join_groups(found, read_facts())
        leave_out(found, split)
        return BUSI if any(picture.burned_in_marks is not None for picture in found) else SAME_LAYOUT

    made_by = {"prepared_by": "scripts/prepare_busi.py", "split": split, "folds": folds, "seed": seed}
    return build(source, output_dir, pictures, refused, CLASSES, group, made_by, strict)


def build(
    source: Path,
    output_dir: Path,
    pictures: list[Picture],
    refused: list[str],
    class_names: Sequence[str],
    group: Callable[[list[Picture]], dict],
    made_by: dict,
    strict: bool = False,
    testing_only: bool = False,
) -> dict[str, int]:
    """Convert the images of a set, divide them, and write the prepared folder.

    Args:
        source: folder of the set.
        output_dir: folder to make.
        pictures: what `source` holds.
        refused: a line on each file that cannot be used; those found here are added.
        class_names: names in the order of the class indices.
        group: sets the groups of the usable images and which are left out; returns `name`, `reference` and `notes` of
            the set.
        made_by: `prepared_by`, `split`, `folds` and `seed`.
        strict: whether refused files end it all.
        testing_only: whether every image is for testing.

    Returns:
        Number of images found, used, in each part, left out, and of files refused.

    Raises:
        ValueError: nothing can be used, too little for the parts, or something not although `strict`.
        OSError: the output cannot be written.
    """
    name_outputs(pictures)
    with building(output_dir.resolve()) as folder:
        pictures = convert(pictures, source, folder, refused)
        if strict and refused:
            raise ValueError("\n".join([f"--strict: {len(refused)} files refused, nothing was written", *refused]))
        if not pictures:
            raise ValueError(f"{source}: none of its images can be used; the first: {refused[0]}")
        about = group(pictures)
        for picture in pictures:
            if picture.left_out:
                (folder / "images" / f"{picture.name}.png").unlink()
                (folder / "labels" / f"{picture.name}.png").unlink()
        used = [picture for picture in pictures if not picture.left_out]
        if testing_only:
            datalists = {"datalist.json": {part: used if part == "testing" else [] for part in PARTS}}
        else:
            options = {name: made_by[name] for name in ("split", "folds", "seed")}
            datalists = make_datalists(used, **options, class_names=class_names)
        summary = summarise(pictures, datalists["datalist.json"], refused, class_names, made_by, about)
        write_files(folder, datalists, summary)
    print(as_text(summary))
    counts = {part: sum(row.values()) for part, row in summary["counts"].items()}
    return {**counts, "left_out": len(summary["left_out"]), "refused": len(refused)}


def check(source: Path, output_dir: Path, folds: int, seed: int, layout: str) -> None:
    """Raise ValueError or OSError at options that cannot hold; `layout` says what the source should be."""
    if folds < 0 or folds == 1:
        raise ValueError(f"--folds {folds}: pass 0 for one split in three, or 2 or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed}: pass a whole number from 0 to {2**32 - 1}")
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; pass {layout} as --source")
    check_places(source, output_dir)


def check_places(source: Path, output: Path) -> None:
    """Raise OSError or ValueError when the output is not free."""
    inner, outer = source.resolve(), output.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise ValueError(f"{output}: lies inside the source {source} or holds it; choose another --output_dir")
    if os.path.lexists(output) and not output.is_dir():
        raise FileExistsError(f"{output}: not a folder; choose another --output_dir")
    if output.is_dir() and any(output.iterdir()):
        state = "exists" if (output / "datalist.json").is_file() else "half-written, or made by something else"
        raise FileExistsError(f"{output}: {state}; remove it or choose another --output_dir")


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` to write into; rename it to `output` when all went well, else remove it."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        killed = "another run is writing it, or a killed one left it and you may remove it"
        remedy = killed if partial.is_dir() else "choose another --output_dir"
        raise OSError(f"{partial}: {error.strerror}; {remedy}") from None
    try:
        for name in ("images", "labels"):
            (partial / name).mkdir()
        yield partial
        if output.exists():
            output.rmdir()  # empty: Windows renames no folder onto it
        partial.rename(output)
    except OSError as error:
        raise OSError(f"{error.filename or output}: {error.strerror or error}; nothing was written") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def natural(text: str) -> tuple:
    """Sort key that puts `benign (2)` before `benign (10)`; the text itself settles ties such as 1 and 01."""
    words = re.split(r"([0-9]+)", text.casefold())
    return [int(word) if k % 2 else word for k, word in enumerate(words)], text


def scan(source: Path) -> tuple[list[Picture], list[str]]:
    """List the images of `source` with their masks and output names, in a fixed order and without opening them.

    Returns with them a line on each file that is neither an image nor a mask of one. Raises ValueError when there
    is no class folder, an unknown one, or no image at all.
    """
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if not any(folder.name.lower() in CLASSES for folder in folders):
        inside = [f.name for f in folders if any((f / name).is_dir() for name in CLASSES)]
        advice = f"pass {source / inside[0]}" if inside else f"pass {LAYOUT}"
        raise ValueError(f"{source}: none of the folders {', '.join(CLASSES)} in it; {advice} as --source")
    for folder in folders:
        if folder.name.lower() not in CLASSES:
            raise ValueError(f"{folder}: no class; rename it to one of {', '.join(CLASSES)} or move it out")
    pictures, refused = [], []
    for folder in sorted(folders, key=lambda path: CLASSES.index(path.name.lower())):
        found, masks = [], {}
        for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
            file = f"{folder.name}/{path.name}"
            if path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            if not path.name.isprintable():  # bytes that are no UTF-8 among them
                refused.append(f"{ascii(file)}: name holds characters that cannot be written; rename the file")
            elif path.suffix.lower() not in EXTENSIONS or not path.is_file():
                refused.append(f"{file}: not an image file ({' '.join(EXTENSIONS)}); convert it or move it out")
            elif match := MASK_NAME.fullmatch(path.stem):
                masks.setdefault(match["stem"], []).append(file)
            else:
                found.append(Picture(file, folder.name.lower(), []))
        for picture in found:
            picture.masks = masks.get(Path(picture.file).stem, [])
        for stem in masks.keys() - {Path(picture.file).stem for picture in found}:
            refused += [f"{file}: mask without an image; add the image or remove the mask" for file in masks[stem]]
        pictures += found
    if not pictures:
        raise ValueError(f"{source}: no image ({' '.join(EXTENSIONS)}) in its class folders; pass {LAYOUT} as --source")
    return pictures, refused


def name_outputs(pictures: list[Picture]) -> None:
    """Give each image a name of its own in the flat output; upper and lower case count as equal.

    A backslash, which a name may hold on Linux, would part folders on Windows. What is too long is cut.
    """
    stems = [cut_stem(Path(picture.file).stem.replace("\\", "_")) for picture in pictures]
    times, taken = Counter(stem.casefold() for stem in stems), set()
    for picture, stem in zip(pictures, stems):
        named = cut_stem(f"{picture.class_name}_{stem}")
        names = [stem if times[stem.casefold()] == 1 else named, *(f"{named}_{k}" for k in range(2, len(stems) + 2))]
        picture.name = next(name for name in names if name.casefold() not in taken)
        taken.add(picture.name.casefold())


def convert(pictures: list[Picture], source: Path, target: Path, refused: list[str]) -> list[Picture]:
    """Write image and label of each usable image and return these images; add what is wrong with the others to
    `refused`. Each image's `Picture` notes size, thumbnail and repairs."""
    usable = []
    uses = Counter(file for picture in pictures for file in picture.masks)
    for picture in tqdm(pictures, desc="converting", unit="image", disable=None):  # silent where stderr is a file
        try:
            grey, picture.repairs = read_grey(source / picture.file)
            shared = [f"mask {file}: of {uses[file]} images, check whose" for file in picture.masks if uses[file] > 1]
            picture.repairs += shared  # x.png and x.jpg beside x_mask.png
            label = read_label(picture, source, grey.shape)
        except Unusable as error:
            refused.append(f"{picture.file}: {error}")
            continue
        image = Image.fromarray(grey)  # a new image: no text, profile or palette of the source travels along
        # Level 4 makes files of the size of Pillow's default 6 in 40 % of its time.
        image.save(target / "images" / f"{picture.name}.png", compress_level=4)
        Image.fromarray(label).save(target / "labels" / f"{picture.name}.png", compress_level=4)
        picture.size, picture.thumb = image.size, np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX))
        usable.append(picture)
    refused.sort(key=natural)
    return usable


def open_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """Return a decoded image, and what that took. Raises Unusable when the file is empty, damaged, or no image."""
    try:
        image = open_image(path)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unusable(f"{reason}; copy it again or save it as a grey PNG") from None
    frames = image.info["frames"]
    return image, [f"first of {frames} frames used"] if frames > 1 else []


def read_grey(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read an image as uint8 grey (H, W) by the bundle's rule, and say what had to be done beyond dropping equal
    channels. Raises Unusable."""
    image, repairs = open_picture(path)
    try:
        grey = to_contrasted_grey(image)
    except ValueError as error:
        raise Unusable(str(error)) from None
    if image.mode == "1":
        repairs.append("1-bit image, only black and white")
    if is_deep(image):
        return grey, [*repairs, "more than 8 bits, brought to 0-255"]
    red, green, blue = (np.asarray(channel) for channel in image.convert("RGB").split())
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        repairs.append("transparency ignored")
    if (red != green).any() or (red != blue).any():
        repairs.append("colour turned to grey")
    return grey, repairs


def read_mask(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read a mask as bool (H, W) by the bundle's rule, and say what that took. Raises Unusable."""
    image, repairs = open_picture(path)
    try:
        return to_mask(image, repairs.append) > 0, repairs
    except ValueError as error:
        raise Unusable(str(error)) from None


def read_label(picture: Picture, source: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the union of the image's masks as uint8 (H, W) of 0 and 255, zeros for class normal.

    Raises Unusable when a mask cannot be read, has another size or seems inverted, or when a lesion class has none.
    """
    label = np.zeros(shape, bool)
    if picture.class_name in LESION_CLASSES and not picture.masks:
        raise Unusable(f"no mask, but the class is {picture.class_name}; add the mask or move the image out")
    for file in picture.masks:
        try:
            mask, repairs = read_mask(source / file)
        except Unusable as error:
            raise Unusable(f"its mask {file}: {error}") from None
        if mask.shape != shape:
            sizes = "{1}x{0}, its image {3}x{2}".format(*mask.shape, *shape)
            raise Unusable(f"its mask {file} is {sizes} pixels; export the mask in the size of the image")
        if picture.class_name in LESION_CLASSES and not mask.any():
            raise Unusable(f"its mask {file} is empty, but the class is {picture.class_name}; draw or remove the mask")
        # Of 2,815 masks of BUSI, BUS-BRA and BrEaST none holds more than two corners.
        if picture.class_name != "normal" and mask[[0, 0, -1, -1], [0, -1, 0, -1]].all():
            raise Unusable(f"its mask {file} marks all four corners; invert it, so that the lesion is marked alone")
        picture.repairs += [f"mask {file}: {repair}" for repair in repairs]
        label |= mask
    if picture.class_name == "normal" and label.any():
        picture.repairs.append("class normal with a marked mask: zeros written, check the class")
        label[:] = False
    elif picture.class_name != "normal" and not picture.masks:
        picture.repairs.append("class that may have lesions without a mask: zeros written, add the mask")
    return np.where(label, 255, 0).astype(np.uint8)


def count(lists: dict[str, list[Picture]], class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count the images of each class in each list."""
    return {part: {c: sum(p.class_name == c for p in found) for c in class_names} for part, found in lists.items()}


def summarise(
    pictures: list[Picture], lists: dict, refused: list[str], class_names: Sequence[str], made_by: dict, about: dict
) -> dict:
    """Return the content of `summary.json`; files are named relative to the source."""
    used = [picture for picture in pictures if not picture.left_out]
    counts = count({"found": pictures, "used": used, **lists}, class_names)
    sizes = Counter(picture.group for picture in used)
    places = Counter(group for found in lists.values() for group in {picture.group for picture in found})
    return {
        **about,
        **made_by,
        "class_names": list(class_names),
        "counts": counts,
        "shares_percent": {
            part: {name: round(100 * number / max(1, sum(row.values())), 1) for name, number in row.items()}
            for part, row in counts.items()
        },
        "in_published_list": sum(picture.burned_in_marks is not None for picture in pictures),
        "groups": len(sizes),
        "groups_of_several_pictures": sum(size > 1 for size in sizes.values()),
        "groups_in_several_parts": sum(parts > 1 for parts in places.values()),
        "masks": sum(len(picture.masks) for picture in pictures),
        "merged_masks": {picture.file: len(picture.masks) for picture in pictures if len(picture.masks) > 1},
        "left_out": {picture.file: picture.left_out for picture in pictures if picture.left_out},
        "repaired": {picture.file: "; ".join(picture.repairs) for picture in pictures if picture.repairs},
        "refused": refused,
        "notes": [*about["notes"], "Research software, not a medical device."],
    }


def as_text(summary: dict) -> str:
    """Return the summary for reading: a table of counts and shares, then what happened to single files."""
    names = summary["class_names"]
    width = max(16, 11 + max(map(len, names)))
    lines = [f"Split {summary['split']}, seed {summary['seed']}: {SPLITS[summary['split']]}.", ""]
    lines.append(f"{'':<12}" + "".join(f"{name:>{width}}" for name in names) + f"{'all':>8}")
    for part, row in summary["counts"].items():
        cells = [f"{row[name]} ({summary['shares_percent'][part][name]:.1f} %)" for name in names]
        lines.append(f"{part:<12}" + "".join(f"{cell:>{width}}" for cell in cells) + f"{sum(row.values()):>8}")
    lines += [
        "",
        "Scans or patients: {groups}, {groups_of_several_pictures} of them in several images, "
        "{groups_in_several_parts} in several parts.".format(**summary),
    ]
    if summary["in_published_list"]:
        lines.append(
            f"The published list of scans applies to {summary['in_published_list']} of these images; "
            "copies were looked for on the pixels of all."
        )
    lines += [f"No image of class {name}." for name in names if not summary["counts"]["found"][name]]
    stories = {"Several masks merged": list(summary["merged_masks"])} if summary["merged_masks"] else {}
    for file, reason in summary["left_out"].items():
        stories.setdefault(f"Left out, {reason}", []).append(file)
    for file, repair in summary["repaired"].items():
        stories.setdefault(f"Repaired, {repair}", []).append(file)
    if summary.get("ignored"):
        stories["No images, ignored"] = summary["ignored"]
    for title, files in stories.items():
        more = ", ... (all in summary.json)" if len(files) > 8 else ""
        lines.append(f"{title} ({len(files)}): {', '.join(files[:8])}{more}")
    lines += [f"Refused ({len(summary['refused'])}):", *summary["refused"]] if summary["refused"] else []
    return "\n".join([*lines, "", *summary["notes"]])


def write_files(folder: Path, datalists: dict[str, dict[str, list[Picture]]], summary: dict) -> None:
    """Write the datalists and the summary, with the same bytes on every system."""
    names = summary["class_names"]
    head = {
        "name": summary["name"],
        "description": "Breast ultrasound images with lesion masks and classes; for research, not for diagnosis",
        "reference": summary["reference"],
        "modality": {"0": "US"},
        "labels": {"0": "background", "255": "lesion"},
        **{key: summary[key] for key in ("class_names", "prepared_by", "split", "folds", "seed")},
    }
    contents = {
        name: head
        | {"counts": count(lists, names)}
        | {part: [p.item(summary["name"], names) for p in found] for part, found in lists.items()}
        for name, lists in datalists.items()
    }
    for name, content in {**contents, "summary.json": summary}.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    (folder / "summary.txt").write_text(as_text(summary) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run(prepare_busi)
