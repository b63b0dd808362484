"""From saved evaluations to the evidence: metrics with intervals, subgroups, calibration, failures, charts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from pages import style
from pages.style import LINE_COLOURS
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay
from tqdm import tqdm

from scripts.calibration import expected_calibration_error, reliability, tempered
from scripts.data import read_datalist
from scripts.files import NOTICE, write_json
from scripts.metrics import MISSED_BELOW, Images, confusion_matrix, single_metrics

DRAWS = 2000
WORST = 10
SUBGROUP_COLUMNS = ("device", "birads")  # columns of a datalist by which subgroups are told, where a set has them
STRESS = ("pictures", "lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "macro_f1", "auroc_malignant")


def report(
    evaluations: Mapping[str, Path],
    output_dir: Path,
    datalists: Iterable[Path],
    robustness: Path | None = None,
    draws: int = DRAWS,
) -> dict:
    """Write `report.json` and a chart of each kind as PNG for each evaluation.

    Args:
        evaluations: output folder of the bundle's evaluation, or of scripts/cross_validate.py, by name.
        output_dir: folder to write to.
        datalists: JSON files whose items hold the images' groups (scan or patient) and burned-in marks.
        robustness: folder of study.robustness.
        draws: bootstrap draws over groups, for intervals of 95 %.

    Returns:
        the content of `report.json`.

    Raises:
        ValueError: an image stands in no datalist.
        FileNotFoundError: an evaluation has no tables.
    """
    facts = read_facts(datalists)
    content = {"notice": NOTICE, "bootstrap_draws": draws}
    found = {name: read_evaluation(Path(folder), facts) for name, folder in evaluations.items()}
    for name, evaluation in found.items():
        content[name] = {"source": evaluation.source, **evidence(evaluation, draws)}
        for chart in (reliability_diagram, roc_curves, confusion_chart, dice_distribution, risk_coverage_curve):
            figure, axes = style.chart()
            chart(axes, evaluation)
            style.save_chart(figure, output_dir / f"{name}_{chart.__name__}.png")
    if robustness:
        content["stress"] = _stress(Path(robustness))
    write_json(output_dir / "report.json", content)
    print(f"{', '.join(evaluations)}: {output_dir / 'report.json'}")
    return content


def read_facts(datalists: Iterable[Path]) -> dict[str, dict]:
    """The datalists' items by the names of their images."""
    parts = [read_datalist(datalist) for datalist in datalists]
    lists = [part.get(name, []) for part in parts for name in ("training", "validation", "testing")]
    return {Path(item["image"]).name: item for items in lists for item in items}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of N images.

    Args:
        images: what the metrics need, with calibrated probabilities.
        raw: (N, K) probabilities as the network gives them.
        table: N rows with `filename`, `group`, `marks`, `SUBGROUP_COLUMNS`, `fold` and `threshold` (of malignancy; NaN:
            none).
        source: what each fold says of itself.
    """

    images: Images
    raw: np.ndarray
    table: pandas.DataFrame
    source: list[dict]

    def take(self, index: np.ndarray) -> Evaluation:
        """The images of an index or mask (N,)."""
        return Evaluation(self.images.take(index), self.raw[index], self.table.iloc[index], self.source)


def read_evaluation(folder: Path, facts: Mapping[str, dict]) -> Evaluation:
    """Read an evaluation, those of all folds joined, each with its fold's calibration.

    Raises:
        ValueError: an image stands in no datalist.
        FileNotFoundError: a table is missing.
    """
    tables, sources = [], []
    for fold in sorted(folder.glob("fold_*")) or [folder]:
        inner = fold / "testing" if fold.name.startswith("fold_") else fold
        for name in ("metrics.json", "pictures.csv"):
            if not (inner / name).is_file():
                raise FileNotFoundError(f"{inner / name}: missing; evaluate first, or let cross_validate.py finish")
        metrics = json.loads((inner / "metrics.json").read_text(encoding="utf-8"))
        keys = ("part", "weights_sha256", "temperature", "malignancy_threshold")
        sources.append({key: metrics[key] for key in keys})
        table = pandas.read_csv(inner / "pictures.csv", keep_default_na=False)
        temperature, threshold = metrics["temperature"], metrics["malignancy_threshold"]
        tables.append(table.assign(fold=fold.name, temperature=temperature, threshold=threshold))
    table = pandas.concat(tables, ignore_index=True)
    return joined(table, facts, sources)


def joined(table: pandas.DataFrame, facts: Mapping[str, dict], source: list[dict]) -> Evaluation:
    """An evaluation from its rows and the items of its images."""
    unknown = [name for name in table.filename if name not in facts]
    if unknown:
        raise ValueError(f"{unknown[0]} and {len(unknown) - 1} more stand in no datalist; name theirs")
    names = [column.removeprefix("p_") for column in table if column.startswith("p_")]
    images = Images.from_rows(table.to_dict("records"), names)
    raw = tempered(images.probabilities, 1 / table[["temperature"]].to_numpy(float))
    items = [facts[name] for name in table.filename]
    table = table[["filename", "fold", "threshold"]].assign(
        group=[item.get("group") or Path(item["image"]).name for item in items],
        marks=[item.get("burned_in_marks") for item in items],
        **{name: [item.get(name, "") for item in items] for name in SUBGROUP_COLUMNS},
        threshold=pandas.to_numeric(table.threshold),
    )
    return Evaluation(images, raw, table, source)


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """The single metrics of some images, NaN where they cannot be had."""
    images, classes = evaluation.images, evaluation.images.true_class
    found = single_metrics(images)
    for title, probabilities in (("before", evaluation.raw), ("after", images.probabilities)):
        found[f"calibration_error_{title}"] = expected_calibration_error(probabilities, classes)
        truth = np.eye(len(images.class_names))[classes]
        found[f"brier_{title}"] = float(((probabilities - truth) ** 2).sum(1).mean())
    thresholds = evaluation.table.threshold.to_numpy()
    if "malignant" in images.class_names and not np.isnan(thresholds).any():
        malignant = images.of_class("malignant")
        suspicious = images.probabilities[:, images.class_names.index("malignant")] >= thresholds
        found["operating_point_sensitivity"] = _mean(suspicious[malignant])
        found["operating_point_specificity"] = _mean(~suspicious[~malignant])
    correct = (images.predicted_class == classes)[np.argsort(-images.probabilities.max(1), kind="stable")]
    for percent in (80, 90):
        found[f"accuracy_at_{percent}_coverage"] = _mean(correct[: int(np.ceil(percent / 100 * len(correct)))])
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def with_intervals(evaluation: Evaluation, draws: int, title: str) -> dict[str, dict[str, float] | None]:
    """`metrics` with 95 % percentile intervals of a bootstrap over groups (Efron and Tibshirani 1993)."""
    random = np.random.default_rng(0)
    members = list(evaluation.table.reset_index(drop=True).groupby("group").indices.values())
    drawn = []
    for _ in tqdm(range(draws), desc=title, leave=False):
        index = np.concatenate([members[g] for g in random.integers(len(members), size=len(members))])
        drawn.append(metrics(evaluation.take(index)))
    found = metrics(evaluation)
    sample = pandas.DataFrame(drawn, columns=list(found), dtype=float)
    low, high = sample.quantile(0.025), sample.quantile(0.975)
    return {
        name: None if np.isnan(value) else {"value": value, "low": float(low[name]), "high": float(high[name])}
        for name, value in found.items()
    }


def subgroups(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Masks (N,) of the subgroups by name: class, thirds by lesion size and image size, burned-in marks or none, and
    what the datalist says of each image (`SUBGROUP_COLUMNS`)."""
    images, marks = evaluation.images, evaluation.table.marks
    found = {f"class {name}": images.of_class(name) for name in images.class_names}
    lesion, area = images.lesion, images.areas[:, 3]
    fraction = images.areas[:, 1] / area
    if lesion.any():
        small, large = np.quantile(fraction[lesion], (1 / 3, 2 / 3))
        found |= {"small lesion": lesion & (fraction <= small), "large lesion": lesion & (fraction > large)}
        found["medium lesion"] = lesion & (fraction > small) & (fraction <= large)
    small, large = np.quantile(area, (1 / 3, 2 / 3))
    found |= {"small picture": area <= small, "large picture": area > large}
    found["medium picture"] = (area > small) & (area <= large)
    if marks.notna().any():
        marked = marks.fillna("").to_numpy() != ""
        found |= {"burned-in marks": marked, "no burned-in marks": ~marked}
    for name in SUBGROUP_COLUMNS:
        values = evaluation.table[name]
        found |= {f"{name} {value}": (values == value).to_numpy() for value in sorted(set(values)) if value}
    return {name: mask for name, mask in found.items() if mask.any()}


def evidence(evaluation: Evaluation, draws: int) -> dict:
    """Everything `report.json` says of one evaluation."""
    images = evaluation.images
    keys = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "auroc_benign_malignant")
    by_subgroup = {}
    for name, mask in subgroups(evaluation).items():
        found = with_intervals(evaluation.take(mask), draws, name)
        by_subgroup[name] = {"pictures": int(mask.sum()), **{key: found.get(key) for key in keys}}
    lesion, dice = images.lesion, images.dice
    order = np.argsort(np.where(lesion, dice, 2), kind="stable")[:WORST]
    failures = {"worst_masks": order[lesion[order]], "false_masks": np.flatnonzero(~lesion & (images.areas[:, 0] > 0))}
    if "malignant" in images.class_names:
        called = images.predicted_class == images.class_names.index("malignant")
        missed = images.of_class("malignant") & (~called | (dice < MISSED_BELOW))
        failures["malignant_missed"] = np.flatnonzero(missed)
    folds = evaluation.table.fold.to_numpy()
    return {
        "pictures": len(images),
        "groups": evaluation.table.group.nunique(),
        "largest_class_share": float(np.bincount(images.true_class).max() / len(images)),
        "figures": with_intervals(evaluation, draws, "all images"),
        "folds": {fold: metrics(evaluation.take(folds == fold)) for fold in np.unique(folds).tolist()},
        "confusion_matrix": confusion_matrix(images).tolist(),
        "reliability": {
            "before": reliability(evaluation.raw, images.true_class),
            "after": reliability(images.probabilities, images.true_class),
        },
        "subgroups": by_subgroup,
        "failures": {kind: [_failure(evaluation, i) for i in found] for kind, found in failures.items()},
    }


def _failure(evaluation: Evaluation, i: int) -> dict:
    images = evaluation.images
    return {
        "filename": evaluation.table.filename.iloc[i],
        "true_class": images.class_names[images.true_class[i]],
        "predicted_class": images.class_names[images.predicted_class[i]],
        "probability": round(float(images.probabilities[i].max()), 3),
        "dice": round(float(images.dice[i]), 3),
    }


def _stress(folder: Path) -> dict:
    files = {file.parent.name: file for file in sorted(folder.glob("*/metrics.json"))}
    if not files:
        raise FileNotFoundError(f"{folder}: no results of study.robustness; run that step first")
    contents = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    return {name: {key: content.get(key) for key in STRESS} for name, content in contents.items()}


def reliability_diagram(axes: Axes, evaluation: Evaluation) -> None:
    """Accuracy against confidence in 15 bins of equal mass (Guo et al. 2017)."""
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    both = (evaluation.raw, evaluation.images.probabilities)
    for title, probabilities, marker, colour in zip(("before", "after"), both, "os", LINE_COLOURS[1:]):
        bins = pandas.DataFrame(reliability(probabilities, evaluation.images.true_class))
        error = expected_calibration_error(probabilities, evaluation.images.true_class)
        label = f"{title} calibration: error {error:.3f}"
        axes.plot(bins.confidence, bins.accuracy, marker, color=colour, label=label, alpha=0.8)
    axes.set(xlabel="confidence (largest probability)", ylabel="accuracy", xlim=(0.3, 1.02), ylim=(0, 1.02))
    axes.legend()


def roc_curves(axes: Axes, evaluation: Evaluation) -> None:
    """Each class against the rest."""
    images = evaluation.images
    for k, (name, colour) in enumerate(style.class_colours(images.class_names).items()):
        positive = images.true_class == k
        if 0 < positive.sum() < len(positive):
            scores, look = images.probabilities[:, k], {"color": colour}
            RocCurveDisplay.from_predictions(positive, scores, name=name, ax=axes, curve_kwargs=look)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")


def confusion_chart(axes: Axes, evaluation: Evaluation) -> None:
    """Rows true, columns predicted."""
    display = ConfusionMatrixDisplay(confusion_matrix(evaluation.images), display_labels=evaluation.images.class_names)
    display.plot(ax=axes, cmap="Blues", colorbar=False)
    axes.set(xlabel="predicted class", ylabel="true class")


def dice_distribution(axes: Axes, evaluation: Evaluation) -> None:
    """Histogram of the lesion images' Dice by class."""
    images, colours = evaluation.images, style.class_colours(evaluation.images.class_names)
    values = {name: images.dice[images.lesion & images.of_class(name)] for name in images.class_names}
    values = {name: found for name, found in values.items() if len(found)}
    look = {"color": [colours[name] for name in values], "label": list(values)}
    axes.hist(list(values.values()), np.linspace(0, 1, 21), stacked=True, **look)
    axes.set(xlabel="Dice of a lesion image", ylabel="images")
    axes.legend()


def risk_coverage_curve(axes: Axes, evaluation: Evaluation) -> None:
    """Fraction of wrong classes among the most confident images (Geifman and El-Yaniv 2017)."""
    images = evaluation.images
    order = np.argsort(-images.probabilities.max(1), kind="stable")
    wrong = (images.predicted_class != images.true_class)[order]
    numbers = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(wrong) / numbers
    axes.plot(numbers / len(wrong), risk, color=LINE_COLOURS[0], label=f"mean {risk.mean():.3f}")
    axes.set(xlabel="coverage: fraction of the images that get an answer", ylabel="fraction of wrong classes")
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.legend()
