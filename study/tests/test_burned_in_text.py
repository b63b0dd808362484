"""Burned-in text measured: differences are those of the answers, and every kind of text has a row."""

import json

import numpy as np
import pytest
from tools.phantoms import screen

from conftest import ROOT, read_csv
from study.burned_in_text import compared, measure_burned_in_text, text_left


def test_differences_are_those_of_the_answers():
    before = np.array([[1, 1, 0.2, 0.8], [2, 1, 0.9, 0.6], [0, 1, 0.1, np.nan], [1, 0, 0.3, 0.4]] * 3)
    after = before.copy()
    after[::4] = [2, 0, 0.6, 0.7]
    rows = {row["measure"]: row for row in compared(before, after, np.arange(12))}
    assert (rows["class changed"]["before"], rows["class changed"]["after"]) == (0, 0.25)
    assert rows["accuracy"]["difference"] == pytest.approx(-0.25) and rows["accuracy"]["low"] < -0.25
    assert rows["mean probability of malignancy"]["difference"] == pytest.approx(0.1)
    assert rows["lesion Dice"]["before"] == pytest.approx(0.6), "an image without a lesion has none"
    assert rows["lesion Dice"]["difference"] == pytest.approx(-0.1 / 3)


def test_every_kind_of_text_has_a_row():
    left = {row["measure"]: row["after"] for row in text_left([screen(number) for number in range(44)])}
    assert left.pop("text seen, remark") == 1 and left.pop("tissue seen") > 0.995
    assert set(left) == {f"text seen, {kind}" for kind in ("name", "date", "settings", "logo", "body mark")}
    assert set(left.values()) == {0}


@pytest.mark.slow
def test_marks_are_erased_on_the_listed_images_alone(tiny_prepared, tmp_path):
    content = json.loads((tiny_prepared / "datalist.json").read_text(encoding="utf-8"))
    for split in content.values():
        for number, item in enumerate(split):
            item |= {"group": item["image"], "burned_in_marks": "text" if number % 2 else ""}
    for folder in ("images", "labels"):
        (tmp_path / folder).symlink_to(tiny_prepared / folder)
    (tmp_path / "datalist.json").write_text(json.dumps(content), encoding="utf-8")
    measure_burned_in_text(tmp_path, tmp_path / "datalist.json", ROOT / "bundle/models", tmp_path / "out.csv")
    rows = [row for row in read_csv(tmp_path / "out.csv") if row["images"].startswith("BUSI")]
    assert {row["number"] for row in rows} == {"9"} and len({row["altered"] for row in rows}) == 3
