"""Every image becomes 8-bit grey and every mask 0 and 255, by the bundle's rules, in a folder that appears whole."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from preparation.annotations import draw
from preparation.burned_in import Blanks
from preparation.item import LESION_CLASSES, Item, Unusable, natural
from tqdm import tqdm

from breast_ultrasound.files import cut_stem
from breast_ultrasound.images import FEW_VALUES, NORMAL, is_deep, open_image, thumbnail, to_contrasted_grey, to_mask


class Smooth(Unusable):
    """A mask with so many greys between lesion and background that it is not judged alone."""


def check_places(source: Path, output: Path) -> None:
    """Raise OSError or ValueError when the source is no folder or the output is not free."""
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


def name_outputs(items: list[Item]) -> None:
    """Give each image a name of its own in the flat output; upper and lower case count as equal.

    What would part folders, here or on Windows, is replaced. What is too long is cut.
    """
    stems = [cut_stem(_plain(Path(item.file).stem)) for item in items]
    times, taken = Counter(stem.casefold() for stem in stems), set()
    for item, stem in zip(items, stems):
        named = cut_stem(f"{_plain(item.class_name)}_{stem}")
        names = [stem if times[stem.casefold()] == 1 else named, *(f"{named}_{k}" for k in range(2, len(stems) + 2))]
        item.name = next(name for name in names if name.casefold() not in taken)
        taken.add(item.name.casefold())


def _plain(name: str) -> str:
    return re.sub(r"[\\/:]", "_", name)


def convert(
    items: list[Item],
    source: Path,
    target: Path,
    refused: list[str],
    lesion_free: set[str],
    any_colour: bool = False,
    blanks: Blanks | None = None,
) -> list[Item]:
    """Write image and label of each usable image that is not left out, and return these images.

    Masks with soft edges are judged by one rule for the set: those that cannot be judged alone are cut in the middle as
    the others where at least as many can be, else all of them are refused.

    Args:
        items: the images; each notes its size, thumbnail and repairs.
        source: folder that their files are named from.
        target: folder with `images` and `labels`.
        refused: gets a line on each image that cannot be used.
        lesion_free: classes whose images show no lesion.
        any_colour: whether masks may hold several colours, all of which are lesion.
        blanks: masks of what is to be blanked in the images.
    """
    usable, unsure = [], []
    uses = Counter(file for item in items for file in item.masks)
    for item in tqdm(items, desc="converting", unit="image", disable=None):  # silent where stderr is a file
        if item.left_out:
            continue
        try:
            _convert(item, source, target, uses, lesion_free, any_colour, blanks)
            usable.append(item)
        except Smooth as error:
            unsure.append((item, error))
        except Unusable as error:
            refused.append(f"{item.file}: {error}")
    cut = [item for item in usable if item.smooth]
    for item, error in unsure:
        if len(cut) >= len(unsure):
            item.smooth = True
            _convert(item, source, target, uses, lesion_free, any_colour, blanks)
            usable.append(item)
        else:
            refused.append(f"{item.file}: {error}")
    if len(cut) < len(unsure):
        for item in cut:
            refused.append(f"{item.file}: its mask has soft edges, as those of {len(unsure)} refused ones of the set")
            remove(item, target)
            usable.remove(item)
    refused.sort(key=natural)
    order = {id(item): k for k, item in enumerate(items)}
    return sorted(usable, key=lambda item: order[id(item)])


def _convert(
    item: Item,
    source: Path,
    target: Path,
    uses: Counter,
    lesion_free: set[str],
    any_colour: bool,
    blanks: Blanks | None,
) -> None:
    """Write image and label of one image. Raises Unusable."""
    grey, item.repairs = read_grey(source / item.file)
    if len(np.unique(grey)) == 2:
        raise Unusable("two greys alone, which a mask has; name it NAME_mask, or move it out")
    # x.png and x.jpg beside x_mask.png
    item.repairs += [f"mask {file}: of {uses[file]} images, check whose" for file in item.masks if uses[file] > 1]
    label = read_label(item, source, grey.shape, lesion_free, any_colour)
    blank = blanks.of(item.file, grey, item.columns.get("device", "")) if blanks else None
    if blank is not None:
        grey = np.where(blank, np.uint8(0), grey)
        if (blank & (label > 0)).any():
            item.repairs.append(f"{blanks.used[item.file]} blanks part of its lesion, edit it")
        if not grey.any():
            raise Unusable(f"{blanks.used[item.file]} blanks all of it; edit that mask")
    image = Image.fromarray(grey)  # a new image: no text, profile or palette of the source travels along
    # Level 4 makes files of the size of Pillow's default 6 in 40 % of its time.
    image.save(target / "images" / f"{item.name}.png", compress_level=4)
    Image.fromarray(label).save(target / "labels" / f"{item.name}.png", compress_level=4)
    item.size, item.thumb = image.size, thumbnail(grey)


def remove(item: Item, target: Path) -> None:
    """Take an image that is not used out of the output again."""
    (target / "images" / f"{item.name}.png").unlink()
    (target / "labels" / f"{item.name}.png").unlink()


def open_source(path: Path) -> tuple[Image.Image, list[str]]:
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
    image, repairs = open_source(path)
    try:
        grey = to_contrasted_grey(image)
    except ValueError as error:
        raise Unusable(str(error)) from None
    if is_deep(image):
        return grey, [*repairs, "more than 8 bits, brought to 0-255"]
    red, green, blue = (np.asarray(channel) for channel in image.convert("RGB").split())
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        repairs.append("transparency ignored")
    if (red != green).any() or (red != blue).any():
        repairs.append("colour turned to grey")
    return grey, repairs


def read_mask(path: Path, smooth: bool = False, any_colour: bool = False) -> tuple[np.ndarray, list[str], bool]:
    """Read a mask as bool (H, W) by the bundle's rule.

    Args:
        path: the mask.
        smooth: whether the set's masks have soft edges, which are cut at half of the largest grey.
        any_colour: whether every colour is lesion.

    Returns:
        the mask, what reading it took, and whether soft edges were cut.

    Raises:
        Unusable: it cannot be read, or is no mask; `Smooth` where it may be one with soft edges.
    """
    image, repairs = open_source(path)
    if any_colour:
        return np.asarray(image.convert("RGB")).any(axis=2), repairs, False
    cuts: list[str] = []
    try:
        return to_mask(image, cuts.append) > 0, repairs + cuts, bool(cuts)
    except ValueError as error:
        colours = np.asarray(image.convert("RGB"))
        values = colours[..., 0]
        grey = not is_deep(image) and not np.ptp(colours, axis=2).any()
        if not grey or len(np.unique(values)) <= FEW_VALUES or values.min() > 0.1 * values.max():
            raise Unusable(str(error)) from None
        if not smooth:
            raise Smooth(str(error)) from None
    middle = values.max() / 2
    return values > middle, [*repairs, f"soft edges as of the set's other masks, cut at {middle:g}"], True


def read_label(
    item: Item, source: Path, shape: tuple[int, int], lesion_free: set[str], any_colour: bool = False
) -> np.ndarray:
    """Return the union of the image's masks and outlines as uint8 (H, W) of 0 and 255, zeros where the class has no
    lesion.

    Raises:
        Unusable: a mask cannot be read, has another size or seems inverted, or there is none
            although the class has lesions.
    """
    label = np.zeros(shape, bool)
    free = item.class_name in lesion_free
    if not free and not item.masks and not any(o.shapes or o.problem for o in item.outlines):
        declare = "" if item.class_name in LESION_CLASSES else ", or declare the class with --without_lesions"
        raise Unusable(f"no mask, but the class is {item.class_name}; add the mask or move the image out{declare}")
    for outline in item.outlines:
        try:
            label |= draw(outline, shape)
        except Unusable as error:
            raise Unusable(f"its outline in {outline.file}: {error}") from None
    for file in item.masks:
        try:
            mask, repairs, cut = read_mask(source / file, item.smooth, any_colour)
        except Unusable as error:
            raise type(error)(f"its mask {file}: {error}") from None
        if mask.shape != shape:
            sizes = "{1}x{0}, its image {3}x{2}".format(*mask.shape, *shape)
            raise Unusable(f"its mask {file} is {sizes} pixels; export the mask in the size of the image")
        if item.class_name in LESION_CLASSES and not mask.any():
            raise Unusable(f"its mask {file} is empty, but the class is {item.class_name}; draw or remove the mask")
        # Of 2,815 masks of BUSI, BUS-BRA and BrEaST none holds more than two corners.
        if not free and mask[[0, 0, -1, -1], [0, -1, 0, -1]].all():
            raise Unusable(f"its mask {file} marks all four corners; invert it, so that the lesion is marked alone")
        item.smooth |= cut
        item.repairs += [f"mask {file}: {repair}" for repair in repairs]
        label |= mask
    if free and label.any():
        item.repairs.append(f"class {item.class_name} with a marked mask: zeros written, check the class")
        label[:] = False
    elif not free and not label.any():
        item.repairs.append("empty mask: taken as drawn, an image without a lesion")
    return np.where(label, 255, 0).astype(np.uint8)


def lesion_free_classes(class_names: list[str], declared: list[str]) -> set[str]:
    """The classes whose images show no lesion: `normal`, and those declared.

    Raises:
        ValueError: a declared one is not there, or has lesions by its name.
    """
    for name in declared:
        if name not in class_names or name in LESION_CLASSES:
            known = ", ".join(n for n in class_names if n not in LESION_CLASSES)
            raise ValueError(f"--without_lesions {name}: pass names of classes that hold no lesion, of {known}")
    return {NORMAL, *declared}
