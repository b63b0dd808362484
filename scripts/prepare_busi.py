"""Turn BUSI, or a folder of the same layout, into one folder that training, MONAI Label and every other command read.

In:  a folder with the class folders `normal`, `benign`, `malignant`; in each, pictures `NAME.png` beside their masks
     `NAME_mask.png`, `NAME_mask_1.png`, ... (BUSI as published: W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy, "Dataset
     of breast ultrasound images", Data in Brief 28 (2020) 104863). The source is only read.
Out: `images/` (8-bit grey PNG, size unchanged), `labels/` (0/255 PNG, the union of a picture's masks), `datalist.json`
     (MONAI's decathlon form; with `--folds` also `datalist_fold_0.json`, ...), `summary.json` and `summary.txt`.

    python scripts/prepare_busi.py --source Dataset_BUSI_with_GT --output data/busi

Research software, not a medical device.
"""

import csv
import inspect
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fire
import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

CLASSES = ("normal", "benign", "malignant")  # the position is the class number
LAYOUT = f"the folder that holds {', '.join(CLASSES)}"
PARTS = {"training": 0.7, "validation": 0.15, "testing": 0.15}  # shares of the pictures; 546/117/117 of 780
FOLD_VALIDATION = 1 / 8  # share of the pictures outside the tested fold
SPLITS = {
    "clean": "grouped by scan; scans that stand in several classes, axilla and needle pictures left out",
    "grouped": "grouped by scan; scans that stand in several classes left out",
    "random": "every picture on its own, stratified by class; copies of one scan may stand in several parts",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_NAME = re.compile(r"(?P<stem>.+)_mask(_\d+)?", re.IGNORECASE)
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's grey modes of more than 8 bits

FACTS = Path(__file__).with_name("busi_groups.csv")
# Of the pictures that bear a listed name, this share must also have the listed size before the list is believed:
# another set in BUSI's layout may well hold a "benign (1).png".
LISTED_SHARE = 0.9
THUMB = 48  # pixels
# On BUSI, 183 pairs inside the published groups reach this Pearson correlation of thumbnails and no pair across groups
# does (highest 0.955). For left-right mirrored pairs the highest is 0.92, so looking for them costs no false join.
NEAR_DUPLICATE = 0.96

MARKER = ".prepare_busi"  # stands in a folder while this command writes it
SIGNATURE = "scripts/prepare_busi.py"
NOTES = [
    "The shares 57.2/17.1/25.7 % (benign/malignant/normal) given in the original notebook are wrong: "
    "the full BUSI counts 56.0/26.9/17.1 %.",
    "Grouped by scan: BUSI names no patients, so one patient may still stand in several parts.",
    "Research software, not a medical device.",
]


class Unusable(Exception):
    """A single file that cannot be used; the message says why and what to do."""


@dataclass(eq=False)
class Picture:
    """One picture of the source; paths are relative to the source and use `/`."""

    file: str
    class_name: str
    masks: list[str]
    name: str = ""  # of its two files in the output, without folder and suffix
    repairs: list[str] = field(default_factory=list)
    group: str = ""
    objection: str = ""
    burned_in_marks: str | None = None  # None: not in the published list
    left_out: str = ""  # the reason, empty for a picture that is used

    def item(self) -> dict:
        """The picture's entry in `datalist.json`."""
        item = {
            "image": f"images/{self.name}.png",
            "label": f"labels/{self.name}.png",
            "class": CLASSES.index(self.class_name),
            "class_name": self.class_name,
            "group": self.group,
            "sources": [self.file, *self.masks],
        }
        return item if self.burned_in_marks is None else {**item, "burned_in_marks": self.burned_in_marks}


def prepare_busi(source, output, split="clean", folds=0, seed=0, strict=False, overwrite=False, **unknown) -> dict:
    """Convert a BUSI folder into images, labels, `datalist.json` and a summary.

    Args:
        source: folder that holds normal, benign and malignant; never changed.
        output: folder to make; it appears whole or not at all. Same input and options, same bytes.
        split: clean (default), grouped or random. clean leaves out scans that stand in several classes, axilla and
            needle pictures; grouped only the former; random splits picture by picture, as the original notebook did.
        folds: 0 for training, validation and testing (70/15/15 %), or the number of folds, 2 or more.
        seed: whole number from 0 to 4294967295 that draws the parts.
        strict: stop at files that cannot be used, in place of leaving them out by name.
        overwrite: replace an output that this command made.
        **unknown: caught to stop before any work; Fire would complain only afterwards.

    Returns:
        Number of pictures found, used, in each part, left out, and of files refused.

    Raises:
        SystemExit: with one line that names the file or option and the remedy.
    """
    check_options(split, folds, seed, strict, overwrite, unknown)
    source, output = as_folder("source", source), as_folder("output", output)
    try:
        check_places(source, output, overwrite)
        pictures, refused = scan(source)
        stop_if_strict(strict, refused)
        with building(output.resolve()) as partial:
            pictures, sizes, thumbs = convert(pictures, source, partial, refused)
            stop_if_strict(strict, refused)
            if not pictures:
                raise SystemExit(f"{source}: none of its pictures can be used; the first: {refused[0]}")
            join_groups(pictures, sizes, thumbs, read_facts())
            leave_out(pictures, split)
            for picture in pictures:
                if picture.left_out:
                    (partial / "images" / f"{picture.name}.png").unlink()
                    (partial / "labels" / f"{picture.name}.png").unlink()
            datalists = make_datalists([p for p in pictures if not p.left_out], split, folds, seed)
            summary = summarise(pictures, datalists["datalist.json"], refused, split, folds, seed)
            write_files(partial, datalists, summary)
    except OSError as error:
        raise SystemExit(f"{error.filename or output}: {error.strerror or error}; nothing was written") from None
    print(as_text(summary))
    counts = {part: sum(row.values()) for part, row in summary["counts"].items()}
    return {**counts, "left_out": len(summary["left_out"]), "refused": len(refused)}


def check_options(split, folds, seed, strict, overwrite, unknown: dict) -> None:
    """Stop with one line at a misspelt option or a value of the wrong kind; Fire passes whatever it parsed."""
    if unknown:
        known = [f"--{name}" for name in inspect.signature(prepare_busi).parameters if name != "unknown"]
        raise SystemExit(f"--{next(iter(unknown))}: no such option; the options are {', '.join(known)}")
    if split not in list(SPLITS):
        raise SystemExit(f"--split {split}: pass one of {', '.join(SPLITS)}")
    if type(folds) is not int or folds < 0 or folds == 1:
        raise SystemExit(f"--folds {folds}: pass 0 for training, validation and testing, or a whole number from 2 on")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise SystemExit(f"--seed {seed}: pass a whole number from 0 to {2**32 - 1}")
    for name, value in (("strict", strict), ("overwrite", overwrite)):
        if type(value) is not bool:
            raise SystemExit(f"--{name} {value}: a switch without a value; write --{name} last or --{name}=True")


def as_folder(name: str, value) -> Path:
    """Return the path an option means; Fire makes a number of `2024`, and True of an option without a value."""
    if type(value) is int:
        value = str(value)
    if not isinstance(value, (str, Path)) or not str(value):
        raise SystemExit(f"--{name} {value}: pass a folder; one whose name looks like a value as --{name}=./NAME")
    return Path(value).expanduser()


def check_places(source: Path, output: Path, overwrite: bool) -> None:
    """Stop with one line when the source cannot be read or the output cannot be written safely."""
    if not source.is_dir():
        raise SystemExit(f"{source}: no such folder; pass {LAYOUT} as --source")
    inner, outer = source.resolve(), output.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise SystemExit(f"{output}: lies inside the source {source} or holds it; choose another --output")
    if output.exists() and not output.is_dir():
        raise SystemExit(f"{output}: not a folder; choose another --output")
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    expected = files_of(output)
    if found and not expected:
        raise SystemExit(f"{output}: half-written, or made by something else; remove it or choose another --output")
    if found - expected:
        raise SystemExit(f"{output / min(found - expected)}: not made by this command; move it out of the output")
    if found and not overwrite:
        state = "exists already" if found == expected else f"incomplete, {min(expected - found)} is missing"
        raise SystemExit(f"{output}: {state}; add --overwrite to replace it or choose another --output")


def files_of(folder: Path) -> set[str]:
    """Names of the files that a run of this command left in `folder`; empty when it did not make the folder."""
    try:
        datalist = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
        if datalist["prepared_by"] != SIGNATURE:
            return set()
        lists = [items for items in datalist.values() if isinstance(items, list)]
        pictures = {item[key] for items in lists for item in items for key in ("image", "label")}
        extra = {f"datalist_fold_{k}.json" for k in range(datalist["folds"])}
        return pictures | extra | {"datalist.json", "summary.json", "summary.txt"}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` to write into; rename it to `output` when all went well, else remove it."""
    partial, replaced = (output.with_name(f".{output.name}.{state}") for state in ("partial", "replaced"))
    output.parent.mkdir(parents=True, exist_ok=True)
    if files_of(replaced):  # an earlier run was killed between its two renames
        shutil.rmtree(replaced) if output.exists() else replaced.rename(output)
    if partial.exists():
        if any(partial.iterdir()) and not (partial / MARKER).exists() and not files_of(partial):
            raise SystemExit(f"{partial}: in the way and not made by this command; move it away")
        shutil.rmtree(partial)
        print(f"{partial}: half-written by an earlier run, removed")
    partial.mkdir()
    try:
        (partial / MARKER).touch()
        for folder in ("images", "labels"):
            (partial / folder).mkdir()
        yield partial
        (partial / MARKER).unlink()
        if output.exists():
            output.rename(replaced)
        partial.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def natural(text: str) -> tuple:
    """Sort key that puts `benign (2)` before `benign (10)`; the text itself settles ties such as 1 and 01."""
    words = re.split(r"([0-9]+)", text.casefold())
    return [int(word) if k % 2 else word for k, word in enumerate(words)], text


def scan(source: Path) -> tuple[list[Picture], list[str]]:
    """List the pictures of `source` with their masks and output names, without opening them.

    Returns:
        The pictures in a fixed order, and one line for each file that is neither a picture nor a picture's mask.

    Raises:
        SystemExit: no class folder, an unknown class folder, or no picture at all.
    """
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if not any(folder.name.lower() in CLASSES for folder in folders):
        inside = [f.name for f in folders if any((f / name).is_dir() for name in CLASSES)]
        advice = f"pass {source / inside[0]}" if inside else f"pass {LAYOUT}"
        raise SystemExit(f"{source}: none of the folders {', '.join(CLASSES)} in it; {advice} as --source")
    for folder in folders:
        if folder.name.lower() not in CLASSES:
            raise SystemExit(f"{folder}: no class; rename it to one of {', '.join(CLASSES)} or move it out")
    pictures, refused = [], []
    for folder in sorted(folders, key=lambda path: CLASSES.index(path.name.lower())):
        found, masks = [], {}
        for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
            file = f"{folder.name}/{path.name}"
            if path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            if not path.name.isprintable():  # bytes that are no UTF-8 among them
                refused.append(f"{ascii(file)}: name holds characters that cannot be written; rename the file")
            elif path.suffix.lower() not in SUFFIXES or not path.is_file():
                refused.append(f"{file}: not a picture file ({' '.join(SUFFIXES)}); convert it or move it out")
            elif match := MASK_NAME.fullmatch(path.stem):
                masks.setdefault(match["stem"], []).append(file)
            else:
                found.append(Picture(file, folder.name.lower(), []))
        for picture in found:
            picture.masks = masks.get(Path(picture.file).stem, [])
        owned = {file for picture in found for file in picture.masks}
        for file in sorted({file for files in masks.values() for file in files} - owned):
            refused.append(f"{file}: mask without an image; add its picture or remove the mask")
        pictures += found
    if not pictures:
        raise SystemExit(f"{source}: no picture ({' '.join(SUFFIXES)}) in its class folders; pass {LAYOUT} as --source")
    name_outputs(pictures)
    return pictures, sorted(refused, key=natural)


def name_outputs(pictures: list[Picture]) -> None:
    """Give each picture a name of its own in the flat output; upper and lower case count as equal."""
    stems = Counter(Path(picture.file).stem.casefold() for picture in pictures)
    taken = {stem for stem, times in stems.items() if times == 1}
    for picture in pictures:
        path = Path(picture.file)
        picture.name = path.stem
        if stems[path.stem.casefold()] > 1:
            named = [f"{picture.class_name}_{path.stem}", f"{picture.class_name}_{path.stem}_{path.suffix[1:].lower()}"]
            named += [f"{named[1]}_{k}" for k in range(2, len(pictures) + 2)]
            picture.name = next(name for name in named if name.casefold() not in taken)
            taken.add(picture.name.casefold())


def stop_if_strict(strict: bool, refused: list[str]) -> None:
    """Under `--strict`, end with the first refused file and the number of all."""
    if strict and refused:
        raise SystemExit(f"--strict: {refused[0]} ({len(refused)} refused in all; nothing was written)")


def convert(pictures: list[Picture], source: Path, target: Path, refused: list[str]) -> tuple[list, list, np.ndarray]:
    """Write image and label of each usable picture; note repairs in the picture and add the others to `refused`.

    Returns:
        The usable pictures, their sizes (width, height) in pixels, and their thumbnails, uint8 (N, 48, 48).
    """
    usable, sizes, thumbs = [], [], []
    for picture in tqdm(pictures, desc="converting", unit="picture", disable=None):
        try:
            grey, picture.repairs = read_grey(source / picture.file)
            label = read_label(picture, source, grey.shape)
        except Unusable as error:
            refused.append(f"{picture.file}: {error}")
            continue
        image = Image.fromarray(grey)  # a new picture: no text, profile or palette of the source travels along
        # Level 4 makes files of the size of Pillow's default 6 in 40 % of its time.
        image.save(target / "images" / f"{picture.name}.png", compress_level=4)
        Image.fromarray(label).save(target / "labels" / f"{picture.name}.png", compress_level=4)
        usable.append(picture)
        sizes.append(image.size)
        thumbs.append(np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX)))
    refused.sort(key=natural)
    return usable, sizes, np.array(thumbs)


def open_picture(path: Path) -> tuple[Image.Image, int]:
    """Return the decoded picture and its number of frames.

    Raises:
        Unusable: the file is empty, truncated or no picture.
    """
    try:
        if path.stat().st_size == 0:
            raise Unusable("empty file (0 bytes); copy it again")
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
            return image, frames
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise Unusable("unreadable or truncated picture; copy it again") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, transparency ignored."""
    try:
        return image.convert("RGB")
    except (OSError, ValueError):
        raise Unusable(f"picture mode {image.mode} has no way to grey; save it as a grey PNG") from None


def read_grey(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read a picture of any mode as uint8 grey (H, W), and say what had to be done beyond dropping equal channels.

    Colour becomes ITU-R 601 luma (Pillow's "L"). Deeper pictures are scaled so that their brightest pixel is 255, since
    many 16-bit files hold fewer bits and would turn black.

    Raises:
        Unusable: the file cannot be read.
    """
    image, frames = open_picture(path)
    repairs = [f"first of {frames} frames used"] if frames > 1 else []
    if image.mode in DEEP_MODES:
        deep = np.asarray(image, dtype=np.float64)
        low, high = min(0.0, deep.min()), deep.max()
        if not np.isfinite(high - low):
            raise Unusable("holds values that are no numbers; save it as a grey PNG")
        grey = np.rint((deep - low) * (255 / max(high - low, 1e-12)))
        return grey.astype(np.uint8), [*repairs, "more than 8 bits, scaled to 0-255"]
    if image.mode == "1":
        repairs.append("1-bit picture, only black and white")
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
        repairs.append("transparency ignored")
    rgb = as_rgb(image)
    red, green, blue = (np.asarray(channel) for channel in rgb.split())
    if (red != green).any() or (red != blue).any():
        repairs.append("colour turned to grey")
    return np.asarray(rgb.convert("L")), repairs


def read_mask(path: Path) -> np.ndarray:
    """Read a mask of any mode as bool (H, W).

    Foreground is what has a colour channel above 127, so that soft or JPEG borders end half-way; in a mask that holds
    nothing brighter than 127 (0/1 labels) it is everything above 0. Transparency is ignored.

    Raises:
        Unusable: the file cannot be read.
    """
    image, _ = open_picture(path)
    channels = [image] if image.mode in DEEP_MODES else as_rgb(image).split()
    bright = np.maximum.reduce([np.asarray(channel) for channel in channels])
    return bright > (127 if bright.max() > 127 else 0)


def read_label(picture: Picture, source: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the union of the picture's masks as uint8 (H, W) of 0 and 255, zeros for class normal.

    Raises:
        Unusable: a mask cannot be read, has another size, or is empty in a lesion class.
    """
    label = np.zeros(shape, bool)
    for file in picture.masks:
        try:
            mask = read_mask(source / file)
        except Unusable as error:
            raise Unusable(f"its mask {file}: {error}") from None
        if mask.shape != shape:
            sizes = "{1}x{0}, its image {3}x{2}".format(*mask.shape, *shape)
            raise Unusable(f"its mask {file} is {sizes} pixels; export the mask in the size of the image")
        if picture.class_name != "normal" and not mask.any():
            raise Unusable(f"its mask {file} is empty, but the class is {picture.class_name}; draw or remove the mask")
        label |= mask
    if picture.class_name == "normal" and label.any():
        picture.repairs.append("class normal with a marked mask: zeros written, check the class")
        label[:] = False
    elif picture.class_name != "normal" and not picture.masks:
        picture.repairs.append("lesion class without a mask: zeros written, add the mask")
    return np.where(label, 255, 0).astype(np.uint8)


def read_facts() -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of `busi_groups.csv` by (class, filename); its head names the source of the facts."""
    try:
        with FACTS.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except FileNotFoundError:
        raise SystemExit(f"scripts/{FACTS.name}: missing; restore it from the repository") from None
    return {(row["class"], row["filename"]): row for row in rows}


def near_duplicates(thumbs: np.ndarray) -> np.ndarray:
    """Find pictures that show the same scan, upright or mirrored left to right.

    Args:
        thumbs: (N, 48, 48), any grey scale.

    Returns:
        Pairs of positions (P, 2), pairs of one position with itself included.
    """
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    mirrored = flat.reshape(thumbs.shape)[:, :, ::-1].reshape(flat.shape)
    pairs = []
    for start in range(0, len(flat), 1024):  # in blocks: the whole matrix of 10,000 pictures would take 400 MB
        block = flat[start : start + 1024]
        similar = np.maximum(block @ flat.T, block @ mirrored.T)
        pairs.append(np.argwhere(similar >= NEAR_DUPLICATE) + (start, 0))
    return np.concatenate(pairs)


def join_groups(pictures: list[Picture], sizes: Sequence, thumbs: np.ndarray, facts: dict) -> None:
    """Set each picture's group: the published groups, where they apply, joined with near-duplicates on the pixels.

    A published row applies to a picture of its class, file name and size, given that at least 90 % of the pictures with
    listed names have the listed sizes. Groups keep their published name `G...`; those the list knows nothing of get
    `P0001`, ... All others are grouped by pixels alone.
    """
    rows = [facts.get((picture.class_name, Path(picture.file).name)) for picture in pictures]
    match = [bool(row) and (int(row["width"]), int(row["height"])) == tuple(size) for row, size in zip(rows, sizes)]
    believed = sum(match) >= LISTED_SHARE * sum(row is not None for row in rows)
    edges, first, published = near_duplicates(thumbs).tolist(), {}, {}
    for index, (picture, row) in enumerate(zip(pictures, rows)):
        if believed and match[index]:
            picture.objection, picture.burned_in_marks = row["objection"], row["burned_in_marks"]
            published[index] = row["group"]
            edges.append([index, first.setdefault(row["group"], index)])
    ends = np.array(edges).T
    graph = coo_matrix((np.ones(len(edges)), tuple(ends)), shape=(len(pictures), len(pictures)))
    _, component = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    for index, name in sorted(published.items(), key=lambda pair: pair[1]):
        names.setdefault(component[index], name)
    for picture, number in zip(pictures, component):
        picture.group = names.setdefault(number, f"P{len(names) + 1:04d}")


def leave_out(pictures: list[Picture], split: str) -> None:
    """Set `left_out` to the reason in the pictures that `split` does not use."""
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
    of its own target for groups of several pictures, so that these spread over all parts; most pictures for single
    ones, which also even out the rounding of the classes before. On BUSI no class is off its target by a whole picture
    in any part, where scikit-learn's StratifiedGroupKFold (20 folds joined to 70/15/15) is off by up to 2.9.

    Args:
        classes: class number of each picture, (N,).
        groups: group of each picture, (N,); a group has one class.
        shares: wanted share of each part, summing to 1.
        seed: draws the order; numpy's RandomState, whose stream is fixed for good.

    Returns:
        Number of the part of each picture, int (N,).
    """
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    class_of = np.zeros(len(sizes), int)
    class_of[group_of] = classes
    order = np.random.RandomState(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    shares, carried, part = np.array(shares), np.zeros(len(shares)), np.zeros(len(sizes), int)
    for number in range(len(CLASSES)):
        members = order[class_of[order] == number]
        missing = shares * sizes[members].sum()
        for group in members:
            need = missing / shares if sizes[group] > 1 else missing + 0.7 * carried
            part[group] = np.argmax(need)
            missing[part[group]] -= sizes[group]
        carried += missing
    return part[group_of]


def split_pictures(pictures: list[Picture], shares: Sequence[float], split: str, seed: int) -> list[list[Picture]]:
    """Return the pictures of each part in their old order, and check that no group crosses.

    Raises:
        SystemExit: too few groups, so that a part stays empty.
    """
    units = [picture.name if split == "random" else picture.group for picture in pictures]
    numbers = allocate([CLASSES.index(picture.class_name) for picture in pictures], units, shares, seed)
    parts = [[picture for picture, n in zip(pictures, numbers) if n == k] for k in range(len(shares))]
    if not all(parts):
        raise SystemExit(f"--split {split}: {len(set(units))} groups are too few for {len(shares)} parts; add pictures")
    if len(set(zip(units, numbers.tolist()))) != len(set(units)):
        raise RuntimeError("a group stands in several parts")  # our own mistake, never the user's
    return parts


def make_datalists(pictures: list[Picture], split: str, folds: int, seed: int) -> dict[str, dict[str, list[Picture]]]:
    """Return the lists of each datalist file: training, validation and testing, or fold_0, fold_1, ...

    With folds, file k beside `datalist.json` has fold k for testing and an eighth of the rest for validation.

    Raises:
        SystemExit: too few groups of a class for this many folds, or to fill every part.
    """
    if not folds:
        return {"datalist.json": dict(zip(PARTS, split_pictures(pictures, list(PARTS.values()), split, seed)))}
    for name in CLASSES:
        units = {p.name if split == "random" else p.group for p in pictures if p.class_name == name}
        if 0 < len(units) < folds:
            raise SystemExit(f"--folds {folds}: class {name} has {len(units)} groups; pass fewer folds or add pictures")
    parts = split_pictures(pictures, [1 / folds] * folds, split, seed)
    files = {"datalist.json": {f"fold_{k}": part for k, part in enumerate(parts)}}
    for k, tested in enumerate(parts):
        rest = [picture for picture in pictures if picture not in set(tested)]
        training, validation = split_pictures(rest, [1 - FOLD_VALIDATION, FOLD_VALIDATION], split, seed)
        files[f"datalist_fold_{k}.json"] = dict(zip(PARTS, (training, validation, tested)))
    return files


def count(lists: dict[str, list[Picture]]) -> dict[str, dict[str, int]]:
    """Count the pictures of each class in each list."""
    return {part: {c: sum(p.class_name == c for p in found) for c in CLASSES} for part, found in lists.items()}


def summarise(pictures: list[Picture], lists: dict, refused: list[str], split: str, folds: int, seed: int) -> dict:
    """Return the content of `summary.json`; files are named relative to the source."""
    used = [picture for picture in pictures if not picture.left_out]
    counts = count({"found": pictures, "used": used, **lists})
    sizes = Counter(picture.group for picture in used)
    places = Counter(group for found in lists.values() for group in {picture.group for picture in found})
    return {
        "prepared_by": SIGNATURE,
        "split": split,
        "folds": folds,
        "seed": seed,
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
        "notes": NOTES,
    }


def as_text(summary: dict) -> str:
    """Return the summary for reading: a table of counts and shares, then what happened to single files."""
    lines = [f"Split {summary['split']}, seed {summary['seed']}: {SPLITS[summary['split']]}.", ""]
    lines.append(f"{'':<12}" + "".join(f"{name:>16}" for name in CLASSES) + f"{'all':>8}")
    for part, row in summary["counts"].items():
        cells = [f"{row[name]} ({summary['shares_percent'][part][name]:.1f} %)" for name in CLASSES]
        lines.append(f"{part:<12}" + "".join(f"{cell:>16}" for cell in cells) + f"{sum(row.values()):>8}")
    lines += [
        "",
        "Scans: {groups}, {groups_of_several_pictures} of them in several pictures, "
        "{groups_in_several_parts} in several parts.".format(**summary),
        f"The published list of scans applies to {summary['in_published_list']} of these pictures; "
        "copies were looked for on the pixels of all.",
    ]
    lines += [f"No picture of class {name}." for name in CLASSES if not summary["counts"]["found"][name]]
    stories = {"Several masks merged": list(summary["merged_masks"])} if summary["merged_masks"] else {}
    for file, reason in summary["left_out"].items():
        stories.setdefault(f"Left out, {reason}", []).append(file)
    for file, repair in summary["repaired"].items():
        stories.setdefault(f"Repaired, {repair}", []).append(file)
    for title, files in stories.items():
        more = ", ... (all in summary.json)" if len(files) > 8 else ""
        lines.append(f"{title} ({len(files)}): {', '.join(files[:8])}{more}")
    lines += [f"Refused: {line}" for line in summary["refused"]]
    return "\n".join([*lines, "", *summary["notes"]])


def write_files(folder: Path, datalists: dict[str, dict[str, list[Picture]]], summary: dict) -> None:
    """Write the datalists and the summary, with the same bytes on every system."""
    head = {
        "name": "BUSI",
        "description": "Breast ultrasound pictures with lesion masks and classes; for research, not for diagnosis",
        "reference": "Al-Dhabyani et al., Data in Brief 28 (2020) 104863, doi 10.1016/j.dib.2019.104863",
        "modality": {"0": "US"},
        "labels": {"0": "background", "255": "lesion"},
        "classes": {str(number): name for number, name in enumerate(CLASSES)},
        **{key: summary[key] for key in ("prepared_by", "split", "folds", "seed")},
    }
    contents = {
        name: head | {"counts": count(lists)} | {part: [p.item() for p in found] for part, found in lists.items()}
        for name, lists in datalists.items()
    }
    for name, content in {**contents, "summary.json": summary}.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    (folder / "summary.txt").write_text(as_text(summary) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    # The summary is printed already; the returned counts are for callers in Python.
    fire.Fire(prepare_busi, serialize=lambda counts: None)
