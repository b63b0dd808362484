"""The input check: each rule on an image that breaks it, distance and copies, and what the commands say of it."""

import io
import sys

import numpy as np
import pytest
import torch
from fit_input_check import fit_input_check
from monai.data import MetaTensor
from PIL import Image
from tools.phantoms import write_phantom

from breast_ultrasound.files import read_csv, sha256, write_checkpoint, write_json
from breast_ultrasound.images import open_image, to_grey
from breast_ultrasound.input_check import (
    DOUBTING,
    REFUSING,
    InputCheckd,
    Picture,
    coloured,
    facts_of,
    fingerprint,
    is_copy,
    load_reference,
)
from breast_ultrasound.networks import BasicUNetClassifier, settings_of
from breast_ultrasound.predictor import Predictor
from breast_ultrasound.pretrained import PretrainedUNetClassifier
from breast_ultrasound.weights import load_tensors, write_weights
from conftest import CLASS_NAMES, ROOT, output_of

SIZES = {"image_size": 64, "features": [8, 8, 16, 16, 32, 8]}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Phantoms without marks, uint8 (rows, columns)."""
    folder = tmp_path_factory.mktemp("phantoms")
    for number in (2, 4, 7, 8):
        write_phantom(folder, "normal", number, 0)
    images = [to_grey(open_image(file)) for file in sorted(folder.glob("*).png"))]
    return [image for image in images if facts_of(image, image, None)["check"] == "ok"]


def changed(name, grey):
    """An image that a rule of this name speaks against."""
    random, (height, width) = np.random.default_rng(0), grey.shape
    if name == "too_small":
        return grey[:10]
    if name == "blank":
        return grey // 6
    if name == "mostly_dark":
        return np.where(np.arange(width) < 0.1 * width, grey, 0).astype(np.uint8)
    if name == "mostly_light":
        return np.where(np.arange(width) < 0.4 * width, grey, 250).astype(np.uint8)
    if name == "unstructured":
        return random.integers(0, 256, (400, 400)).astype(np.uint8)
    if name == "gap":
        return np.hstack([grey, np.zeros((height, 12), np.uint8), grey])
    if name == "seam":
        return np.hstack([grey // 2, 128 + grey // 2])
    if name == "turned":
        return 255 - np.clip(grey * np.linspace(2, 0.2, height)[:, None], 0, 255).astype(np.uint8)
    marked = grey.copy()
    for left in range(20, 140, 10):  # strokes of text
        marked[30:45, left : left + 2] = 255
    return marked


@pytest.mark.parametrize("rule", [r for r in (*REFUSING, *DOUBTING) if r is not coloured], ids=lambda r: r.__name__)
def test_each_rule_speaks_against_its_image_alone(rule, phantoms):
    assert len(phantoms) > 1
    for grey in phantoms:
        assert not rule(Picture(grey))
        image = changed(rule.__name__, grey)
        assert rule(Picture(image))
        found = facts_of(image, image, None)
        assert found["check"] == ("refused" if rule in REFUSING else "look") and found["reason"]


def test_colour_refuses_and_a_coloured_sign_does_not(phantoms):
    grey = phantoms[0]
    colour = np.repeat(grey[..., None], 3, axis=2)
    assert facts_of(colour, grey, None)["check"] == "ok"
    colour[5:10, 5:20] = (255, 160, 0)
    assert facts_of(Image.fromarray(colour), grey, None)["check"] == "ok"
    colour[40:90, 40:120] = (0, 60, 220)
    found = facts_of(Image.fromarray(colour), grey, None)
    assert found["check"] == "refused" and "Doppler" in found["reason"]
    assert facts_of(Image.fromarray(colour), grey, (130, 0, 80, 100))["check"] == "ok", "outside of the tissue"


def test_copies_share_a_fingerprint_and_other_images_do_not(phantoms):
    first, *others = phantoms
    known = np.frombuffer(fingerprint(first), np.uint8)[None]
    file = io.BytesIO()
    Image.fromarray(first).resize((200, 140)).save(file, "JPEG", quality=60)
    for copy in (first, first[:, ::-1], np.clip(first * 1.2, 0, 255).astype(np.uint8), np.asarray(Image.open(file))):
        assert is_copy(fingerprint(np.ascontiguousarray(copy)), known)
    assert not any(is_copy(fingerprint(other), known) for other in others)


@pytest.mark.parametrize("make", [BasicUNetClassifier, PretrainedUNetClassifier])
def test_a_network_gives_its_embedding_in_the_same_pass_and_on_request_alone(make, monkeypatch):
    torch.manual_seed(0)
    network = make().eval()
    image, passes = torch.randn(2, 1, 64, 96), []
    plain = network(image)
    monkeypatch.setattr(network, "feature_maps", lambda x, own=network.feature_maps: passes.append(1) or own(x))
    found = network(image, with_embedding=True)
    assert len(passes) == 1 and "embedding" not in plain
    assert torch.equal(found["pred"], plain["pred"]) and torch.equal(found["class_logits"], plain["class_logits"])
    maps = network.feature_maps(image)
    assert found["embedding"].shape == (2, maps["x2"].shape[1] + maps["x3"].shape[1])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Folder of a network with fixed weights, fitted on phantoms by the command, and its training images."""
    folder, lists = tmp_path_factory.mktemp("fitted"), {"training": [], "validation": []}
    for number in range(1, 64):
        write_phantom(folder, "normal", number, 0)
        split = "training" if number % 2 else "validation"
        lists[split].append({"image": f"normal ({number}).png", "class": 0})
    write_json(folder / "datalist.json", lists)
    torch.manual_seed(0)
    network = BasicUNetClassifier(features=SIZES["features"], downscale_factor=2)
    settings = settings_of(network, class_names=list(CLASS_NAMES), image_size=64)
    write_weights(folder / "model.pt", network.state_dict(), settings)
    told = fit_input_check((folder / "datalist.json",), folder)
    assert (told["training"], told["validation"], told["fingerprints"]) == (32, 31, 32)
    return folder


def test_a_copy_and_a_stranger_are_told_and_a_refused_image_has_neither_class_nor_mask(fitted, phantoms):
    predictor = Predictor(ckpt_dir=str(fitted))
    trained_on = predictor(Image.open(fitted / "normal (7).png").convert("L"))
    assert trained_on.check == "look" and "copy of a training image" in trained_on.reason
    image = MetaTensor(torch.zeros(1), meta=facts_of(phantoms[0], phantoms[0], None))
    mean = torch.cat([depth["mean"] for depth in load_tensors(fitted / "input_check.pt")["depths"]])
    item = {"image": image, "pred": torch.ones(1, 4, 4), "result": {"class": "benign"}}
    path, digest = str(fitted / "input_check.pt"), sha256(fitted / "model.pt")
    check = InputCheckd(path, digest)
    assert check({**item, "embedding": mean})["result"] == {"class": "benign", "check": "ok", "reason": ""}
    stranger = check({**item, "embedding": mean + 50})
    assert stranger["result"] == {"check": "refused", "reason": "unlike every training image"}
    assert not stranger["pred"].any() and "embedding" not in stranger
    asked = InputCheckd(path, digest, predict_refused=True)({**item, "embedding": mean + 50})
    assert asked["result"] == {"class": "benign", **stranger["result"]} and asked["pred"].all()


@pytest.mark.slow
def test_the_command_tells_of_each_image_and_writes_no_mask_of_what_it_refuses(fitted, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(fitted / "normal (9).png") as image:
        image.save(source / "known.png")
        image.resize((9, 90)).save(source / "small.png")
    command = ["-m", "monai.bundle", "run", "--config_file", "bundle/configs/inference.json", "--bundle_root", "bundle"]
    paths = ["--dataset_dir", source, "--ckpt_dir", fitted, "--output_dir", tmp_path / "out"]
    log = output_of([sys.executable, *command, *paths], cwd=ROOT)
    known, small = read_csv(tmp_path / "out" / "predictions.csv")
    assert known["check"] == "look" and "copy of a training image" in known["reason"] and known["class"]
    assert (small["check"], small["reason"]) == ("refused", "9 x 90 pixels, too small")
    assert not any(small[name] for name in ("class", "p_benign", "lesion_area_px", "disagreement"))
    assert [file.name for file in (tmp_path / "out").glob("*.png")] == ["known_seg.png"]
    assert "small.png: no prediction, 9 x 90 pixels" in log and "1 of 1 are unusual" in log


def test_a_reference_of_other_weights_is_not_used_and_a_damaged_one_is_named(fitted, tmp_path, caplog):
    file = tmp_path / "input_check.pt"
    with caplog.at_level("INFO"):
        assert load_reference(str(file), "0") is None
        assert load_reference(str(fitted / "input_check.pt"), "0") is None
    assert "missing, the input check looks at pixels alone" in caplog.text and "made for other weights" in caplog.text
    write_checkpoint(file, {"weights_sha256": "0"})
    with pytest.raises(ValueError, match="input_check.pt: no reference .*; fit it again"):
        load_reference(str(file), "0")
    item = {"image": torch.zeros(1), "pred": torch.ones(1, 2, 2), "result": {"class": "benign"}}
    assert InputCheckd(str(tmp_path / "none.pt"), "0")(item)["result"] == {
        "class": "benign",
        "check": "ok",
        "reason": "",
    }


def test_too_few_images_are_named(fitted, tmp_path):
    write_json(tmp_path / "datalist.json", {"training": [{"image": "a.png"}], "validation": []})
    with pytest.raises(ValueError, match="training: 1 images, at least 30 are needed"):
        fit_input_check((tmp_path / "datalist.json",), fitted)
