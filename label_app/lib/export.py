"""All labels as one ZIP: a folder that trains the bundle at once, the same as CSV and COCO; and MONAI Label's ZIP."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from breast_ultrasound.data import UNKNOWN_CLASS
from breast_ultrasound.files import write_csv

from .consensus import is_read, says
from .datastore import Kept
from .errors import RequestError
from .readers import FINAL, LOG_FILE
from .split import hold_out

VALIDATION = 0.2  # of the labels, chosen by their names alone
COLUMNS = ["image", "label", "source", "reader", "adjudicator", "class", "class_unsure", "flag", "comment"]
COLUMNS += ["lesion_area_px", "time"]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask (height, width): down the columns, background first."""
    pixels = mask.T.ravel()
    ends = np.flatnonzero(np.diff(pixels.astype(np.int8))) + 1
    lengths = np.diff([0, *ends, pixels.size]).tolist()
    return [0, *lengths] if pixels.size and pixels[0] else lengths


def coco(items: list[dict], class_names: list[str]) -> dict:
    """Items with ``file_name``, ``mask`` and ``class`` (a name, or empty) in COCO's form: one object an image."""
    categories = [*class_names, "lesion"]  # the last where no class is known
    images, annotations = [], []
    for number, item in enumerate(items, 1):
        mask = item["mask"]
        height, width = mask.shape
        images.append({"id": number, "file_name": item["file_name"], "width": width, "height": height})
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": categories.index(item["class"] or "lesion") + 1,
                "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                "bbox": [int(value) for value in box],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )
    named = [{"id": number, "name": name} for number, name in enumerate(categories, 1)]
    return {"images": images, "annotations": annotations, "categories": named}


def export(labels: dict[str, dict[str, Kept]], class_names: list[str], folder: str | Path) -> str:
    """Write the ZIP to a temporary file and return its path; the caller removes it.

    It holds ``images/``, ``labels/`` and ``datalist.json`` (the labels that train), ``coco.json`` of the same,
    ``readers/<tag>/`` (masks of each reader), ``labels.csv`` (all labels) and the log.

    Args:
        labels: by tag and image.
        class_names: of the set.
        folder: of the images.

    Raises:
        RequestError: there is no label.
    """
    if not any(labels.values()):
        raise RequestError(404, "no label yet, so there is nothing to export")
    infos = [kept.info for found in labels.values() for kept in found.values()]
    fields = sorted({name for info in infos for name in info.get("fields", {})})
    with tempfile.TemporaryDirectory() as work, tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            rows, items = [], []
            for tag, found in labels.items():
                for name, kept in found.items():
                    mask, final = kept.mask(), tag == FINAL
                    rows.append(row(name, tag, kept.info, int(mask.sum())))
                    if final and not is_read(kept.info):
                        continue
                    archive.write(kept.file, f"labels/{name}.png" if final else f"readers/{tag}/{name}.png")
                    if final:
                        image = Path(kept.image)
                        archive.write(image, f"images/{image.name}", zipfile.ZIP_STORED)
                        given = kept.info.get("class", "")
                        items.append({"file_name": f"images/{image.name}", "mask": mask, "class": given})
            archive.writestr("datalist.json", json.dumps(datalist(items, class_names), indent=4))
            archive.writestr("coco.json", json.dumps(coco(items, class_names)))
            write_csv(Path(work) / "labels.csv", rows, [*COLUMNS, *fields])
            archive.write(Path(work) / "labels.csv", "labels.csv")
            for log in sorted(Path(folder).glob(f"{Path(LOG_FILE).stem}*.csv")):
                archive.write(log, log.name)
    return file.name


def row(name: str, tag: str, info: dict, area_px: int) -> dict:
    """A label's line of labels.csv: a reader's, or the final one, whose ``source`` tells where it comes from."""
    readers = info.get("readers") or [info.get("reader", "")]
    return {
        "image": name,
        "label": tag,
        "source": info.get("source", "") if tag == FINAL else "reader",
        "reader": "; ".join(readers),
        "adjudicator": info.get("adjudicator", ""),
        "class": says(info),
        **{mark: int(bool(info.get(mark))) for mark in ("class_unsure", "flag")},
        "comment": info.get("comment", ""),
        "lesion_area_px": area_px,
        "time": info.get("ts", ""),
        **info.get("fields", {}),
    }


def datalist(items: list[dict], class_names: list[str]) -> dict:
    """The items of ``coco`` as the bundle's datalist; a single one serves as training and validation split."""
    held_out = hold_out([item["file_name"] for item in items], VALIDATION, [])
    splits: dict[str, list[dict]] = {"training": [], "validation": [], "testing": []}
    for item in items:
        entry = {
            "image": item["file_name"],
            "label": f"labels/{Path(item['file_name']).stem}.png",
            "class": class_names.index(item["class"]) if item["class"] in class_names else UNKNOWN_CLASS,
        }
        splits["validation" if item["file_name"] in held_out else "training"].append(entry)
    splits["validation"] = splits["validation"] or splits["training"]
    return {"class_names": class_names, **splits}


def dataset_archive(labels: dict[str, Kept], state: dict, limit_cases: int | None) -> BinaryIO:
    """ZIP of images and submitted labels as MONAI Label lays it out, open at its start, gone when it is closed.

    Args:
        labels: that train, by image.
        state: of the datastore.
        limit_cases: how many images at most; all where it is None or 0.

    Raises:
        RequestError: there is no label.
    """
    if not labels:
        raise RequestError(404, "no label yet, so there is nothing to download")
    file = tempfile.TemporaryFile()
    with zipfile.ZipFile(file, "w") as archive:
        for kept in list(labels.values())[: limit_cases or None]:
            for kind, path in (("image", kept.image), ("label", kept.file)):
                archive.write(path, f"{kind}/{os.path.basename(path)}")
        archive.writestr("metadata.json", json.dumps(state, default=str))
    file.seek(0)
    return file
