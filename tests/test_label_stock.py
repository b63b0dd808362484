"""MONAI Label's own monaibundle app takes the bundle as it is: the commands of docs/annotate.md, on the real server."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from label_server import HOLES, answer_parts, bundle_answer, same_answer, serve_stock
from PIL import Image

from conftest import ROOT

REAL = ROOT.parent / "shared" / "data" / "Dataset_BUSI_with_GT"
MODEL = "breast_ultrasound"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studies(tmp_path_factory, prepared):
    """Images as a user has them: four phantoms, and two real ones where the real set is there."""
    folder = tmp_path_factory.mktemp("stock") / "studies"
    folder.mkdir()
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


def test_every_image_gets_a_mask_of_its_own_size_and_the_class(server, studies):
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
    expected = bundle_answer(small_bundle, file, tmp_path)
    mask, params = server.infer(MODEL, "benign (1)")
    assert same_answer(mask, params, expected)
    for turned in (np.flipud(mask), np.fliplr(mask), np.rot90(mask, 2)):
        assert not same_answer(turned, params, expected)
    assert same_answer(*server.infer(MODEL, file=file), expected)


def test_the_next_image_is_proposed(server, studies):
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


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.__name__)
def test_the_plain_server_has_the_holes_that_ours_closes(server, studies, hole):
    mask, _ = server.infer(MODEL, "benign (1)")
    with pytest.raises(AssertionError):
        hole(server, "benign (1)", mask, studies)
