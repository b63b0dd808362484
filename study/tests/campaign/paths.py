"""Paths with signs that shells, python-fire and MONAI's configs take for something else: what was typed is used."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from campaign.process import Case, Input, ends
from PIL import Image

SIGNS = "#@%$()," * 3 + "[]{}~&;=!-+:*?|^`\\ .'\"é漢\u00a0_"  # those that MONAI and Fire read more often
TYPED = ("dataset_dir", "output_dir", "ckpt_dir", "weights", "pretrained", "datalist", "onnx_file")


def odd_name(draw: random.Random) -> str:
    """A name of letters and signs that a file system takes."""
    signs = [draw.choice(SIGNS) for _ in range(draw.randint(1, 3))]
    letters = [draw.choice("abcxyz019") for _ in range(draw.randint(1, 4))]
    name = "".join(draw.sample([*signs, *letters], len(signs) + len(letters)))
    return name if name.strip(" .\u00a0") and name[0] != "." else f"a{name}b"


def same(expected: object, found: object) -> str:
    """Whether what arrived is what was typed."""
    return "right" if found == expected else ""


def command_line(project: Path, option: str, path: str) -> str:
    """What a bundle command makes of an option."""
    from breast_ultrasound.checks import option_problems
    from breast_ultrasound.command import check_overrides

    config = (
        "inference_onnx" if option == "onnx_file" else "train" if option in ("pretrained", "datalist") else "inference"
    )
    files = str([str(project / "bundle" / "configs" / f"{name}.json") for name in dict.fromkeys(("inference", config))])
    files = str(project / "bundle" / "configs" / "train.json") if config == "train" else files
    parser = check_overrides(["run", "--config_file", files, f"--{option}", path])
    if problems := option_problems(parser, [option]):
        raise ValueError(problems[0])
    return str(parser.get_parsed_content(option))


def spelt(project: Path, option: str, path: str) -> str:
    """What a bundle command makes of the spelling that breast-ultrasound and the scripts pass on."""
    from breast_ultrasound.cli import literal

    return command_line(project, option, literal(path))


def script(option: str, path: str) -> str:
    """What a script makes of an option."""
    from breast_ultrasound.cli import checked

    def command(source: Path, several: tuple[Path, ...] = ()) -> None:
        """A script."""

    name = "several" if option == "several" else "source"
    found = checked(command, (), {"source": "x", name: path})[name]
    return str(found[0] if name == "several" and len(found) == 1 else found)


def listed(folder: Path, name: str) -> list[str]:
    """The image that inference finds in a folder of this name, under this name."""
    from breast_ultrasound.data import list_images

    place = folder / name
    place.mkdir(exist_ok=True)
    Image.linear_gradient("L").resize((20, 16)).save(place / f"{name}.png")
    return [Path(item["image"]).name for item in list_images(str(place), str(folder / "out"))]


def tabled(folder: Path, name: str) -> list[str]:
    """The name that a table gives back."""
    from breast_ultrasound.files import read_csv, write_csv

    write_csv(folder / name / "t.csv", [{"filename": name}], ["filename"])
    return [row["filename"] for row in read_csv(folder / name / "t.csv")]


def loaded(folder: Path, name: str) -> str:
    """The image of a datalist in a folder of this name."""
    from breast_ultrasound.data import load_datalist, read_class_names

    place = folder / name
    place.mkdir(exist_ok=True)
    item = {"image": f"{name}.png", "label": f"{name}.png", "class": 0}
    (place / "datalist.json").write_text(json.dumps({"class_names": ["a", "b"], "training": [item]}), encoding="utf-8")
    datalist = str(place / "datalist.json")
    names = read_class_names(datalist, [])
    return load_datalist({datalist: 1.0}, "training", "", names)[0]["image"]


def config(folder: Path, name: str) -> object:
    """What a config in a folder of this name holds, named as bundle_arguments names it."""
    from breast_ultrasound.cli import bundle_arguments
    from breast_ultrasound.command import check_overrides

    (folder / name).mkdir(exist_ok=True)
    shutil.copy(folder / "own.json", folder / name / "own.json")
    arguments = bundle_arguments("run", [folder / name / "own.json"], folder)
    return check_overrides(arguments[2:])["epochs"]


def path_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Names of every sign, wherever a path is taken."""
    draw, inputs = random.Random(seed), []
    (folder / "own.json").write_text(json.dumps({"bundle_root": "", "epochs": 7}))
    for _ in range(count):
        name = odd_name(draw)
        option = draw.choice(TYPED)
        typed = name if draw.random() < 0.5 else str(folder / name)
        named = (f"--{option}", name.lstrip("-"))
        text = name.replace("\\", "/")
        uses: dict[str, tuple[Callable, object, tuple[str, ...]]] = {
            f"typed as --{option}": (partial(command_line, project, option, typed), typed, named),
            f"passed on as --{option}": (partial(spelt, project, option, typed), typed, ()),
            "of a script": (partial(script, "source", f"./{name}"), str(Path(f"./{name}")), ()),
            "one of a script's list": (partial(script, "several", str(folder / name)), str(folder / name), ()),
            "searched": (partial(listed, folder, name), [f"{name}.png"], ()),
            "in a table": (partial(tabled, folder, name), [name], ()),
            "of a config": (partial(config, folder, name), 7, ()),
            "in a datalist": (partial(loaded, folder, name), os.path.join(folder, name, f"{text}.png"), ()),
        }
        use = draw.choice([*uses, *list(uses)[:2] * 2])  # most goes wrong on command lines
        call, expected, words = uses[use]
        inputs.append(Input(f"path, {use}", name, call, partial(same, expected), words))
    return ends(inputs)
