"""Figures of an evaluation against values worked out by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from breast_ultrasound.metrics import (
    ImageMetrics,
    Images,
    boundary_agreement,
    match_parts,
    overlap,
    single_metrics,
    summarize,
)
from conftest import CLASS_NAMES


def images(*table, class_names=CLASS_NAMES):
    """Images from counts of pixels, true class and probabilities."""
    counts, classes, probabilities = zip(*table)
    return Images(tuple(class_names), np.array(classes), np.array(probabilities), np.array(counts))


def test_overlap_counts_predicted_true_common_and_all_pixels():
    pred = torch.tensor([[[0, 1, 1], [0, 1, 0]]])
    label = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]])
    assert overlap(pred, label) == (3, 3, 2, 6)


@pytest.mark.parametrize(
    "counts, dice, iou",
    [
        ((3, 3, 2, 100), 4 / 6, 2 / 4),
        ((5, 5, 5, 100), 1, 1),
        ((0, 4, 0, 100), 0, 0),  # missed
        ((4, 0, 0, 100), 0, 0),  # false mask
        ((0, 0, 0, 100), 1, 1),  # nothing there, nothing found
    ],
)
def test_dice_and_iou_of_one_image(counts, dice, iou):
    (row,) = images((counts, 2, [0.2, 0.5, 0.3])).rows()
    assert (row["dice"], row["iou"]) == pytest.approx((dice, iou))
    assert (row["true_class"], row["predicted_class"]) == ("malignant", "benign")


# Columns: predicted, true and common pixels; true class; p_normal, p_benign, p_malignant
TABLE = [
    ((0, 0, 0, 100), 0, (0.8, 0.1, 0.1)),  # normal, right, no mask: Dice 1
    ((5, 0, 0, 100), 0, (0.2, 0.7, 0.1)),  # normal, taken for benign, false mask: Dice 0
    ((10, 10, 5, 100), 1, (0.1, 0.8, 0.1)),  # benign, right: Dice 1/2, IoU 1/3
    ((10, 10, 10, 100), 1, (0.2, 0.5, 0.3)),  # benign, right: 1, 1
    (
        (30, 10, 2, 100),
        1,
        (0.3, 0.1, 0.6),
    ),  # benign, taken for malignant: 1/10, 1/19; not missed, which begins below 0.1
    ((10, 10, 8, 100), 2, (0.0, 0.2, 0.8)),  # malignant, right: 4/5, 2/3
    ((0, 10, 0, 100), 2, (0.6, 0.3, 0.1)),  # malignant, taken for normal, missed: 0, 0
]


@pytest.fixture
def figures():
    """Summary of the seven images above."""
    return summarize(images(*TABLE))


def test_figures_of_the_mask(figures):
    assert figures["images"] == 7
    assert figures["images_by_class"] == {"normal": 2, "benign": 3, "malignant": 2}
    assert figures["lesion_dice"] == pytest.approx((0.5 + 1 + 0.1 + 0.8 + 0) / 5)
    assert figures["lesion_iou"] == pytest.approx((1 / 3 + 1 + 1 / 19 + 2 / 3 + 0) / 5)
    assert figures["lesion_dice_by_class"] == {
        "normal": None,
        "benign": pytest.approx(1.6 / 3),
        "malignant": pytest.approx(0.4),
    }
    assert figures["dice_all_images"] == pytest.approx((1 + 0 + 0.5 + 1 + 0.1 + 0.8 + 0) / 7)
    assert figures["false_mask_rate"] == pytest.approx(1 / 2)
    assert figures["missed_rate"] == pytest.approx(1 / 5)


def test_figures_of_the_class(figures):
    # Rows true, columns predicted
    assert figures["confusion_matrix"] == [[1, 1, 0], [0, 2, 1], [1, 0, 1]]
    assert figures["accuracy"] == pytest.approx(4 / 7)
    assert figures["by_class"]["normal"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "images": 2}
    assert figures["by_class"]["benign"]["recall"] == pytest.approx(2 / 3)
    assert figures["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    # Pairs of a positive and a negative in the right order, ties as a half:
    # malignant: 0.8 beats all five; 0.1 ties with three (0.1, 0.1, 0.1) and loses to 0.3 and 0.6
    assert figures["auroc_malignant"] == pytest.approx((5 + 1.5) / 10)
    # normal: 0.8 beats five; 0.2 beats 0.1 and 0.0, ties with 0.2, loses to 0.3 and 0.6
    assert figures["auroc_normal"] == pytest.approx((5 + 2.5) / 10)
    # benign: 0.8 beats four; 0.5 beats 0.1, 0.2, 0.3; 0.1 ties with 0.1
    assert figures["auroc_benign"] == pytest.approx((4 + 3 + 0.5) / 12)
    assert figures["auroc_macro"] == pytest.approx((0.65 + 0.75 + 0.625) / 3)
    assert figures["score"] == pytest.approx((figures["lesion_dice"] + figures["macro_f1"]) / 2)


def test_a_figure_that_the_images_cannot_give_is_none():
    normal = summarize(images(((0, 0, 0, 100), 0, (0.9, 0.1, 0.0))))
    assert normal["lesion_dice"] is None and normal["missed_rate"] is None and normal["auroc_macro"] is None
    assert normal["score"] == 1  # Dice of all images stands in, classes that are absent do not count
    lesion = summarize(images(((4, 4, 4, 100), 1, (0.1, 0.9, 0.0))))
    assert lesion["false_mask_rate"] is None


def test_an_image_of_unknown_class_counts_for_the_mask_alone(figures):
    more = summarize(images(*TABLE, ((10, 10, 10, 100), -1, (0.1, 0.8, 0.1))))
    assert more["images"] == 8 and more["lesion_dice"] == pytest.approx((2.4 + 1) / 6)
    for name in ("accuracy", "macro_f1", "auroc_macro", "confusion_matrix", "by_class", "lesion_dice_by_class"):
        assert more[name] == figures[name]


def test_without_any_class_the_score_is_that_of_the_mask():
    unknown = summarize(images(((10, 10, 5, 100), -1, (0.1, 0.8, 0.1))))
    assert unknown["accuracy"] is None and unknown["macro_f1"] is None and unknown["confusion_matrix"] is None
    assert unknown["score"] == unknown["lesion_dice"] == 0.5


def item(name, predicted, true, true_class, probabilities):
    """One decollated item of 4 x 5 pixels, the first pixels of each row as mask."""
    masks = [(torch.arange(20) < pixels).reshape(1, 4, 5).float() for pixels in (predicted, true)]
    image = MetaTensor(torch.zeros(1, 4, 5), meta={"filename_or_obj": f"folder/{name}"})
    probabilities = torch.tensor(probabilities)
    found = {"image": image, "pred": masks[0], "label": masks[1], "true_class": true_class}
    parts = (masks[0][0].int().numpy(), [predicted / 10] * (predicted > 0))
    return found | {
        "class_probs": probabilities,
        "erased": False,
        "component_probability": predicted / 10,
        "parts": parts,
    }


def test_the_metric_writes_figures_and_one_row_an_image_by_name(tmp_path, caplog):
    caplog.set_level("INFO")
    metric = ImageMetrics(CLASS_NAMES, str(tmp_path), {"split": "testing"})
    metric.update([item("b.png", 8, 4, 1, (0.1, 0.7, 0.2))])
    metric.update([item("a.png", 0, 0, 0, (0.6, 0.2, 0.2))])
    values = metric.compute()
    assert metric.compute() == values and caplog.text.count("2 images: metrics.json") == 1  # as ignite asks twice
    assert values["lesion_dice"] == pytest.approx(2 * 4 / 12) and values["images"] == 2
    assert values["auroc_macro"] != values["auroc_macro"]  # no malignant image: NaN in the engine's state ...
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["auroc_macro"] is None and figures["split"] == "testing"  # ... and null in the file
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == ["a.png", "b.png"]
    assert (rows[1]["predicted_area_px"], rows[1]["true_area_px"], rows[1]["overlap_px"]) == ("8", "4", "4")
    assert [row["component_probability"] for row in rows] == ["0.000000", "0.800000"]
    images = Images.from_rows(rows, CLASS_NAMES)
    assert images.take(np.array([1])).component.tolist() == [0.8] and images.rows()[0]["component_probability"] == 0
    shown = [[row[key] for key in ("lesions", "lesions_found", "false_parts", "parts", "hd95", "nsd")] for row in rows]
    assert shown[0] == ["0", "0", "0", "", "", ""]
    assert shown[1][:4] == ["1", "1", "0", "0.800000:1"] and float(shown[1][4]) > 0
    assert images.take(np.array([1])).parts.tolist() == ["0.800000:1"] and images.lesions.tolist()[1] == [1, 1, 0]
    for key in ("hd95", "nsd", "lesion_sensitivity", "false_parts_per_image"):
        assert figures[key] == pytest.approx(summarize(images)[key], abs=1e-5), key
    assert figures["lesion_sensitivity"] == 1 and np.isnan(images.boundary[0]).all()
    for row in rows:  # as an older version wrote it
        for key in ("component_probability", "lesions", "lesions_found", "false_parts", "parts", "hd95", "nsd"):
            del row[key]
    old = Images.from_rows(rows, CLASS_NAMES)
    assert old.component is None and list(old.take(np.array([1])).rows()[0]) == list(rows[0])[1:]
    assert sorted(f.name for f in Path(tmp_path).iterdir()) == ["images.csv", "metrics.json"]


def blobs(*boxes, shape=(60, 80)):
    """Masks of boxes (top, bottom, left, right), numbered from 1 on."""
    numbered = np.zeros(shape, np.int32)
    for k, (top, bottom, left, right) in enumerate(boxes, 1):
        numbered[top:bottom, left:right] = k
    return numbered


def test_boundaries_agree_as_monai_says():
    pred, label = (torch.from_numpy(blobs(box) > 0) for box in ((10, 40, 10, 50), (12, 45, 9, 48)))
    pred[30:32, 60:64] = True
    found = boundary_agreement(pred, label)
    hd95 = compute_hausdorff_distance(pred[None, None], label[None, None], True, percentile=95)
    nsd = compute_surface_dice(
        pred[None, None], label[None, None], [0.02 * 100], True
    )  # the diagonal of 60 x 80 is 100
    assert found == pytest.approx((float(hd95) / 100, float(nsd))) and 0 < found[1] < 1
    assert boundary_agreement(label, label) == (0, 1)
    assert boundary_agreement(torch.zeros_like(label), label) == (1, 0)
    assert np.isnan(boundary_agreement(pred, torch.zeros_like(label))).all()


def test_each_part_finds_the_lesion_that_it_covers():
    lesions = blobs((5, 15, 5, 15), (30, 50, 40, 70), (58, 60, 0, 2))
    # one on the first, two on the second, one beside all, one that hardly touches the second
    parts = blobs((6, 16, 5, 15), (30, 48, 40, 52), (32, 50, 55, 70), (0, 4, 60, 70), (48, 56, 69, 79))
    assert match_parts(parts, lesions) == (3, [1, 2, 2, 0, 0])
    assert match_parts(blobs(), lesions) == (3, []) and match_parts(parts, blobs()) == (0, [0] * 5)
    joined = lesions.copy()
    joined[15:31, 14:41] = 1  # corners that touch make one lesion
    assert match_parts(blobs(), joined)[0] == 2


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no image to evaluate; this part of the datalist is empty"):
        ImageMetrics(CLASS_NAMES).compute()


@pytest.mark.parametrize("names", [("fluid", "solid"), ("a", "b", "c", "d", "e")])
def test_classes_of_any_name_and_number_have_their_metrics(names):
    size = len(names)
    table = [((10, 10, 5, 100), k % size, np.eye(size)[(k + (k == 7)) % size]) for k in range(4 * size)]
    found = summarize(images(*table, class_names=names))
    assert found["images_by_class"] == dict.fromkeys(names, 4)
    assert found["accuracy"] == pytest.approx(1 - 1 / (4 * size)) and 0.8 < found["auroc_macro"] < 1
    assert set(found["by_class"]) == set(names) and found["lesion_dice_by_class"][names[-1]] == 0.5
    assert "auroc_benign_malignant" not in single_metrics(images(*table, class_names=names))
    with pytest.raises(ValueError, match="true class odd: the classes are "):
        Images.from_rows([{"true_class": "odd"}], names)
