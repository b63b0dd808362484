"""From scores to class, flags and mask."""

import pytest
import torch
from conftest import CLASS_NAMES

from scripts.files import append_csv
from scripts.handlers import PredictionTable
from scripts.transforms import ClassResultd, LesionMaskd

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


def mask_of(lesion, p_normal=0.0, **options):
    lesion = torch.as_tensor(lesion, dtype=torch.float)
    item = {"pred": lesion[None], "class_probs": torch.tensor([p_normal, 1 - p_normal, 0.0])}
    return LesionMaskd(**{"class_names": CLASS_NAMES, **options})(item)["pred"]


def test_the_mask_begins_at_the_threshold():
    lesion = [[0.2, 0.4], [0.5, 0.9]]
    assert mask_of(lesion).tolist() == [[[0, 0], [1, 1]]] and mask_of(lesion).dtype == torch.uint8
    assert mask_of(lesion, threshold=0.4).tolist() == [[[0, 1], [1, 1]]]


def test_small_parts_are_erased_and_corners_touch():
    lesion = torch.zeros(10, 20)
    lesion[0, :4] = 1
    lesion[1, 4] = 1  # touches the four at a corner: five pixels, 2.5 %
    lesion[6:9, 10:13] = 1  # nine pixels, 4.5 %
    assert int(mask_of(lesion, smallest_share=0.02).sum()) == 14
    kept = mask_of(lesion, smallest_share=0.03)
    assert int(kept.sum()) == 9 and kept[0, 6:9, 10:13].all()
    assert int(mask_of(lesion, smallest_share=0.05).sum()) == 0


@pytest.mark.parametrize("p_normal, gate, kept", [(0.6, 1.0, 4), (0.6, 0.5, 0), (0.4, 0.5, 4), (1.0, 1.0, 4)])
def test_the_class_normal_empties_the_mask_above_the_gate(p_normal, gate, kept):
    assert int(mask_of(torch.ones(2, 2), p_normal, normal_gate=gate).sum()) == kept


def test_classes_are_known_by_their_names_and_not_by_their_numbers(caplog):
    caplog.set_level("INFO")
    mirrored = CLASS_NAMES[::-1]
    calibration = {"temperature": 1.0, "malignancy_threshold": 0.2, "unsure_below": 0.5}
    result = ClassResultd(mirrored, calibration)({"class_logits": LOGITS.flip(0)})["result"]
    assert result["suspicious"] is True and result["class"] == "benign"
    assert int(mask_of(torch.ones(2, 2), 0.9, normal_gate=0.5, class_names=mirrored).sum()) == 4
    assert not caplog.text
    others = ("cyst", "fibroadenoma", "carcinoma")
    assert "suspicious" not in ClassResultd(others, calibration)({"class_logits": LOGITS})["result"]
    assert int(mask_of(torch.ones(2, 2), 0.9, normal_gate=0.5, class_names=others).sum()) == 4
    assert "no class is called malignant" in caplog.text and "no class is called normal" in caplog.text


def test_an_interrupted_run_whose_pictures_are_all_done_only_joins_them(tmp_path):
    table = PredictionTable(tmp_path, CLASS_NAMES, {"weights": "1"})
    for rank, names in ((0, "ca"), (1, "ba")):  # a was predicted twice
        rows = [{"filename": name, "p_normal": 0.25} for name in names]
        append_csv(tmp_path / f".predictions_{table.tag}_{rank}.csv", rows, table.columns)
    assert table.done() == set()  # a run that is not to be gone on with
    assert PredictionTable(tmp_path, CLASS_NAMES, {"weights": "2"}, resume=True).done() == set()
    resumed = PredictionTable(tmp_path, CLASS_NAMES, {"weights": "1"}, resume=True)
    assert resumed.done() == {"a", "b", "c"}
    resumed.write_without_pictures()
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["filename", "a", "b", "c"] and ",0.250000," in lines[1]
    assert [f.name for f in tmp_path.iterdir()] == ["predictions.csv"]
