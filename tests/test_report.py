"""The report's figures against scikit-learn and values worked out by hand, and the files that the command leaves."""

import csv
import json

import numpy as np
import pandas
import pytest
from conftest import CLASS_NAMES
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from study import report

from scripts.calibration import tempered

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
                "picture_px": int(random.integers(5000, 20000)),
                "dice": 2 * both / (true + predicted) if union else 1.0,
                "iou": both / union if union else 1.0,
            }
        )
    folder.mkdir(parents=True)
    with open(folder / "pictures.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = {"part": "testing", "weights_sha256": "0", "temperature": temperature, "malignancy_threshold": threshold}
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
    """Two folds, a single evaluation and a stress test, the command's run over all of them, and its report."""
    folder = tmp_path_factory.mktemp("report")
    names = [f"{number:03d}.png" for number in range(COUNT)]
    rows = write_evaluation(folder / "cv" / "fold_0" / "testing", 0, names[:45], 2.0, 0.5)
    rows += write_evaluation(folder / "cv" / "fold_1" / "testing", 1, names[45:], 0.5, 0.1)
    write_evaluation(folder / "test", 2, names[:30])
    for condition, dice in (("unaltered", 0.8), ("blur_4", 0.6)):
        (folder / "stress" / condition).mkdir(parents=True)
        keys = ("pictures", "missed_rate", "false_mask_rate", "accuracy", "macro_f1", "auroc_malignant")
        content = {"lesion_dice": dice, **dict.fromkeys(keys, 1)}
        (folder / "stress" / condition / "metrics.json").write_text(json.dumps(content))
    (folder / "list.json").write_text(json.dumps({"training": items(names), "validation": [], "testing": []}))
    evaluations = {"cross_validation": folder / "cv", "testing": folder / "test"}
    report.report(evaluations, folder / "out", [folder / "list.json"], folder / "stress", 200)
    return folder, rows, json.loads((folder / "out" / "report.json").read_text())


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
        "dice_all_pictures": np.mean([r["dice"] for r in rows]),
        "sensitivity_benign": np.mean(predicted[true == 1] == 1),
        "brier_after": np.mean(((p - np.eye(3)[true]) ** 2).sum(1)),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    # Each fold at its own operating point, and back to its own network's probabilities
    suspicious = p[:, 2] >= np.repeat([0.5, 0.1], 45)
    assert found["operating_point_sensitivity"] == pytest.approx(suspicious[true == 2].mean())
    assert found["operating_point_specificity"] == pytest.approx((~suspicious)[true != 2].mean())
    raw = np.concatenate([tempered(p[:45], 1 / 2.0), tempered(p[45:], 1 / 0.5)])
    assert found["brier_before"] == pytest.approx(np.mean(((raw - np.eye(3)[true]) ** 2).sum(1)))
    matrix = np.array(content["cross_validation"]["confusion_matrix"])
    assert matrix.sum() == COUNT and matrix.trace() == (true == predicted).sum()
    assert set(content["cross_validation"]["folds"]) == {"fold_0", "fold_1"}


def test_intervals_hold_the_value_and_widen_when_pictures_depend_on_each_other(made):
    folder, _, content = made
    for figure in filter(None, content["cross_validation"]["figures"].values()):
        assert figure["low"] <= figure["high"] and 0 <= figure["low"] and figure["high"] <= 2
    accuracy = content["cross_validation"]["figures"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    # Thirty copies of each of three answers are three answers, not ninety.
    names = [f"{number:03d}.png" for number in range(COUNT)]
    facts = {name: {"group": name} for name in names}
    table = pandas.read_csv(folder / "cv" / "fold_0" / "testing" / "pictures.csv").head(3)
    table = pandas.concat([table] * (COUNT // 3), ignore_index=True).assign(filename=names, fold="", temperature=1.0)
    table["threshold"] = np.nan
    alone = report.with_intervals(report.joined(table, facts, []), 200, "")["lesion_dice"]
    groups = {name: {"group": str(i % 3)} for i, name in enumerate(names)}
    together = report.with_intervals(report.joined(table, groups, []), 200, "")["lesion_dice"]
    assert together["value"] == alone["value"]
    assert together["high"] - together["low"] > 3 * (alone["high"] - alone["low"])


def test_subgroups_split_the_pictures(made):
    groups = {name: g["pictures"] for name, g in made[2]["cross_validation"]["subgroups"].items()}
    assert sum(groups[f"class {n}"] for n in CLASS_NAMES) == COUNT
    assert sum(groups[f"{size} lesion"] for size in ("small", "medium", "large")) == 60
    assert sum(groups[f"{size} image"] for size in ("small", "medium", "large")) == COUNT
    assert groups["burned-in marks"] + groups["no burned-in marks"] == COUNT
    assert groups["device A"] == groups["device B"] == 30
    assert {name: n for name, n in groups.items() if "birads" in name} == {f"birads {k}": 15 for k in range(2, 6)}


def test_a_subgroup_has_the_figures_of_its_own_pictures(made):
    _, rows, content = made
    own = [r for i, r in enumerate(rows) if i < 60 and i % 2]
    found = content["cross_validation"]["subgroups"]["device B"]
    lesions = [r for r in own if r["true_area_px"]]
    assert found["lesion_dice"]["value"] == pytest.approx(np.mean([r["dice"] for r in lesions]))
    assert found["missed_rate"]["value"] == pytest.approx(np.mean([r["dice"] < 0.1 for r in lesions]))
    pair = [r for r in own if r["true_class"] != "normal"]
    scores = [r["p_malignant"] / (r["p_benign"] + r["p_malignant"]) for r in pair]
    area = roc_auc_score([r["true_class"] == "malignant" for r in pair], scores)
    assert found["auroc_benign_malignant"]["value"] == pytest.approx(area)


def test_failures_are_named(made):
    _, rows, content = made
    failures = content["cross_validation"]["failures"]
    lesions = sorted((r for r in rows if r["true_area_px"]), key=lambda r: r["dice"])
    assert [f["filename"] for f in failures["worst_masks"]] == [r["filename"] for r in lesions[:10]]
    false = {r["filename"] for r in rows if not r["true_area_px"] and r["predicted_area_px"]}
    assert {f["filename"] for f in failures["false_masks"]} == false
    missed = [r for r in rows if r["true_class"] == "malignant"]
    missed = {r["filename"] for r in missed if r["predicted_class"] != "malignant" or r["dice"] < 0.1}
    assert {f["filename"] for f in failures["malignant_missed"]} == missed


def test_charts_and_stress_test_are_there(made):
    folder, _, content = made
    charts = ("reliability_diagram", "roc_curves", "confusion_chart", "dice_distribution", "risk_coverage_curve")
    expected = {f"{name}_{chart}.png" for name in ("cross_validation", "testing") for chart in charts}
    assert {f.name for f in (folder / "out").iterdir()} == expected | {"report.json"}
    assert content["stress"]["blur_4"]["lesion_dice"] == 0.6 and "not a medical device" in content["notice"]


def test_a_class_that_is_missing_leaves_its_figures_empty(tmp_path):
    names = [f"{number:03d}.png" for number in range(30)]
    rows = [r for r in write_evaluation(tmp_path / "e", 0, names) if r["true_class"] != "normal"]
    table = pandas.DataFrame(rows).assign(temperature=1.0, threshold=None, fold="e")
    content = report.evidence(report.joined(table, {n: {"group": n} for n in names}, []), 20)
    assert content["figures"]["auroc_normal"] is None and content["figures"]["false_mask_rate"] is None
    assert content["figures"]["auroc_malignant"]["value"] > 0.5
    assert "operating_point_sensitivity" not in content["figures"]
    assert "class normal" not in content["subgroups"] and "burned-in marks" not in content["subgroups"]


def test_a_picture_of_no_datalist_and_an_evaluation_without_tables_are_named(made, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"training": [], "validation": [], "testing": items(["000.png"])}))
    with pytest.raises(ValueError, match="001.png and 28 more stand in no datalist"):
        report.report({"testing": made[0] / "test"}, tmp_path / "out", [tmp_path / "list.json"])
    with pytest.raises(FileNotFoundError, match="nowhere/metrics.json: missing; evaluate first"):
        report.report({"testing": tmp_path / "nowhere"}, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_two_classes_of_other_names_are_reported_and_what_needs_malignant_is_left_out(tmp_path):
    names = [f"{number:03d}.png" for number in range(30)]
    rows = [r for r in write_evaluation(tmp_path / "three", 0, names) if r["true_class"] != "normal"]
    for row in rows:
        total = row.pop("p_normal") * 0 + row["p_benign"] + row["p_malignant"]
        row |= {"p_cyst": row.pop("p_benign") / total, "p_solid": row.pop("p_malignant") / total}
        row["true_class"] = {"benign": "cyst", "malignant": "solid"}[row["true_class"]]
    (tmp_path / "two").mkdir()
    pandas.DataFrame(rows).to_csv(tmp_path / "two" / "pictures.csv", index=False)
    (tmp_path / "two" / "metrics.json").write_text((tmp_path / "three" / "metrics.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({"training": items(names)}))
    content = report.report({"own": tmp_path / "two"}, tmp_path / "out", [tmp_path / "list.json"], draws=20)["own"]
    assert content["figures"]["auroc_solid"]["value"] > 0.5 and set(content["failures"]) == {
        "worst_masks",
        "false_masks",
    }
    assert "operating_point_sensitivity" not in content["figures"] and "class cyst" in content["subgroups"]
    assert len(content["confusion_matrix"]) == 2 and len(list((tmp_path / "out").glob("*.png"))) == 5
