"""What the altered images show, and the evaluation of all conditions."""

import numpy as np
import pytest
import torch

from breast_ultrasound.files import read_csv, sha256, write_json
from breast_ultrasound.networks import BasicUNetClassifier
from study import robustness

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(40, 160, (60, 80), dtype=np.uint8)
MASK = np.zeros((60, 80), np.uint8)
MASK[20:40, 30:60] = 255
MASK[20:25, 30:35] = 0  # not a rectangle
BOX = (slice(20, 40), slice(30, 60))
OUTSIDE = np.ones_like(MASK, bool)
OUTSIDE[BOX] = False


def altered(name, image=IMAGE, mask=MASK):
    function, strength = robustness.CONDITIONS[name]
    return function(image, mask, strength, np.random.default_rng(0))


@pytest.mark.parametrize("name", [name for name in robustness.CONDITIONS if not name.startswith("crop")])
def test_size_and_type_stay(name):
    found = altered(name)
    assert found.shape == IMAGE.shape and found.dtype == np.uint8
    if name not in ("unaltered", "marks_erased"):
        assert (found != IMAGE).any()


def test_crops_have_other_proportions_and_keep_the_lesion_and_its_mask():
    shapes = {"crop_0.5": (60, 30), "crop_1": (60, 60), "crop_2": (40, 80)}
    for name, shape in shapes.items():
        image, mask = altered(name)
        assert image.shape == mask.shape == shape
        assert np.count_nonzero(mask) == np.count_nonzero(MASK)
        assert (image[mask > 0] == IMAGE[MASK > 0]).all()
        assert altered(name, mask=np.zeros_like(MASK))[0].shape == shape


def distance(name):
    return np.abs(altered(name).astype(float) - IMAGE).mean()


@pytest.mark.parametrize("kind", ["noise", "blur", "low_resolution", "jpeg"])
def test_three_strengths_alter_more_and_more(kind):
    found = [distance(name) for name in robustness.CONDITIONS if name.rpartition("_")[0] == kind]
    assert len(found) == 3 and found[0] < found[1] < found[2]


def test_gain_multiplies_and_clips():
    assert (altered("gain_2.0") == np.clip(IMAGE * 2.0, 0, 255)).all() and altered("gain_0.5").max() <= 80


def test_noise_is_that_of_the_given_strength():
    grey = np.full((200, 200), 128, np.uint8)
    assert altered("noise_20", grey, np.zeros_like(grey)).std() == pytest.approx(20, rel=0.05)


def test_the_lesion_goes_with_its_bounding_box():
    black = altered("lesion_blacked_out")
    assert not black[BOX].any() and (black[OUTSIDE] == IMAGE[OUTSIDE]).all()
    only = altered("lesion_only")
    assert (only[BOX] == IMAGE[BOX]).all() and not only[OUTSIDE].any()
    filled = altered("background_only")
    assert (filled[OUTSIDE] == IMAGE[OUTSIDE]).all() and (filled[BOX] != IMAGE[BOX]).mean() > 0.9
    for name in ("lesion_blacked_out", "lesion_only", "background_only"):
        assert (altered(name, mask=np.zeros_like(MASK)) == IMAGE).all()  # nothing to take away


def test_thin_bright_marks_are_erased_and_bright_tissue_stays():
    image = np.full((80, 80), 90, np.uint8)
    image[20, 10:40] = 255  # a caliper's line
    image[50:75, 50:75] = 250  # a bright area
    found = altered("marks_erased", image, np.zeros_like(image))
    assert found[20, 10:40].max() < 120 and (found[52:73, 52:73] == 250).all()


@pytest.mark.slow
def test_every_condition_is_evaluated_once_and_the_images_go_again(tiny_prepared, tmp_path):
    torch.manual_seed(0)
    network = BasicUNetClassifier(features=(4, 4, 8, 8, 16, 4), norm=("instance", {"affine": True}))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    conditions = list(robustness.CONDITIONS)
    output = tmp_path / "stress"
    earlier = {"weights_sha256": sha256(tmp_path / "model.pt"), "images": 7}
    for name in conditions[1:-1]:  # as if an earlier run had been interrupted
        write_json(output / name / "metrics.json", earlier)
    write_json(output / conditions[-1] / "metrics.json", {"weights_sha256": "of other weights"})
    options = {"image_size": 64, "features": "[4,4,8,8,16,4]", "downscale_factor": 1}
    robustness.measure_robustness(tiny_prepared, tmp_path, output, tmp_path / "table.csv", **options)
    for name in (conditions[0], conditions[-1]):
        assert {f.name for f in (output / name).iterdir()} == {"metrics.json", "images.csv"}
    rows = {row["condition"]: row for row in read_csv(tmp_path / "table.csv")}
    assert list(rows) == conditions and {row["weights_sha256"] for row in rows.values()} == {earlier["weights_sha256"]}
    assert {name: row["images"] for name, row in rows.items()} == dict.fromkeys(conditions, "7") | dict.fromkeys(
        (conditions[0], conditions[-1]), "6"
    )
    assert rows[conditions[0]]["image_size"] == "64"
