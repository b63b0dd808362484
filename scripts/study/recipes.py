"""Compare training recipes on validation images alone: one change at a time, each in two runs, beside a common base.

The training and validation splits of the datalist are joined and split anew into three by group; the testing split is
never read. Run k validates on the k-th third with seed k and trains on the other two; the last epoch counts, so that
nothing is chosen on the way.
"""

from __future__ import annotations

import json
from pathlib import Path

from command_line import run_bundle
from sklearn.model_selection import StratifiedGroupKFold

from scripts.files import read_csv, write_csv, write_json

RUNS = 2
THIRDS_SEED = 7
FIGURES = ("lesion_dice", "lesion_iou", "missed_rate", "false_mask_rate", "accuracy", "macro_f1")
FIGURES += ("auroc_macro", "auroc_malignant")


def compare_recipes(recipes: Path, dataset_dir: Path, output_dir: Path, only: tuple[str, ...] = ()) -> None:
    """Train every recipe and write `recipes.csv`, a row for each run; an interrupted run is resumed.

    Args:
        recipes: JSON file with `base` and `recipes`, each an overlay on train.json as MONAI merges configs.
        dataset_dir: folder made by scripts/prepare_busi.py.
        output_dir: folder of all runs.
        only: names of the recipes to train beside the base; all by default.

    Raises:
        ValueError: a training failed.
        FileNotFoundError: a file is missing.
    """
    dataset, output = dataset_dir.resolve(), output_dir.resolve()
    for file, remedy in ((dataset / "datalist.json", "prepare the folder first"), (recipes, "name the overlays")):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    content = json.loads(recipes.read_text(encoding="utf-8"))
    overlays = {"base": {}, **content["recipes"]}
    missing = [name for name in only if name not in overlays]
    if missing:
        raise ValueError(f"{recipes}: no recipe {', '.join(missing)}; it has {', '.join(overlays)}")
    split(dataset / "datalist.json", output)
    rows = []
    for name in ["base", *only] if only else overlays:
        overlay = {**content["base"], **overlays[name]}
        file = output / "overlays" / f"{name}.json"
        write_json(file, overlay)
        for number in range(RUNS):
            found = _train(name, number, file, dataset, output)
            rows.append({"recipe": name, "run": number, **found})
            write_csv(output / "recipes.csv", rows, list(rows[0]))
    print(f"{len(rows)} runs: {output / 'recipes.csv'}")


def split(datalist: Path, output: Path) -> None:
    """Write `third_0.json`, ... with the k-th third as validation part; no group crosses."""
    parts = json.loads(datalist.read_text(encoding="utf-8"))
    items = parts["training"] + parts["validation"]
    classes, groups = [item["class"] for item in items], [item["group"] for item in items]
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=THIRDS_SEED).split(items, classes, groups)
    for number, (training, validation) in zip(range(RUNS), folds):
        chosen = {"training": [items[i] for i in training], "validation": [items[i] for i in validation]}
        write_json(output / f"third_{number}.json", chosen)


def _train(name: str, number: int, overlay: Path, dataset: Path, output: Path) -> dict:
    folder = output / f"{name}_{number}"
    common = {"dataset_dir": dataset, "datalist": output / f"third_{number}.json", "ckpt_dir": folder}
    common |= {"seed": number, "resume": True}
    run_bundle(f"{name}, run {number}", "training", ["train", overlay], **common, output_dir=folder)
    last = read_csv(folder / "training_curve.csv")[-1]
    return {"epochs": int(last["epoch"]), **{key: float(last[key]) for key in FIGURES}}
