"""One rule for grey and one for masks through the commands: conversion, training, evaluation and inference agree."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, output_of, read_csv

CASES = ROOT.parent / "shared" / "cases"
SMALL = ["--image_size", "64", "--features", "[8,8,16,16,32,8]"]
TRAIN, EVALUATE, INFER = (
    ["--config_file", f"[{configs}]"]
    for configs in ("'configs/train.json'", "'configs/train.json','configs/evaluate.json'", "'configs/inference.json'")
)


def run(script, *options, code=0):
    """Run a command and return its whole output."""
    return output_of([sys.executable, *script, *options], code, cwd=ROOT / "bundle")


def bundle(*options, **settings):
    return run(["-m", "monai.bundle", "run"], *options, **settings)


def copy(prepared, folder, change):
    """Copy a prepared folder with every label changed by a function of its pixels."""
    shutil.copytree(prepared, folder)
    for file in (folder / "labels").iterdir():
        Image.fromarray(change(np.asarray(Image.open(file)))).save(file)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_prepared, tmp_path_factory):
    """A folder with the training and the evaluation of the tiny set, as it is."""
    return learn(tiny_prepared, tmp_path_factory.mktemp("plain"))


def learn(data, folder):
    """Train for two epochs and evaluate."""
    options = [*SMALL, "--dataset_dir", data, "--ckpt_dir", folder / "models", "--output_dir", folder]
    bundle(*TRAIN, *options, "--epochs", 2, "--batch_size", 4)
    bundle(*EVALUATE, *options)
    return folder


@pytest.mark.slow
def test_labels_of_0_and_1_give_the_training_and_the_evaluation_of_0_and_255(tiny_prepared, trained, tmp_path):
    other = learn(copy(tiny_prepared, tmp_path / "data", lambda mask: mask // 255), tmp_path / "ones")
    for name in ("training_curve.csv", "images.csv"):
        assert (other / name).read_bytes() == (trained / name).read_bytes()
    assert any(int(row["true_area_px"]) for row in read_csv(other / "images.csv"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "configs, change, message",
    [
        (TRAIN, lambda mask: mask[::2, ::2], ", its image"),
        (EVALUATE, lambda mask: mask[:1, :1], "1 x 1, its image"),
        (EVALUATE, lambda mask: np.where(mask > 0, mask, np.uint8(1)), "several greys"),
    ],
    ids=["half in training", "1x1 in evaluation", "mixed in evaluation"],
)
def test_a_label_that_does_not_fit_is_refused_by_name(configs, change, message, tiny_prepared, trained, tmp_path):
    data = copy(tiny_prepared, tmp_path / "data", lambda mask: change(mask) if mask.any() else mask)
    models = ["--ckpt_dir", trained / "models" if configs is EVALUATE else tmp_path / "models"]
    log = bundle(*configs, *SMALL, "--dataset_dir", data, "--output_dir", tmp_path / "out", *models, code=1)
    last = [line for line in log.splitlines() if line.strip()][-1]
    assert str(data / "labels") in last and message in last
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.fixture(scope="module")
def odd_labels(tmp_path_factory):
    """A BUSI-like folder: each image has a mask of another kind, of 200 pixels or one that is to be refused."""
    source = tmp_path_factory.mktemp("odd") / "busi"
    (source / "benign").mkdir(parents=True)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:20, 10:30] = 255
    white = np.full_like(mask, 255)
    mixed, grey = mask // 255, mask // 255 * 128
    mixed[10:12, 10:35] = grey[10:12, 10:35] = 255
    kinds = {
        "zero_one_200px": Image.fromarray(mask // 255),
        "palette_quantized_200px": Image.fromarray(mask).convert("RGB").quantize(2),
        "transparent_white_200px": Image.fromarray(np.dstack([white, white, white, mask])),
        "alpha_only_200px": Image.fromarray(np.dstack([mask * 0, mask * 0, mask * 0, mask])),
        "mixed_0_1_255": Image.fromarray(mixed),
        "mixed_0_128_255": Image.fromarray(grey),
        "too_small": Image.fromarray(mask[:30, :40]),
        "turned_200px": Image.fromarray(np.rot90(mask)),
    }
    for seed, (name, label) in enumerate(kinds.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, mask.shape).astype(np.uint8)
        Image.fromarray(pixels).save(source / "benign" / f"{name}.png")
        exif = Image.Exif()
        if name == "turned_200px":
            exif[0x0112] = 6
        label.save(source / "benign" / f"{name}_mask.png", exif=exif)
    Image.fromarray(pixels).save(source / "benign" / "jpeg_noise_200px.png")
    Image.fromarray(mask).save(source / "benign" / "jpeg_noise_200px_mask.jpg", quality=75)
    return source


def labels_of(source, output):
    """Convert, and return the lesion's pixels in each label and what is refused."""
    log = run(
        [ROOT / "scripts" / "prepare_busi.py"], "--source", source, "--output_dir", output, "--protocol", "random"
    )
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return {f.stem: np.asarray(Image.open(f)) for f in (output / "labels").iterdir()}, summary, log


def check_labels(labels, summary):
    for name, label in labels.items():
        assert set(np.unique(label)) == {0, 255} and label.shape == (60, 80)
        found, inside = (label > 0).sum(), (label[10:20, 10:30] > 0).sum()
        assert "200px" in name and 199 <= found <= 201 and inside >= 199, name
    refused = {line.split(":")[0].split("/")[1]: line for line in summary["refused"]}
    assert {"mixed_0_1_255.png", "mixed_0_128_255.png"} <= refused.keys()
    assert all("several greys" in refused[name] for name in refused if name.startswith("mixed"))
    noisy = next(repair for file, repair in summary["repaired"].items() if "jpeg_noise" in file)
    assert "cut at 127.5" in noisy
    return refused


def test_every_kind_of_mask_is_converted_rightly_or_refused_by_name(odd_labels, tmp_path):
    labels, summary, _ = labels_of(odd_labels, tmp_path / "out")
    refused = check_labels(labels, summary)
    assert len(labels) == 6 and refused.keys() == {"mixed_0_1_255.png", "mixed_0_128_255.png", "too_small.png"}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside the project")
def test_the_cases_labels_are_converted_rightly_or_refused_by_name(tmp_path):
    folder = tmp_path / "busi" / "benign"
    folder.mkdir(parents=True)
    for seed, file in enumerate(sorted((CASES / "labels").glob("*.png"))):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 80)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / file.name)
        shutil.copy(file, folder / f"{file.stem}_mask.png")
    labels, summary, _ = labels_of(folder.parent, tmp_path / "out")
    check_labels(labels, summary)
    assert len(labels) == 6


@pytest.mark.slow
def test_conversion_and_inference_agree_on_grey_and_on_what_is_upright(tiny_prepared, trained, tmp_path):
    """The twins of an image, stored in other ways, get its mask and probabilities, converted first or as they are."""
    source = tmp_path / "busi" / "normal"
    source.mkdir(parents=True)
    for number, item in enumerate(json.loads((tiny_prepared / "datalist.json").read_text())["testing"][:3]):
        grey = np.array(Image.open(tiny_prepared / item["image"]))
        grey[0, 0] = 255  # the largest value of the deep ones
        exif = Image.Exif()
        exif[0x0112] = 6
        twins = {
            "8bit.png": Image.fromarray(grey),
            "float.tif": Image.fromarray(grey / np.float32(255)),
            "deep.png": Image.fromarray(grey.astype(np.uint16) * 16),
            "dark.png": Image.fromarray(grey.astype(np.uint16)),
            "turned.png": Image.fromarray(np.ascontiguousarray(np.rot90(grey))),
        }
        for name, twin in twins.items():
            twin.save(source / f"{number} {name}", **({"exif": exif} if name == "turned.png" else {}))
    run(
        [ROOT / "scripts" / "prepare_busi.py"],
        "--source",
        source.parent,
        "--output_dir",
        tmp_path / "prepared",
        "--protocol",
        "random",
    )
    options = [*SMALL, "--ckpt_dir", trained / "models"]
    answers = {}
    for name, folder in (("stored", source), ("converted", tmp_path / "prepared" / "images")):
        bundle(*INFER, *options, "--dataset_dir", folder, "--output_dir", tmp_path / name)
        for row in read_csv(tmp_path / name / "predictions.csv"):
            mask = Image.open(tmp_path / name / f"{row.pop('filename').rsplit('.', 1)[0]}_seg.png")
            number = mask.filename.split("/")[-1].split(" ")[0]
            answers.setdefault(number, []).append((row, np.asarray(mask).tobytes(), mask.size))
    assert len(answers) == 3
    for found in answers.values():
        assert len(found) == 10 and all(one == found[0] for one in found)
