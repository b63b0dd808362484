"""Compare the choice of images by uncertainty with a random one: what does a network learn from as many labels?

Labels of the training split are revealed step by step: the first by chance, the next ones by chance or those that the
network trained so far finds hardest (scripts.uncertainty, as in label_app). At each number of labels a small network
is trained anew, always with as many steps, and measured on the validation split after its last epoch; the testing split
is never read.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from command_line import load_network, run_bundle

from scripts.data import read_datalist
from scripts.files import read_csv, write_csv, write_json
from scripts.uncertainty import picture_uncertainty

STRATEGIES = ("random", "uncertainty")
FIGURES = ("lesion_dice", "macro_f1", "accuracy", "auroc_macro", "missed_rate", "false_mask_rate")
BATCH_SIZE = 16


def compare_active_learning(
    dataset_dir: Path,
    output_dir: Path,
    counts: tuple[int, ...] = (20, 40, 80, 160),
    seeds: tuple[int, ...] = (0, 1),
    steps: int = 500,
    image_size: int = 96,
    features: tuple[int, ...] = (8, 16, 32, 64, 128, 8),
) -> None:
    """Train at every number of labels in both orders; an interrupted run is resumed.

    Writes `active_learning.csv`, a row for each strategy, seed and number of labels.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        output_dir: folder of all runs.
        counts: numbers of labels, rising.
        seeds: of the first choice, the random order and the training.
        steps: of the optimizer in each training, about (whole epochs).
        image_size: side of the square that the network sees, in pixels.
        features: widths of the network.

    Raises:
        ValueError: an option is not valid, or a training failed.
        FileNotFoundError: the folder is not prepared.
    """
    dataset, output = dataset_dir.resolve(), output_dir.resolve()
    if not (dataset / "datalist.json").is_file():
        raise FileNotFoundError(f"{dataset / 'datalist.json'}: missing; prepare the folder first")
    parts = read_datalist(dataset / "datalist.json")
    counts = list(counts)
    if counts != sorted(set(counts)) or not 0 < counts[0] or counts[-1] > len(parts["training"]):
        raise ValueError(f"--counts {counts}: use rising numbers up to {len(parts['training'])}, the training part")
    network = {"image_size": image_size, "features": json.dumps(list(features)).replace(" ", "")}
    rows = []
    for seed in seeds:
        for strategy in STRATEGIES:
            order = list(range(len(parts["training"])))
            random.Random(seed).shuffle(order)
            folder = None  # of the latest training
            for before, count in zip([0, *counts], counts):
                if before and strategy == "uncertainty":
                    order = hardest_first(order, before, parts["training"], dataset, folder, image_size, features)
                # The first labels are the same in both orders, and so is the network trained on them.
                folder = output / (f"first_{seed}" if not before else f"{strategy}_{seed}_{count}")
                chosen = {**parts, "training": [parts["training"][i] for i in order[:count]], "testing": []}
                write_json(folder / "datalist.json", chosen)
                epochs = max(1, round(steps / math.ceil(count / BATCH_SIZE)))
                figures = _train(f"{strategy}, seed {seed}, {count} labels", folder, dataset, seed, epochs, network)
                row = {"strategy": strategy, "seed": seed, "labels": count, "epochs": epochs, **figures}
                rows.append(row)
                write_csv(output / "active_learning.csv", rows, list(rows[0]))
    print(f"{len(rows)} rows: {output / 'active_learning.csv'}")


def hardest_first(
    order: list[int],
    known: int,
    items: list[dict],
    dataset: Path,
    folder: Path,
    image_size: int,
    features: tuple[int, ...],
) -> list[int]:
    """Sort what lies behind the first `known` indices of an order by falling uncertainty of the network in a folder."""
    config = load_network(folder, image_size=image_size, features=list(features), device="cpu")
    network, load = config.get_parsed_content("network"), config.get_parsed_content("preprocessing")
    scores = {}
    for i in order[known:]:
        picture = load({"image": str(dataset / items[i]["image"])})["image"].as_tensor()
        scores[i] = float(picture_uncertainty(network, picture[None]))
    return order[:known] + sorted(scores, key=scores.get, reverse=True)


def _train(title: str, folder: Path, dataset: Path, seed: int, epochs: int, network: dict) -> dict[str, float]:
    paths = {"dataset_dir": dataset, "datalist": folder / "datalist.json", "ckpt_dir": folder, "output_dir": folder}
    # One validation, after the last epoch: nothing is chosen on it.
    options = {"seed": seed, "resume": True, "epochs": epochs, "val_interval": epochs, "batch_size": BATCH_SIZE}
    run_bundle(title, "training", "train", **paths, **options, **network)
    last = read_csv(folder / "training_curve.csv")[-1]
    return {key: float(last[key]) for key in FIGURES}
