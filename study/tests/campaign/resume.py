"""Trainings that go on under other options or on other data than those of their checkpoint."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from campaign.process import Case, Input, ends
from campaign.training import tiny_set
from PIL import Image

CHANGED: dict[str, tuple[object, ...]] = {
    "learning_rate": (0.001, 0.01),
    "batch_size": (2, 3),
    "seed": (1, 7),
    "classification_weight": (0, 1.0),
    "val_interval": (2,),
    "image_size": (96, 128),
    "amp": (True, False),
    "class_names": (["benign", "normal", "malignant"], ["a", "b", "c"]),
    "features": ([4, 4, 8, 8, 16, 4],),
    "downscale_factor": (1,),
    "train_split": ("validation", "training+validation"),
    "epochs": (3, 5),
}
KEPT: dict[str, tuple[object, ...]] = {"num_workers": (0, 1), "device": ("cpu",), "output_dir": ("/elsewhere", "a #2")}


def other_pixel(folder: Path, item: dict) -> None:
    """One pixel of an image."""
    pixels = np.array(Image.open(folder / item["image"]))
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(folder / item["image"])


def other_name(folder: Path, item: dict) -> None:
    """The name of an image's file."""
    (folder / item["image"]).rename(folder / f"other_{item['image']}")
    item["image"] = f"other_{item['image']}"


DATA: dict[str, Callable[[Path, dict], object]] = {
    "pixel": other_pixel,
    "name": other_name,
    "class": lambda folder, item: item.update({"class": (item["class"] + 1) % 3}),
    "label": lambda folder, item: shutil.copy(folder / "training0.png", folder / item["label"]),
    "label emptied": lambda folder, item: (folder / item["label"]).write_bytes(b""),
    "image gone": lambda folder, item: (folder / item["image"]).unlink(),
    "class unknown": lambda folder, item: item.update({"class": -1}),
}


def changed_data(source: Path, folder: Path, change: str, draw: random.Random) -> Path:
    """A copy of a set in which one item of training or validation is another, or their order."""
    shutil.copytree(source, folder)
    file = folder / "datalist.json"
    content = json.loads(file.read_text())
    split = draw.choice(["training", "validation"])
    if change == "order":
        content[split] = content[split][1:] + content[split][:1]
    elif change == "fewer":
        content[split].pop()
    elif change == "twice":
        content[split][0] = content[split][1]
    elif change != "moved":
        DATA[change](folder, draw.choice(content[split]))
    file.write_text(json.dumps(content))
    return folder


def go_on(project: Path, checkpoint: Path, save: bool = False, **ids: object) -> bool:
    """Resume under these options, as `@checkpoint` of train.json does; whether the conditions are those of before.

    The network itself is left out: what is asked comes before it is filled.
    """
    from monai.bundle import ConfigParser

    from breast_ultrasound.handlers import TrainingCheckpoint

    config = ConfigParser(ConfigParser.load_config_file(str(project / "bundle" / "configs" / "train.json")))
    config.update({"bundle_root": str(project / "bundle"), "image_size": 64, "features": [4, 4, 8, 8, 8, 4], **ids})
    handler = TrainingCheckpoint(checkpoint, {}, config.get_parsed_content("checkpoint#conditions"))
    items, batch = len(config.get_parsed_content("train#dataset#data")), config.get_parsed_content("batch_size")
    length = {"max_epochs": config.get_parsed_content("epochs"), "epoch_length": -(-items // batch)}
    state = SimpleNamespace(rank=0, device="cpu", epoch=1, **length)
    trainer = SimpleNamespace(state=state, state_dict=lambda: length, load_state_dict=lambda given: None)
    if save:
        handler(trainer)
    else:
        handler.resume(trainer)
    return True


def resume_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Other options, other data, and what makes no difference."""
    draw, inputs = random.Random(seed), []
    data, checkpoint = tiny_set(folder / "data"), folder / "checkpoint.pt"
    go_on(project, checkpoint, save=True, dataset_dir=str(data))
    refused = lambda found: ""  # noqa: E731
    for number in range(count):
        kind = draw.choice(["option", "option", "data", "data", "kept"])
        ids: dict[str, object] = {"dataset_dir": str(data)}
        if kind == "data":
            name = draw.choice([*DATA, "order", "fewer", "twice", "moved"])
            ids["dataset_dir"] = str(changed_data(data, folder / f"data{number}", name, draw))
        else:
            options = KEPT if kind == "kept" else CHANGED
            option = draw.choice(list(options))
            ids[option] = draw.choice(options[option])
            name = f"{option} {ids[option]}"
        right = (lambda found: "right") if kind == "kept" or name == "moved" else refused
        call = partial(go_on, project, checkpoint, **ids)
        inputs.append(Input(f"resume, {kind}", name, call, right, () if right is not refused else ("checkpoint.pt",)))
    return ends(inputs)
