"""Second trainings from the weights of the first, fold by fold: is a larger image, or more epochs, worth its time?"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from command_line import run_bundle

from scripts.files import sha256, write_checkpoint, write_csv

METRICS = ("lesion_dice", "lesion_iou", "missed_rate", "false_mask_rate", "accuracy", "macro_f1")
METRICS += ("auroc_macro", "auroc_malignant")
PLAIN = {"mask_threshold": 0.5, "smallest_share": 0, "normal_gate": 1}  # no postprocessing
SMALL = {"image_size": 160}
LARGE = {"image_size": 256, "epochs": 16, "learning_rate": 0.001, "seed": 1}
# By kind: options of the second training; none for the first training's weights, as they are or in the mean of `mean`
KINDS = {
    "none": {},
    "long": {**SMALL, "epochs": 40, "learning_rate": 0.001, "seed": 1, "val_interval": 40},
    "mean": {},
    "256_best": {**LARGE, "val_interval": 2},
    "256": {**LARGE, "val_interval": 16},
}
FOLDS = {"long": (0, 1), "mean": (0, 1)}  # the others have all
TESTED = ("none", "256_best", "256")  # also on the folds' test images


def second_training(dataset_dir: Path, cross_validation: Path, output_dir: Path, output: Path) -> None:
    """Train each kind on its folds, evaluate it without postprocessing, and write a row for each evaluation.

    An interrupted run is resumed.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py with --folds.
        cross_validation: folder of scripts/cross_validate.py with --finish, whose `start` holds the first weights.
        output_dir: folder of all runs.
        output: CSV file to write.

    Raises:
        FileNotFoundError: a fold has no first weights.
        ValueError: a training or an evaluation failed.
    """
    dataset, output_dir = dataset_dir.resolve(), output_dir.resolve()
    datalists = sorted(dataset.glob("datalist_fold_*.json"))
    rows = []
    for kind, options in KINDS.items():
        for fold in FOLDS.get(kind, range(len(datalists))):
            first = cross_validation.resolve() / f"fold_{fold}" / "start" / "model.pt"
            if not first.is_file():
                raise FileNotFoundError(f"{first}: missing; run the step cross_validation first")
            data = {"dataset_dir": dataset, "datalist": datalists[fold]}
            folder = first.parent if kind == "none" else output_dir / f"{kind}_{fold}"
            if options:
                where = {"ckpt_dir": folder, "output_dir": folder, "pretrained": first, "resume": True}
                run_bundle(f"{kind}, fold {fold}", "training", "train", **data, **where, **options)
            elif kind == "mean":
                write_checkpoint(folder / "model.pt", _mean(first, output_dir / f"long_{fold}" / "model.pt"))
            size = {"image_size": options.get("image_size", SMALL["image_size"])}
            for split in ("validation", "test") if kind in TESTED else ("validation",):
                place = output_dir / "evaluations" / f"{kind}_{split}_{fold}"
                if not (place / "metrics.json").is_file():
                    where = {"ckpt_dir": folder, "output_dir": place, "part": split.replace("test", "testing")}
                    title = f"{kind}, fold {fold}, {split}"
                    run_bundle(title, "evaluating", ["train", "evaluate"], **data, **where, **size, **PLAIN)
                found = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
                row = {"kind": kind, "split": split, "fold": fold, "pictures": found["pictures"]}
                row |= {name: found[name] for name in METRICS}
                rows.append(row | {"weights_sha256": sha256(folder / "model.pt")})
    write_csv(output, rows, list(rows[0]))


def _mean(first: Path, second: Path) -> dict[str, torch.Tensor]:
    """The mean of two networks' weights; counters are the second one's."""
    both = [torch.load(path, map_location="cpu", weights_only=True) for path in (first, second)]
    return {n: (both[0][n] + v) / 2 if v.is_floating_point() else v for n, v in both[1].items()}
