"""The page that scripts/report.py makes of one evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tools import charts, style
from tools.evaluations import Evaluation, read_evaluation
from tools.figures import (
    MALIGNANT,
    WORST,
    bands,
    compared,
    curve_titles,
    curves,
    failures,
    figure_title,
    figures,
    froc,
    shares,
    subgroup_figures,
)
from tools.statistics import Estimate, reliability_bins

from breast_ultrasound.data import UNKNOWN_CLASS
from breast_ultrasound.metrics import MISSED_BELOW, confusion_matrix


def said(found: Estimate | int) -> tuple[str, str]:
    """A figure and its interval as the page shows them."""
    if not isinstance(found, Estimate):
        return str(found), ""
    if np.isnan(found.value):
        return "", ""
    if found.total is None:
        return f"{found.value:.3f}", "none" if np.isnan(found.low) else f"{found.low:.3f} to {found.high:.3f}"
    low, high = 100 * found.low, 100 * found.high
    return f"{found.hits} of {found.total} ({100 * found.value:.1f} %)", f"{low:.1f} to {high:.1f} %"


def as_row(found: Estimate) -> dict:
    """A figure as the CSV files have it, empty where there is none."""
    return {
        key: "" if value is None or isinstance(value, float) and np.isnan(value) else value
        for key, value in found._asdict().items()
    }


class Page:
    """The sections of the page; the charts are written as they are drawn.

    Args:
        evaluation: what it is about.
        output: folder of the page and of its charts.
        draws: of each bootstrap.
        against: another evaluation of the same images, to compare with; none by default.
    """

    def __init__(self, evaluation: Evaluation, output: Path, draws: int, against: Path | None = None) -> None:
        self.against = against
        self.evaluation, self.output, self.draws = evaluation, output, draws
        self.images, self.names = evaluation.images, evaluation.images.class_names
        self.differences = {}
        if against:
            other, names = read_evaluation(against), list(evaluation.table["filename"])
            with_names = (self.images, names, other.images, list(other.table["filename"]))
            self.differences = compared(*with_names, evaluation.groups, draws, against)
        self.colours = style.class_colours(self.names)
        self.curves = curves(evaluation)
        self.points = bands(evaluation, self.curves, draws)
        self.figures = figures(evaluation, self.curves, self.points, draws)
        self.subgroups = subgroup_figures(evaluation, draws)
        self.failures = failures(self.images, list(evaluation.table["filename"]))

    def sections(self) -> dict[str, list[dict]]:
        """What the page shows, by the titles of its sections."""
        sections = {
            "What was evaluated": self._source(),
            "Masks": [_table(self.figures["Masks"]), {"charts": self._masks()}],
            "Classes": [_table(self.figures["Classes"]), {"charts": self._classes()}],
            "Calibration": [_table(self.figures["Calibration"]), {"charts": self._calibration()}],
            "Comparison": self._compared(),
            "Subgroups": self._subgroups(),
            "Worst images": self._failures(),
            "How the intervals are made": [{"text": METHODS}],
        }
        empty = [title for title in ("Masks", "Classes", "Calibration") if title in self.figures]
        gone = {title for title in empty if not self.figures[title]}
        return {title: blocks for title, blocks in sections.items() if blocks and title not in gone}

    def _chart(self, name: str, draw: object, alt: str, size: tuple[float, float] = (4.4, 4.2)) -> dict:
        figure, axes = style.chart(size=size)
        draw(axes)
        paths = [self.output / f"{name}.{suffix}" for suffix in ("svg", "png")]
        style.save_chart(figure, *paths, dpi=300)  # as journals ask
        return {"path": paths[0], "alt": alt, "files": [path.name for path in paths]}

    def _source(self) -> list[dict]:
        images, groups = self.images, self.evaluation.groups
        counts = [(name, int(images.of_class(name).sum())) for name in self.names]
        counts.append(("unknown class", int((images.true_class == UNKNOWN_CLASS).sum())))
        rows = [("images", len(images)), ("with lesion", int(images.lesion.sum()))]
        rows += [(name, count) for name, count in counts if count or name in self.names]
        rows.append(("scans or patients (groups)", len(np.unique(groups))))
        notes = [{"text": note} for note in self.evaluation.notes]
        tables = [{"head": ("Counts", "Images"), "rows": rows}, {"facts": self.evaluation.source}]
        return [*notes, *(table for table in tables if table.get("facts", True))]

    def _masks(self) -> list[dict]:
        images, found = self.images, []
        values = {name: images.dice[images.of_class(name) & images.lesion] for name in self.names}
        values["unknown class"] = images.dice[(images.true_class == UNKNOWN_CLASS) & images.lesion]
        values = {name: dice for name, dice in values.items() if len(dice)}
        if values:
            colours = {**self.colours, "unknown class": style.OTHER_COLOUR}
            alt = "Fraction of the images with lesion at or below each Dice, by class"
            found.append(self._chart("dice", lambda axes: charts.dice(axes, values, colours), alt, (5.4, 4.2)))
        counted = shares(images, self.evaluation.groups)
        missed, false = counted["missed_rate"], counted["false_mask_rate"]
        if missed.total and false.total:
            alt = f"Lesions missed, {said(missed)[0]}, against masks on images without lesion, {said(false)[0]}"
            alt += (
                "; curve: lesions without any mask, for every component_threshold"
                if "auroc_mask" in self.curves
                else ""
            )
            curve = self.curves.get("auroc_mask", ())[1:]
            band = self.points.get("auroc_mask")
            draw = partial(charts.missed_and_false, false=false, missed=missed, curve=curve, band=band)
            found.append(self._chart("missed_and_false", draw, alt))
        if (curve := froc(images)) is not None:
            point = images.lesions[:, 2].mean(), counted["lesion_sensitivity"].value
            alt = "FROC curve: fraction of the lesions found against parts of masks that find none, per image"
            found.append(self._chart("froc", partial(charts.froc, curve=curve, point=point), alt))
        return found

    def _roc(self, name: str, keys: Sequence[str], colours: dict[str, str], alt: str) -> list[dict]:
        titles = curve_titles(self.evaluation, self.curves)
        shown = [key for key in keys if key in titles]
        if not shown:
            return []
        areas = self.figures["Classes"]
        labels = {}
        for key in shown:
            value, interval = said(areas[titles[key]])
            title = titles[key].removeprefix("AUROC, ").removesuffix(" against the rest")
            labels[key] = f"{title}\n{value} ({interval})" if interval != "none" else f"{title}\n{value}"
        lines = {labels[key]: self.curves[key][1:] for key in shown}
        points = {labels[key]: self.points[key] for key in shown}
        coloured = {labels[key]: colours.get(key, "#333333") for key in shown}
        return [self._chart(name, lambda axes: charts.roc(axes, lines, points, coloured), alt)]

    def _classes(self) -> list[dict]:
        each = {f"auroc_{name}": colour for name, colour in self.colours.items()}
        two = {"auroc_benign_malignant": self.colours.get(MALIGNANT, "#333333")}
        found = self._roc("roc_benign_malignant", list(two), two, "ROC curve, malignant against benign")
        found += self._roc("roc_classes", list(each), each, "ROC curves, each class against the rest")
        found += self._roc("roc_lesion", ["auroc_lesion"], {}, "ROC curve, presence of a lesion by its class")
        matrix = confusion_matrix(self.images)
        if matrix.any():
            alt = "Confusion matrix, true classes in rows: " + "; ".join(
                f"{name} {', '.join(map(str, row))}" for name, row in zip(self.names, matrix.tolist())
            )
            side = max(4.2, 0.7 * len(self.names) + 1.5)
            size = (side + 0.2, side)
            found.append(self._chart("confusion", lambda axes: charts.confusion(axes, matrix, self.names), alt, size))
        return found

    def _calibration(self) -> list[dict]:
        images, found = self.images, []
        known = images.true_class != UNKNOWN_CLASS
        for k, name in enumerate(self.names):
            p, outcome = images.probabilities[known, k], images.true_class[known] == k
            if not outcome.any() or outcome.all():
                continue
            bins = reliability_bins(p, outcome, self.evaluation.groups[known], draws=self.draws)
            outside = int(((bins["observed"] < bins["low"]) | (bins["observed"] > bins["high"])).sum())
            lines = [name]
            for key in ("slope (1)", "intercept (0)"):
                if f"{name}: {key}" in self.figures["Calibration"]:
                    value, interval = said(self.figures["Calibration"][f"{name}: {key}"])
                    lines.append(f"{key.split()[0]} {value}" + (f" ({interval})" if interval != "none" else ""))
            text = "\n".join(lines)
            alt = f"Reliability of p({name}): {outside} of {len(bins)} bins outside what chance gives"
            file = f"reliability_{k}_" + re.sub(r"[^\w.-]", "_", name)
            colour = self.colours[name]
            found.append(self._chart(file, lambda axes: charts.reliability(axes, bins, p, text, colour), alt))
            if name == MALIGNANT:
                alt = "Decision curve: net benefit of acting from each probability of malignant on, beside all and none"
                found.append(self._chart("decision", lambda axes: charts.decision(axes, p, outcome, colour), alt))
        return found

    def _compared(self) -> list[dict]:
        if not self.differences:
            return []
        text = f"How much more these answers have than those of {self.against.name}, on the same images, each drawn "
        text += "together with its counterpart. An interval that holds 0 shows no difference."
        rows = {figure_title(name, self.names): found for name, found in self.differences.items()}
        return [{"text": text}, _table(rows, "Difference")]

    def _subgroups(self) -> list[dict]:
        if not self.subgroups:
            return []
        head = ("Subgroup", *next(iter(self.subgroups.values())))
        rows = [(name, *map(_in_two_lines, row.values())) for name, row in self.subgroups.items()]
        found = []
        for name, key, overall in (
            ("subgroups_dice", "Dice", self.figures["Masks"].get("Dice, images with lesion")),
            ("subgroups_auroc", head[-1], self.figures["Classes"].get(head[-1])),
        ):
            shown = [(title, row[key]) for title, row in self.subgroups.items() if not np.isnan(row[key].value)]
            if overall and shown:
                label = "Dice of the images with lesion" if key == "Dice" else key
                size = (5.4, 0.24 * len(shown) + 1.1)
                alt = f"{label} of each subgroup with its interval; the table has the numbers"
                found.append(
                    self._chart(name, lambda axes: charts.forest(axes, shown, overall.value, label), alt, size)
                )
        return [{"head": head, "rows": rows, "wrap": True}, {"charts": found}]

    def _failures(self) -> list[dict]:
        if not self.failures:
            return [{"text": "No lesion was missed, no image without lesion has a mask."}]
        text = f"The {WORST} worst masks, every mask on an image without lesion, and every malignant image that was "
        text += "taken for another class or whose lesion was missed. scripts/show_predictions.py draws them."
        head = ("Failure", "Image", "True class", "Predicted class", "Its probability", "Dice")
        return [{"text": text}, {"head": head, "rows": [tuple(row.values()) for row in self.failures], "words": 4}]


METHODS = (
    "All intervals are of 95 %. Shares (k of n) have the interval of Clopper and Pearson, with the effective number of "
    "images by Korn and Graubard where a scan or patient has several. All other figures have percentiles of a "
    "bootstrap over scans or patients; 'none' where it knows nothing (fewer than five of these, all draws agree, or "
    "more than one in twenty has no value). The bars of the reliability charts hold 95 % of what chance would give "
    f"were the probabilities right. An image counts as missed where its Dice is under {MISSED_BELOW}. Subgroups are "
    "many and small: a difference between two of them is no finding unless it was asked for before."
)


def _table(rows: dict[str, Estimate], value: str = "Value") -> dict:
    return {
        "head": ("Figure", value, "95 % interval"),
        "rows": [(name, *said(found)) for name, found in rows.items()],
    }


def _in_two_lines(found: Estimate | int) -> str:
    """A figure and its interval, which may stand below it; spaces that do not break otherwise."""
    value, interval = said(found)
    parts = [value, f"({interval})"] if interval not in ("", "none") else [value]
    return " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
