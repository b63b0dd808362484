"""Compare training recipes on validation pictures alone: one change at a time, each in two runs, beside a common base.

    python scripts/compare_recipes.py --recipes results/search/recipes.json --dataset_dir runs/busi
        --output_dir runs/search

The training and validation parts of the datalist are joined and split anew into three by group; the testing part is
never read. Run k validates on the k-th third with seed k and trains on the other two; the last epoch counts, so
that nothing is chosen on the way. RECIPES holds `base` and `recipes`, each an overlay on
`bundle/configs/train.json` as MONAI merges configs. Out: `recipes.csv`, a row for each run. Run again after an
interruption, it goes on where it stopped. Research software, not a medical device.
"""

import json
import sys
from pathlib import Path

import fire
from command_line import asked_for_help, run_bundle
from sklearn.model_selection import StratifiedGroupKFold

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.files import read_csv, write_csv, write_json  # noqa: E402

RUNS = 2
THIRDS_SEED = 7
FIGURES = ("lesion_dice", "lesion_iou", "missed_rate", "false_mask_rate", "accuracy", "macro_f1")
FIGURES += ("auroc_macro", "auroc_malignant")


def compare_recipes(recipes="", dataset_dir="", output_dir="", only=(), *extra, **unknown):
    """Train every recipe and write the table.

    Args:
        recipes: JSON file of the overlays.
        dataset_dir: folder made by scripts/prepare_busi.py.
        output_dir: folder of all runs.
        only: names of the recipes to train beside the base; all by default.

    Raises:
        ValueError: an option is unknown or missing, or a training failed.
        FileNotFoundError: a file is missing.
    """
    if asked_for_help(compare_recipes, extra, unknown):
        return
    for name, value in (("recipes", recipes), ("dataset_dir", dataset_dir), ("output_dir", output_dir)):
        if value in ("", True):
            raise ValueError(f"--{name} needs a value")
    dataset, output = Path(str(dataset_dir)).resolve(), Path(str(output_dir)).resolve()
    for file, remedy in (
        (dataset / "datalist.json", "prepare the folder first"),
        (Path(str(recipes)), "name the overlays"),
    ):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    content = json.loads(Path(str(recipes)).read_text(encoding="utf-8"))
    overlays = {"base": {}, **content["recipes"]}
    only = [only] if isinstance(only, str) else list(only)
    missing = [name for name in only if name not in overlays]
    if missing:
        raise ValueError(f"{recipes}: no recipe {', '.join(missing)}; it has {', '.join(overlays)}")
    split(dataset / "datalist.json", output)
    rows = []
    for name in ["base", *only] if only else overlays:
        overlay = {**content["base"], **overlays[name]}
        warm_up_epochs = overlay.pop("warm_up_epochs", 0)
        file = output / "overlays" / f"{name}.json"
        write_json(file, overlay)
        for run in range(RUNS):
            rows.append({"recipe": name, "run": run, **_train(name, run, file, warm_up_epochs, dataset, output)})
            write_csv(output / "recipes.csv", rows, list(rows[0]))
    print(f"{len(rows)} runs: {output / 'recipes.csv'}")


def split(datalist, output):
    """Write `third_0.json`, ... with the k-th third as validation part; no group crosses."""
    parts = json.loads(datalist.read_text(encoding="utf-8"))
    items = parts["training"] + parts["validation"]
    classes, groups = [item["class"] for item in items], [item["group"] for item in items]
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=THIRDS_SEED).split(items, classes, groups)
    for run, (training, validation) in zip(range(RUNS), folds):
        chosen = {"training": [items[i] for i in training], "validation": [items[i] for i in validation]}
        write_json(output / f"third_{run}.json", chosen)


def _train(name, run, overlay, warm_up_epochs, dataset, output):
    folder = output / f"{name}_{run}"
    paths = ["--bundle_root", "bundle", "--dataset_dir", dataset, "--datalist", output / f"third_{run}.json"]
    paths += ["--ckpt_dir", folder, "--seed", run, "--resume", True]
    pretrained = []
    if warm_up_epochs:
        warm = f"['bundle/configs/train.json','{overlay}','bundle/configs/warm_up.json']"
        options = ["--output_dir", folder / "warm_up", "--epochs", warm_up_epochs]
        run_bundle(f"{name}, run {run}, warm-up", "training", "--config_file", warm, *paths, *options)
        pretrained = ["--pretrained", folder / "warm_up.pt"]
    configs = f"['bundle/configs/train.json','{overlay}']"
    options = ["--output_dir", folder, *pretrained]
    run_bundle(f"{name}, run {run}", "training", "--config_file", configs, *paths, *options)
    last = read_csv(folder / "training_curve.csv")[-1]
    return {"epochs": int(last["epoch"]), **{key: float(last[key]) for key in FIGURES}}


if __name__ == "__main__":
    try:
        fire.Fire(compare_recipes)
    except (OSError, ValueError) as error:
        sys.exit(f"compare_recipes: {error}")
