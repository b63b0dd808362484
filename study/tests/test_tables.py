"""The tables of the documents are those of the results, and the results those of the weights that ship."""

import json

import pandas
import pytest

from breast_ultrasound.files import sha256
from breast_ultrasound.metrics import Images, images_sha256, summarize
from conftest import CLASS_NAMES, ROOT
from study import BRIEF, EVALUATIONS, EXTERNAL, SIGNATURE, tables

METADATA = json.loads((ROOT / tables.METADATA).read_text(encoding="utf-8"))
RELEASED = ("testing", "bus_bra", "bus_uclm", *EXTERNAL)


def results(name):
    """A file of results/."""
    return json.loads((ROOT / "study/results" / name).read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_results():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in tables.TEXTS}
    for name, text in texts.items():
        assert tables.with_tables(text) == text, f"{name}: run doit -f study/dodo.py tables"
    text = (ROOT / tables.METADATA).read_text(encoding="utf-8")
    assert tables.with_metrics(text) == text
    marks = {mark[1] for mark in tables.MARKED.findall("".join(texts.values()))}
    assert marks == set(tables.TABLES) and "<!-- table results -->" in texts["README.md"]
    with pytest.raises(ValueError, match="no table unheard; there are evidence"):
        tables.with_tables("<!-- table unheard -->\n<!-- end -->")


def test_the_home_figure_is_that_of_the_cross_validation():
    shown, found = METADATA["eval_metrics"], results("evaluations/cross_validation/metrics.json")
    assert shown["evaluation"] == "BUSI, 5-fold cross-validation" and shown["images"] == found["images"]
    for name in tables.METRICS:
        assert shown[name] == pytest.approx(found[name], abs=5.1e-4), name


def test_every_interval_of_the_report_holds_its_value():
    told = []
    for name in EVALUATIONS:
        found = [figure for figure in results("evidence/report.json")[name]["figures"].values() if figure]
        for figure in found:
            if figure["low"] is not None:
                assert figure["low"] <= figure["value"] <= figure["high"] and figure["low"] < figure["high"], name
            assert figure.get("total") is None or figure["value"] == pytest.approx(figure["hits"] / figure["total"])
            assert figure.get("total") is None or figure["low"] is not None  # of 0 of n too
        told += [figure["low"] is not None for figure in found]
    assert sum(told) > 0.8 * len(told)
    for file in ("subgroups", "differences"):
        table = pandas.read_csv(ROOT / f"study/results/evidence/{file}.csv")
        for low in [column for column in table if column.endswith("low")]:
            name = low.removesuffix("_low") if low != "low" else "value"
            told = table[table[low].notna()]
            ends = told[low], told[low[:-3] + "high"]
            assert len(told) and ((ends[0] <= told[name]) & (told[name] <= ends[1])).all(), (file, name)


def test_a_cell_shows_a_rate_with_what_was_counted_and_a_difference_with_its_sign():
    counted = {"value": 0.0, "low": 0.0, "high": 0.218, "hits": 0, "total": 15}
    figures = {"false_mask_rate": counted, "accuracy": counted | {"value": 0.051, "low": 0.02, "high": 0.09}}
    evaluation = {"figures": figures | {"macro_f1": {"value": 1.0, "low": None, "high": None}, "auroc_macro": None}}
    assert tables.interval("false_mask_rate", evaluation) == "0 % (0 of 15; 0 to 22)"
    assert tables.interval("accuracy", evaluation) == "0.051 (0.020 to 0.090)"
    assert tables.interval("macro_f1", evaluation) == "1.000"
    assert tables.interval("auroc_macro", evaluation) == tables.interval("other", evaluation) == ""
    assert tables.signed("accuracy", {"value": 0.05, "low": -0.01, "high": 0.1}) == "+0.050 (-0.010 to +0.100)"
    assert tables.signed("missed_rate", {"value": -0.131, "low": None, "high": None}) == "-13"
    assert tables.signed("missed_rate", None) == ""


def test_a_result_of_other_weights_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    pandas.DataFrame({"condition": ["unaltered"], "weights_sha256": ["0"]}).to_csv(tmp_path / "robustness.csv")
    with pytest.raises(ValueError, match="robustness.csv: of other weights than those that ship; make it again"):
        tables.robustness()


def test_results_name_what_made_them_and_are_of_the_weights_that_ship():
    weights = sha256(ROOT / "bundle/models/model.pt")
    calibration = json.loads((ROOT / "bundle/models/calibration.json").read_text(encoding="utf-8"))
    for name in RELEASED:
        found = results(f"evaluations/{name}/metrics.json")
        assert set(SIGNATURE) <= set(found) and found["commit"].isalnum(), name
        assert "not a medical device" in found["notice"]
        assert found["weights_sha256"] == calibration["weights_sha256"] == weights
        assert found["split"] == "testing" and found["temperature"] == calibration["temperature"]
        rows = pandas.read_csv(ROOT / f"study/results/evaluations/{name}/images.csv", keep_default_na=False)
        assert images_sha256(rows.to_dict("records")) == found["images_sha256"]
        (source,) = results("evidence/report.json")[name]["source"]
        assert source == {key: found[key] for key in source} and set(SIGNATURE) <= set(source)
    robustness = pandas.read_csv(ROOT / "study/results/robustness.csv")
    assert set(robustness.weights_sha256) == {weights} and set(SIGNATURE) <= set(robustness)
    unaltered = robustness.set_index("condition").loc["unaltered"]
    for name in BRIEF:
        assert unaltered[name] == pytest.approx(results("evaluations/testing/metrics.json")[name], abs=1e-6)
    assert set(results("evidence/report.json")) == {"notice", "bootstrap_draws", *EVALUATIONS}
    assert weights in (ROOT / "bundle/docs/README.md").read_text(encoding="utf-8")


def test_what_was_evaluated_is_the_split_that_is_kept():
    lists = {"testing": "clean", **{name: name for name in RELEASED[1:]}}
    for name, listed in lists.items():
        items = results(f"splits/{listed}_datalist.json")["testing"]
        rows = pandas.read_csv(ROOT / f"study/results/evaluations/{name}/images.csv")
        assert sorted(rows.filename) == sorted(item["image"].rpartition("/")[2] for item in items)


def test_the_exports_are_those_of_the_weights_that_ship_and_within_their_limits():
    networks = {"exports": ("models", ("pytorch", "onnx")), "small": ("models/small", ("small_pytorch", "small_int8"))}
    figures = {}
    for network, (folder, names) in networks.items():
        weights, found = ROOT / "bundle" / folder / "model.pt", results(f"exports/{network}.json")
        figures |= {name: results(f"exports/validation_{name}.json") for name in names}
        assert found["weights_bytes"] == weights.stat().st_size
        made = {found["weights_sha256"], *(figures[name]["weights_sha256"] for name in names)}
        assert made == {sha256(weights)}
        for name in names:
            assert figures[name]["split"] == "validation" and figures[name]["images"] == found["images"]
        for name in ("model.ts", "model.onnx"):
            assert found["files"][name]["largest_probability_difference"] < 1e-3
            assert found["files"][name]["differing_mask_pixels"] < 1e-4
        predictor = found["predictors"]["predictor.onnx"]
        for compared in (predictor, predictor["odd_sizes"]):
            assert compared["largest_class_probability_difference"] < 0.002 and compared["smallest_mask_iou"] > 0.999
    small = results("exports/small.json")
    assert small["files"]["model_int8.onnx"]["bytes"] < 3e6
    assert small["predictors"]["predictor_int8.onnx"]["bytes"] < 3e6
    for name in ("lesion_dice", "auroc_macro", "auroc_malignant"):
        assert figures["small_int8"][name] > figures["small_pytorch"][name] - 0.005
        # float32 against bfloat16, in which a part of a mask may pass the threshold or not
        assert figures["onnx"][name] == pytest.approx(figures["pytorch"][name], abs=0.01)


def test_the_reference_names_every_figure_of_an_evaluation():
    text = (ROOT / "bundle/docs/reference.md").read_text(encoding="utf-8")
    table = text.split("\n## Metrics of an evaluation")[1]
    for name in results("evaluations/testing/metrics.json"):
        if name not in ("notice", "images", "images_by_class", "commit"):
            assert f"`{name}`" in table or name.endswith("_by_class") and "`..._by_class`" in table, name


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_images_of_an_evaluation_give_its_metrics(name):
    expected = results(f"evaluations/{name}/metrics.json")
    rows = pandas.read_csv(ROOT / f"study/results/evaluations/{name}/images.csv", keep_default_na=False)
    for key, value in summarize(Images.from_rows(rows.to_dict("records"), CLASS_NAMES)).items():
        # The table keeps six digits, in which two of the smallest probabilities can tie.
        tolerance = 2e-5 if key.startswith("auroc") else 1e-6
        for found, wanted in zip(flat(value), flat(expected[key]), strict=True):
            assert found == pytest.approx(wanted, abs=tolerance), key


def flat(value):
    """The numbers in nested lists and dictionaries."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [number for part in inner for number in flat(part)]
