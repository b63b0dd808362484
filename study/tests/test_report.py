"""The report's figures against scikit-learn and values worked out by hand, and the files that the command leaves."""

import csv
import json

import numpy as np
import pandas
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from tools.statistics import calibration

from conftest import CLASS_NAMES
from study import report

COUNT = 90


def write_evaluation(folder, seed, names, temperature=1.0, threshold=0.3):
    """An evaluation's two tables of random images; returns their rows."""
    random = np.random.default_rng(seed)
    rows = []
    for number, name in enumerate(names):
        k = number % 3
        p = random.dirichlet(np.eye(3)[k] * 2 + 0.7)
        true = 0 if k == 0 else int(random.integers(100, 2000))
        both = int(true * random.uniform(0, 1))
        predicted = both + int(random.integers(0, 200)) * int(random.integers(0, 2))
        union = true + predicted - both
        rows.append(
            {
                "filename": name,
                "true_class": CLASS_NAMES[k],
                "predicted_class": CLASS_NAMES[int(p.argmax())],
                **{f"p_{n}": float(v) for n, v in zip(CLASS_NAMES, p)},
                "predicted_area_px": predicted,
                "true_area_px": true,
                "overlap_px": both,
                "image_px": int(random.integers(5000, 20000)),
                "dice": 2 * both / (true + predicted) if union else 1.0,
                "iou": both / union if union else 1.0,
            }
        )
    folder.mkdir(parents=True)
    with open(folder / "images.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = {"split": "testing", "weights_sha256": "0", "temperature": temperature, "malignancy_threshold": threshold}
    (folder / "metrics.json").write_text(json.dumps(source))
    return rows


def items(names):
    """Items of a datalist, three images a group, every second group with burned-in marks."""
    return [
        {"image": f"images/{name}", "group": f"G{i // 3}", "burned_in_marks": "caliper" if i // 3 % 2 else ""}
        | ({"device": "AB"[i % 2], "birads": str(2 + i % 4)} if i < 60 else {})
        for i, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folds joined and a single evaluation, the rows of the folds, and the folder of the report."""
    folder = tmp_path_factory.mktemp("report")
    names = [f"{number:03d}.png" for number in range(COUNT)]
    rows = write_evaluation(folder / "fold_0", 0, names[:45], 2.0, 0.5)
    rows += write_evaluation(folder / "fold_1", 1, names[45:], 0.5, 0.1)
    folds = [json.loads((folder / f"fold_{k}" / "metrics.json").read_text()) for k in (0, 1)]
    (folder / "cv").mkdir()
    (folder / "cv" / "metrics.json").write_text(json.dumps({"images": COUNT, "folds": folds}))
    joined = pandas.DataFrame(rows)
    joined.insert(0, "fold", np.repeat([0, 1], 45))
    joined.to_csv(folder / "cv" / "images.csv", index=False)
    write_evaluation(folder / "test", 2, names[:30])
    (folder / "list.json").write_text(json.dumps({"training": items(names), "validation": [], "testing": []}))
    evaluations = {"cross_validation": folder / "cv", "testing": folder / "test"}
    report.report(evaluations, folder / "out", [folder / "list.json"], {"testing": "BUSI, testing split"}, 200)
    return folder, rows, json.loads((folder / "out" / "report.json").read_text())


def table(made, name):
    """The rows of one of the report's tables that are of the cross-validation."""
    found = pandas.read_csv(made[0] / "out" / name)
    return found[found.evaluation == "cross_validation"]


def test_figures_are_those_of_scikit_learn(made):
    _, rows, content = made
    found = {k: v and v["value"] for k, v in content["cross_validation"]["figures"].items()}
    true = np.array([CLASS_NAMES.index(r["true_class"]) for r in rows])
    p = np.array([[r[f"p_{n}"] for n in CLASS_NAMES] for r in rows])
    predicted = p.argmax(1)
    lesions = [r for r in rows if r["true_area_px"]]
    pair = true > 0
    expected = {
        "accuracy": np.mean(true == predicted),
        "macro_f1": f1_score(true, predicted, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        **{f"auroc_{n}": roc_auc_score(true == k, p[:, k]) for k, n in enumerate(CLASS_NAMES)},
        "auroc_macro": roc_auc_score(true, p, multi_class="ovr"),
        "auroc_benign_malignant": roc_auc_score(true[pair] == 2, (p[:, 2] / (p[:, 1] + p[:, 2]))[pair]),
        "lesion_dice": np.mean([r["dice"] for r in lesions]),
        "lesion_iou": np.mean([r["iou"] for r in lesions]),
        "dice_malignant": np.mean([r["dice"] for r in lesions if r["true_class"] == "malignant"]),
        "missed_rate": np.mean([r["dice"] < 0.1 for r in lesions]),
        "false_mask_rate": np.mean([r["predicted_area_px"] > 0 for r in rows if not r["true_area_px"]]),
        "dice_all_images": np.mean([r["dice"] for r in rows]),
        "sensitivity_benign": np.mean(predicted[true == 1] == 1),
        "brier": np.mean(((p - np.eye(3)[true]) ** 2).sum(1)),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    # Each fold at its own operating point, and back to its own network's probabilities
    suspicious = p[:, 2] >= np.repeat([0.5, 0.1], 45)
    assert found["operating_point_sensitivity"] == pytest.approx(suspicious[true == 2].mean())
    assert found["operating_point_specificity"] == pytest.approx((~suspicious)[true != 2].mean())
    for k, name in enumerate(CLASS_NAMES):
        for key, value in calibration(p[:, k], true == k).items():
            assert found[f"{key}_{name}"] == pytest.approx(value)
    benign = np.sort((p[:, 2] / (p[:, 1] + p[:, 2]))[true == 1])
    scores = (p[:, 2] / (p[:, 1] + p[:, 2]))[true == 2]
    assert found["sensitivity_at_90"] == pytest.approx(
        (scores > benign[-4]).mean()
    )  # three of 30 are taken for malignant
    matrix = np.array(content["cross_validation"]["confusion_matrix"])
    assert matrix.sum() == COUNT and matrix.trace() == (true == predicted).sum()
    assert set(content["cross_validation"]["folds"]) == {"0", "1"}
    assert [source["temperature"] for source in content["cross_validation"]["source"]] == [2.0, 0.5]
    assert content["cross_validation"]["lesions"] == len(lesions)


def test_intervals_hold_the_value_and_widen_when_images_depend_on_each_other(made):
    folder, _, content = made
    figures = content["cross_validation"]["figures"]
    told = {name: found for name, found in figures.items() if found and found["low"] is not None}
    assert len(told) > 30
    for name, found in told.items():
        assert found["low"] <= found["value"] <= found["high"] and found["low"] < found["high"], name
    false = figures["false_mask_rate"]
    assert false["total"] == 30 and false["value"] == false["hits"] / 30
    # Fifteen copies of each of six answers are six answers, not ninety.
    names = [f"{number:03d}.png" for number in range(COUNT)]
    facts = {name: {"group": name} for name in names}
    table = pandas.read_csv(folder / "fold_0" / "images.csv").head(6)
    table = pandas.concat([table] * (COUNT // 6), ignore_index=True).assign(filename=names, fold="", threshold=np.nan)
    alone = report.with_intervals(report.joined(table, facts, []), 200, "")
    groups = {name: {"group": str(i % 6)} for i, name in enumerate(names)}
    together = report.with_intervals(report.joined(table, groups, []), 200, "")
    for name in ("lesion_dice", "accuracy"):
        assert together[name]["value"] == alone[name]["value"]
        apart = alone[name]["high"] - alone[name]["low"]
        assert together[name]["high"] - together[name]["low"] > 2.5 * apart, name


def test_a_difference_is_of_the_same_images_and_narrower_than_two_intervals(made, monkeypatch):
    folder, rows, content = made
    facts = report.read_facts([folder / "list.json"])
    found = {"cross_validation": report.read_evaluation(folder / "cv", facts)}
    found["testing"] = found["cross_validation"].take(np.arange(30))
    worse = report.read_evaluation(folder / "cv", facts)
    worse.images.areas[:, 0] += 50
    monkeypatch.setattr(report, "COMPARISONS", [("testing", "worse"), ("testing", "none"), ("worse", "testing")])
    with pytest.raises(ValueError, match="testing: lacks 60 images, 030.png among them; compare what has the same"):
        report.difference_rows({**found, "worse": worse}, 100)
    monkeypatch.setattr(report, "COMPARISONS", [("testing", "worse")])
    differences = {row["figure"]: row for row in report.difference_rows({**found, "worse": worse}, 100)}
    dice = differences["lesion_dice"]
    expected = found["testing"].images.dice - worse.images.dice[:30]
    assert dice["value"] == pytest.approx(expected[found["testing"].images.lesion].mean())
    own = report.with_intervals(found["testing"], 100, "")["lesion_dice"]
    assert 0 < dice["low"] < dice["value"] < dice["high"] and dice["high"] - dice["low"] < own["high"] - own["low"]
    assert differences["accuracy"]["value"] == 0 and differences["accuracy"]["low"] is None


def test_subgroups_split_the_images(made):
    groups = table(made, "subgroups.csv").set_index("subgroup").images.to_dict()
    assert sum(groups[f"class {n}"] for n in CLASS_NAMES) == COUNT
    assert sum(groups[f"{size} lesion"] for size in ("small", "medium", "large")) == 60
    assert sum(groups[f"{size} image"] for size in ("small", "medium", "large")) == COUNT
    assert groups["burned-in marks"] + groups["no burned-in marks"] == COUNT
    assert groups["device A"] == groups["device B"] == 30
    assert {name: n for name, n in groups.items() if "birads" in name} == {f"birads {k}": 15 for k in range(2, 6)}


def test_a_subgroup_has_the_figures_of_its_own_images(made):
    own = [r for i, r in enumerate(made[1]) if i < 60 and i % 2]
    found = table(made, "subgroups.csv").set_index("subgroup").loc["device B"]
    lesions = [r for r in own if r["true_area_px"]]
    assert found["lesion_dice"] == pytest.approx(np.mean([r["dice"] for r in lesions]))
    assert found["missed_rate"] == pytest.approx(np.mean([r["dice"] < 0.1 for r in lesions]))
    pair = [r for r in own if r["true_class"] != "normal"]
    scores = [r["p_malignant"] / (r["p_benign"] + r["p_malignant"]) for r in pair]
    area = roc_auc_score([r["true_class"] == "malignant" for r in pair], scores)
    assert found["auroc_benign_malignant"] == pytest.approx(area)
    assert found["lesion_dice_low"] < found["lesion_dice"] < found["lesion_dice_high"]


def test_failures_are_named(made):
    rows, failures = made[1], table(made, "failures.csv")
    named = {kind: list(found.filename) for kind, found in failures.groupby("failure")}
    lesions = sorted((r for r in rows if r["true_area_px"]), key=lambda r: r["dice"])
    assert named["worst mask"] == [r["filename"] for r in lesions[:10]]
    false = {r["filename"] for r in rows if not r["true_area_px"] and r["predicted_area_px"]}
    assert set(named["false mask"]) == false
    missed = [r for r in rows if r["true_class"] == "malignant"]
    missed = {r["filename"] for r in missed if r["predicted_class"] != "malignant" or r["dice"] < 0.1}
    assert set(named["malignant missed"]) == missed


def test_tables_and_charts_are_there(made):
    names = {"report.json", "subgroups.csv", "differences.csv", "failures.csv", "roc.png", "dice.png"}
    assert {f.name for f in (made[0] / "out").iterdir()} == names
    assert "not a medical device" in made[2]["notice"]


def test_a_class_that_is_missing_leaves_its_figures_empty(tmp_path):
    names = [f"{number:03d}.png" for number in range(30)]
    rows = [r for r in write_evaluation(tmp_path / "e", 0, names) if r["true_class"] != "normal"]
    table = pandas.DataFrame(rows).assign(threshold=None, fold="e")
    evaluation = report.joined(table, {n: {"group": n} for n in names}, [])
    content = report.evidence(evaluation, 20)
    assert content["figures"]["auroc_normal"] is None and content["figures"]["false_mask_rate"] is None
    assert content["figures"]["auroc_malignant"]["value"] > 0.5
    assert "operating_point_sensitivity" not in content["figures"]
    assert not {"class normal", "burned-in marks"} & set(report.subgroups(evaluation))


def test_an_image_of_unknown_class_is_named(tmp_path):
    rows = write_evaluation(tmp_path / "e", 0, ["0.png", "1.png"])
    rows[1]["true_class"] = ""
    table = pandas.DataFrame(rows).assign(threshold=None, fold=0)
    with pytest.raises(ValueError, match="1.png: its class is not known"):
        report.joined(table, {n: {"group": n} for n in ("0.png", "1.png")}, [])


def test_an_image_of_no_datalist_and_an_evaluation_without_tables_are_named(made, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"training": [], "validation": [], "testing": items(["000.png"])}))
    with pytest.raises(ValueError, match="001.png and 28 more stand in no datalist"):
        report.report({"testing": made[0] / "test"}, tmp_path / "out", [tmp_path / "list.json"], {})
    with pytest.raises(FileNotFoundError, match="nowhere/metrics.json: missing; evaluate first"):
        report.report({"testing": tmp_path / "nowhere"}, tmp_path / "out", [], {})
    assert not (tmp_path / "out").exists()


def test_two_classes_of_other_names_are_reported_and_what_needs_malignant_is_left_out(tmp_path):
    names = [f"{number:03d}.png" for number in range(30)]
    rows = [r for r in write_evaluation(tmp_path / "three", 0, names) if r["true_class"] != "normal"]
    for row in rows:
        total = row.pop("p_normal") * 0 + row["p_benign"] + row["p_malignant"]
        row |= {"p_cyst": row.pop("p_benign") / total, "p_solid": row.pop("p_malignant") / total}
        row["true_class"] = {"benign": "cyst", "malignant": "solid"}[row["true_class"]]
    (tmp_path / "two").mkdir()
    pandas.DataFrame(rows).to_csv(tmp_path / "two" / "images.csv", index=False)
    (tmp_path / "two" / "metrics.json").write_text((tmp_path / "three" / "metrics.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({"training": items(names)}))
    content = report.report({"own": tmp_path / "two"}, tmp_path / "out", [tmp_path / "list.json"], {}, draws=20)["own"]
    assert content["figures"]["auroc_solid"]["value"] > 0.5 and len(content["confusion_matrix"]) == 2
    assert set(pandas.read_csv(tmp_path / "out" / "failures.csv").failure) == {"worst mask"}
    assert "class cyst" in set(pandas.read_csv(tmp_path / "out" / "subgroups.csv").subgroup)
    assert "operating_point_sensitivity" not in content["figures"]
