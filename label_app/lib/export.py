"""All labels as one ZIP: a folder that trains the bundle at once, and the same labels as CSV and COCO."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from scripts.data import UNKNOWN_CLASS
from scripts.files import write_csv

from .datastore import PictureDatastore
from .errors import RequestError
from .readers import LOG_FILE, labels, names
from .split import hold_out

VALIDATION = 0.2  # of the labels, chosen by their names alone
COLUMNS = ["image", "reader", "class", "cannot_tell", "lesion_area_px", "time"]


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


def export(datastore: PictureDatastore, folder: str | Path) -> str:
    """Write the ZIP to a temporary file and return its path; the caller removes it.

    It holds ``images/``, ``labels/`` and ``datalist.json`` (the labels that train), ``coco.json`` of the same,
    ``readers/<tag>/`` (masks of each reader), ``labels.csv`` (all labels) and the log.

    Raises:
        RequestError: there is no label.
    """
    tags = names(datastore)
    final = labels(datastore, "final")
    if not final and not tags:
        raise RequestError(404, "no label yet, so there is nothing to export")
    with tempfile.TemporaryDirectory() as work, tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            rows, items = [], []
            for tag in ("final", *tags):
                for name, info in sorted(labels(datastore, tag).items()):
                    mask = datastore.mask(name, tag)
                    place = f"labels/{name}.png" if tag == "final" else f"readers/{tag}/{name}.png"
                    archive.write(datastore.get_label_uri(name, tag), place)
                    rows.append(
                        {
                            "image": name,
                            "reader": "" if tag == "final" else tag,
                            "class": info.get("class", ""),
                            "cannot_tell": int(bool(info.get("cannot_tell"))),
                            "lesion_area_px": int(mask.sum()),
                            "time": info.get("ts", ""),
                        }
                    )
                    if tag == "final":
                        image = Path(datastore.get_image_uri(name))
                        archive.write(image, f"images/{image.name}", zipfile.ZIP_STORED)
                        items.append(
                            {"file_name": f"images/{image.name}", "mask": mask, "class": info.get("class", "")}
                        )
            archive.writestr("datalist.json", json.dumps(datalist(items, datastore.class_names), indent=4))
            archive.writestr("coco.json", json.dumps(coco(items, datastore.class_names)))
            write_csv(Path(work) / "labels.csv", rows, COLUMNS)
            archive.write(Path(work) / "labels.csv", "labels.csv")
            if (Path(folder) / LOG_FILE).is_file():
                archive.write(Path(folder) / LOG_FILE, LOG_FILE)
    return file.name


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
    return splits
