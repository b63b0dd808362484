"""MONAI Label's own monaibundle app takes the bundle as it is: the commands of docs/annotate.md, on the real server."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from label_server import answer_parts, serve_stock
from PIL import Image

REAL = ROOT.parent / "shared" / "data" / "Dataset_BUSI_with_GT"
MODEL = "breast_ultrasound"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studies(tmp_path_factory, prepared):
    """Pictures as a user has them: four phantoms, and two real ones where the real set is there."""
    folder = tmp_path_factory.mktemp("studies")
    for file in sorted((prepared / "images").iterdir())[:4]:
        shutil.copy(file, folder)
    for name in ("benign (1)", "malignant (1)") if REAL.is_dir() else ():
        shutil.copy(REAL / name.split()[0] / f"{name}.png", folder / f"real {name}.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, label_venv, studies, small_bundle):
    folder = tmp_path_factory.mktemp("stock")
    with serve_stock(label_venv, folder, studies, small_bundle, folder / "server.log") as server:
        yield server


def expected(bundle, picture, tmp_path):
    """Mask and probabilities of `monai.bundle run` for one picture."""
    (tmp_path / "in").mkdir()
    shutil.copy(picture, tmp_path / "in")
    options = ["--dataset_dir", tmp_path / "in", "--output_dir", tmp_path / "out"]
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *map(str, options)]
    subprocess.run([sys.executable, *command], cwd=bundle, check=True, capture_output=True)
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    mask = np.asarray(Image.open(next((tmp_path / "out").glob("*_seg.png")))) > 0
    return mask, {name: float(row[f"p_{name}"]) for name in ("normal", "benign", "malignant")}


def test_every_picture_gets_a_mask_of_its_own_size_and_the_class(server, studies):
    info = server.request("GET", "/info/").json()
    assert info["models"][MODEL]["type"] == "segmentation" and info["models"][MODEL]["labels"] == {"lesion": 1}
    for file in studies.glob("*.png"):
        mask, params = server.infer(MODEL, file.stem)
        width, height = Image.open(file).size
        assert mask.shape == (height, width) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        scores = {entry["label"]: entry["score"] for entry in params["classification"]}
        assert list(scores) == ["normal", "benign", "malignant"] and sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert params["class"] == max(scores, key=scores.get)


def test_mask_and_probabilities_are_those_of_the_bundles_own_command(server, studies, small_bundle, tmp_path):
    # benign (1) of the phantoms has one lesion in the upper left: a flip or a turn would show.
    file = studies / "benign (1).png"
    true, probabilities = expected(small_bundle, file, tmp_path)
    assert true.any()
    mask, params = server.infer(MODEL, "benign (1)")
    assert ((mask > 0) != true).mean() < 0.001  # two versions of NumPy and Pillow may round a border pixel differently
    assert {e["label"]: e["score"] for e in params["classification"]} == pytest.approx(probabilities, abs=1e-3)
    turned = [np.flipud(true), np.fliplr(true), np.rot90(true, 2)]
    assert all((t != true).mean() > 0.01 for t in turned)
    mask, _ = server.infer(MODEL, file=file)
    assert ((mask > 0) != true).mean() < 0.001


def test_the_next_picture_is_proposed(server, studies):
    for strategy in ("random", "first"):
        answer = server.request("POST", f"/activelearning/{strategy}", json={}).json()
        assert (studies / f"{answer['id']}.png").is_file()


def test_the_class_is_kept_with_a_label_and_a_training_runs(server, studies):
    names = [f.stem for f in sorted(studies.glob("*.png"))][:3]
    for name in names:
        mask, params = server.infer(MODEL, name)
        server.save_label(name, mask, **{"class": params["class"]})
        info = server.request("GET", "/datastore/label/info", params={"label": name, "tag": "final"}).json()
        assert info["class"] == params["class"]
    served = server.request("GET", f"/model/{MODEL}").content
    before = torch.load(io.BytesIO(served), weights_only=True)
    options = {"max_epochs": 2, "val_split": 0.34, "device": "cpu"}
    server.request("POST", f"/train/{MODEL}", json=options)
    task = server.wait_for("train")
    assert task["status"] == "DONE", json.dumps(task, indent=1)
    after = torch.load(io.BytesIO(server.request("GET", f"/model/{MODEL}").content), weights_only=True)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    response = server.request("POST", f"/infer/{MODEL}", params={"image": names[0]}, data={"params": "{}"})
    assert {"params", "image"} <= answer_parts(response).keys()
