"""Choose the threshold of a mask and which components are kept, at hospitals that the weights have not seen.

Every combination of the bundle's options `mask_threshold`, `smallest_fraction` and `component_threshold` is tried on
all images of a hospital, by weights that were trained on others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from tools.cli import BUNDLE
from tqdm import tqdm

from breast_ultrasound.data import UNKNOWN_CLASS, load_datalist
from breast_ultrasound.files import sha256, write_csv
from breast_ultrasound.images import open_image, to_mask
from breast_ultrasound.metrics import MISSED_BELOW, Images
from breast_ultrasound.predictor import Predictor
from study.experiments import commit

MOST_MISSED = 0.1  # of the lesions, on average over the hospitals
THRESHOLDS = (0.3, 0.4, 0.5)
SMALLEST_FRACTIONS = (0.0, 0.002, 0.005)
PART_THRESHOLDS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
CURVE = (*PART_THRESHOLDS, 0.85, 0.875, 0.9, 0.925, 0.95)
COMBINATIONS = list(product(THRESHOLDS, SMALLEST_FRACTIONS, PART_THRESHOLDS))
NAMES = ("mask_threshold", "smallest_fraction", "component_threshold")


def choose_postprocessing(evaluations: dict[str, dict], output: Path) -> None:
    """Predict, try all combinations, and write the table.

    It has a row for each combination, the chosen one first: the fewest normal images with a mask among those that miss
    at most ``MOST_MISSED`` of the lesions, and where several have the same, the largest Dice of lesions; then the rest.
    Figures are means over the hospitals.

    Args:
        evaluations: by name, the options of the bundle's evaluations, each of a hospital with normal images.
        output: CSV file to write.
    """
    sites = []
    for name, options in evaluations.items():
        predictor, items = evaluation(options)
        scores = defaultdict(list)
        for item in tqdm(items, desc=f"{name}, combinations"):
            for setting, score in _try_all(predictor, item, COMBINATIONS):
                scores[setting].append(score)
        sites.append({setting: _figures(found) for setting, found in scores.items()})
    rows = [_over_sites(setting, [site[setting] for site in sites]) for setting in COMBINATIONS]
    rows.sort(key=lambda row: (row["missed_rate"] > MOST_MISSED, row["false_mask_rate"], -row["lesion_dice"]))
    rows = [{**row, **_made_by(list(evaluations.values()))} for row in rows]
    write_csv(output, rows, list(rows[0]))
    best = ", ".join(f"{name} {rows[0][name]}" for name in NAMES)
    print(f"{rows[0]['images']} images, best: {best}: {output}")


def _over_sites(setting: tuple, figures: list[dict]) -> dict:
    """Means over the hospitals; the number of their images."""
    means = {name: float(np.mean([found[name] for found in figures])) for name in figures[0] if name != "images"}
    return {**dict(zip(NAMES, setting)), "images": sum(found["images"] for found in figures), **means}


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
