"""Trainings and evaluations by the bundle's own commands, none of them done twice, and the experiments made of them."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from tools.cli import ROOT, run_bundle

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import write_csv, write_json
from study import BRIEF, SIGNATURE

LEARNING_RATES = (0.0005, 0.0001)  # of fine-tuning: that of docs/own_data.md, and that of the annotation page
BATCH = 8


def commit() -> str:
    """The repository's commit, with `+` behind it where the bundle differs from it; empty outside of git."""
    described = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "bundle"], cwd=ROOT).returncode == 1
    return found + "+" * changed


def evaluated(
    title: str, output_dir: Path, configs: Sequence[str | Path] = (), last: Sequence[str] = (), **options: object
) -> dict:
    """Evaluate into a folder; the content of its `metrics.json`, to which the commit is added.

    Args:
        title: shown above the command's output.
        output_dir: gets `images.csv` and `metrics.json` in place of earlier ones.
        configs: override configs, between train.json and evaluate.json.
        last: those behind both.
        options: of the bundle.

    Raises:
        ValueError: the evaluation failed.
    """
    where = {"output_dir": output_dir, "overwrite": True}
    run_bundle(title, "evaluating", ["train", *configs, "evaluate", *last], **where, **options)
    (output_dir / "run.json").unlink(missing_ok=True)  # it names the folders of this machine
    content = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8")) | {"commit": commit()}
    write_json(output_dir / "metrics.json", content)
    return content


def trained_and_tested(
    folder: Path,
    data: Mapping[str, object] | None,
    tests: Mapping[str, Mapping[str, object]],
    configs: Sequence[str | Path] = (),
    **options: object,
) -> dict[str, dict]:
    """Train into a folder, evaluate into folders below it, and return what `metrics.json` of each test says.

    What an earlier run did is not done again; an interrupted training goes on. Other data or options belong into
    another folder.

    Args:
        folder: of the weights.
        data: options of the bundle that name what to train on; None where a test names its weights (`ckpt_dir`).
        tests: options of an evaluation by the name of its folder.
        configs: override configs of training and evaluation.
        options: of the training.

    Raises:
        ValueError: a training or an evaluation failed.
    """
    files = {name: folder / name / "metrics.json" for name in tests}
    if data is not None and not all(file.is_file() for file in files.values()):
        where = {"ckpt_dir": folder, "output_dir": folder, "resume": True}
        run_bundle(f"{folder.name}, training", "training", ["train", *configs], **where, **data, **options)
    for name, file in files.items():
        if not file.is_file():
            evaluated(f"{folder.name}, {name}", file.parent, configs, **{"ckpt_dir": folder, **tests[name]})
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}


def row(metrics: Mapping[str, object], **labels: object) -> dict:
    """A line of a table: what it is of, the short metrics, and what made them."""
    return {**labels, **{name: metrics.get(name) for name in ("images", *BRIEF, *SIGNATURE)}}


def quick_training(folder: Path, dataset_dir: Path, tests: Mapping[str, Mapping], output: Path) -> None:
    """Train on one set as train_quick.json has it, evaluate on each of the tests, and write a row for each as CSV."""
    found = trained_and_tested(folder, {"dataset_dir": dataset_dir}, tests, ["train_quick"])
    rows = [row(metrics, tested_on=name) for name, metrics in found.items()]
    write_csv(output, rows, list(rows[0]))


def fine_tuning(
    dataset_dir: Path,
    ckpt_dir: Path,
    output_dir: Path,
    output: Path,
    numbers: Sequence[int] = (20, 100),
    draws: int = 2,
    steps: int = 150,
    **options: object,
) -> None:
    """What a few images of a new site are worth: train on some images of a set, from the released weights, and test on
    its others.

    In each draw the images come in a new order; the first of them train, and those behind the largest number test, so
    that all rows of a draw are of the same test images. The last epoch of a training counts, so that nothing is chosen
    on the test images. An interrupted run is resumed.

    Args:
        dataset_dir: prepared set, all of whose images are used whatever their split.
        ckpt_dir: folder of the released weights.
        output_dir: folder of all runs.
        output: CSV file to write: a row for each training, and in each draw one for the untouched weights (0 images).
        numbers: of training images.
        draws: number of draws.
        steps: of a training, with batches of 8.
        options: of the bundle, for all runs.

    Raises:
        ValueError: the set has too few images, or a training or an evaluation failed.
    """
    dataset, weights, output_dir = dataset_dir.resolve(), ckpt_dir.resolve(), output_dir.resolve()
    content = read_datalist(dataset / "datalist.json")
    items = [item for split in ("training", "validation", "testing") for item in content[split]]
    rows = []
    for draw in range(draws):
        order = drawn(items, draw)
        seen = {item["group"] for item in order[: max(numbers)]}
        testing = [item for item in order if item["group"] not in seen]
        if not testing:
            raise ValueError(f"{dataset}: {len(items)} images leave none to test after {max(numbers)} to train on")
        for number, rate in [(0, None), *product(numbers, LEARNING_RATES)]:
            folder = output_dir / f"draw_{draw}" / (f"{number}_{rate}" if number else "untouched")
            # Validation wants images, but nothing is chosen by it.
            lists = {"training": order[:number], "validation": order[:number], "testing": testing}
            write_json(folder / "datalist.json", content | lists)
            data = {"dataset_dir": dataset, "datalist": folder / "datalist.json", **options}
            epochs = math.ceil(steps / math.ceil(number / BATCH)) if number else 0
            begin = {"pretrained": weights / "model.pt", "learning_rate": rate, "batch_size": BATCH, "epochs": epochs}
            test = data if number else {**data, "ckpt_dir": weights}
            tests = {"testing": test}
            found = trained_and_tested(folder, data if number else None, tests, val_interval=epochs, **begin)
            rows.append(row(found["testing"], trained=number, learning_rate=rate, draw=draw))
    write_csv(output, rows, list(rows[0]))


def drawn(items: Sequence[dict], seed: int) -> list[dict]:
    """The images in a drawn order in which those of one group follow each other."""
    groups = sorted({item["group"] for item in items})
    place = {groups[k]: n for n, k in enumerate(np.random.RandomState(seed).permutation(len(groups)))}
    return sorted(items, key=lambda item: place[item["group"]])
