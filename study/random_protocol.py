"""What a random split adds to BUSI's figures: two cross-validations, one of which has the same scan on both sides.

The protocol `clean` keeps the images of a scan together and leaves out 96 images (scans in several classes, axilla,
needles); `random` draws image by image from all 780, so that it also trains on a seventh more. Compared are the images
that both have.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas
from tools.cli import as_arguments, run_command
from tools.statistics import DRAWS, difference

from breast_ultrasound.files import read_csv
from breast_ultrasound.metrics import Images, single_metrics
from study import BRIEF, STUDY
from study.experiments import commit

# From weights that have not seen BUSI, on BUSI alone
OPTIONS = {"config": "train_pretrained", "epochs": 4, "val_interval": 4, "train_split": "training+validation"}
OPTIONS |= {"pretrained": STUDY / "weights/without_busi/model.pt", "learning_rate": 0.0005}


def random_protocol(
    folds: dict[str, Path], output_dir: Path, output: Path, draws: int = DRAWS, **options: object
) -> None:
    """Cross-validate with both protocols, unless that is done, and write the table.

    Args:
        folds: prepared folders with folds, of the protocols `clean` and `random`.
        output_dir: gets a folder for each; those of an interrupted run are gone on with.
        output: CSV file: a row for each figure, with the paired interval of the difference over scans.
        draws: of the bootstrap.
        options: of the bundle, in place of `OPTIONS`.

    Raises:
        ValueError: a cross-validation failed.
    """
    found = {}
    for protocol, folder in folds.items():
        where = {"dataset_dir": folder, "output_dir": output_dir / protocol}
        run_command(protocol, "scripts/cross_validate.py", *as_arguments({**where, **OPTIONS, **options}))
        rows = read_csv(where["output_dir"] / "images.csv")
        names = [key.removeprefix("p_") for key in rows[0] if key.startswith("p_")]
        found[protocol] = pandas.Index([row["filename"] for row in rows]), Images.from_rows(rows, names)
    files = found["clean"][0].intersection(found["random"][0], sort=False)
    content = json.loads((folds["clean"] / "datalist_fold_0.json").read_text(encoding="utf-8"))
    items = [item for split in ("training", "validation", "testing") for item in content[split]]
    groups = pandas.Series({Path(item["image"]).name: item["group"] for item in items})[files].to_numpy()
    clean, random = (images.take(index.get_indexer(files)) for index, images in found.values())
    of = {"clean": measures(clean), "random": measures(random), "random_all_images": measures(found["random"][1])}
    rows = []
    for name, each in difference(measures, clean, random, groups, draws, "random against clean").items():
        values = {key: value[name] for key, value in of.items()}
        values |= {"difference": each.value, "low": each.low, "high": each.high}
        rows.append({"figure": name, "images": len(files), **{key: round(v, 4) for key, v in values.items()}})
    table = pandas.DataFrame(rows).assign(epochs={**OPTIONS, **options}["epochs"], commit=commit())
    table.to_csv(output, index=False)
    print(table.to_string(index=False))


def measures(images: Images) -> dict[str, float]:
    """The short figures, and the AUROC of malignant against benign."""
    found = single_metrics(images)
    return {name: found[name] for name in (*BRIEF, "auroc_benign_malignant")}
