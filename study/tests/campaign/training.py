"""Trainings with wrong options, datalists and checkpoints."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from campaign.images import scan
from campaign.process import SMALL, Case, Job, end_of, options, run
from PIL import Image

BAD_OPTIONS = {
    "epochs": ["abc", 0, -1, 1.5, "[1]"],
    "batch_size": ["x", 0, -4, 2.5],
    "learning_rate": ["nan", "abc", 0, -0.1, "inf"],
    "image_size": [0, "abc", "[64,64]", -64, 8, 64.5],
    "features": ["[1,2]", "abc", "[0,1,2,3,4,5]", 7],
    "downscale_factor": [0, -1, "x", 1.5],
    "class_names": ["['a','b']", "abc", "[]", "[1,2,3]"],
    "classification_weight": ["nan", -1, "x", "inf"],
    "val_interval": [0, -1, "x", 99],
    "num_workers": [-1, "x", 0.5],
    "seed": ["abc", -1, 1.5],
    "amp": [1, "yes", 0.5],
    "resume": ["maybe", 2, "yes"],
    "pretrained": ["/nowhere/model.pt", "bundle/LICENSE"],
    "dataset_dir": ["/nowhere", "bundle/LICENSE"],
    "datalist": ["/nowhere/datalist.json", "bundle/LICENSE", "bundle/configs/metadata.json"],
    "epoch": [3],
}
DAMAGES = (
    "missing image",
    "missing label",
    "class 3",
    "class -2",
    "class 1.5",
    "class a word",
    "class null",
    "no class",
)
DAMAGES += ("no label", "no split", "empty split", "no list", "broken image", "text label", "size", "not JSON")


def write_set(folder: Path, items: dict[str, list[dict]]) -> Path:
    """A datalist of a folder."""
    (folder / "datalist.json").write_text(json.dumps(items))
    return folder


def tiny_set(folder: Path, per_class: int = 2) -> Path:
    """A prepared set of small images."""
    draw = np.random.default_rng(0)
    items: dict[str, list[dict]] = {"training": [], "validation": [], "testing": []}
    folder.mkdir(parents=True)
    for split in items:
        for number in range(3 * per_class):
            grey, mask = scan(draw), None
            mask = np.where(grey > 170, 255, 0).astype(np.uint8) * (number % 3 > 0)
            item = {"image": f"{split}{number}.png", "label": f"{split}{number}_label.png", "class": number % 3}
            Image.fromarray(grey).save(folder / item["image"])
            Image.fromarray(mask).save(folder / item["label"])
            items[split].append(item)
    return write_set(folder, items)


def damaged(source: Path, folder: Path, damage: str, draw: random.Random) -> tuple[Path, list[str]]:
    """A copy of a set with one thing wrong, and the words of which an error must hold one."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "datalist.json").read_text())
    split = draw.choice(["training", "validation"])
    item = draw.choice(content[split])
    image, label = item["image"], item["label"]
    words = [image]
    if damage.startswith("missing"):
        key = damage.split()[1]
        words = [item[key]]
        (folder / item[key]).unlink()
    elif damage.startswith("class"):
        values = {"3": 3, "-2": -2, "1.5": 1.5, "a word": "tumour", "null": None}
        item["class"] = values[damage.removeprefix("class ")]
    elif damage in ("no class", "no label"):
        del item[damage.split()[1]]
    elif damage == "no split":
        del content[split]
        words = [split]
    elif damage == "empty split":
        content[split] = []
        words = [split]
    elif damage == "no list":
        content[split] = image
        words = [split, "datalist.json"]
    elif damage == "broken image":
        whole = (folder / image).read_bytes()
        (folder / image).write_bytes(whole[: len(whole) // 2])
    elif damage == "text label":
        (folder / label).write_text("mask")
        words = [label]
    elif damage == "size":
        Image.open(folder / label).resize((20, 20)).save(folder / label)
        words = [label]
    (folder / "datalist.json").write_text("{" if damage == "not JSON" else json.dumps(content))
    return folder, ["datalist.json"] if damage == "not JSON" else words


def training(data: Path, models: Path, output: Path, **more: object) -> list[str]:
    """Arguments of a small training."""
    given = {"dataset_dir": data, "ckpt_dir": models, "output_dir": output, **SMALL, "epochs": 1, **more}
    return ["training", *options(config_file="bundle/configs/train.json", bundle_root="bundle", **given)]


def option_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Trainings with one wrong option, or a datalist with one thing wrong; each must be refused by name."""
    draw = random.Random(seed)
    data = tiny_set(folder / "data")
    jobs, cases = [], []
    for number in range(count):
        where = {"data": data, "models": folder / f"m{number}", "output": folder / f"o{number}"}
        if draw.random() < 0.6:
            name = draw.choice(list(BAD_OPTIONS))
            value = draw.choice(BAD_OPTIONS[name])
            case = Case("option", f"--{name} {value}", [f"--{name}", f"{value}:"])
            arguments = training(**where, **{name: value})
        else:
            damage = draw.choice(DAMAGES)
            where["data"], words = damaged(data, folder / f"data{number}", damage, draw)
            case = Case("datalist", damage, words)
            arguments = training(**where)
        cases.append(case)
        jobs.append(Job(arguments, folder / f"{number}.log"))
    return [
        (case, "silent" if status == 0 else "named" if any(w in end_of(job.log) for w in case.expected) else "opaque")
        for case, job, status in zip(cases, jobs, run(project, jobs))
    ]


def checkpoint_campaign(project: Path, folder: Path) -> list[tuple[Case, str]]:
    """Damaged and foreign files as checkpoint, as weights of an evaluation and as weights to start from."""
    data = tiny_set(folder / "data")
    run(project, [Job(training(data, folder / "m", folder / "o"), folder / "first.log")])
    whole = (folder / "m" / "checkpoint.pt").read_bytes()
    memory = io.BytesIO()
    torch.save({"a": torch.ones(2)}, memory)
    contents = {"garbage": b"garbage" * 99, "empty": b"", "cut": whole[: len(whole) // 2], "other": memory.getvalue()}
    jobs, cases = [], []
    evaluate = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
    for kind, content in contents.items():
        for use in ("checkpoint.pt", "model.pt", "pretrained.pt"):
            models = folder / f"{kind} {use}"
            models.mkdir()
            (models / use).write_bytes(content)
            where = {"dataset_dir": data, "ckpt_dir": models, "output_dir": models / "out", **SMALL}
            arguments = ["evaluating", *options(config_file=evaluate, bundle_root="bundle", **where)]
            if use != "model.pt":
                more = {"resume": True} if use == "checkpoint.pt" else {"pretrained": models / use}
                arguments = training(data, models, models / "out", **more)
            cases.append(Case(f"{kind} {use}", use, use))
            jobs.append(Job(arguments, folder / f"{kind} {use}.log"))
    return [
        (case, "silent" if status == 0 else "named" if case.name in end_of(job.log) else "opaque")
        for case, job, status in zip(cases, jobs, run(project, jobs))
    ]
