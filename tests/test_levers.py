"""The levers of the recipe: each is trained and scored at home and outside."""

import pytest
from conftest import SMALL
from study import levers

from scripts.files import read_csv, write_json


def test_each_lever_and_seed_is_trained_once_and_scored_twice(tmp_path, monkeypatch):
    done = []

    def run_bundle(title, run_id, configs, **ids):
        done.append(title)
        if run_id == "evaluating":
            write_json(ids["output_dir"] / "metrics.json", dict.fromkeys(levers.METRICS, 0.5) | {"pictures": 3})

    monkeypatch.setattr(levers, "run_bundle", run_bundle)
    for titles in (3 * 2 * len(levers.LEVERS), 0):  # what is done is not done again
        levers.measure_levers(tmp_path / "a", tmp_path / "b", tmp_path / "runs", tmp_path / "table.csv")
        assert len(done) == len(set(done)) == titles
        rows = read_csv(tmp_path / "table.csv")
        found = {(row["lever"], row["seed"], row["tested_on"]) for row in rows}
        assert len(rows) == len(found) == 4 * len(levers.LEVERS)
        done.clear()


@pytest.mark.slow
def test_a_lever_trains_and_evaluates(prepared, tmp_path):
    names = ("squeezed to a square",)
    options = {"seeds": (0,), "epochs": 1, **SMALL}
    levers.measure_levers(prepared, prepared, tmp_path / "runs", tmp_path / "table.csv", names, **options)
    rows = read_csv(tmp_path / "table.csv")
    assert [row["lever"] for row in rows] == [name for name in names for _ in range(2)]
    assert all(0 <= float(row["lesion_dice"]) <= 1 for row in rows)
