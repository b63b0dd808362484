"""Choose the threshold of a mask and which parts are kept, on what a cross-validation answers about unseen images.

Every network of scripts/cross_validate.py predicts its own test fold once; every combination of the bundle's options
`mask_threshold`, `smallest_fraction`, `part_threshold` is tried on those masks. Images of the datalist's testing
split, on which the released weights are tested, are excluded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from command_line import parse_bundle
from ignite.engine import Events
from tqdm import tqdm

from scripts.data import read_datalist
from scripts.files import NOTICE, write_csv, write_json
from scripts.metrics import MISSED_BELOW
from scripts.transforms import LesionMaskd

THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
SMALLEST_FRACTIONS = (0.0, 0.001, 0.002, 0.005)
PART_THRESHOLDS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
CURVE = (*PART_THRESHOLDS, 0.85, 0.875, 0.9, 0.925, 0.95)
COMBINATIONS = list(product(THRESHOLDS, SMALLEST_FRACTIONS, PART_THRESHOLDS))
NAMES = ("mask_threshold", "smallest_fraction", "part_threshold")


def choose_postprocessing(
    dataset_dir: Path, cross_validation: Path, datalist: Path, output: Path, **options: object
) -> None:
    """Predict, try all combinations, write the table, and beside it as JSON what the choice is worth.

    The table has a row for each combination, the best first, by Dice over all images, in which an empty mask on a
    normal image counts 1 and any other mask there 0. The JSON takes for each fold what was best on the others.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py with --folds.
        cross_validation: folder of scripts/cross_validate.py.
        datalist: names the testing split that is excluded.
        output: CSV file to write.
        options: options of the bundle, such as image_size.

    Raises:
        ValueError: a folder is missing.
        FileNotFoundError: a fold has no weights, or the datalist is missing.
    """
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; give the one that the released weights were trained with")
    parts = read_datalist(datalist)
    left_out = {Path(item["image"]).name for item in parts["testing"]}
    folds = fold_options(dataset_dir, cross_validation)
    scores = [{} for _ in folds]
    for number, paths in enumerate(folds):
        for picture in tqdm(_predict({**paths, **options}), desc=f"fold {number}, combinations"):
            if Path(picture["image"].meta["filename_or_obj"]).name not in left_out:
                for setting, score in _try_all(picture):
                    scores[number].setdefault(setting, []).append(score)
    rows = _ranking(scores)
    write_csv(output, rows, list(rows[0]))
    write_json(output.with_suffix(".json"), _cross_fitted(scores))
    best = ", ".join(f"{name} {rows[0][name]}" for name in NAMES)
    print(f"{rows[0]['pictures']} images, best: {best}: {output}")


def fold_options(dataset_dir: Path, cross_validation: Path) -> list[dict[str, str]]:
    """Options of the bundle's evaluation of each fold, by the network that has not seen it.

    Raises:
        ValueError: there is no fold.
        FileNotFoundError: a fold has no weights.
    """
    folders = sorted(cross_validation.resolve().glob("fold_*"))
    if not folders:
        raise ValueError(f"{cross_validation}: no fold_0; run scripts/cross_validate.py first")
    for folder in folders:
        if not (folder / "model.pt").is_file():
            raise FileNotFoundError(f"{folder / 'model.pt'}: missing; let scripts/cross_validate.py finish")
    data = str(dataset_dir.resolve())
    return [
        {"dataset_dir": data, "ckpt_dir": str(folder), "datalist": f"{data}/datalist_fold_{number}.json"}
        for number, folder in enumerate(folders)
    ]


def operating_points(evaluations: dict[str, list[dict]], output: Path) -> None:
    """Write metrics of the mask for each `part_threshold` of ``CURVE``, the bundle's other options as they are.

    Args:
        evaluations: by name, the options of the bundle's evaluations that are joined.
        output: CSV file to write.
    """
    bundle = parse_bundle(["train", "evaluate"])
    settings = [(bundle["mask_threshold"], bundle["smallest_fraction"], part) for part in CURVE]
    rows = []
    for name, runs in evaluations.items():
        scores = defaultdict(list)
        for options in runs:
            for image in _predict(options):
                for setting, score in _try_all(image, settings):
                    scores[setting].append(score)
        rows += [{"evaluation": name, **_row(setting, scores[setting])} for setting in scores]
    write_csv(output, rows, list(rows[0]))
    print(f"{len(rows)} operating points: {output}")


def _ranking(scores: list[dict]) -> list[dict]:
    """A row for each combination over all images of these folds, the best first."""
    rows = [_row(setting, [s for fold in scores for s in fold.get(setting, [])]) for setting in COMBINATIONS]
    return sorted(rows, key=lambda row: -row["dice_all_pictures"])


def _cross_fitted(scores: list[dict]) -> dict:
    """Figures of all images, each fold's with the combination that was best on the other folds."""
    found, chosen = [], []
    for number, fold in enumerate(scores):
        best = _ranking([*scores[:number], *scores[number + 1 :]])[0]
        chosen.append({name: best[name] for name in NAMES})
        found += fold.get(tuple(chosen[-1].values()), [])
    return {"notice": NOTICE, "chosen": chosen, **_figures(found)}


def _predict(options: dict) -> list[dict]:
    """The evaluation's items, with probabilities of the mask's pixels in place of the mask."""
    parser = parse_bundle(["train", "evaluate"], **{"part": "testing", **options})
    steps = parser["validate#to_mask"]
    decision = [step["_target_"] for step in steps].index("scripts.transforms.LesionMaskd")
    parser["validate#to_mask"] = steps[:decision]
    parser["validate#evaluator#key_val_metric"] = parser["validate#evaluator#additional_metrics"] = None
    evaluator = parser.get_parsed_content("validate#evaluator")
    items = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: items.extend(engine.state.output))
    parser.get_parsed_content("checkpointloader")(evaluator)
    evaluator.run()
    return items


def _try_all(picture: dict, settings: list[tuple] = COMBINATIONS) -> Iterator[tuple[tuple, tuple[float, bool]]]:
    """Every setting with the Dice of this image and whether it has a lesion."""
    truth = np.asarray(picture["label"][0].cpu()) > 0
    for setting in settings:
        mask = np.asarray(LesionMaskd(*setting)(picture)["pred"][0].cpu()) > 0
        total = mask.sum() + truth.sum()
        yield setting, (float(2 * (mask & truth).sum() / total) if total else 1.0, bool(truth.any()))


def _row(setting: tuple, scores: list) -> dict:
    return {**dict(zip(NAMES, setting)), **_figures(scores)}


def _figures(scores: list) -> dict:
    dice, lesion = np.array([s[0] for s in scores]), np.array([s[1] for s in scores])
    return {
        "pictures": len(dice),
        "dice_all_pictures": round(dice.mean(), 4),
        "lesion_dice": round(dice[lesion].mean(), 4),
        "missed_rate": round((dice[lesion] < MISSED_BELOW).mean(), 4),
        "false_mask_rate": None if lesion.all() else round(1 - dice[~lesion].mean(), 4),
    }
