"""What a few images of a new site are worth: released weights fine-tuned on them, against training from nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from command_line import run_bundle

from scripts.data import read_datalist
from scripts.files import write_csv, write_json

METRICS = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "auroc_malignant")
# Learning rate, and the number of steps as a multiple: from nothing a network needs more of them.
STARTS = {"released weights": (0.0005, 1), "nothing": (0.002, 3)}
BATCH = 8


def fine_tuning(
    dataset_dir: Path,
    ckpt_dir: Path,
    output_dir: Path,
    output: Path,
    numbers: Sequence[int] = (20, 50, 100),
    draws: int = 5,
    steps: int = 150,
    **options: object,
) -> None:
    """Train on some images of a set, from the released weights and from nothing, and test on its others.

    In each draw the images come in a new order; the first of them train, and those behind the largest number test, so
    that all rows of a draw are of the same test images. The last epoch of a training counts, so that nothing is chosen
    on the test images. An interrupted run is resumed; outputs of other draws, weights
    or options belong into another folder.

    Args:
        dataset_dir: prepared set, all of whose images are used whatever their split.
        ckpt_dir: folder of the released weights.
        output_dir: folder of all runs.
        output: CSV file to write: a row for each training, and one in each draw for the untouched weights (`images` 0).
        numbers: of training images.
        draws: number of draws.
        steps: of a training from the released weights, with batches of 8; from nothing it has three times as many.
        options: of the bundle, for all runs.

    Raises:
        ValueError: the set has too few images, or a training or an evaluation failed.
    """
    dataset, weights, output_dir = dataset_dir.resolve(), ckpt_dir.resolve() / "model.pt", output_dir.resolve()
    content = read_datalist(dataset / "datalist.json")
    items = [item for split in ("training", "validation", "testing") for item in content[split]]
    rows = []
    for draw in range(draws):
        order = drawn(items, draw)
        seen = {item["group"] for item in order[: max(numbers)]}
        testing = [item for item in order if item["group"] not in seen]
        if not testing:
            raise ValueError(f"{dataset}: {len(items)} images leave none to test after {max(numbers)} to train on")
        for number, start, training in [(0, "released weights", {})] + list(trainings(numbers, steps)):
            folder = output_dir / f"draw_{draw}" / f"{number}_{start.replace(' ', '_')}"
            if not (folder / "testing" / "metrics.json").is_file():
                datalist = folder / "datalist.json"
                # Validation wants images, but nothing is chosen by it.
                lists = {"training": order[:number], "validation": order[:number], "testing": testing}
                write_json(datalist, content | lists)
                data = {"dataset_dir": dataset, "datalist": datalist, **options}
                title = f"draw {draw}, {number} images, from {start}"
                if number:
                    where = {"ckpt_dir": folder, "output_dir": folder, "resume": True}
                    where |= {"pretrained": weights} if start == "released weights" else {}
                    run_bundle(title, "training", "train", **data, **where, **training)
                where = {"ckpt_dir": folder if number else weights.parent, "output_dir": folder / "testing"}
                run_bundle(f"{title}, test", "evaluating", ["train", "evaluate"], **data, **where)
            found = json.loads((folder / "testing" / "metrics.json").read_text(encoding="utf-8"))
            rows.append({"images": number, "start": start, "draw": draw, "tested": found["pictures"]})
            rows[-1] |= {name: found[name] for name in METRICS} | {"weights_sha256": found["weights_sha256"]}
    write_csv(output, rows, list(rows[0]))


def trainings(numbers: Sequence[int], steps: int) -> Iterator[tuple[int, str, dict]]:
    """The trainings of a draw: number of images, start, and options of the bundle."""
    for number in numbers:
        for start, (learning_rate, multiple) in STARTS.items():
            epochs = math.ceil(multiple * steps / math.ceil(number / BATCH))
            options = {"epochs": epochs, "val_interval": epochs, "batch_size": BATCH, "learning_rate": learning_rate}
            yield number, start, options


def drawn(items: Sequence[dict], seed: int) -> list[dict]:
    """The images in a drawn order in which those of one group follow each other."""
    groups = sorted({item["group"] for item in items})
    place = {groups[k]: n for n, k in enumerate(np.random.RandomState(seed).permutation(len(groups)))}
    return sorted(items, key=lambda item: place[item["group"]])
