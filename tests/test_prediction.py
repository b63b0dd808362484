"""From scores to class, flags and mask."""

import pytest
import torch

from breast_ultrasound.transforms import ClassResultd, Disagreementd, LesionMaskd
from conftest import CLASS_NAMES

LOGITS = torch.tensor([0.0, 2.0, 1.0])


def test_without_calibration_the_probabilities_are_the_softmax():
    item = ClassResultd(CLASS_NAMES)({"class_logits": LOGITS, "other": 1})
    assert torch.allclose(item["class_probs"], torch.softmax(LOGITS, 0)) and item["other"] == 1
    assert item["result"]["class"] == "benign" and set(item["result"]) == {"class", "classification"}


def test_a_calibration_tempers_and_flags():
    calibration = {"temperature": 2.0, "malignancy_threshold": 0.3, "unsure_below": 0.51}
    item = ClassResultd(CLASS_NAMES, calibration)({"class_logits": LOGITS})
    expected = torch.softmax(LOGITS / 2, 0)  # 0.186, 0.506, 0.307
    assert torch.allclose(item["class_probs"], expected)
    assert item["result"]["suspicious"] is True and item["result"]["unsure"] is True
    calm = {"temperature": 1.0, "malignancy_threshold": 0.3, "unsure_below": 0.51}
    item = ClassResultd(CLASS_NAMES, calm)({"class_logits": LOGITS})  # 0.090, 0.665, 0.245
    assert item["result"]["suspicious"] is False and item["result"]["unsure"] is False


def mask_of(lesion, **options):
    lesion = torch.as_tensor(lesion, dtype=torch.float)
    return LesionMaskd(**options)({"pred": lesion[None]})["pred"]


def test_the_mask_begins_at_the_threshold():
    lesion = [[0.2, 0.4], [0.5, 0.9]]
    assert mask_of(lesion).tolist() == [[[0, 0], [1, 1]]] and mask_of(lesion).dtype == torch.uint8
    assert mask_of(lesion, threshold=0.4).tolist() == [[[0, 1], [1, 1]]]


def test_small_parts_are_erased_and_corners_touch():
    lesion = torch.zeros(10, 20)
    lesion[0, :4] = 1
    lesion[1, 4] = 1  # touches the four at a corner: five pixels, 2.5 %
    lesion[6:9, 10:13] = 1  # nine pixels, 4.5 %
    assert int(mask_of(lesion, smallest_fraction=0.02).sum()) == 14
    kept = mask_of(lesion, smallest_fraction=0.03)
    assert int(kept.sum()) == 9 and kept[0, 6:9, 10:13].all()
    assert int(mask_of(lesion, smallest_fraction=0.05).sum()) == 0


def test_doubtful_parts_are_erased_by_their_mean():
    lesion = torch.zeros(4, 12)
    lesion[:, 1:3] = 0.5
    lesion[1, 1] = 0.9  # mean 0.55
    lesion[:, 6:9] = 0.7
    assert int(mask_of(lesion, component_threshold=0.54).sum()) == 8 + 12
    kept = mask_of(lesion, component_threshold=0.56)
    assert int(kept.sum()) == 12 and kept[0, :, 6:9].all()
    assert int(mask_of(lesion, component_threshold=0.8).sum()) == 0


@pytest.mark.parametrize("component_threshold", [0, 0.6, 0.99])
def test_the_best_part_that_is_large_enough_is_told_whatever_is_erased(component_threshold):
    lesion = torch.zeros(10, 20)
    lesion[0, :4], lesion[5:9, 4:9], lesion[5:9, 12:17] = 0.95, 0.8, 0.6
    options = {"threshold": 0.3, "smallest_fraction": 0.05, "component_threshold": component_threshold}
    found = LesionMaskd(**options)({"pred": lesion[None]})
    assert found["component_probability"] == pytest.approx(0.8)  # four pixels are too few
    assert bool(found["pred"].any()) == (component_threshold <= 0.8)
    assert LesionMaskd(**options)({"pred": lesion[None] / 4})["component_probability"] == 0


@pytest.mark.parametrize(
    "found, area, suspicious, reason",
    [
        ("normal", 0, False, ""),
        ("normal", 3, False, "normal with a mask"),
        ("benign", 3, True, ""),
        ("benign", 0, False, "benign without a mask"),
        ("normal", 0, True, "suspicious without a mask"),
    ],
)
def test_mask_and_class_that_contradict_each_other_are_told_and_neither_overrules(found, area, suspicious, reason):
    mask = torch.zeros(1, 4, 5)
    mask[0, 0, :area] = 1
    item = {"pred": mask, "result": {"class": found, "suspicious": suspicious}}
    answer = Disagreementd(CLASS_NAMES)(item)
    assert answer["result"] == {"class": found, "suspicious": suspicious, "disagreement": reason}
    assert torch.equal(answer["pred"], mask) and "disagreement" not in item["result"]
    assert Disagreementd(["a", "normal tissue"])(item)["result"]["disagreement"] == ""


def test_classes_are_known_by_their_names_and_not_by_their_numbers(caplog):
    caplog.set_level("INFO")
    mirrored = CLASS_NAMES[::-1]
    calibration = {"temperature": 1.0, "malignancy_threshold": 0.2, "unsure_below": 0.5}
    result = ClassResultd(mirrored, calibration)({"class_logits": LOGITS.flip(0)})["result"]
    assert result["suspicious"] is True and result["class"] == "benign"
    assert not caplog.text
    others = ("cyst", "fibroadenoma", "carcinoma")
    assert "suspicious" not in ClassResultd(others, calibration)({"class_logits": LOGITS})["result"]
    assert "no class is called malignant" in caplog.text
