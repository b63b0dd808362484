"""Compare the choice of pictures by uncertainty with a random one: what does a network learn from as many labels?

    python scripts/compare_active_learning.py --dataset_dir runs/busi --output_dir runs/active_learning

Labels of the training part are revealed step by step: the first by chance, the next ones by chance or those that the
network trained so far finds hardest (scripts.uncertainty, as in label_app). At each number of labels a small network
is trained anew, always with as many steps, and measured on the validation part after its last epoch; the testing part
is never read. Out: `active_learning.csv`, a row for each strategy, seed and number of labels. Run again after an
interruption, it goes on where it stopped. Research software, not a medical device.
"""

import json
import math
import random
import sys
from pathlib import Path

import fire
import torch
from command_line import asked_for_help, run_bundle
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.files import read_csv, write_csv, write_json  # noqa: E402
from scripts.uncertainty import picture_uncertainty  # noqa: E402

STRATEGIES = ("random", "uncertainty")
FIGURES = ("lesion_dice", "macro_f1", "accuracy", "auroc_macro", "missed_rate", "false_mask_rate")
BATCH_SIZE = 16


def compare_active_learning(
    dataset_dir="",
    output_dir="",
    counts=(20, 40, 80, 160),
    seeds=(0, 1),
    steps=500,
    image_size=96,
    features=(8, 16, 32, 64, 128, 8),
    *extra,
    **unknown,
):
    """Train at every number of labels in both orders, and write the table.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        output_dir: folder of all runs.
        counts: numbers of labels, rising.
        seeds: of the first choice, the random order and the training.
        steps: of the optimizer in each training, about (whole epochs).
        image_size: side of the square that the network sees, in pixels.
        features: widths of the network.

    Raises:
        ValueError: an option is unknown, missing or not valid, or a training failed.
        FileNotFoundError: the folder is not prepared.
    """
    if asked_for_help(compare_active_learning, extra, unknown):
        return
    for name, value in (("dataset_dir", dataset_dir), ("output_dir", output_dir)):
        if value in ("", True):
            raise ValueError(f"--{name} needs a value")
    dataset, output = Path(str(dataset_dir)).resolve(), Path(str(output_dir)).resolve()
    if not (dataset / "datalist.json").is_file():
        raise FileNotFoundError(f"{dataset / 'datalist.json'}: missing; prepare the folder first")
    parts = json.loads((dataset / "datalist.json").read_text(encoding="utf-8"))
    counts = list(counts)
    if counts != sorted(set(counts)) or not 0 < counts[0] or counts[-1] > len(parts["training"]):
        raise ValueError(f"--counts {counts}: use rising numbers up to {len(parts['training'])}, the training part")
    network = ["--image_size", image_size, "--features", json.dumps(list(features)).replace(" ", "")]
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


def hardest_first(order, known, items, dataset, folder, image_size, features):
    """Sort what lies behind the first `known` indices of an order by falling uncertainty of the network in a folder."""
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle" / "configs" / "inference.json"))
    config["bundle_root"], config["image_size"], config["features"] = str(ROOT / "bundle"), image_size, list(features)
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    load = config.get_parsed_content("preprocessing")
    scores = {}
    for i in order[known:]:
        picture = load({"image": str(dataset / items[i]["image"])})["image"].as_tensor()
        scores[i] = float(picture_uncertainty(network, picture[None]))
    return order[:known] + sorted(scores, key=scores.get, reverse=True)


def _train(title, folder, dataset, seed, epochs, network):
    paths = ["--bundle_root", "bundle", "--dataset_dir", dataset, "--datalist", folder / "datalist.json"]
    paths += ["--ckpt_dir", folder, "--output_dir", folder, "--seed", seed, "--resume", True]
    # One validation, after the last epoch: nothing is chosen on it.
    options = ["--epochs", epochs, "--val_interval", epochs, "--batch_size", BATCH_SIZE, *network]
    run_bundle(title, "training", "--config_file", "bundle/configs/train.json", *paths, *options)
    last = read_csv(folder / "training_curve.csv")[-1]
    return {key: float(last[key]) for key in FIGURES}


if __name__ == "__main__":
    try:
        fire.Fire(compare_active_learning)
    except (OSError, ValueError) as error:
        sys.exit(f"compare_active_learning: {error}")
