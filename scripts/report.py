"""Turn saved evaluations into the evidence: figures with intervals, subgroups, calibration, charts.

    python scripts/report.py --evaluations "{'cross_validation': 'runs/cross_validation', 'testing':
        'runs/testing'}"
        --datalists "['runs/busi/datalist.json']" --output_dir results/evidence

EVALUATIONS names output folders of the bundle's evaluation or of scripts/cross_validate.py; a folder of
scripts/stress_test.py is named `stress`. DATALISTS say which pictures belong to one group (scan or patient). Out:
`report.json` with every figure and a chart of each kind as PNG for each evaluation. Intervals are 95 %, from 2,000
bootstrap draws over groups.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import style
from command_line import run
from scipy.stats import rankdata
from style import CLASSES, COLOURS, LINE_COLOURS, NOTICE
from tqdm import tqdm

from scripts.calibration import expected_calibration_error, reliability, tempered
from scripts.files import read_csv, write_json
from scripts.metrics import MISSED_BELOW

DRAWS = 2000
WORST = 10


def report(evaluations: dict, output_dir: Path, datalists: tuple[Path, ...] = (), draws: int = DRAWS) -> dict:
    """Write `report.json` and the charts.

    Args:
        evaluations: folder of each evaluation by name.
        output_dir: folder to write to.
        datalists: JSON files whose items hold the pictures' groups and burned-in marks.
        draws: number of bootstrap draws.

    Returns:
        dict: the content of `report.json`.

    Raises:
        ValueError: a picture stands in no datalist.
        FileNotFoundError: an evaluation has no tables.
    """
    facts = _facts(datalists)
    content = {"notice": NOTICE, "bootstrap_draws": draws}
    for name, folder in evaluations.items():
        folder = Path(str(folder))
        if name == "stress":
            content[name] = _stress(folder)
            continue
        pictures = Pictures(_rows(folder), facts)
        content[name] = {"source": _source(folder), **evidence(pictures, draws)}
        for chart in (reliability_diagram, roc_curves, confusion_chart, dice_distribution, risk_coverage_curve):
            _save(chart, pictures, output_dir / f"{name}_{chart.__name__}.png")
    write_json(output_dir / "report.json", content)
    print(f"{', '.join(evaluations)}: {output_dir / 'report.json'}")
    return content


def _facts(datalists):
    facts = {}
    for datalist in datalists:
        parts = json.loads(Path(datalist).read_text(encoding="utf-8"))
        for part in ("training", "validation", "testing"):
            facts |= {Path(item["image"]).name: item for item in parts[part]}
    return facts


def _folds(folder):
    return sorted(folder.glob("fold_*")) or [folder]


def _tables(folder):
    inner = folder / "testing" if folder.name.startswith("fold_") else folder
    for name in ("metrics.json", "pictures.csv"):
        if not (inner / name).is_file():
            raise FileNotFoundError(f"{inner / name}: missing; evaluate first, or let cross_validate.py finish")
    return inner


def _source(folder):
    keys = ("part", "weights_sha256", "temperature", "malignancy_threshold")
    found = [json.loads((_tables(f) / "metrics.json").read_text(encoding="utf-8")) for f in _folds(folder)]
    return [{key: figures[key] for key in keys} for figures in found]


def _rows(folder):
    """Rows of `pictures.csv`, those of all folds joined, each with its fold's calibration."""
    rows = []
    for source, fold in zip(_source(folder), _folds(folder)):
        rows += [{**row, **source, "fold": fold.name} for row in read_csv(_tables(fold) / "pictures.csv")]
    return rows


class Pictures:
    """Columns of all pictures as arrays of shape (N,), and the probabilities as (N, 3) before and after calibration."""

    def __init__(self, rows, facts):
        self.names = np.array([row["filename"] for row in rows])
        unknown = [name for name in self.names if name not in facts]
        if unknown:
            raise ValueError(f"{unknown[0]} and {len(unknown) - 1} more stand in no datalist; name it in --datalists")
        self.groups = np.unique([facts[name]["group"] for name in self.names], return_inverse=True)[1]
        self.marks = np.array([bool(facts[name].get("burned_in_marks")) for name in self.names])
        self.has_marks = any("burned_in_marks" in facts[name] for name in self.names)
        self.folds = np.array([row["fold"] for row in rows])
        self.classes = np.array([CLASSES.index(row["true_class"]) for row in rows])
        for key in ("dice", "iou", "predicted_area_px", "true_area_px", "picture_px"):
            setattr(self, key, np.array([float(row[key]) for row in rows]))
        self.calibrated = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
        powers = [1 / row["temperature"] for row in rows]
        self.raw = np.concatenate([tempered(p[None], t) for p, t in zip(self.calibrated, powers)])
        thresholds = [row["malignancy_threshold"] for row in rows]
        self.has_threshold = None not in thresholds
        if self.has_threshold:
            self.suspicious = self.calibrated[:, 2] >= np.array(thresholds, dtype=float)
        self.lesion = self.true_area_px > 0

    def take(self, index):
        """The pictures of an index or mask, as another `Pictures`."""
        part = object.__new__(Pictures)
        part.__dict__ = {k: v[index] if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()}
        return part


def auroc(positive, scores):
    """Area under the ROC curve from ranks (Hanley and McNeil 1982); NaN where one of the two kinds is missing."""
    n = positive.sum()
    if n in (0, len(positive)):
        return np.nan
    return (rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n))


def confusion(p):
    """Counts (3, 3); rows true, columns predicted."""
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (p.classes, p.calibrated.argmax(1)), 1)
    return matrix


def _mean(values):
    return values.mean() if len(values) else np.nan


def figures(p):
    """The single figures of some pictures, NaN where they cannot be had."""
    predicted = p.calibrated.argmax(1)
    matrix = confusion(p)
    hits, true, called = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    present = true > 0
    aurocs = [auroc(p.classes == k, p.calibrated[:, k]) for k in range(3)]
    pair = p.classes > 0
    found = {
        "lesion_dice": _mean(p.dice[p.lesion]),
        "lesion_iou": _mean(p.iou[p.lesion]),
        **{f"dice_{n}": _mean(p.dice[p.lesion & (p.classes == k)]) for k, n in enumerate(CLASSES) if k},
        "missed_rate": _mean(p.dice[p.lesion] < MISSED_BELOW),
        "false_mask_rate": _mean(p.predicted_area_px[~p.lesion] > 0),
        "dice_all_pictures": _mean(p.dice),
        "accuracy": hits.sum() / len(p.names),
        "macro_f1": _mean((2 * hits / np.maximum(true + called, 1))[present]),
        "balanced_accuracy": _mean(hits[present] / true[present]),
        **{f"sensitivity_{n}": hits[k] / true[k] if true[k] else np.nan for k, n in enumerate(CLASSES)},
        **{f"auroc_{name}": value for name, value in zip(CLASSES, aurocs)},
        "auroc_macro": np.mean(aurocs),
        "auroc_benign_malignant": auroc(p.classes[pair] == 2, p.calibrated[pair, 2] / p.calibrated[pair, 1:].sum(1)),
    }
    for title, probabilities in (("before", p.raw), ("after", p.calibrated)):
        found[f"calibration_error_{title}"] = expected_calibration_error(probabilities, p.classes)
        found[f"brier_{title}"] = ((probabilities - np.eye(3)[p.classes]) ** 2).sum(1).mean()
    if p.has_threshold:
        found["operating_point_sensitivity"] = _mean(p.suspicious[p.classes == 2])
        found["operating_point_specificity"] = _mean(~p.suspicious[p.classes != 2])
    correct = (predicted == p.classes)[np.argsort(-p.calibrated.max(1), kind="stable")]
    for share in (80, 90):
        found[f"accuracy_at_{share}_coverage"] = correct[: int(np.ceil(share / 100 * len(correct)))].mean()
    return found


def with_intervals(p, draws, title):
    """`figures` with 95 % percentile intervals of a bootstrap over groups (Efron and Tibshirani 1993)."""
    random = np.random.default_rng(0)
    members = [np.flatnonzero(p.groups == g) for g in np.unique(p.groups)]
    values = figures(p)
    drawn = []
    for _ in tqdm(range(draws), desc=title, leave=False):
        index = np.concatenate([members[g] for g in random.integers(len(members), size=len(members))])
        drawn.append(list(figures(p.take(index)).values()))
    result = {}
    for column, (name, value) in enumerate(values.items()):
        sample = np.array([d[column] for d in drawn], dtype=float)
        if np.isnan(value):
            result[name] = None
        else:
            low, high = np.nanpercentile(sample, (2.5, 97.5))
            result[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return result


def subgroups(p):
    """Masks of the subgroups by name: thirds by lesion size and picture size, burned-in marks or none, class."""
    found = {f"class {name}": p.classes == k for k, name in enumerate(CLASSES)}
    share = p.true_area_px / p.picture_px
    small, large = np.quantile(share[p.lesion], (1 / 3, 2 / 3))
    found |= {"small lesion": p.lesion & (share <= small), "large lesion": p.lesion & (share > large)}
    found["medium lesion"] = p.lesion & (share > small) & (share <= large)
    small, large = np.quantile(p.picture_px, (1 / 3, 2 / 3))
    found |= {"small picture": p.picture_px <= small, "large picture": p.picture_px > large}
    found["medium picture"] = (p.picture_px > small) & (p.picture_px <= large)
    if p.has_marks:
        found |= {"burned-in marks": p.marks, "no burned-in marks": ~p.marks}
    return found


def evidence(p, draws):
    """Everything `report.json` says of one evaluation."""
    predicted = p.calibrated.argmax(1)
    masks = {name: mask for name, mask in subgroups(p).items() if mask.any()}
    keys = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy")
    by_subgroup = {}
    for name, mask in masks.items():
        part = with_intervals(p.take(mask), draws, name)
        by_subgroup[name] = {"pictures": int(mask.sum()), **{key: part[key] for key in keys}}
    order = np.argsort(np.where(p.lesion, p.dice, 2), kind="stable")
    missed = (p.classes == 2) & ((predicted != 2) | (p.dice < MISSED_BELOW))
    false = ~p.lesion & (p.predicted_area_px > 0)
    return {
        "pictures": len(p.names),
        "groups": len(np.unique(p.groups)),
        "largest_class_share": float(np.bincount(p.classes).max() / len(p.classes)),
        "figures": with_intervals(p, draws, "all pictures"),
        "folds": {str(f): {k: float(v) for k, v in figures(p.take(p.folds == f)).items()} for f in np.unique(p.folds)},
        "confusion_matrix": confusion(p).tolist(),
        "reliability": {"before": reliability(p.raw, p.classes), "after": reliability(p.calibrated, p.classes)},
        "subgroups": by_subgroup,
        "failures": {
            "worst_masks": [_failure(p, i) for i in order[:WORST] if p.lesion[i]],
            "malignant_missed": [_failure(p, i) for i in np.flatnonzero(missed)],
            "false_masks": [_failure(p, i) for i in np.flatnonzero(false)],
        },
    }


def _failure(p, i):
    return {
        "filename": str(p.names[i]),
        "true_class": CLASSES[p.classes[i]],
        "predicted_class": CLASSES[p.calibrated[i].argmax()],
        "probability": round(float(p.calibrated[i].max()), 3),
        "dice": round(float(p.dice[i]), 3),
    }


def _stress(folder):
    found = {}
    for file in sorted(folder.glob("*/metrics.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        keys = ("pictures", "lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "macro_f1", "auroc_malignant")
        found[file.parent.name] = {key: content[key] for key in keys}
    if not found:
        raise FileNotFoundError(f"{folder}: no results of scripts/stress_test.py; run it first")
    return found


def _save(chart, pictures, path):
    figure, axes = style.chart()
    chart(axes, pictures)
    style.save_chart(figure, path)


def reliability_diagram(axes, p):
    """Accuracy against confidence in 15 bins of equal mass (Guo et al. 2017)."""
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    series = zip(("before", "after"), (p.raw, p.calibrated), "os", LINE_COLOURS[1:])
    for title, probabilities, marker, colour in series:
        bins = reliability(probabilities, p.classes)
        error = expected_calibration_error(probabilities, p.classes)
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        axes.plot(
            x, y, marker=marker, linestyle="", color=colour, label=f"{title} calibration: error {error:.3f}", alpha=0.8
        )
    axes.set(xlabel="confidence (largest probability)", ylabel="accuracy", xlim=(0.3, 1.02), ylim=(0, 1.02))
    axes.legend()


def roc_curves(axes, p):
    """Each class against the rest."""
    for k, name in enumerate(CLASSES):
        positive = p.classes == k
        if not 0 < positive.sum() < len(positive):
            continue
        order = np.argsort(-p.calibrated[:, k], kind="stable")
        tpr, fpr = np.cumsum(positive[order]) / positive.sum(), np.cumsum(~positive[order]) / (~positive).sum()
        label = f"{name}: {auroc(positive, p.calibrated[:, k]):.3f}"
        axes.plot([0, *fpr], [0, *tpr], color=COLOURS[name], label=label)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    axes.legend(title="area under the curve", title_fontsize=8)


def confusion_chart(axes, p):
    """Rows true, columns predicted."""
    matrix = confusion(p)
    axes.imshow(matrix / np.maximum(matrix.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for i in range(3):
        for j in range(3):
            dark = matrix[i, j] > 0.5 * max(matrix[i].sum(), 1)
            axes.text(j, i, matrix[i, j], ha="center", va="center", color="white" if dark else "black")
    axes.set(xticks=range(3), yticks=range(3), xticklabels=CLASSES, yticklabels=CLASSES)
    axes.set(xlabel="predicted class", ylabel="true class")


def dice_distribution(axes, p):
    """Histogram of the lesion pictures' Dice by class."""
    names = [n for k, n in enumerate(CLASSES) if (p.lesion & (p.classes == k)).any()]
    values = [p.dice[p.lesion & (p.classes == CLASSES.index(n))] for n in names]
    colours = [COLOURS[n] for n in names]
    axes.hist(values, np.linspace(0, 1, 21), stacked=True, color=colours, label=names)
    axes.set(xlabel="Dice of a lesion picture", ylabel="pictures")
    axes.legend()


def risk_coverage_curve(axes, p):
    """Share of wrong classes among the most confident pictures (Geifman and El-Yaniv 2017)."""
    order = np.argsort(-p.calibrated.max(1), kind="stable")
    wrong = (p.calibrated.argmax(1) != p.classes)[order]
    coverage = np.arange(1, len(wrong) + 1) / len(wrong)
    risk = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    axes.plot(coverage, risk, color=LINE_COLOURS[0], label=f"mean {risk.mean():.3f}")
    axes.set(xlabel="coverage: share of the pictures that get an answer", ylabel="share of wrong classes")
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.legend()


if __name__ == "__main__":
    run(report)
