"""docs/own_data.md: every command in it, in order, on phantoms in five class folders."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from breast_ultrasound.files import read_csv
from conftest import ROOT

DOCUMENT = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
NAMES = [f"BI-RADS {number}" for number in range(1, 6)]
QUICK = ["--epochs", "2", "--batch_size", "4"]


@pytest.fixture(scope="module")
def done(prepared, small_bundle, tmp_path_factory):
    """A folder in which all commands have been run, with a bundle of small networks."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "bundle").symlink_to(small_bundle)
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "runs").mkdir()
    (folder / "runs" / "other").symlink_to("own")
    images = sorted((prepared / "images").iterdir())
    for number, image in enumerate(images):
        place = folder / "my_images" / NAMES[number % 5]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
        if number % 5:  # BI-RADS 1 is declared to show no lesions
            shutil.copy(prepared / "labels" / image.name, place / f"{image.stem}_mask.png")
    (folder / "new_images").mkdir()
    for image in images[:3]:
        shutil.copy(image, folder / "new_images")
    blocks = re.findall(r"^```\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 9 and all(command.startswith("python ") for command in commands)
    for command in commands:
        arguments = shlex.split(command)[1:] + (QUICK if " training " in command else [])
        ran = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0, command + ran.stdout[-2000:] + ran.stderr[-2000:]
    return folder / "runs"


@pytest.mark.slow
def test_own_names_stand_in_every_table_and_page(done):
    kept = json.loads((done / "own_model" / "model.json").read_text(encoding="utf-8"))
    assert kept["class_names"] == NAMES
    metrics = json.loads((done / "own_testing" / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["images_by_class"]) == NAMES and metrics["temperature"] != 1
    rows = read_csv(done / "own_testing" / "images.csv") + read_csv(done / "own_predictions" / "predictions.csv")
    for row in rows:
        assert [f"p_{name}" for name in NAMES] == [key for key in row if key.startswith("p_")]
        assert {row.get("class") or row["predicted_class"]} <= set(NAMES)
    for page in ("own_data/report.html", "own_pages/index.html"):
        html = (done / page).read_text(encoding="utf-8")
        html = re.sub(r"base64,[^\"]*", "", html)  # images, which may hold any letters
        assert all(name in html for name in NAMES)
        assert not re.search(r">(normal|benign|malignant)<|malignant images|BUSI", html)


@pytest.mark.slow
def test_two_prepared_sets_train_together(done):
    assert (done / "joint_model" / "model.pt").is_file()
