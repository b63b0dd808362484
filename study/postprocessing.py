"""Choose the threshold of a mask and which parts are kept, on what a cross-validation answers about unseen images.

Every network of scripts/cross_validate.py predicts its own test fold once; every combination of the bundle's options
`mask_threshold`, `smallest_fraction`, `component_threshold` is tried on those masks. Images of the datalist's testing
split, on which the released weights are tested, are excluded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from tools.cli import BUNDLE
from tqdm import tqdm

from breast_ultrasound.data import UNKNOWN_CLASS, load_datalist, read_datalist
from breast_ultrasound.files import NOTICE, sha256, write_csv, write_json
from breast_ultrasound.images import open_image, to_mask
from breast_ultrasound.metrics import MISSED_BELOW, Images
from breast_ultrasound.predictor import Predictor
from study.experiments import commit

THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
SMALLEST_FRACTIONS = (0.0, 0.001, 0.002, 0.005)
PART_THRESHOLDS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
CURVE = (*PART_THRESHOLDS, 0.85, 0.875, 0.9, 0.925, 0.95)
COMBINATIONS = list(product(THRESHOLDS, SMALLEST_FRACTIONS, PART_THRESHOLDS))
NAMES = ("mask_threshold", "smallest_fraction", "component_threshold")


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
        predictor, items = evaluation({**paths, **options})
        items = [item for item in items if Path(item["image"]).name not in left_out]
        for item in tqdm(items, desc=f"fold {number}, combinations"):
            for setting, score in _try_all(predictor, item, COMBINATIONS):
                scores[number].setdefault(setting, []).append(score)
    if not any(scores):
        raise ValueError(f"{datalist}: its testing split excludes every image of the folds")
    rows = _ranking(scores)
    write_csv(output, rows, list(rows[0]))
    write_json(output.with_suffix(".json"), {**_cross_fitted(scores), **_made_by(folds)})
    best = ", ".join(f"{name} {rows[0][name]}" for name in NAMES)
    print(f"{rows[0]['images']} images, best: {best}: {output}")


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
    """Write metrics of the mask for each `component_threshold` of ``CURVE``, the bundle's other options as they are.

    Args:
        evaluations: by name, the options of the bundle's evaluations that are joined.
        output: CSV file to write.
    """
    rows = []
    for name, runs in evaluations.items():
        scores = defaultdict(list)
        for options in runs:
            predictor, items = evaluation(options)
            rules = ({**predictor.mask_rule, "component_threshold": part} for part in CURVE)
            settings = [tuple(rule[name] for name in NAMES) for rule in rules]
            for item in tqdm(items, desc=f"{name}, operating points"):
                for setting, score in _try_all(predictor, item, settings):
                    scores[setting].append(score)
        rows += [{"evaluation": name, **_row(setting, scores[setting]), **_made_by(runs)} for setting in scores]
    write_csv(output, rows, list(rows[0]))
    print(f"{len(rows)} operating points: {output}")


def _made_by(runs: list[dict]) -> dict[str, str]:
    """What the signature of a result says of the weights of several evaluations."""
    weights = [sha256(Path(options["ckpt_dir"]) / "model.pt") for options in runs]
    return {"weights_sha256": " ".join(weights), "commit": commit()}


def _ranking(scores: list[dict]) -> list[dict]:
    """A row for each combination over all images of these folds, the best first."""
    rows = [_row(setting, [s for fold in scores for s in fold.get(setting, [])]) for setting in COMBINATIONS]
    return sorted(rows, key=lambda row: -row["dice_all_images"])


def _cross_fitted(scores: list[dict]) -> dict:
    """Figures of all images, each fold's with the combination that was best on the other folds."""
    found, chosen = [], []
    for number, fold in enumerate(scores):
        best = _ranking([*scores[:number], *scores[number + 1 :]])[0]
        chosen.append({name: best[name] for name in NAMES})
        found += fold.get(tuple(chosen[-1].values()), [])
    return {"notice": NOTICE, "chosen": chosen, **_figures(found)}


def evaluation(options: dict) -> tuple[Predictor, list[dict]]:
    """The inference of an evaluation of the bundle, and the items of its split."""
    ids = {"split": "testing", "datalist": f"{options['dataset_dir']}/datalist.json", **options}
    data = {name: str(ids.pop(name)) for name in ("dataset_dir", "datalist", "split")}
    predictor = Predictor(BUNDLE, predict_refused=True, **ids)
    return predictor, load_datalist(class_names=predictor.class_names, **data)


def _try_all(predictor: Predictor, item: dict, settings: list[tuple]) -> Iterator[tuple[tuple, tuple[int, ...]]]:
    """Every setting with the areas of this image's masks, as `metrics.overlap` has them."""
    probability = predictor(item["image"]).lesion_probability
    truth = to_mask(open_image(item["label"])) > 0
    for setting in settings:
        mask = predictor.mask(probability, **dict(zip(NAMES, setting)))
        yield setting, (int(mask.sum()), int(truth.sum()), int((mask & truth).sum()), mask.size)


def _row(setting: tuple, scores: list) -> dict:
    return {**dict(zip(NAMES, setting)), **_figures(scores)}


def _figures(areas: list[tuple[int, ...]]) -> dict:
    count = len(areas)
    images = Images((), np.full(count, UNKNOWN_CLASS), np.zeros((count, 0)), np.array(areas, dtype=float))
    dice, lesion = images.dice, images.lesion
    return {
        "images": count,
        "dice_all_images": float(dice.mean()),
        "lesion_dice": float(dice[lesion].mean()),
        "missed_rate": float((dice[lesion] < MISSED_BELOW).mean()),
        "false_mask_rate": None if lesion.all() else float((images.areas[~lesion, 0] > 0).mean()),
    }
