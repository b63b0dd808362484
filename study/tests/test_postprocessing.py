"""The search of the operating point and the simulated reader see what the bundle's own evaluation sees."""

import json
import shutil

import pytest
from tools.cli import run_bundle

from breast_ultrasound.files import read_csv
from study.postprocessing import COMBINATIONS, CURVE, choose_postprocessing, operating_points
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
    (own,) = [row for row in rows if float(row["component_threshold"]) == 0.6]
    assert same(own, metrics) and len({row["dice_all_images"] for row in rows}) > 1


def test_the_row_of_a_site_has_the_metrics_of_an_evaluation_and_replaces_itself(evaluated, tmp_path):
    options, metrics = evaluated
    for _ in range(2):
        score_site(options["ckpt_dir"], options["dataset_dir"], "small", split="testing", output=tmp_path / "sites.csv")
    (row,) = read_csv(tmp_path / "sites.csv")
    for name in ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy"):
        assert float(row[name]) == pytest.approx(metrics[name], abs=1e-3), name


def test_the_search_tries_every_combination_on_every_fold(evaluated, prepared, tmp_path):
    options, metrics = evaluated
    folds = tmp_path / "folds"
    shutil.copytree(prepared, folds)
    for number in (0, 1):
        shutil.copy(prepared / "datalist.json", folds / f"datalist_fold_{number}.json")
        shutil.copytree(options["ckpt_dir"], tmp_path / "cross_validation" / f"fold_{number}")
    (tmp_path / "none.json").write_text('{"testing": []}')
    output = tmp_path / "search.csv"
    choose_postprocessing(folds, tmp_path / "cross_validation", tmp_path / "none.json", output)
    rows = read_csv(output)
    settings = [
        tuple(float(row[n]) for n in ("mask_threshold", "smallest_fraction", "component_threshold")) for row in rows
    ]
    assert sorted(settings) == sorted(COMBINATIONS)
    assert same(rows[settings.index((0.3, 0.002, 0.6))], metrics)
    scores = [float(row["dice_all_images"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert json.loads(output.with_suffix(".json").read_text())["dice_all_images"] == pytest.approx(scores[0])

    # Images of the testing split of the weights that ship are left out
    testing = json.loads((prepared / "datalist.json").read_text(encoding="utf-8"))["testing"]
    (tmp_path / "some.json").write_text(json.dumps({"testing": testing[:1]}))
    choose_postprocessing(folds, tmp_path / "cross_validation", tmp_path / "some.json", output)
    assert float(read_csv(output)[0]["images"]) == 2 * (len(testing) - 1)
    with pytest.raises(ValueError, match="excludes every image of the folds"):
        choose_postprocessing(folds, tmp_path / "cross_validation", prepared / "datalist.json", output)


def test_a_cross_validation_that_is_not_there_is_named(prepared, tmp_path):
    with pytest.raises(ValueError, match="no fold_0; run scripts/cross_validate.py first"):
        choose_postprocessing(prepared, tmp_path, prepared / "datalist.json", tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="none.json: missing; give the one"):
        choose_postprocessing(prepared, tmp_path, tmp_path / "none.json", tmp_path / "x.csv")


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
