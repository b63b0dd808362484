"""Sizes of predicted against drawn lesions: exact on drawn cases."""

import numpy as np
import pytest

from study import hospital


def box(top, left, height, width):
    mask = np.zeros((100, 120), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_agreement_is_that_of_bland_and_altman_over_the_lesions_that_were_found():
    true = box(10, 10, 40, 30)
    rows = [hospital.sizes_of(true, box(10, 10, 40 + more, 30)) for more in (2, -2, 6)]
    rows.append(hospital.sizes_of(true, box(80, 80, 5, 5)))  # elsewhere
    rows.append(hospital.sizes_of(true, box(0, 0, 0, 0)))
    found = hospital.agreement(rows)
    assert (found["lesions"], found["found"]) == (5, 3)
    height = found["height_px"]
    assert height["bias"] == pytest.approx(2) and height["standard_deviation"] == pytest.approx(4)
    assert height["limits"] == pytest.approx([2 - 7.84, 2 + 7.84]) and found["width_px"]["bias"] == 0
    assert found["height_percent"]["bias"] == pytest.approx(5)
    assert found["taller_than_wide"] == {"both": 3, "neither": 0, "true_alone": 0, "predicted_alone": 0}


def test_the_reader_is_within_a_grey_level_of_dcmtk_but_where_the_label_is_wrong():
    from breast_ultrasound.files import read_csv

    rows = {
        row["encoding"]: row for row in read_csv(hospital.Path(__file__).parents[1] / "results/dicom_encodings.csv")
    }
    assert set(rows) == set(hospital.ENCODINGS)
    for name, row in rows.items():
        assert float(row["mean_from_picture"]) < 1, name
        if row["mean_from_dcmtk"] and "labelled" not in name:
            assert float(row["mean_from_dcmtk"]) < 1, name
