"""Outlines that annotation programs export, in place of mask files: COCO, LabelMe, and CVAT for images.

Polygons are filled where they cover at least half of a pixel. Coordinates are pixels from the upper left corner of the
image, so that 0.5 is the middle of the first pixel. What is no area (points, lines, boxes) is refused by name.
Formats: https://cocodataset.org/#format-data, https://github.com/wkentaro/labelme,
https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from preparation.item import Outline, Shape, Unusable

FINE = 8  # parts of a pixel's side to which a polygon is drawn
FARTHEST = 1e6  # pixels


def read_outlines(file: str, source: Path, kind: str) -> list[Outline]:
    """Read an annotation file.

    Args:
        file: its path below the source.
        source: folder of the set.
        kind: a key of `READERS`.

    Returns:
        what it says of each image; a shape that is no area is the outline's problem.

    Raises:
        Unusable: the file is damaged or of another kind.
    """
    try:
        return READERS[kind](file, (source / file).read_bytes())
    except Unusable:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise Unusable(
            f"no annotations in the form of {kind} ({type(error).__name__}: {error}); export again"
        ) from None


def draw(outline: Outline, shape: tuple[int, int]) -> np.ndarray:
    """The union of an outline's shapes as bool (height, width).

    Raises:
        Unusable: it has a problem, it was drawn on an image of another size, or a mask does not lie in it or fill its
            box.
    """
    if outline.problem:
        raise Unusable(outline.problem)
    if outline.size != shape[::-1]:
        sizes = "{}x{}, its image {}x{}".format(*outline.size, *shape[::-1])
        raise Unusable(f"drawn on {sizes} pixels; export it for the image as it is")
    mask = np.zeros(shape, bool)
    for area in outline.shapes:
        if area.polygon is not None:
            mask |= _filled(area.polygon, shape)
            continue
        left, top, width, height = area.box
        if min(area.box) < 0 or left + width > shape[1] or top + height > shape[0]:
            raise Unusable("a mask that reaches out of the image; export again")
        mask[top : top + height, left : left + width] |= _unrolled(area)
    return mask


def _filled(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels of which a polygon covers at least half."""
    mask = np.zeros(shape, bool)
    left, top = np.floor(polygon.min(axis=0)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(polygon.max(axis=0)).astype(int), shape[::-1])
    if right > left and bottom > top:
        fine = np.zeros(((bottom - top) * FINE, (right - left) * FINE), np.uint8)
        cv2.fillPoly(fine, [np.round((polygon - (left, top)) * FINE).astype(np.int32)], 255)
        covered = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        mask[top:bottom, left:right] = covered > 127
    return mask


def _unrolled(area: Shape) -> np.ndarray:
    """The pixels of run lengths, as bool (height, width) of their box."""
    _, _, width, height = area.box
    if sum(area.runs) != width * height or min(area.runs) < 0:
        raise Unusable("run lengths that do not fill their box; export again")
    pixels = np.repeat(np.arange(len(area.runs)) % 2 == 1, area.runs)
    return pixels.reshape(width, height).T if area.down else pixels.reshape(height, width)


def _polygon(numbers: list) -> Shape:
    points = np.array(numbers, float).reshape(-1, 2)
    if len(points) < 3 or not np.isfinite(points).all() or np.abs(points).max() > FARTHEST:
        raise Unusable(f"a polygon of {len(points)} points, or of one far out of the image; draw it again")
    return Shape(points)


def _outline(file: str, image: str, size: tuple[int, int], shapes: list[tuple[str, Callable]]) -> Outline:
    """An image's outline from its shapes, each a label and what makes the areas."""
    labels = tuple(dict.fromkeys(label for label, _ in shapes))
    try:
        return Outline(file, image, size, labels, tuple(area for _, areas in shapes for area in areas()))
    except Unusable as error:
        return Outline(file, image, size, labels, problem=str(error))


def _coco(file: str, content: bytes) -> list[Outline]:
    tree = json.loads(content)
    names = {category["id"]: str(category["name"]) for category in tree["categories"]}
    shapes = {image["id"]: [] for image in tree["images"]}
    for annotation in tree["annotations"]:
        areas = partial(_coco_areas, annotation.get("segmentation"))
        shapes[annotation["image_id"]].append((names[annotation["category_id"]], areas))
    return [_outline(file, i["file_name"], (i["width"], i["height"]), shapes[i["id"]]) for i in tree["images"]]


def _coco_areas(parts: dict | list | None) -> list[Shape]:
    if not parts:
        raise Unusable("a box without an outline; draw polygons")
    if isinstance(parts, list):
        return [_polygon(part) for part in parts]
    if not isinstance(parts["counts"], list):
        raise Unusable("compressed run lengths; export polygons")
    height, width = parts["size"]
    return [Shape(runs=tuple(int(n) for n in parts["counts"]), box=(0, 0, int(width), int(height)), down=True)]


def _labelme(file: str, content: bytes) -> list[Outline]:
    tree = json.loads(content)
    shapes = [(name, list) for name, marked in (tree.get("flags") or {}).items() if marked]
    shapes += [(shape["label"], partial(_labelme_areas, shape)) for shape in tree["shapes"]]
    image = tree["imagePath"].replace("\\", "/").rpartition("/")[2]  # from wherever it was annotated
    size = (tree["imageWidth"], tree["imageHeight"])
    return [_outline(file, f"{file.rpartition('/')[0]}/{image}".lstrip("/"), size, shapes)]


def _labelme_areas(shape: dict) -> list[Shape]:
    if shape.get("shape_type", "polygon") != "polygon":
        raise Unusable(f"a {shape['shape_type']}; draw polygons")
    return [_polygon(shape["points"])]


def _cvat(file: str, content: bytes) -> list[Outline]:
    if b"<!ENTITY" in content:
        raise Unusable("declares entities, which no export of CVAT does; export again")
    found = []
    for image in ElementTree.fromstring(content).iter("image"):
        size = (int(image.attrib["width"]), int(image.attrib["height"]))
        shapes = [(shape.attrib["label"], partial(_cvat_areas, shape)) for shape in image]
        found.append(_outline(file, image.attrib["name"], size, shapes))
    return found


def _cvat_areas(shape: ElementTree.Element) -> list[Shape]:
    given = shape.attrib
    if shape.tag == "polygon":
        return [_polygon([n for point in given["points"].split(";") for n in point.split(",")])]
    if shape.tag == "mask":
        box = tuple(int(given[name]) for name in ("left", "top", "width", "height"))
        return [Shape(runs=tuple(int(n) for n in given["rle"].split(",")), box=box)]
    if shape.tag != "tag":
        raise Unusable(f"a {shape.tag}; draw polygons or masks")
    return []


READERS = {"coco": _coco, "labelme": _labelme, "cvat": _cvat}
