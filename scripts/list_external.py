"""Write the datalist of an external test set: a folder with `images`, `labels` and a table of classes.

    python scripts/list_external.py --dataset_dir BrEaST --output runs/external.json
    python -m monai.bundle run evaluating --config_file
        "['bundle/configs/train.json','bundle/configs/evaluate.json']" --bundle_root bundle
        --dataset_dir BrEaST --datalist runs/external.json --output_dir runs/external

`classes.csv` has the columns `name` (picture without extension), `class` (normal, benign, malignant) and, where
several pictures show the same patient, `case`. Images and masks (0 and 255, of the image's size) are PNGs of that
name. Every picture goes to the testing part: nothing is to be trained or chosen on an external set.
"""

from __future__ import annotations

import csv
from pathlib import Path

from command_line import parse_bundle, run
from PIL import Image

from scripts.files import write_json


def list_external(dataset_dir: Path, output: Path) -> dict[str, int]:
    """Check the files of the table and write the datalist.

    Args:
        dataset_dir: folder with `images`, `labels` and `classes.csv`.
        output: JSON file to write.

    Returns:
        dict: number of pictures listed and of those left out (each is named).

    Raises:
        ValueError: no picture can be used.
        FileNotFoundError: there is no table.
    """
    folder, table = dataset_dir, dataset_dir / "classes.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: missing; it lists the pictures with the columns name and class")
    classes = parse_bundle("train")["class_names"]
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    items, left_out = [], 0
    for row in rows:
        item = {key: f"{key}s/{row['name']}.png" for key in ("image", "label")}
        problem = _problem(folder, item) or ("" if row["class"] in classes else f"unknown class {row['class']}")
        if problem:
            print(f"{row['name']}: left out, {problem}")
            left_out += 1
            continue
        items.append({**item, "class": classes.index(row["class"]), "group": row.get("case") or row["name"]})
    if not items:
        raise ValueError(f"{table}: no usable picture; images and labels are PNGs named as in the column name")
    write_json(output, {"training": [], "validation": [], "testing": items})
    counts = ", ".join(f"{sum(i['class'] == k for i in items)} {name}" for k, name in enumerate(classes))
    print(f"{len(items)} pictures ({counts}), {left_out} left out: {output}")
    return {"pictures": len(items), "left_out": left_out}


def _problem(folder: Path, item: dict[str, str]) -> str:
    sizes = []
    for name in item.values():
        try:
            with Image.open(folder / name) as picture:
                picture.verify()
                sizes.append(picture.size)
        except Exception as error:  # Pillow raises half a dozen types
            return f"{folder / name}: {error}"
    return "" if sizes[0] == sizes[1] else f"image of {sizes[0]} and mask of {sizes[1]} pixels"


if __name__ == "__main__":
    run(list_external)
