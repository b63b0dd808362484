"""Other versions than the pinned ones: what is asked for is installed, and what fails is named."""

import os
import sys
from pathlib import Path

import pytest
from study import tables
from study.versions import Row, try_versions

OWN = "{}.{}".format(*sys.version_info)


def test_versions_of_a_row_go_to_pip_and_the_others_are_left_to_it():
    asked = Row("old", OWN, {"numpy": "1.26.4"}).requirements()
    assert "numpy==1.26.4" in asked and {"monai", "torch", "scikit-learn"} <= set(asked)
    assert Row("pinned", OWN).requirements() == ["-r", "requirements.txt"]


@pytest.mark.slow
def test_a_row_that_cannot_be_installed_or_has_no_interpreter_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for row, message in (
        (Row("impossible", OWN, {"monai": "0"}), "impossible: installation fails .*No matching distribution"),
        (Row("future", "9.9"), "python9.9: not on the PATH"),
    ):
        with pytest.raises(ValueError, match=message):
            try_versions(tmp_path / "environments", tmp_path / "versions.json", (row,))
    assert not list(tmp_path.glob("*/*")) and not (tmp_path / "versions.json").exists()


def test_the_table_shows_how_a_row_ended(monkeypatch):
    works = {"name": "pinned", "date": "2026-01-01", "python": "3.11.7", "monai": "1.6.1", "torch": "2.13.0"}
    works |= {"numpy": "2.4.6", "pytorch-ignite": "0.5.5", "outcome": "works", "error": "", "seconds": 1}
    works["largest_probability_difference"] = 0.0
    fails = {
        "name": "old",
        "date": "2026-01-01",
        "python": "3.8",
        "outcome": "installation fails",
        "error": "no | such",
    }
    monkeypatch.setattr(tables, "results", lambda name: [works, fails | {"largest_probability_difference": None}])
    lines = tables.versions().splitlines()
    assert lines[2] == "| pinned | 3.11.7 | 1.6.1 | 2.13.0 | 2.4.6 | 0.5.5 | works | 0 | 2026-01-01 |"
    assert lines[3] == "| old | 3.8 |  |  |  |  | installation fails: `no / such` |  | 2026-01-01 |"
