"""From saved evaluations to the evidence: metrics with intervals, calibration, subgroups, differences, failures, two
charts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from sklearn.metrics import RocCurveDisplay
from tools import style
from tools.evaluations import tables_of, thirds
from tools.figures import compared, failures, measures, shares
from tools.statistics import DRAWS, Estimate, bootstrap, reliability_bins, roc_points
from tools.style import LINE_COLOURS

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import NOTICE, read_csv, write_csv, write_json
from breast_ultrasound.metrics import MISSED_BELOW, Images, auroc, confusion_matrix, mean, single_metrics
from study import BRIEF, COMPARISONS, SIGNATURE, SUBGROUP_COLUMNS

SPLITS = ("training", "validation", "testing")
SOURCE = ("split", "temperature", "malignancy_threshold", *SIGNATURE)  # what metrics.json says of itself


def report(
    evaluations: Mapping[str, Path],
    output_dir: Path,
    datalists: Iterable[Path],
    charted: Mapping[str, str],
    draws: int = DRAWS,
) -> dict:
    """Write `report.json`, `subgroups.csv`, `differences.csv`, `failures.csv` and two charts, `roc.png` and `dice.png`.

    Args:
        evaluations: folder with `images.csv` and `metrics.json`, of the bundle's evaluation or of
            scripts/cross_validate.py, by name.
        output_dir: folder to write to.
        datalists: JSON files whose items hold the images' groups (scan or patient) and burned-in marks.
        charted: titles in the charts of the evaluations that they show, by name.
        draws: bootstrap draws over groups, for intervals of 95 %.

    Returns:
        the content of `report.json`.

    Raises:
        ValueError: an image stands in no datalist, or its class is not known.
        FileNotFoundError: an evaluation has no tables.
    """
    facts = read_facts(datalists)
    found = {name: read_evaluation(Path(folder), facts) for name, folder in evaluations.items()}
    content = {"notice": NOTICE, "bootstrap_draws": draws}
    content |= {name: {"source": each.source, **evidence(each, draws)} for name, each in found.items()}
    write_json(output_dir / "report.json", content)
    for file, rows_of in (
        ("subgroups.csv", lambda evaluation: subgroup_rows(evaluation, draws)),
        ("failures.csv", lambda evaluation: failures(evaluation.images, list(evaluation.table.filename))),
    ):
        rows = [{"evaluation": name, **row} for name, each in found.items() for row in rows_of(each)]
        write_csv(output_dir / file, rows, list(rows[0]))
    columns = ["evaluation", "against", "figure", "value", "low", "high"]
    write_csv(output_dir / "differences.csv", difference_rows(found, draws), columns)
    for chart in (roc, dice) if charted else ():
        figure, axes = style.chart()
        chart(axes, {title: found[name] for name, title in charted.items()})
        style.save_chart(figure, output_dir / f"{chart.__name__}.png")
    print(f"{', '.join(evaluations)}: {output_dir / 'report.json'}")
    return content


def read_facts(datalists: Iterable[Path]) -> dict[str, dict]:
    """The datalists' items by the names of their images, each with its `split`."""
    lists = [read_datalist(datalist) for datalist in datalists]
    splits = [(name, item) for each in lists for name in SPLITS for item in each.get(name, [])]
    return {Path(item["image"]).name: {**item, "split": name} for name, item in splits}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of N images.

    Args:
        images: what the metrics need, with calibrated probabilities.
        table: N rows with `filename`, `group`, `marks`, `SUBGROUP_COLUMNS`, `fold` and `threshold` (of malignancy; NaN:
            none).
        source: what each fold says of itself.
    """

    images: Images
    table: pandas.DataFrame
    source: list[dict]

    def take(self, index: np.ndarray) -> Evaluation:
        """The images of an index or mask (N,)."""
        return Evaluation(self.images.take(index), self.table.iloc[index], self.source)


def read_evaluation(folder: Path, facts: Mapping[str, dict]) -> Evaluation:
    """Read an evaluation; that of several folds has the calibration of each.

    Raises:
        ValueError: an image stands in no datalist.
        FileNotFoundError: a table is missing.
    """
    file, images = tables_of(folder)
    content = json.loads(file.read_text(encoding="utf-8"))
    table = pandas.DataFrame(read_csv(images))
    folds = content.get("folds", [content])
    table["fold"] = table["fold"].astype(int) if "folds" in content else 0
    table["threshold"] = table["fold"].map({i: fold["malignancy_threshold"] for i, fold in enumerate(folds)})
    return joined(table, facts, [{key: fold[key] for key in SOURCE if key in fold} for fold in folds])


def joined(table: pandas.DataFrame, facts: Mapping[str, dict], source: list[dict]) -> Evaluation:
    """An evaluation from its rows and the items of its images.

    Raises:
        ValueError: an image stands in no datalist, or its class is not known.
    """
    unknown = [name for name in table.filename if name not in facts]
    if unknown:
        raise ValueError(f"{unknown[0]} and {len(unknown) - 1} more stand in no datalist; name theirs")
    names = [column.removeprefix("p_") for column in table if column.startswith("p_")]
    images = Images.from_rows(table.to_dict("records"), names)
    if (images.true_class < 0).any():
        raise ValueError(f"{table.filename[int(images.true_class.argmin())]}: its class is not known")
    items = [facts[name] for name in table.filename]
    table = table[["filename", "fold", "threshold"]].assign(
        group=[item.get("group") or Path(item["image"]).name for item in items],
        marks=[item.get("burned_in_marks") for item in items],
        **{name: [item.get(name, "") for item in items] for name in SUBGROUP_COLUMNS},
        threshold=pandas.to_numeric(table.threshold),
    )
    return Evaluation(images, table, source)


def metrics(images: Images) -> dict[str, float]:
    """The single metrics of some images that are no shares, NaN where they cannot be had."""
    found = measures(images)
    if {"benign", "malignant"} <= set(images.class_names):
        found["sensitivity_at_90"] = roc_points(*images.malignant_against_benign()[1:])["0.10"]
    correct = (images.predicted_class == images.true_class)[np.argsort(-images.probabilities.max(1), kind="stable")]
    for percent in (80, 90):
        found[f"accuracy_at_{percent}_coverage"] = mean(correct[: int(np.ceil(percent / 100 * len(correct)))])
    return found


def brief(images: Images) -> dict[str, float]:
    """Of the short metrics those that are no shares, for the many subgroups."""
    found = {"lesion_dice": mean(images.dice[images.lesion])}
    if {"benign", "malignant"} <= set(images.class_names):
        p = images.probabilities[:, images.class_names.index("malignant")]
        found["auroc_malignant"] = auroc(images.of_class("malignant"), p)
        found["auroc_benign_malignant"] = auroc(*images.malignant_against_benign()[1:])
    return found


def with_intervals(
    evaluation: Evaluation, draws: int, title: str, measure: Callable[[Images], dict[str, float]] = metrics
) -> dict[str, dict[str, float | None] | None]:
    """What `measure` gives with the intervals of `bootstrap`, and all `shares` with theirs; None where one cannot be
    had."""
    images, groups = evaluation.images, evaluation.table.group.to_numpy()
    found = bootstrap(lambda index: measure(images.take(index)), groups, draws, title)
    found |= shares(images, groups, evaluation.table.threshold.to_numpy())
    return {name: None if np.isnan(figure.value) else _written(figure) for name, figure in found.items()}


def _written(figure: Estimate) -> dict[str, float | None]:
    """A figure for JSON: ends None where no interval can be had, counts where it is a share."""
    told = {name: value for name, value in figure._asdict().items() if value is not None}
    return {name: None if np.isnan(value) else value for name, value in told.items()}


def subgroups(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Masks (N,) of the subgroups by name: class, thirds by lesion size and image size, burned-in marks or none, and
    what the datalist says of each image (`SUBGROUP_COLUMNS`)."""
    images, marks = evaluation.images, evaluation.table.marks
    found = {f"class {name}": images.of_class(name) for name in images.class_names}
    lesion, area = images.lesion, images.areas[:, 3]
    sizes = {"lesion": (images.areas[:, 1] / area, lesion), "image": (area, np.full(len(area), True))}
    for what, (values, among) in sizes.items():
        if among.any():
            small, medium, large = thirds(values, among)[0]
            found |= {f"small {what}": small, f"large {what}": large, f"medium {what}": medium}
    if marks.notna().any():
        marked = marks.fillna("").to_numpy() != ""
        found |= {"burned-in marks": marked, "no burned-in marks": ~marked}
    for name in SUBGROUP_COLUMNS:
        values = evaluation.table[name]
        found |= {f"{name} {value}": (values == value).to_numpy() for value in sorted(set(values)) if value}
    return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}


def evidence(evaluation: Evaluation, draws: int) -> dict:
    """What `report.json` says of one evaluation."""
    images, folds = evaluation.images, evaluation.table.fold.to_numpy()
    groups = evaluation.table.group.to_numpy()
    present = [(k, name) for k, name in enumerate(images.class_names) if images.of_class(name).any()]
    return {
        "images": len(images),
        "groups": evaluation.table.group.nunique(),
        "lesions": int(images.lesion.sum()),
        "largest_class_share": float(np.bincount(images.true_class).max() / len(images)),
        "figures": with_intervals(evaluation, draws, "all images"),
        "folds": {str(fold): single_metrics(images.take(folds == fold)) for fold in np.unique(folds)},
        "confusion_matrix": confusion_matrix(images).tolist(),
        "reliability": {
            name: reliability_bins(images.probabilities[:, k], images.of_class(name), groups).to_dict("records")
            for k, name in present
        },
    }


def subgroup_rows(evaluation: Evaluation, draws: int) -> list[dict]:
    """A row for each subgroup: its metrics, each with the ends of its interval, empty where it cannot be had."""
    rows = []
    for name, mask in subgroups(evaluation).items():
        found = with_intervals(evaluation.take(mask), draws, name, brief)
        row = {"subgroup": name, "images": int(mask.sum())}
        for key in (*BRIEF, "auroc_benign_malignant"):
            ends = found.get(key) or dict.fromkeys(("value", "low", "high"))
            row |= {key: ends["value"], f"{key}_low": ends["low"], f"{key}_high": ends["high"]}
        rows.append(row)
    return rows


def difference_rows(found: Mapping[str, Evaluation], draws: int) -> list[dict]:
    """A row for each figure of each of the `COMPARISONS`, by paired bootstrap."""
    rows = []
    for of, against in COMPARISONS:
        if not {of, against} <= set(found):
            continue
        first, second = found[of], found[against]
        names, other_names = list(first.table.filename), list(second.table.filename)
        groups = first.table.group.to_numpy()
        differences = compared(first.images, names, second.images, other_names, groups, draws, against)
        rows += [
            {"evaluation": of, "against": against, "figure": name, **_written(figure)}
            for name, figure in differences.items()
        ]
    return rows


def roc(axes: Axes, evaluations: Mapping[str, Evaluation]) -> None:
    """Malignant against benign, by the share of malignant in the probability of both."""
    for (title, evaluation), colour in zip(evaluations.items(), LINE_COLOURS):
        _, malignant, scores = evaluation.images.malignant_against_benign()
        RocCurveDisplay.from_predictions(malignant, scores, name=title, ax=axes, curve_kwargs={"color": colour})
    axes.set(xlabel="1 - specificity", ylabel="sensitivity, malignant against benign")


def dice(axes: Axes, evaluations: Mapping[str, Evaluation]) -> None:
    """Fraction of the lesion images at or below each Dice; where the line meets MISSED_BELOW, the missed ones."""
    for (title, evaluation), colour in zip(evaluations.items(), LINE_COLOURS):
        axes.ecdf(evaluation.images.dice[evaluation.images.lesion], color=colour, label=title)
    axes.axvline(MISSED_BELOW, color="#888888", linewidth=1, linestyle=":")
    axes.set(xlabel="Dice of a lesion image", ylabel="fraction of the lesion images", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
