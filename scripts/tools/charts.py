"""Charts of an evaluation, each into given axes, for a page and for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, roc_curve
from tools.statistics import FALSE_POSITIVE_RATES, Estimate, net_benefit

from breast_ultrasound.metrics import MISSED_BELOW

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # that are marked on a curve
DASHED = {"color": "#888888", "linewidth": 1, "linestyle": ":"}


def roc(
    axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], bands: Mapping[str, dict], colours: Mapping
) -> None:
    """ROC curves by title, each of (N,) positive and (N,) scores, with the band of ``bootstrap(roc_points)``."""
    for title, (positive, scores) in curves.items():
        false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
        axes.plot(false, true, color=colours[title], label=title)
        low, high = ([getattr(point, end) for point in bands[title].values()] for end in ("low", "high"))
        axes.fill_between(FALSE_POSITIVE_RATES, low, high, color=colours[title], alpha=0.12, linewidth=0)
    axes.plot((0, 1), (0, 1), **DASHED)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(loc="lower right")


def confusion(axes: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Counts (K, K), rows true, with the percentage of each true class, by which the cells are shaded."""
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(fractions, display_labels=list(names))
    long = max(map(len, names)) * len(names) > 40
    display.plot(ax=axes, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, xticks_rotation=40 * long)
    percent = (len(names) <= 6) & (matrix.sum(axis=1, keepdims=True) > 0).repeat(len(names), axis=1)
    for cell, count, fraction, told in zip(display.text_.flat, matrix.flat, fractions.flat, percent.flat):
        cell.set(text=f"{count}\n{100 * fraction:.0f} %" if told else str(count), fontsize=9)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    if long:
        axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), ha="right")


def reliability(axes: Axes, bins: pandas.DataFrame, p: np.ndarray, text: str, colour: str) -> None:
    """Observed against predicted frequency of ``reliability_bins``, its null band, and below it how often each
    probability (N,) is given."""
    axes.plot((0, 1), (0, 1), **DASHED)
    axes.vlines(bins["predicted"], bins["low"], bins["high"], color="#BBBBBB", linewidth=5, label="95 % by chance")
    axes.plot(bins["predicted"], bins["observed"], "o-", color=colour, markersize=4, linewidth=1, label="observed")
    axes.set(xlabel="mean predicted probability", ylabel="observed frequency", xlim=(-0.03, 1.03), ylim=(-0.16, 1.03))
    counts, edges = np.histogram(p, bins=20, range=(0, 1))
    heights = 0.1 * counts / max(1, counts.max())
    axes.bar(edges[:-1], heights, width=0.05, bottom=-0.15, align="edge", color=colour, alpha=0.4)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=8)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.14))


def froc(axes: Axes, curve: tuple[np.ndarray, np.ndarray], point: tuple[float, float]) -> None:
    """Lesions found against false parts per image, as the least probability of a part falls; `point` as evaluated."""
    axes.step(*(values[::-1] for values in curve), where="post", color="#4477AA", label="by component_threshold")
    axes.plot(*point, "o", color="#333333", label="as evaluated")
    axes.set(xlabel="parts that find no lesion, per image", ylabel="fraction of the lesions found")
    axes.set(xlim=(-0.01, 1.05 * max(curve[0].max(), 0.1)), ylim=(0, 1.02))
    axes.legend(loc="lower right")


def decision(axes: Axes, p: np.ndarray, outcome: np.ndarray, colour: str) -> None:
    """Net benefit of acting from a probability (N,) on, for each such threshold, beside acting on all or on none;
    `outcome` (N,) is bool."""
    thresholds = np.linspace(0.01, 0.75, 75)
    for title, scores, style in (
        ("act by the probability", p, {"color": colour}),
        ("act on all", np.ones(len(p)), DASHED),
    ):
        axes.plot(thresholds, [net_benefit(scores, outcome, t) for t in thresholds], label=title, **style)
    axes.axhline(0, color="#888888", linewidth=1, label="act on none")
    axes.set(xlabel="probability of malignant from which on one acts", ylabel="net benefit per image")
    axes.set(xlim=(0, 0.75), ylim=(-0.05, 1.1 * outcome.mean()))
    axes.legend(loc="upper right")


def missed_and_false(
    axes: Axes, false: Estimate, missed: Estimate, curve: Sequence[np.ndarray] = (), band: Mapping | None = None
) -> None:
    """Share of lesions missed against share of false masks, both with their intervals; and what other values of
    `component_threshold` would give, from (N,) lesion and (N,) probability of each mask's best part, with the band of
    ``bootstrap(roc_points)``."""
    if curve:
        lesion, scores = curve
        rate, found, thresholds = roc_curve(lesion, scores, drop_intermediate=False)
        rate, found = rate[thresholds > 0], found[thresholds > 0]  # an image without any part gets no mask
        axes.plot(rate, 1 - found, color="#4477AA", label="lesions without any mask, by component_threshold")
        inside = FALSE_POSITIVE_RATES <= rate.max()
        ends = (np.array([1 - getattr(point, end) for point in band.values()])[inside] for end in ("low", "high"))
        axes.fill_between(FALSE_POSITIVE_RATES[inside], *ends, color="#4477AA", alpha=0.12, linewidth=0)
        points: dict[tuple, list[str]] = {}
        for threshold in THRESHOLDS:
            at = (scores[~lesion] >= threshold).mean(), (scores[lesion] < threshold).mean()
            points.setdefault(at, []).append(f"{threshold:g}")
        for at, told in points.items():
            axes.plot(*at, "o", color="#4477AA", markersize=3)
            axes.annotate(", ".join(told), at, (3, 3), textcoords="offset points", fontsize=7, color="#4477AA")
    errors = [[[point.value - point.low], [point.high - point.value]] for point in (false, missed)]
    axes.errorbar(
        [false.value],
        [missed.value],
        xerr=errors[0],
        yerr=errors[1],
        fmt="o",
        color="#333333",
        capsize=3,
        label=f"as evaluated, missed: Dice under {MISSED_BELOW}",
    )
    axes.set(xlabel="images without lesion that have a mask", ylabel="images with lesion missed")
    axes.set(xlim=(-0.02, 1.05 * max(false.high, 0.4)), ylim=(-0.02, 1.05 * max(missed.high, 0.4)))
    axes.legend(loc="upper right", fontsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def dice(axes: Axes, values: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> None:
    """Fraction of the images at or below each Dice, a line a class; where it meets the dotted line, those missed."""
    for name, found in values.items():
        axes.ecdf(found, color=colours[name], label=f"{name} (n = {len(found)}, median {np.median(found):.2f})")
    axes.axvline(MISSED_BELOW, **DASHED)
    axes.set(xlabel="Dice of an image with lesion", ylabel="fraction of the images", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")


def forest(axes: Axes, rows: Sequence[tuple[str, Estimate]], overall: float, label: str) -> None:
    """Estimates one below the other with their intervals, and the value of all images as a line."""
    at = np.arange(len(rows))[::-1]
    for y, (_, found) in zip(at, rows):
        if not np.isnan(found.low):
            axes.plot((found.low, found.high), (y, y), color="#333333", linewidth=1)
        axes.plot(found.value, y, "s", color="#333333", markersize=4)
    axes.axvline(overall, **DASHED)
    axes.set_yticks(at, [name for name, _ in rows])
    axes.set(xlabel=label, ylim=(-0.7, len(rows) - 0.3))
