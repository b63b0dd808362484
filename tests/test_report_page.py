"""The report on an evaluation: right values, intervals that hold them, what is missing said, one line for what is not
usable."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from monai.data import MetaTensor
from report import report
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from tools import charts, style
from tools.cli import run
from tools.evaluations import read_evaluation
from tools.figures import froc
from tools.statistics import bootstrap, calibration, difference, net_benefit, reliability_bins, roc_points, share

from breast_ultrasound.files import read_csv, write_csv, write_json
from breast_ultrasound.metrics import ImageMetrics, Images, images_sha256, summarize
from breast_ultrasound.transforms import LesionMaskd
from conftest import CLASS_NAMES, ROOT

EVALUATIONS = ROOT / "study" / "results" / "evaluations"
FIRST = read_csv(EVALUATIONS / "testing" / "images.csv")[0]
AREAS = f"{FIRST['predicted_area_px']},{FIRST['true_area_px']}"
ALONE = np.arange(1000)


def ends(estimate):
    return estimate.low, estimate.high


@pytest.mark.parametrize("hits, total", [(0, 15), (2, 87), (60, 60), (13, 15), (1, 1)])
def test_a_share_of_independent_images_has_scipys_exact_interval(hits, total):
    found = share(np.arange(total) < hits, ALONE[:total])
    assert ends(found) == pytest.approx(tuple(binomtest(hits, total).proportion_ci(method="exact")))
    assert (found.value, found.hits, found.total) == (hits / total, hits, total)


def test_a_share_of_groups_counts_groups():
    # 0 of 15 images of 10 scans: as 0 of 10, from 0 to 30.8 %, by hand 1 - 0.025 ** (1 / 10)
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9])
    assert ends(share(np.zeros(15, bool), groups)) == pytest.approx((0, 1 - 0.025**0.1))
    # every image twice is hardly more than every image once
    once = np.arange(80) < 20
    double = share(np.repeat(once, 2), np.repeat(ALONE[:80], 2))
    exact = binomtest(20, 80).proportion_ci(method="exact")
    assert ends(double) == pytest.approx(tuple(exact), abs=0.005)
    # where the images of a group have nothing in common, groups change nothing much
    mixed = np.random.default_rng(0).permutation(np.arange(160) < 40)
    assert ends(share(mixed, np.repeat(ALONE[:80], 2))) == pytest.approx(ends(share(mixed, ALONE[:160])), abs=0.02)
    assert np.isnan(share(np.zeros(0, bool), np.zeros(0)).value)


def test_a_bootstrap_draws_groups_and_withholds_what_it_does_not_know():
    values = np.random.default_rng(0).normal(size=200)
    found = bootstrap(lambda i: {"mean": values[i].mean(), "one": 1.0, "never": np.nan}, ALONE[:200], draws=500)
    half = 1.96 * values.std() / np.sqrt(200)
    assert ends(found["mean"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert found["one"].value == 1 and np.isnan(found["one"].low) and np.isnan(found["never"].value)
    twice = np.repeat(values, 2)
    grouped = bootstrap(lambda i: {"mean": twice[i].mean()}, np.repeat(ALONE[:200], 2), draws=500)["mean"]
    apart = bootstrap(lambda i: {"mean": twice[i].mean()}, ALONE[:400], draws=500)["mean"]
    assert (grouped.high - grouped.low) == pytest.approx(1.41 * (apart.high - apart.low), rel=0.15)
    for count, told in ((1, False), (4, False), (5, True)):
        few = bootstrap(lambda i: {"mean": values[i].mean()}, np.arange(200) % count, draws=100)["mean"]
        assert few.value == pytest.approx(values.mean()) and np.isnan(few.low) != told


class Values(list):
    def take(self, index):
        return np.asarray(self)[index]


def test_a_paired_difference_leaves_out_what_both_share():
    random = np.random.default_rng(0)
    hard, noise = random.normal(size=(2, 300))
    first, second = Values(hard), Values(hard + 0.1 + 0.01 * noise)
    found = difference(lambda values: {"mean": values.mean()}, first, second, ALONE[:300], draws=200)["mean"]
    half = 1.96 * (0.01 * noise).std() / np.sqrt(300)
    assert found.value == pytest.approx((0.1 + 0.01 * noise).mean())
    assert ends(found) == pytest.approx((found.value - half, found.value + half), abs=0.0003)
    assert found.high - found.low < 0.1 * hard.std() / np.sqrt(300)


def test_net_benefit_by_hand():
    p, outcome = np.array([0.9, 0.4, 0.3, 0.1]), np.array([True, False, True, False])
    # from 0.2 on: two right and one false, which weighs 0.2 / 0.8
    assert net_benefit(p, outcome, 0.2) == pytest.approx(2 / 4 - 0.25 / 4)
    assert net_benefit(np.ones(4), outcome, 0.5) == pytest.approx(0.5 - 0.5)
    assert net_benefit(p, outcome, 0.95) == 0 and np.isnan(net_benefit(p[:0], outcome[:0], 0.2))


def test_calibration_has_the_slope_and_the_intercept_that_were_put_in():
    random = np.random.default_rng(0)
    logits = random.normal(-0.5, 1.5, 20000)
    outcome = random.random(20000) < expit(logits)
    assert calibration(expit(logits), outcome) == pytest.approx({"excess": 0, "intercept": 0, "slope": 1}, abs=0.05)
    assert calibration(expit(2 * logits), outcome)["slope"] == pytest.approx(0.5, abs=0.03)
    assert calibration(expit(logits + 1), outcome)["intercept"] == pytest.approx(-1, abs=0.05)
    # by hand: 0.5 said of each, one of four true
    by_hand = calibration(np.full(4, 0.5), np.arange(4) == 0)
    assert (
        by_hand["excess"] == 0.25 and by_hand["intercept"] == pytest.approx(logit(0.25)) and np.isnan(by_hand["slope"])
    )
    parted = calibration(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert np.isnan(parted["slope"]) and np.isnan(calibration(np.array([0.1]), np.array([True]))["intercept"])


def test_reliability_knows_chance():
    random = np.random.default_rng(0)
    p = random.random(5000)
    for shown, least, most in ((p, 0.85, 1), (p**3, 0, 0.3)):
        bins = reliability_bins(shown, random.random(5000) < p, np.arange(5000), bins=20, draws=300)
        held = ((bins.low <= bins.observed) & (bins.observed <= bins.high)).mean()
        assert least <= held <= most and bins.images.sum() == 5000
    few = reliability_bins(np.full(12, 0.5), np.arange(12) < 6, np.arange(12), draws=300)
    assert len(few) == 1 and few.observed[0] == 0.5 and few.low[0] < 0.5 < few.high[0]


def test_points_of_a_roc_curve_by_hand():
    # the curve: (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)
    found = roc_points(np.array([True, True, False, False]), np.array([0.9, 0.4, 0.5, 0.1]))
    assert [found[rate] for rate in ("0.00", "0.25", "0.49", "0.50", "1.00")] == [0.5, 0.5, 0.5, 1, 1]
    # two tied: a slope from (0, 0) to (1, 1)
    assert roc_points(np.array([True, False]), np.array([0.5, 0.5]))["0.30"] == pytest.approx(0.3)
    assert np.isnan(roc_points(np.array([True]), np.array([0.5]))["0.50"])


def made(folder, output, *options):
    """Run the command as a user does."""
    command = ["scripts/report.py", "--evaluation", folder, "--output_dir", output, "--draws", 200, *options]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(output):
    return figures_of(output / "figures.csv")


def figures_of(file):
    return pandas.read_csv(file).set_index("figure")


@pytest.fixture(scope="module")
def testing(tmp_path_factory):
    """The report on the committed evaluation of BUSI's testing split."""
    output = tmp_path_factory.mktemp("report") / "re port"
    made(EVALUATIONS / "testing", output)
    return output


def test_the_figures_are_those_of_the_evaluation(testing):
    found = figures(testing)
    metrics = json.loads((EVALUATIONS / "testing" / "metrics.json").read_text())
    expected = {"Dice, images with lesion": metrics["lesion_dice"], "accuracy": metrics["accuracy"]}
    expected |= {f"Dice, {name}": metrics["lesion_dice_by_class"][name] for name in ("benign", "malignant")}
    expected |= {f"{name}: sensitivity": metrics["by_class"][name]["recall"] for name in CLASS_NAMES}
    expected |= {f"{name}: precision": metrics["by_class"][name]["precision"] for name in CLASS_NAMES}
    assert {name: found.value[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    rows = pandas.read_csv(EVALUATIONS / "testing" / "images.csv")
    for name in CLASS_NAMES:
        area = roc_auc_score(rows.true_class == name, rows[f"p_{name}"])
        assert found.value[f"AUROC, {name} against the rest"] == pytest.approx(area, abs=1e-5)
    pair = rows[rows.true_class != "normal"]
    area = roc_auc_score(pair.true_class == "malignant", pair.p_malignant / (pair.p_benign + pair.p_malignant))
    assert found.value["AUROC, malignant against benign"] == pytest.approx(area, abs=1e-5)
    area = roc_auc_score(rows.true_area_px > 0, 1 - rows.p_normal)
    assert found.value["AUROC, presence of a lesion"] == pytest.approx(area, abs=1e-5)
    suspicious = rows.p_malignant >= metrics["malignancy_threshold"]
    hits = int(suspicious[rows.true_class == "malignant"].sum())
    assert found.hits["suspicious, of the malignant (sensitivity at the stored threshold)"] == hits
    false = found.loc["images without lesion that have a mask"]
    assert (false.hits, false.total, false.low) == (0, 15, 0) and false.high == pytest.approx(0.218, abs=0.001)


def test_every_interval_holds_its_value(testing):
    for name in ("figures", "subgroups"):
        found = pandas.read_csv(testing / f"{name}.csv").dropna(subset=["value", "low"])
        assert len(found) > 15
        assert ((found.low <= found.value) & (found.value <= found.high) & (found.low < found.high)).all()


def test_the_page_needs_no_other_file_and_gives_its_charts(testing):
    html = (testing / "index.html").read_text(encoding="utf-8")
    names = {"roc_benign_malignant", "roc_classes", "roc_lesion", "confusion", "dice", "missed_and_false", "froc"}
    names |= {f"reliability_{k}_{name}" for k, name in enumerate(CLASS_NAMES)} | {
        "subgroups_dice",
        "subgroups_auroc",
        "decision",
    }
    for suffix in ("svg", "png"):
        assert {f.stem for f in testing.glob(f"*.{suffix}")} == names
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    beside = {source for source in sources if not source.startswith(("data:", "#"))}
    assert beside == {f.name for f in testing.iterdir()} - {"index.html", "run.json"}
    assert json.loads((testing / "run.json").read_text())["counts"]["images"] == 102
    assert html.count("data:image/svg+xml") == len(names) and "<script" not in html
    metrics = json.loads((EVALUATIONS / "testing" / "metrics.json").read_text())
    assert metrics["weights_sha256"] in html and "not a medical device" in html.lower()
    assert str(ROOT) not in html
    rows = sorted(read_csv(EVALUATIONS / "testing" / "images.csv"), key=lambda row: float(row["dice"]))
    rate = metrics["missed_rate"]
    assert rows[0]["filename"] in html and f"{87 * rate:.0f} of 87 ({100 * rate:.1f} %)" in html


def test_the_charts_are_the_same_on_every_run(testing, tmp_path):
    report(EVALUATIONS / "testing", tmp_path, draws=200)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (testing / file.name).read_bytes(), file.name


def test_a_cross_validation_has_its_folds(tmp_path):
    rows = read_csv(EVALUATIONS / "cross_validation" / "images.csv")[::4]
    folds = [
        {**summarize(Images.from_rows(rows, CLASS_NAMES)), "weights_sha256": f"{k}" * 64, "malignancy_threshold": k / 9}
        for k in range(5)
    ]
    write_csv(tmp_path / "images.csv", rows, list(rows[0]))
    write_json(tmp_path / "metrics.json", {**summarize(Images.from_rows(rows, CLASS_NAMES)), "folds": folds})
    made(tmp_path, tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "fold: 4" in html and f"fold 3: {'3' * 64}" in html
    suspicious = [float(row["p_malignant"]) >= int(row["fold"]) / 9 for row in rows if row["true_class"] == "malignant"]
    found = figures(tmp_path / "out").loc["suspicious, of the malignant (sensitivity at the stored threshold)"]
    assert (found.hits, found.total) == (sum(suspicious), len(suspicious))


def evaluation(folder, keep=lambda row: True, change=lambda row: row):
    """An evaluation of some rows of the testing split, changed."""
    rows = [change(dict(row)) for row in read_csv(EVALUATIONS / "testing" / "images.csv") if keep(row)]
    folder.mkdir(exist_ok=True)
    write_csv(folder / "images.csv", rows, list(rows[0]))
    source = {"split": "testing", "weights_sha256": "ab" * 32, "mask_threshold": 0.3, "malignancy_threshold": None}
    source["images_sha256"] = images_sha256(rows)
    write_json(folder / "metrics.json", {**source, **summarize(Images.from_rows(rows, CLASS_NAMES))})
    return folder


def test_the_curve_of_missed_lesions_against_false_masks(tmp_path):
    random = np.random.default_rng(0)

    def told(row):
        return row | {"component_probability": f"{random.uniform():.6f}"}

    report(evaluation(tmp_path / "in", change=told), tmp_path / "out", draws=100)
    rows = pandas.read_csv(tmp_path / "in" / "images.csv")
    area = roc_auc_score(rows.true_area_px > 0, rows.component_probability)
    found = figures(tmp_path / "out").loc["AUROC, presence of a lesion by its mask"]
    assert found.value == pytest.approx(area) and found.low < area < found.high and found.section == "Masks"
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "for every component_threshold" in html and "older version" not in html
    older = ("component_probability", "hd95", "nsd", "lesions", "lesions_found", "false_parts", "parts")
    rest = evaluation(tmp_path / "in", change=lambda row: {k: v for k, v in row.items() if k not in older})
    report(rest, tmp_path / "old", draws=100)
    html = (tmp_path / "old" / "index.html").read_text(encoding="utf-8")
    assert "for every component_threshold" not in html and "older version" in html


def test_points_of_that_curve_by_hand():
    _, axes = style.chart()
    lesion, scores = np.array([True, True, False, False]), np.array([0.95, 0.0, 0.75, 0.0])
    point = share(lesion, ALONE[:4])
    band = bootstrap(lambda i: roc_points(lesion[i], scores[i]), ALONE[:4], draws=100)
    charts.missed_and_false(axes, point, point, (lesion, scores), band)
    curve, *marked = (np.transpose(line.get_data()).tolist() for line in axes.lines[:3])
    assert curve == [[0, 1], [0, 0.5], [0.5, 0.5]]  # no mask at all, from 0.95, from 0.75; two have nothing to outline
    assert marked == [[[0.5, 0.5]], [[0, 0.5]]]
    assert [text.get_text() for text in axes.texts] == ["0.5, 0.6, 0.7", "0.8, 0.9"]


@pytest.fixture(scope="module")
def two_lesions(tmp_path_factory):
    """An evaluation as the bundle writes it, of 20 images: two lesions, the first outlined with probability 0.9, the
    second in every other image with 0.7; a false part of 0.8 in every fourth, and one of 0.5 in all, which is below the
    threshold. The last four have no lesion."""
    folder = tmp_path_factory.mktemp("two_lesions")
    metric = ImageMetrics(CLASS_NAMES, str(folder), {"split": "testing", "component_threshold": 0.6})
    make = LesionMaskd(0.3, 0.0, 0.6)
    for i in range(20):
        label, p = torch.zeros(1, 120, 160), torch.full((1, 120, 160), 0.1)
        if i < 16:
            label[0, 10:30, 10:30] = label[0, 60:70, 60:70] = 1
            p[0, 11:31, 10:30] = 0.9
            p[0, 60:70, 60:70] = 0.7 if i % 2 else 0.1
        p[0, 100:110, 100:110] = 0.1 if i % 4 else 0.8
        p[0, 100:110, 140:150] = 0.5
        image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": f"folder/{i:02d}.png"})
        item = {"image": image, "label": label, "true_class": 1 + i % 2 if i < 16 else 0}
        item["class_probs"] = torch.tensor([0.2, 0.5, 0.3] if i % 3 else [0.2, 0.3, 0.5])
        metric.update([item | {k: v for k, v in make({"pred": p}).items()}])
    metric.compute()
    return folder


def test_lesions_are_found_each_on_its_own_and_the_froc_curve_says_at_what_price(two_lesions, tmp_path):
    rows = read_csv(two_lesions / "images.csv")
    assert rows[0]["parts"] == "0.900000:1 0.800000:0 0.500000:0"
    assert rows[1]["parts"] == "0.900000:1 0.700000:2 0.500000:0"
    assert [rows[1][key] for key in ("lesions", "lesions_found", "false_parts")] == ["2", "2", "0"]
    metrics = json.loads((two_lesions / "metrics.json").read_text())
    assert metrics["lesion_sensitivity"] == 24 / 32 and metrics["false_parts_per_image"] == 5 / 20
    images = Images.from_rows(rows, CLASS_NAMES)
    per_image, sensitivity = froc(images)
    points = dict(zip(per_image.round(3).tolist(), sensitivity.round(3).tolist()))
    # all parts, from 0.7 on, from 0.8 on, from 0.9 on; none
    assert points[1.25] == 0.75 and points[0.25] in (0.75, 0.5) and sensitivity[per_image == 0].max() == 0.5
    report(two_lesions, tmp_path, draws=100)
    found = figures(tmp_path)
    counted = found.loc["lesions found (each on its own, by a part with Dice 0.1 or more)"]
    assert (counted.hits, counted.total) == (24, 32)
    assert 0 < found.value["HD95 as a fraction of the diagonal, median of the images with lesion"] < 1
    assert (tmp_path / "froc.svg").is_file() and "FROC curve" in (tmp_path / "index.html").read_text(encoding="utf-8")


def unknown(row):
    return row | {"true_class": ""}


@pytest.mark.parametrize(
    "keep, change, said, gone",
    [
        (lambda row: row["true_class"] != "normal", dict, "No image of class normal", "AUROC, presence of a lesion"),
        (lambda row: row["true_class"] != "normal", dict, "Every image has a lesion", "that have a mask"),
        (lambda row: row["true_class"] == "normal", dict, "No image has a lesion", "Dice, images with lesion"),
        (lambda row: row["true_class"] == "benign", dict, "All images are of one class", "AUROC"),
        (lambda row: True, unknown, "102 images of unknown class count for the masks alone", "accuracy"),
        (lambda row: "(11" in row["filename"], dict, "Few images of class", "nothing"),
    ],
)
def test_what_is_missing_is_said_and_the_rest_goes_on(tmp_path, capsys, keep, change, said, gone):
    report(evaluation(tmp_path / "in", keep, change), tmp_path / "out", draws=100)
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert said in html and said in capsys.readouterr().out
    found = figures(tmp_path / "out")
    assert len(found) and not any(gone in name for name in found.index)
    assert not re.search(r"\bnan\b", html + (tmp_path / "out" / "figures.csv").read_text())


def test_own_classes_have_their_figures(tmp_path):
    folder = tmp_path / "in"
    evaluation(folder)
    names = {"normal": "BI-RADS 1", "benign": "BI-RADS 2/3", "malignant": "<b>4</b>"}
    rows = [
        {
            **{k: v for k, v in row.items() if not k.startswith("p_")},
            "true_class": names[row["true_class"]],
            "predicted_class": names[row["predicted_class"]],
            **{f"p_{new}": row[f"p_{old}"] for old, new in names.items()},
        }
        for row in read_csv(folder / "images.csv")
    ]
    write_csv(folder / "images.csv", rows, list(rows[0]))
    write_json(folder / "metrics.json", summarize(Images.from_rows(rows, list(names.values()))))
    report(folder, tmp_path / "out", draws=100)
    found = figures(tmp_path / "out")
    # no class is called normal, but no image of BI-RADS 1 has a lesion
    assert found.value["AUROC, presence of a lesion"] == found.value["AUROC, BI-RADS 1 against the rest"]
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "not benign and malignant" in html and "does not say which weights" in html
    assert "&lt;b&gt;4&lt;/b&gt;" in html and "<b>4</b>" not in html


@pytest.fixture
def datalist(tmp_path):
    """A datalist of the testing split: scans of two images each, and columns of several kinds."""
    items = [
        {
            "image": f"images/{row['filename']}",
            "class_name": row["true_class"],
            "group": f"scan {i // 2}",
            "source": "BUSI",
            "device": ("A", "B", "")[i % 3],
            "age": str(20 + i) if i % 10 else "",
            "serial": f"x{i}",
            **({"reader": "one"} if i % 2 else {}),
        }
        for i, row in enumerate(read_csv(EVALUATIONS / "testing" / "images.csv"))
    ]
    file = tmp_path / "datalist.json"
    write_json(file, {"class_names": list(CLASS_NAMES), "training": [{"image": "images/x.png"}], "testing": items})
    return file


def test_a_datalist_gives_groups_and_subgroups(tmp_path, datalist):
    said = made(EVALUATIONS / "testing", tmp_path / "out", "--datalist", datalist)
    assert "Column serial has 102 values and tells no subgroups" in said
    subgroups = pandas.read_csv(tmp_path / "out" / "subgroups.csv").drop_duplicates("subgroup").set_index("subgroup")
    counted = subgroups.images.to_dict()
    assert (counted["device: A"], counted["device: B"], counted["device: (empty)"]) == (34, 34, 34)
    assert counted["age: (no number)"] == 11 and sum(v for k, v in counted.items() if k.startswith("age: ")) == 102
    assert "reader: one" not in counted and subgroups.groups["class: benign"] == 30
    # 0 of 15 images of eight scans
    assert figures(tmp_path / "out").high["images without lesion that have a mask"] == pytest.approx(
        1 - 0.025 ** (1 / 8)
    )


def test_an_image_is_found_by_the_end_of_its_path(tmp_path):
    names = ["a/1.png", "b/1.png", "c.png", "lost.png"]
    row = {"true_class": "benign", "predicted_class": "benign", "p_normal": 0, "p_benign": 1, "p_malignant": 0}
    row |= {"predicted_area_px": 1, "true_area_px": 1, "overlap_px": 1, "image_px": 4}
    rows = [{"filename": name, **row} for name in names]
    write_csv(tmp_path / "images.csv", rows, list(rows[0]))
    write_json(tmp_path / "metrics.json", {"split": "testing", **summarize(Images.from_rows(rows, CLASS_NAMES))})
    items = [{"image": image, "group": image} for image in ("images/a/1.png", "images/b/1.png", "c.png")]
    (tmp_path / "datalist.json").write_text(json.dumps({"testing": items, "training": [{"image": "lost.png"}]}))
    found = read_evaluation(tmp_path, tmp_path / "datalist.json")
    assert list(found.groups) == ["images/a/1.png", "images/b/1.png", "c.png", "image lost.png"]
    assert found.notes[0] == "1 images stand in no split of the datalist, such as lost.png."


def test_another_evaluation_of_the_same_images_is_compared(tmp_path):
    better = evaluation(tmp_path / "better", change=lambda row: row | {"predicted_area_px": row["overlap_px"]})
    one = evaluation(tmp_path / "one", lambda row: row["true_class"] == "benign")
    report(better, tmp_path / "out", against=EVALUATIONS / "testing", draws=100)
    found = figures_of(tmp_path / "out" / "differences.csv")
    rows = read_csv(EVALUATIONS / "testing" / "images.csv")
    both, true = (np.array([float(row[key]) for row in rows]) for key in ("overlap_px", "true_area_px"))
    dice = np.array([float(row["dice"]) for row in rows])
    gained = (2 * both[true > 0] / (both + true)[true > 0] - dice[true > 0]).mean()
    assert found.value["lesion_dice"] == pytest.approx(gained, abs=1e-5) and found.low["lesion_dice"] > 0
    assert found.value["accuracy"] == 0 and np.isnan(found.low["accuracy"])
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "than those of testing" in html and "differences.csv" in html
    options = ["--evaluation", EVALUATIONS / "testing", "--output_dir", tmp_path / "no", "--against"]
    assert "lacks 42 images" in refused(*options, one) and "compare what has the same images" in refused(*options, one)
    larger = evaluation(tmp_path / "larger", change=lambda row: row | {"true_area_px": int(row["true_area_px"]) + 1})
    assert "other classes or true masks, as of benign (103).png" in refused(*options, larger)
    assert not (tmp_path / "no").exists()


def refused(*typed):
    with pytest.raises(SystemExit) as stopped:
        run(report, list(map(str, typed)))
    line = stopped.value.code
    assert line.startswith("report: ") and "\n" not in line
    return line


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, datalist):
    folder, out = evaluation(tmp_path / "in"), tmp_path / "out"
    options = ["--evaluation", folder, "--output_dir", out]
    assert "--draws 5" in refused(*options, "--draws", 5)
    assert "metrics.json: missing; evaluate first" in refused("--evaluation", tmp_path / "no", "--output_dir", out)
    assert "no.json: missing" in refused(*options, "--datalist", tmp_path / "no.json")
    line = refused(*options, "--datalist", datalist, "--columns", "colour")
    assert "--columns colour: no such column" in line and "device" in line
    assert "give --datalist" in refused(*options, "--columns", "device")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"testing": [{"image": "images/other.png"}]}))
    assert "knows none of the 102 images" in refused(*options, "--datalist", other)
    other.write_text("{")
    assert "not a datalist" in refused(*options, "--datalist", other)
    assert not out.exists()


def damaged(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("images.csv", "p_benign", "q", "not the table of an evaluation"),
        ("images.csv", FIRST["p_benign"], "much", "not the table of an evaluation"),
        ("images.csv", FIRST["p_benign"], "1.5", f"{FIRST['filename']}: stands twice, or its numbers cannot be"),
        ("images.csv", FIRST["overlap_px"], "449365", f"{FIRST['filename']}: stands twice, or its numbers cannot be"),
        ("images.csv", "benign (11).png", FIRST["filename"], f"{FIRST['filename']}: stands twice"),
        ("images.csv", "benign,benign", "odd,benign", "true class odd"),
        ("images.csv", "benign,benign", "malignant,benign", "images_by_class of metrics.json and images.csv"),
        (
            "images.csv",
            AREAS,
            f"{FIRST['predicted_area_px']},{int(FIRST['true_area_px']) + 1}",
            "images_sha256 of metrics.json and images.csv",
        ),
        ("metrics.json", '"images": 102', '"images": 101', "images of metrics.json and images.csv are of two"),
        ("metrics.json", "{", "", "metrics.json: not of an evaluation"),
    ],
)
def test_damaged_tables_are_named(tmp_path, name, old, new, said):
    folder = evaluation(tmp_path / "in")
    damaged(folder / name, old, new)
    line = refused("--evaluation", folder, "--output_dir", tmp_path / "out")
    assert said in line and "evaluate again" in line and not (tmp_path / "out").exists()


def test_a_table_that_was_cut_off_is_named(tmp_path):
    folder = evaluation(tmp_path / "in")
    text = (folder / "images.csv").read_text(encoding="utf-8")
    (folder / "images.csv").write_text(text[: len(text) // 2], encoding="utf-8")
    assert "are of two evaluations" in refused("--evaluation", folder, "--output_dir", tmp_path / "out")
    with open(folder / "images.csv", "w", newline="") as file:
        csv.writer(file).writerow(["filename"])
    assert "no image, or no probability" in refused("--evaluation", folder, "--output_dir", tmp_path / "out")
