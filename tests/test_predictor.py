"""Predictions in Python: the same as those of the command, for arrays of any kind, lists and threads."""

import io
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from breast_ultrasound.files import read_csv
from breast_ultrasound.images import open_image, to_grey
from breast_ultrasound.predictor import Predictor
from conftest import ROOT


@pytest.fixture(scope="module")
def predictor(small_bundle):
    return Predictor(small_bundle)


@pytest.fixture(scope="module")
def images(prepared, tmp_path_factory):
    """Some of the phantoms, and three of odd shapes."""
    folder = tmp_path_factory.mktemp("images")
    files = sorted((prepared / "images").glob("*.png"))[::5]
    for file in files:
        shutil.copy(file, folder)
    grey = np.asarray(Image.open(files[0]).convert("L"))
    for rows, columns in ((97, 131), (40, 1024), (20, 20)):
        Image.fromarray(np.resize(grey, (rows, columns))).save(folder / f"{rows}x{columns}.png")
    return sorted(folder.glob("*.png"))


def same(one, other):
    assert one.class_name == other.class_name and one.class_probabilities == other.class_probabilities
    assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(one.lesion_probability, other.lesion_probability)


@pytest.mark.slow
def test_predictions_are_those_of_the_command(predictor, small_bundle, images, tmp_path):
    options = ["--dataset_dir", images[0].parent, "--output_dir", tmp_path, "--batch_size", "1"]
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *map(str, options)]
    subprocess.run([sys.executable, *command], cwd=small_bundle, check=True, capture_output=True)
    rows = {row["filename"]: row for row in read_csv(tmp_path / "predictions.csv")}
    assert len(rows) == len(images)
    found_lesions = 0
    for file, found in zip(images, predictor([str(file) for file in images])):
        row = rows[file.name]
        assert row["class"] == found.class_name and row["disagreement"] == found.disagreement
        for name, probability in found.class_probabilities.items():
            assert probability == pytest.approx(float(row[f"p_{name}"]), abs=1e-4)
        mask = np.asarray(Image.open(tmp_path / f"{file.stem}_seg.png")) > 0
        assert found.mask.dtype == bool and np.array_equal(found.mask, mask)
        assert found.lesion_probability.shape == mask.shape and found.lesion_probability.dtype == np.float32
        assert found.lesion_probability[found.mask].min(initial=1) >= 0.3
        assert found.suspicious is None and found.unsure is None  # these weights have no calibration
        found_lesions += bool(mask.any())
    assert found_lesions


def test_arrays_of_any_kind_give_what_their_file_gives(predictor, images):
    grey = to_grey(open_image(images[-1]))
    assert grey.max() > 200
    expected = predictor(images[-1])
    deep = grey * (65535 / grey.max())
    colour = np.stack([grey] * 3, axis=-1)
    alpha = np.dstack([colour, np.full(grey.shape, 9, np.uint8)])
    for array in (grey, grey[::-1][::-1], grey[..., None], colour, alpha, grey.astype(np.int64), grey.astype(float)):
        same(predictor(array), expected)
    same(predictor(Image.fromarray(grey)), expected)
    stretched = predictor((grey * (255 / grey.max())).round().astype(np.uint8))
    for array in (deep.astype(np.uint16), deep.astype(np.float32) / 65535, np.dstack([deep / 65535] * 3)):
        found = predictor(array).class_probabilities
        assert found == pytest.approx(stretched.class_probabilities, abs=0.01)


def test_threads_share_a_predictor(predictor, images):
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(predictor, images * 3), predictor(images * 3)):
            same(found, expected)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((3, 40, 50)), "shape .3, 40, 50.; pass .rows, columns."),
        (np.zeros(40), "shape"),
        (np.full((40, 50), np.nan), "NaN"),
        (np.zeros((40, 0), np.uint8), "no pixel"),
        (np.zeros((40, 0)), "no pixel"),
        (np.full((40, 50), "a"), "numbers"),
        (np.full((40, 50), 7), "one grey alone"),
        (Image.new("RGB", (4, 5), "red"), "one grey alone"),
        (np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (20_000, 20_000), (0, 0)), "megapixels"),
    ],
)
def test_arrays_that_are_no_image_are_refused(predictor, array, message):
    with pytest.raises(ValueError, match=message):
        predictor(array)


def test_files_and_options_that_do_not_fit_are_named(predictor, small_bundle, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="a.png: not PNG"):
        predictor([tmp_path / "a.png"])
    with pytest.raises(FileNotFoundError, match="b.png"):
        predictor(tmp_path / "b.png")
    with pytest.raises(ValueError, match="mask_treshold: no id"):
        Predictor(small_bundle, mask_treshold=0.5)
    with pytest.raises(FileNotFoundError, match="model.pt: missing"):
        Predictor(small_bundle, ckpt_dir=str(tmp_path))


@pytest.mark.parametrize(
    "name, value",
    [
        ("mask_threshold", float("nan")),
        ("mask_threshold", 2),
        ("component_threshold", 5),
        ("smallest_fraction", 1.5),
        ("amp", "yes"),
        ("device", "quantum"),
    ],
)
def test_values_are_checked_as_those_of_the_command(name, value, small_bundle):
    with pytest.raises(ValueError, match=f"^{name} .*: give "):
        Predictor(small_bundle, **{name: value})


def test_what_is_no_image_is_named_and_tensors_are_images(predictor, small_bundle, images):
    grey = to_grey(open_image(images[0]))
    same(predictor(torch.from_numpy(grey.copy())), predictor(grey))
    line = Predictor(small_bundle, predict_refused=True)(grey[:1])
    assert line.mask.shape == (1, grey.shape[1]) and line.check == "refused"
    with pytest.raises(ValueError, match="refused, .* x 1 pixels, too small; predict_refused=True"):
        predictor(grey[:1])
    for wrong, told in ((io.BytesIO(b"x"), "a BytesIO; pass a file"), (np.ma.masked_equal(grey, 0), "masked array")):
        with pytest.raises(ValueError, match=told):
            predictor(wrong)
    with pytest.raises(ValueError, match="mask_threshold nan: give a number between 0 and 1"):
        predictor.mask(np.zeros((3, 3), np.float32), mask_threshold=float("nan"))


@pytest.mark.parametrize("name", ["weights #2", "(weights)", "@weights, all"])
def test_weights_lie_in_folders_of_any_name(name, small_bundle, images, predictor, tmp_path):
    bundle = shutil.copytree(small_bundle, tmp_path / name)
    same(Predictor(bundle)(images[0]), predictor(images[0]))
    same(Predictor(small_bundle, ckpt_dir=bundle / "models")(images[0]), predictor(images[0]))


def test_options_are_those_of_inference(small_bundle, images):
    everything = Predictor(small_bundle, mask_threshold=0.01, smallest_fraction=0, component_threshold=0)(images[0])
    assert np.array_equal(everything.mask, everything.lesion_probability >= 0.01)


def test_a_map_becomes_the_mask_at_any_knobs_as_a_predictor_with_these_knobs_makes_it(predictor, small_bundle, images):
    different = 0
    for number, file in enumerate(images):
        found = predictor(file)
        assert np.array_equal(predictor.mask(found.lesion_probability), found.mask)
        knobs = [{"mask_threshold": 0.6}, {"smallest_fraction": 0.2}, {"component_threshold": 0.9}][number % 3]
        mask = predictor.mask(found.lesion_probability, **knobs)
        assert mask.dtype == bool and np.array_equal(mask, Predictor(small_bundle, **knobs)(file).mask)
        different += not np.array_equal(mask, found.mask)
    assert different


def test_uncertainty_is_the_same_for_a_file_and_its_array(predictor, images):
    values = [predictor.uncertainty(file) for file in images]
    assert len(set(values)) > 3 and all(0 <= value <= 1 for value in values)
    assert predictor.uncertainty(to_grey(open_image(images[0]))) == values[0]


def test_what_was_computed_on_the_padded_image_comes_back_to_the_images_pixels(predictor):
    grey = np.full((97, 131), 40, np.uint8)
    grey[10:30, 80:120] = 240  # above, on the right
    item = predictor.prepared(grey)
    back = predictor.restored(item["image"].as_tensor(), item)
    assert back.shape == grey.shape and back.dtype == np.float32
    assert np.corrcoef(back.ravel(), grey.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_the_lines_of_the_model_card_run_from_the_package(images, tmp_path):
    command = ["scripts/package_bundle.py", "--output_dir", str(tmp_path)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.zip")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (bundle,) = (tmp_path / "unpacked").iterdir()
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"^```python\n(.*?Predictor.*?)^```$", card, re.MULTILINE | re.DOTALL).group(1)
    shutil.copy(next(f for f in images if "malignant" in f.name), bundle / "image.png")
    done = subprocess.run([sys.executable, "-c", lines], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(normal|benign|malignant) \{.*\} \d+", done.stdout)
