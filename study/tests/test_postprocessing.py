"""The search of the operating point and the simulated reader see what the bundle's own evaluation sees."""

import json

import pytest
from tools.cli import run_bundle

from breast_ultrasound.files import read_csv
from study.postprocessing import COMBINATIONS, CURVE, NAMES, choose_postprocessing, fold_options, operating_points
from study.simulated_annotation import BOX_ERRORS, simulate_annotation
from study.sites import score_site

pytestmark = pytest.mark.slow
METRICS = ("dice_all_images", "lesion_dice", "missed_rate", "false_mask_rate")


@pytest.fixture(scope="module")
def evaluated(prepared, small_bundle, tmp_path_factory):
    """The bundle's evaluation of small weights: its options, and its metrics."""
    output = tmp_path_factory.mktemp("evaluation")
    options = {"dataset_dir": str(prepared), "ckpt_dir": str(small_bundle / "models")}
    run_bundle("evaluation", "evaluating", ["train", "evaluate"], **options, output_dir=output)
    return options, json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def same(row, metrics):
    return [float(row[name]) for name in METRICS] == pytest.approx([metrics[name] for name in METRICS], abs=1e-4)


def test_an_operating_point_at_the_bundles_values_has_its_metrics(evaluated, tmp_path):
    options, metrics = evaluated
    operating_points({"phantoms": [options]}, tmp_path / "points.csv")
    rows = read_csv(tmp_path / "points.csv")
    assert [float(row["component_threshold"]) for row in rows] == list(CURVE)
    (own,) = [row for row in rows if float(row["component_threshold"]) == 0.65]
    assert same(own, metrics) and len({row["dice_all_images"] for row in rows}) > 1


def test_the_row_of_a_site_has_the_metrics_of_an_evaluation_and_replaces_itself(evaluated, tmp_path):
    options, metrics = evaluated
    for _ in range(2):
        score_site(options["ckpt_dir"], options["dataset_dir"], "small", split="testing", output=tmp_path / "sites.csv")
    (row,) = read_csv(tmp_path / "sites.csv")
    for name in ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy"):
        assert float(row[name]) == pytest.approx(metrics[name], abs=1e-3), name


def test_the_search_tries_every_combination_at_every_hospital(evaluated, tmp_path, monkeypatch):
    options, metrics = evaluated
    output = tmp_path / "search.csv"
    choose_postprocessing({"one": options, "another": options}, output)
    rows = read_csv(output)
    settings = [tuple(float(row[name]) for name in NAMES) for row in rows]
    assert sorted(settings) == sorted(COMBINATIONS)
    assert same(rows[settings.index((0.3, 0.002, 0.65))], metrics)
    assert {float(row["images"]) for row in rows} == {2 * metrics["images"]}
    # First what misses few lesions, and of these the fewest false masks
    limit = sorted(float(row["missed_rate"]) for row in rows)[len(rows) // 2]
    monkeypatch.setattr("study.postprocessing.MOST_MISSED", limit)
    choose_postprocessing({"one": options}, output)
    missed, false, dice = ([float(row[name]) for row in read_csv(output)] for name in METRICS[2:] + METRICS[1:2])
    order = list(zip([value > limit for value in missed], false, [-value for value in dice]))
    assert order == sorted(order) and missed[0] <= limit


def test_a_cross_validation_that_is_not_there_is_named(prepared, tmp_path):
    with pytest.raises(ValueError, match="no fold_0; run scripts/cross_validate.py first"):
        fold_options(prepared, tmp_path)
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(FileNotFoundError, match="model.pt: missing; let scripts/cross_validate.py finish"):
        fold_options(prepared, tmp_path)


def test_the_simulated_readers_suggestions_are_the_bundles_masks(evaluated, prepared, tmp_path):
    options, metrics = evaluated
    simulate_annotation(prepared, (prepared / options["ckpt_dir"]), tmp_path / "tools.csv")
    rows = {(row["tool"], row["box_error"]): float(row["dice"]) for row in read_csv(tmp_path / "tools.csv")}
    assert rows["suggestion", ""] == pytest.approx(metrics["lesion_dice"], abs=1e-4)
    assert rows["suggestion, slider", ""] >= rows["suggestion", ""]
    assert all(0 < rows[tool, ""] <= 1 for tool in ("1 click", "2 clicks"))
    for error in (f"{error:.6f}" for error in BOX_ERRORS):
        assert rows["box, slider", error] >= rows["box", error] > 0.5 and rows["ellipse", error] > 0.5
    assert rows["box 50 % too large", ""] > rows["ellipse 50 % too large", ""] + 0.1
