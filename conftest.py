"""What several test files share: commands and their output, and prepared folders, one real, one tiny."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Two threads on two cores, one of them busy otherwise, wait for each other at every operation.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent
CLASS_NAMES = ("normal", "benign", "malignant")
# Networks trained for seconds doubt all they outline, so that every part of their masks is kept.
KEEP_ALL = {"mask_threshold": 0.5, "smallest_fraction": 0, "component_threshold": 0}
SMALL = {"image_size": 64, "features": [8, 8, 16, 16, 32, 8]}


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def output_of(command, code=0, **where):
    """Run a command and return its whole output, which a wrong exit status shows."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **where)
    assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    return done.stdout + done.stderr


def read_csv(path):
    """Rows of a table as Python's own reader has them."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Folder that the two commands make, phantoms and then conversion, as a user runs them. Read it only."""
    folder = tmp_path_factory.mktemp("prepared")
    phantoms, output = str(folder / "phantoms"), str(folder / "prepared")
    for command in (
        ["scripts/make_phantoms.py", "--output_dir", phantoms, "--count", "24", "--seed", "0"],
        ["scripts/prepare_busi.py", "--source", phantoms, "--output_dir", output],
    ):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return Path(output)


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory):
    """Folder of the same layout with two small images of each class in each part, quick to read. Read it only.

    Images are noise about grey 100 and of several sizes, none square. Lesions are rectangles, dark in benign and
    bright in malignant images.
    """
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    lists = {}
    for part in ("training", "validation", "testing"):
        lists[part] = []
        for index, name in enumerate(CLASS_NAMES):
            for number in (1, 2):
                height, width = (int(size) for size in random.integers((40, 72), (70, 100)))
                image = random.normal(100, 15, (height, width))
                mask = np.zeros((height, width), np.uint8)
                if name != "normal":
                    mask[8:28, 10:45] = 255
                    image[mask > 0] += {"benign": -60, "malignant": 60}[name]
                item = {"class": index}
                for key, pixels in (("image", image.clip(0, 255).astype(np.uint8)), ("label", mask)):
                    item[key] = f"{key}s/{part} {name} ({number}).png"
                    (folder / item[key]).parent.mkdir(exist_ok=True)
                    Image.fromarray(pixels).save(folder / item[key])
                lists[part].append(item)
    (folder / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory, prepared):
    """Copy of the bundle with a small network, trained on phantoms in seconds. Read it only."""
    bundle = tmp_path_factory.mktemp("small") / "bundle"
    shutil.copytree(ROOT / "bundle", bundle, ignore=shutil.ignore_patterns("models", "__pycache__"))
    config = bundle / "configs" / "train.json"  # the other commands take its settings from beside the weights
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | SMALL), encoding="utf-8")
    options = ["--dataset_dir", prepared, "--output_dir", bundle.parent / "evaluation", "--epochs", "30"]
    options += ["--batch_size", "4", "--learning_rate", "0.01"]
    options += [text for name, value in KEEP_ALL.items() for text in (f"--{name}", value)]
    command = ["-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json", *map(str, options)]
    done = subprocess.run([sys.executable, *command], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (bundle / "models" / "checkpoint.pt").unlink()
    return bundle


@pytest.fixture(scope="session")
def label_venv():
    """Folder of MONAI Label's virtual environment."""
    from label_server import label_environment

    return label_environment()
