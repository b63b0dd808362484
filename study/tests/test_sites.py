"""The figures of a site that weights have not seen."""

import numpy as np
import pandas
import pytest

from study.sites import components, dice_at, figures

RULE = {"mask_threshold": 0.5, "smallest_fraction": 0.02}


def test_parts_are_told_apart_with_what_they_share_with_the_true_mask():
    probability = np.zeros((20, 20))
    probability[2:6, 2:6], probability[10:16, 10:16], probability[0, 19] = 0.6, 0.9, 1.0  # the last is too small
    truth = np.zeros((20, 20), bool)
    truth[10:16, 10:13] = True
    found = components(probability, truth, RULE)
    assert found == pytest.approx(np.array([[0.9, 36, 18], [0.6, 16, 0]]))
    assert dice_at([found], np.array([18]), 0.0) == pytest.approx(2 * 18 / (52 + 18))
    assert dice_at([found], np.array([18]), 0.7) == pytest.approx(2 * 18 / (36 + 18))
    assert dice_at([found], np.array([18]), 0.95) == 0
    assert len(components(np.zeros((20, 20)), truth, RULE)) == 0


def test_missed_lesions_are_counted_where_the_normals_have_their_share_of_masks():
    scores = [0.9, 0.8, 0.55, *np.linspace(0, 0.9, 10)]  # three lesions, ten normals
    parts = [np.array([[score, 10, 10]]) for score in scores]
    table = pandas.DataFrame({"true_area": [10] * 3 + [0] * 10, "group": range(13)})
    table["true_class"] = ["benign", "malignant", "benign"] + ["normal"] * 10
    table["p_normal"], table["p_benign"], table["p_malignant"] = 0.0, 0.6, 0.4
    table.loc[1, ["p_benign", "p_malignant"]] = 0.2, 0.8
    found = figures(table, parts, 0.85)
    assert found["missed_rate"] == pytest.approx(2 / 3) and found["lesion_dice"] == pytest.approx(1 / 3)
    assert found["false_mask_rate"] == pytest.approx(0.1)
    assert found["missed_at_30_false"] == pytest.approx(1 / 3)  # masks from 0.7 on: three of the ten normals
    assert found["malignant_benign"] == 1 and found["accuracy"] == pytest.approx(3 / 13)
    assert "false_mask_rate" not in figures(table[:3], parts[:3], 0.85)
