"""What each lever of the recipe is worth: short trainings on one hospital with one thing changed, over several seeds,
scored at home and at a hospital that they have not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from command_line import run_bundle

from scripts.files import write_csv, write_json

METRICS = ("lesion_dice", "missed_rate", "false_mask_rate", "auroc_malignant")
SQUEEZE = {
    "_target_": "Resized",
    "keys": ["image", "label"],
    "spatial_size": "$[@image_size] * 2",
    "mode": ["bilinear", "nearest"],
    "anti_aliasing": "$[True, False] if len(@resize#keys) == 2 else True",  # evaluate.json sets keys to "image"
}
# What each of them changes in train.json
LEVERS = {
    "base": {},
    "squeezed to a square": {"train#collate#widest": 1, "resize": SQUEEZE},
    "batch norm": {"network_def#norm": "batch"},
}


def measure_levers(
    home: Path,
    outside: Path,
    output_dir: Path,
    output: Path,
    names: Sequence[str] = tuple(LEVERS),
    seeds: Sequence[int] = (0, 1),
    epochs: int = 30,
    image_size: int = 160,
    **options: object,
) -> None:
    """Train on `home` with each lever and seed, and score its validation split and all but the testing split outside.

    The last epoch of each training counts. An interrupted run is resumed.

    Args:
        home: prepared set to train on.
        outside: prepared set of another hospital, to test on.
        output_dir: folder of all runs.
        output: CSV file to write: a row for each lever, seed and tested set.
        names: of the levers.
        seeds: one training each.
        epochs: of each training.
        image_size: smaller than that of the released weights, for time.
        options: further ones of the bundle, for all runs.

    Raises:
        ValueError: a training or an evaluation failed.
    """
    tests = {"validation": (home, "validation"), "outside": (outside, "training+validation")}
    rows = []
    for name in names:
        file = output_dir.resolve() / f"{name.replace(' ', '_')}.json"
        write_json(file, LEVERS[name])
        for seed in seeds:
            folder = file.with_suffix("") / f"seed_{seed}"
            found = {test: folder / test / "metrics.json" for test in tests}
            if not all(path.is_file() for path in found.values()):
                title = f"{name}, seed {seed}"
                where = {"ckpt_dir": folder, "output_dir": folder, "resume": True, "dataset_dir": home}
                sizes = {"epochs": epochs, "val_interval": epochs, "seed": seed, "image_size": image_size}
                run_bundle(title, "training", ["train", file], **where, **sizes, **options)
                for test, (data, part) in tests.items():
                    where = {"ckpt_dir": folder, "output_dir": folder / test, "dataset_dir": data, "part": part}
                    configs = ["train", file, "evaluate"]
                    run_bundle(f"{title}, {test}", "evaluating", configs, **where, overwrite=True, **options)
            for test, path in found.items():
                metrics = json.loads(path.read_text(encoding="utf-8"))
                rows.append({"lever": name, "seed": seed, "tested_on": test, "images": metrics["pictures"]})
                rows[-1] |= {metric: metrics[metric] for metric in METRICS}
    write_csv(output, rows, list(rows[0]))
