"""predictor.onnx gives in ONNX Runtime alone what the bundle's inference gives, and says what it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from tools.cli import load_network, parse_bundle
from tools.exports import told
from tools.predictor_onnx import _as_model, _postprocessing, compare_with_bundle, metadata

from breast_ultrasound.calibration import NEUTRAL
from breast_ultrasound.files import read_csv, sha256
from breast_ultrasound.predictor import Predictor
from breast_ultrasound.transforms import ClassResultd
from conftest import ROOT

SIZES = ((97, 131), (1024, 40), (20, 20), (64, 64), (250, 333))
CALIBRATION = {"temperature": 2.5, "malignancy_threshold": 0.25, "unsure_below": 0.5}
CALIBRATION["class_offsets"] = {"normal": -0.8, "benign": 0.6, "malignant": 0.2}
BUSI = ROOT.parent / "shared/data/Dataset_BUSI_with_GT"
RUNTIME = "onnxruntime-node@1.30.0"


@pytest.fixture(scope="module")
def models(small_bundle, tmp_path_factory):
    """Weights on phantoms, with a calibration that is felt."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(small_bundle / "models", folder, dirs_exist_ok=True)
    content = {"weights_sha256": sha256(folder / "model.pt"), **CALIBRATION}
    (folder / "calibration.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(prepared, models, tmp_path_factory):
    """What scripts/export.py writes for these weights."""
    return export(prepared, models, tmp_path_factory.mktemp("exports"))


def export(dataset, models, folder):
    """Run the command."""
    command = [sys.executable, "scripts/export.py", "--dataset_dir", dataset, "--ckpt_dir", models]
    done = subprocess.run([*command, "--output_dir", folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def images(prepared, tmp_path_factory):
    """A phantom of each class in each of the sizes."""
    folder = tmp_path_factory.mktemp("images")
    for item in json.loads((prepared / "datalist.json").read_text())["training"][:3]:
        pixels = cv2.imread(str(prepared / item["image"]), cv2.IMREAD_GRAYSCALE)
        for rows, columns in SIZES:
            cv2.imwrite(
                str(folder / f"{rows}x{columns} {Path(item['image']).name}"), cv2.resize(pixels, (columns, rows))
            )
    return folder


@pytest.mark.slow
def test_the_file_alone_answers_as_the_inference_command(exported, images, models, tmp_path):
    options = ["--ckpt_dir", models, "--dataset_dir", images, "--output_dir", tmp_path, "--amp", "False"]
    command = ["-m", "monai.bundle", "run", "--config_file", "bundle/configs/inference.json", "--bundle_root", "bundle"]
    done = subprocess.run([sys.executable, *command, *map(str, options)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_csv(tmp_path / "predictions.csv")
    assert len(rows) == 3 * len(SIZES)
    session = onnxruntime.InferenceSession(exported / "predictor.onnx")
    areas = []
    for row in rows:
        image = cv2.imread(str(images / row["filename"]), cv2.IMREAD_GRAYSCALE)
        mask, lesion, classes = session.run(None, {"image": image})
        expected = cv2.imread(str(tmp_path / f"{Path(row['filename']).stem}_seg.png"), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint8 and lesion.dtype == np.float32 and lesion.shape == image.shape
        assert np.count_nonzero(mask != expected) <= 2, row["filename"]
        assert classes == pytest.approx(
            [float(row[f"p_{name}"]) for name in ("normal", "benign", "malignant")], abs=1e-4
        )
        areas.append(np.count_nonzero(expected))
    assert 0 in areas and max(areas) > 1000


@pytest.mark.slow
def test_every_onnx_file_says_what_it_is_from_the_config(exported, models):
    parser = load_network(models, device="cpu")
    for name in ("model", "model_int8", "predictor", "predictor_int8"):
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
        found = session.get_modelmeta().custom_metadata_map
        assert found == metadata(parser, whole=name.startswith("predictor"))
        assert {key: json.loads(found[key]) for key in CALIBRATION} == CALIBRATION
        assert found["weights_sha256"] == sha256(models / "model.pt")
        assert json.loads(found["image_size"]) == 64 and json.loads(found["class_names"])[0] == "normal"
        assert "not a medical device" in found["notice"]
        for part in ("input", "output"):
            for value in getattr(session, f"get_{part}s")():
                assert f"{value.name}: " in found[part]


@pytest.mark.slow
def test_int8_costs_the_predictor_no_more_than_the_network(exported):
    found = json.loads((exported / "exports.json").read_text())
    assert (
        0 < found["predictors"]["predictor_int8.onnx"]["bytes"] - found["files"]["model_int8.onnx"]["bytes"] < 100_000
    )
    assert found["predictors"]["predictor.onnx"]["largest_class_probability_difference"] < 1e-4


@pytest.mark.slow
def test_without_a_data_set_come_the_files_that_need_none(exported, images, models, tmp_path):
    command = [sys.executable, "scripts/export.py", "--ckpt_dir", models, "--output_dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "INT8 and the comparison need images: give --dataset_dir" in done.stdout
    names = {"model.ts", "model.onnx", "predictor.onnx"}
    assert {file.name for file in tmp_path.iterdir()} == names | {"exports.json", "model.json", "run.json"}
    weights = models / "model.pt"
    assert json.loads((tmp_path / "run.json").read_text())["ckpt_dir_sha256"][str(weights)] == sha256(weights)
    found = json.loads((tmp_path / "exports.json").read_text())
    assert (
        found["weights_sha256"] == sha256(models / "model.pt") and found["files"].keys() | found["predictors"] == names
    )
    image = cv2.imread(str(next(iter(images.iterdir()))), cv2.IMREAD_GRAYSCALE)
    sessions = [onnxruntime.InferenceSession(folder / "predictor.onnx") for folder in (exported, tmp_path)]
    for one, other in zip(*(session.run(None, {"image": image}) for session in sessions)):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_an_image_of_one_grey_gets_no_answer(exported):
    for name in ("predictor", "predictor_int8"):
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
        for shape in ((60, 80), (500, 700), (1, 1)):
            mask, lesion, classes = session.run(None, {"image": np.full(shape, 90, np.uint8)})
            assert mask.shape == shape and not mask.any() and np.isnan(lesion).all() and np.isnan(classes).all()


def postprocessed(probabilities, **ids):
    """Mask of the graph behind the network and of the bundle, for the lesion's probabilities (M, N) of some network."""
    parser = parse_bundle("inference", **ids)
    session = onnxruntime.InferenceSession(_as_model(_postprocessing(parser), 10).SerializeToString())
    clipped = probabilities.clip(1e-4, 1 - 1e-4).astype(np.float32).T
    pred = np.stack([np.zeros_like(clipped), np.log(clipped / (1 - clipped))])[None]
    shape = np.array(probabilities.shape)
    inputs = {"image_shape": shape, "resized_shape": shape, "padded_before": 0 * shape}
    inputs["no_contrast"] = np.array(0, np.float32)
    mask, lesion, _ = session.run(None, {"pred": pred, "class_logits": np.zeros((1, 3), np.float32), **inputs})
    assert lesion == pytest.approx(probabilities.clip(1e-4, 1 - 1e-4), abs=1e-5)
    rule = parser.get_parsed_content("lesion_mask")
    return mask, 255 * rule({"pred": torch.from_numpy(lesion)[None]})["pred"][0].numpy()


def test_class_probabilities_have_temperature_and_offsets_as_the_bundle_has_them():
    parser = parse_bundle("inference", calibration={**NEUTRAL, **CALIBRATION})
    session = onnxruntime.InferenceSession(_as_model(_postprocessing(parser), 10).SerializeToString())
    shape, logits = np.array([40, 50]), np.array([[0.3, -1.2, 2.0]], np.float32)
    inputs = {"image_shape": shape, "resized_shape": shape, "padded_before": 0 * shape}
    inputs |= {"no_contrast": np.array(0, np.float32), "pred": np.zeros((1, 2, 50, 40), np.float32)}
    found = session.run(None, {**inputs, "class_logits": logits})[2]
    expected = ClassResultd(parser.get_parsed_content("class_names"), CALIBRATION)
    assert found == pytest.approx(expected({"class_logits": torch.tensor(logits[0])})["class_probs"].numpy(), abs=1e-6)


def test_of_two_parts_the_doubtful_or_small_one_is_erased():
    lesion = np.zeros((60, 90))
    lesion[5:25, 5:25], lesion[30:50, 40:80] = 0.9, 0.5
    lesion[55:57, 1:3] = 0.99
    for ids, kept in (
        ({}, [(5, 25, 5, 25)]),
        ({"component_threshold": 0.0}, [(5, 25, 5, 25), (30, 50, 40, 80)]),
        ({"smallest_fraction": 0.0}, [(5, 25, 5, 25), (55, 57, 1, 3)]),
        ({"smallest_fraction": 0.1, "component_threshold": 0.0}, [(30, 50, 40, 80)]),
        ({"mask_threshold": 0.995}, []),
    ):
        mask, expected = postprocessed(lesion, **ids)
        by_hand = np.zeros((60, 90), np.uint8)
        for top, bottom, left, right in kept:
            by_hand[top:bottom, left:right] = 255
        assert (mask == expected).all() and (mask == by_hand).all(), ids


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 47), (200, 300)])
def test_connected_parts_are_those_of_the_bundle_whatever_the_shape(shape):
    random = np.random.default_rng(0)
    for sigma in (0.3, 1, 4):
        noise = cv2.GaussianBlur(random.normal(size=shape), (0, 0), sigma)
        lesion = 1 / (1 + np.exp(-2 * noise / (noise.std() or 1)))
        for ids in ({}, {"component_threshold": 0.6, "smallest_fraction": 0.02}, {"mask_threshold": 0.5}):
            mask, expected = postprocessed(lesion, **ids)
            assert (mask == expected).all(), (sigma, ids)


def test_a_part_is_followed_through_every_turn():
    lesion = np.zeros((61, 61))
    lesion[::2], lesion[1::4, -1], lesion[3::4, 0] = 0.9, 0.9, 0.9
    lesion[30:] *= 0.5
    for threshold, kept in ((0.66, True), (0.7, False)):  # the mean over all of it is 0.68
        mask, expected = postprocessed(lesion, component_threshold=threshold)
        assert (mask == expected).all() and (mask == 255 * kept * (lesion > 0)).all()


@pytest.mark.slow
def test_a_large_difference_of_one_pixel_is_told_with_the_share_of_pixels():
    found = {"bytes": 4_000_000, "largest_probability_difference": 0.56, "differing_mask_pixels": 0.00154}
    (line,) = told({"images": 3, "files": {"model_int8.onnx": found}, "predictors": {}})
    assert line == "model_int8.onnx: 4.0 MB, at most 5.6e-01 from PyTorch, 0.15 % of the pixels of masks"


def test_the_lines_of_the_model_card_run(exported, images, tmp_path):
    card = (ROOT / "bundle/docs/README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    (lines,) = [block for block in blocks if "predictor.onnx" in block]
    shutil.copy(exported / "predictor.onnx", tmp_path)
    shutil.copy(next(images.iterdir()), tmp_path / "IMAGE.png")
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'malignant': " in done.stdout and str(CALIBRATION["malignancy_threshold"]) in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir(), reason="needs the data set")
def test_on_real_images_the_released_weights_answer_as_the_bundle(prepared, tmp_path):
    models = ROOT / "bundle/models"
    export(prepared, models, tmp_path)
    images = [
        BUSI / name / f"{name} ({number}).png" for name in ("normal", "benign", "malignant") for number in (3, 40)
    ]
    found = compare_with_bundle(tmp_path / "predictor.onnx", Predictor(device="cpu", amp=False), images)
    assert found["largest_class_probability_difference"] < 0.002 and found["smallest_mask_iou"] > 0.999


@pytest.mark.slow
def test_node_answers_as_python(exported, images, request, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = request.config.cache.mkdir("onnxruntime-node")
    # Its install script fetches libraries for GPUs; those for the CPU are in the package
    options = ["--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(["npm", "install", *options, RUNTIME], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install {RUNTIME}: {done.stderr[-200:]}")
    for file in sorted(images.iterdir())[:4]:
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        (tmp_path / "pixels.bin").write_bytes(image.tobytes())
        arguments = [exported / "predictor.onnx", tmp_path / "pixels.bin", *image.shape]
        node = ["node", ROOT / "tests/predictor_check.js", *arguments]
        environment = {**os.environ, "NODE_PATH": str(folder / "node_modules")}
        done = subprocess.run([*map(str, node)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        mask, lesion, classes = onnxruntime.InferenceSession(exported / "predictor.onnx").run(None, {"image": image})
        assert found["shape"] == list(mask.shape)
        assert found["class_probabilities"] == pytest.approx(classes, abs=1e-4)
        assert found["area"] == pytest.approx(np.count_nonzero(mask), abs=2)
        assert found["area"] + found["background"] == mask.size
        assert found["lesion"] == pytest.approx(lesion.sum(), rel=1e-3)
