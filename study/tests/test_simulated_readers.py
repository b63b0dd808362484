"""Readers with known errors: what is made of their labels is nearer to the truth than the worst of them."""

import subprocess

import pytest

from breast_ultrasound.files import read_csv
from conftest import ROOT

pytestmark = pytest.mark.slow


def test_majority_and_staple_mend_a_reader_who_misses_lesions(label_venv, prepared, tmp_path):
    command = [label_venv / "bin/python", "study/simulated_readers.py", "--dataset_dir", prepared]
    command += ["--split", "training", "--output", tmp_path / "readers.csv"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {(row["readers"], row["label"]): row for row in read_csv(tmp_path / "readers.csv")}
    of = "wide, tight, hasty"
    dice = {label: float(row["dice"]) for (readers, label), row in rows.items() if readers == of}
    assert min(dice["majority"], dice["STAPLE"]) > dice["hasty"] + 0.05
    assert dice["adjudicator"] == max(dice.values()) and float(rows[of, "adjudicator"]["class_right"]) == 1
    # Of two, the majority is what both drew: no larger than the smaller outline
    assert float(rows["wide, tight", "majority"]["dice"]) == pytest.approx(dice["tight"], abs=0.02)
