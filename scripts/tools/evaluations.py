"""Reading an evaluation: its tables, what a datalist knows of its images, and what they cannot tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas
from tools.statistics import FEWEST_GROUPS

from breast_ultrasound.data import UNKNOWN_CLASS, read_datalist
from breast_ultrasound.files import read_csv
from breast_ultrasound.metrics import Images, images_sha256, summarize

MOST_VALUES = 20  # of a column that tells subgroups; a longer one of numbers is cut into thirds
FEW = 10  # a class of fewer images gets a warning
# What an item of a datalist says besides the columns that a user gave it
OWN_KEYS = {"image", "label", "class", "class_name", "group", "sources", "set", "set_weight"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of N images.

    Args:
        images: what the metrics need.
        table: N rows with `filename`, `group`, `threshold` (of malignancy; NaN: none) and the columns of subgroups.
        columns: names of those columns.
        source: rows of text, what the evaluation says of itself.
        notes: what is missing or was left out, a sentence each.
    """

    images: Images
    table: pandas.DataFrame
    columns: list[str]
    source: list[tuple[str, str]]
    notes: list[str]

    @property
    def groups(self) -> np.ndarray:
        """(N,) names of the groups."""
        return self.table["group"].to_numpy()

    @property
    def lesion_free(self) -> list[str]:
        """Classes whose images show no lesion: normal, and any of which no image here has one."""
        images = self.images
        masks = {name: images.lesion[images.of_class(name)] for name in images.class_names}
        return [name for name, lesion in masks.items() if name == "normal" or len(lesion) and not lesion.any()]

    @property
    def pair(self) -> bool:
        """Whether there are a benign and a malignant class."""
        return {"benign", "malignant"} <= set(self.images.class_names)


def suspicious(images: Images, thresholds: np.ndarray) -> np.ndarray | None:
    """Whether the probability of malignant reaches each image's threshold (N,); None where there is no such class or
    an image has no threshold (NaN)."""
    if "malignant" not in images.class_names or np.isnan(thresholds).any():
        return None
    return images.probabilities[:, images.class_names.index("malignant")] >= thresholds


def thirds(values: np.ndarray, among: np.ndarray) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Masks (N,) of the lower, middle and upper third of some images' values (N,), and the two limits.

    Args:
        values: (N,).
        among: (N,), bool, the images to divide; one at least.
    """
    small, large = np.quantile(values[among], (1 / 3, 2 / 3))
    parts = (values <= small, (values > small) & (values <= large), values > large)
    return [among & part for part in parts], (small, large)


def tables_of(folder: Path, remedy: str = "evaluate first, or let cross_validate.py finish") -> list[Path]:
    """`metrics.json` and `images.csv` of an evaluation.

    Raises:
        FileNotFoundError: one is missing; `remedy` says what to do.
    """
    files = [folder / "metrics.json", folder / "images.csv"]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    return files


def read_evaluation(folder: Path, datalist: Path | None = None, columns: Sequence[str] | None = None) -> Evaluation:
    """Read the tables of the bundle's evaluation or of scripts/cross_validate.py.

    Args:
        folder: with `images.csv` and `metrics.json`.
        datalist: that knows the images' groups and what else is told of them; none: each image is its own group.
        columns: of the datalist, to tell subgroups by; all that can by default.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table is damaged, the two do not belong together, the datalist has none of the images or not the
            column.
    """
    file, table_file = tables_of(folder)
    images, rows = _read_images(table_file)
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        recomputed = summarize(images)
        apart = [key for key in ("images", "images_by_class", "confusion_matrix") if content[key] != recomputed[key]]
        if content.get("images_sha256", images_sha256(rows)) != images_sha256(rows):
            apart.append("images_sha256")
        folds = content.get("folds", [content])
        # At another prevalence the probabilities are not those that the threshold was chosen on
        thresholds = [None if fold.get("prevalence") else fold.get("malignancy_threshold") for fold in folds]
        table = pandas.DataFrame({"filename": [row["filename"] for row in rows]})
        numbers = [int(row["fold"]) if "folds" in content else 0 for row in rows]
        table["threshold"] = pandas.to_numeric(pandas.Series([thresholds[number] for number in numbers]))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{file}: not of an evaluation ({type(error).__name__}: {error}); evaluate again") from None
    if apart:
        raise ValueError(f"{folder}: {apart[0]} of metrics.json and images.csv are of two evaluations; evaluate again")
    known = {"notice", "folds", *recomputed}
    sources = [
        {key: value for key, value in fold.items() if key not in known and not isinstance(value, (list, dict))}
        for fold in folds
    ]
    shifted = [str(fold["prevalence"]) for fold in folds if fold.get("prevalence")]
    split = content.get("split")
    facts = _facts(datalist, split.split("+") if isinstance(split, str) else None) if datalist else {}
    items = [_item(facts, name) for name in table["filename"]]
    if datalist and not any(items):
        raise ValueError(f"{datalist}: knows none of the {len(items)} images; give the datalist that was evaluated")
    table["group"] = [str((item or {}).get("group") or f"image {name}") for item, name in zip(items, table["filename"])]
    found, notes = _columns(items, columns, datalist)
    if "folds" in content:
        found["fold"] = [str(number) for number in numbers]
    lost = sum(item is None for item in items)
    if not datalist:
        notes.insert(0, "No datalist was given: each image counts as independent; --datalist knows scans or patients.")
    elif lost:
        notes.insert(0, f"{lost} images stand in no split of the datalist, such as {_first_lost(table, items)}.")
    table = table.assign(**{f"column {name}": values for name, values in found.items()})
    if shifted:
        notes.append(f"Evaluated at the prevalence {shifted[0]}: no figures of the stored threshold.")
    evaluation = Evaluation(images, table, list(found), _source_rows(sources), notes)
    evaluation.notes.extend(_missing(evaluation))
    return evaluation


def _first_lost(table: pandas.DataFrame, items: list) -> str:
    return table["filename"][[item is None for item in items].index(True)]


def _read_images(file: Path) -> tuple[Images, list[dict]]:
    try:
        rows = read_csv(file)
        names = [key.removeprefix("p_") for key in rows[0] if key.startswith("p_")] if rows else []
        if not names:
            raise ValueError("no image, or no probability")
        images = Images.from_rows(rows, names)
        predicted, true, both, pixels = images.areas.T
        doubled = pandas.Series([row["filename"] for row in rows]).duplicated()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: not the table of an evaluation ({type(error).__name__}: {error}); evaluate again"
        ) from None
    p = images.probabilities
    wrong = ~((p >= 0) & (p <= 1)).all(axis=1) | ~((both >= 0) & (both <= np.minimum(predicted, true)))
    wrong |= ~(np.maximum(predicted, true) <= pixels) | doubled
    if images.component is not None:
        wrong |= ~((images.component >= 0) & (images.component <= 1))
    if wrong.any():
        row = rows[int(np.argmax(wrong))]["filename"]
        raise ValueError(f"{file}: {row}: stands twice, or its numbers cannot be; evaluate again")
    return images, rows


def _facts(datalist: Path, splits: list[str] | None) -> dict[str, dict | None]:
    """Items of a datalist by every end of their images' paths; None where several have it."""
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; name the datalist that was evaluated")
    try:
        content = read_datalist(datalist)
        lists = {name: found for name, found in content.items() if isinstance(found, list) and name != "class_names"}
        chosen = [name for name in splits or lists if name in lists]
        items = [{**item, "split": name} for name in chosen for item in lists[name] if isinstance(item, dict)]
        paths = [PurePosixPath(item["image"]).parts for item in items]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{datalist}: not a datalist ({type(error).__name__}: {error}); scripts/prepare.py makes one"
        ) from None
    facts: dict[str, dict | None] = {}
    for item, parts in zip(items, paths):
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            facts[end] = None if end in facts else item
    return facts


def _item(facts: dict[str, dict | None], name: str) -> dict | None:
    """The only item whose image's path ends as this name does, as far up as it takes."""
    parts = PurePosixPath(name).parts
    return next((facts[end] for i in range(len(parts)) if (end := "/".join(parts[i:])) in facts), None)


def _columns(
    items: list[dict | None], chosen: Sequence[str] | None, datalist: Path | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Values (N,) of each column that tells subgroups, as text, and a sentence on each that cannot."""
    given = list(dict.fromkeys(key for item in items if item for key in item if key not in OWN_KEYS))
    unknown = [name for name in chosen or () if name not in given]
    if unknown:
        there = f"{datalist} has {', '.join(given) or 'none'}" if datalist else "give --datalist, which has them"
        raise ValueError(f"--columns {unknown[0]}: no such column; {there}")
    found, notes = {}, []
    for name in given if chosen is None else chosen:
        values = pandas.Series([(item or {}).get(name) for item in items], dtype=object)
        values = values.map(lambda v: v if v is None else " ".join(map(str, v)) if isinstance(v, list) else str(v))
        numbers = pandas.to_numeric(values.where(values != "", None), errors="coerce")
        several = values.nunique()
        if several > MOST_VALUES and numbers.notna().sum() >= 0.5 * values.notna().sum():
            parts = pandas.qcut(numbers, 3, duplicates="drop").astype(object)
            values = parts.map(lambda part: "(no number)" if pandas.isna(part) else f"{part.left:g} to {part.right:g}")
        elif several > MOST_VALUES:
            notes.append(f"Column {name} has {several} values and tells no subgroups.")
            continue
        elif several < 2 and chosen is None:
            continue
        found[name] = [("(empty)" if v == "" else str(v)) if pandas.notna(v) else "(not told)" for v in values]
    return found, notes


def _source_rows(sources: list[dict]) -> list[tuple[str, str]]:
    """What evaluations say of themselves; where folds differ, each fold's."""
    rows = []
    for key in dict.fromkeys(key for source in sources for key in source):
        values = [_text(source.get(key)) for source in sources]
        shown = values[:1] if len(set(values)) == 1 else [f"fold {i}: {value}" for i, value in enumerate(values)]
        rows.append((key, "; ".join(shown)))
    return rows


def _text(value: object) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _missing(evaluation: Evaluation) -> list[str]:
    """What the images cannot tell, a sentence each."""
    images, notes = evaluation.images, []
    counts = {name: int(images.of_class(name).sum()) for name in images.class_names}
    unknown = int((images.true_class == UNKNOWN_CLASS).sum())
    if unknown:
        notes.append(f"{unknown} images of unknown class count for the masks alone.")
    absent = [name for name, count in counts.items() if not count]
    if absent and len(absent) < len(counts):
        notes.append(f"No image of class {', '.join(absent)}: no figure of it, and none that needs every class.")
    few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW]
    if few:
        notes.append(f"Few images of class {', '.join(few)}: intervals are wide.")
    if sum(count > 0 for count in counts.values()) == 1:
        notes.append("All images are of one class: no ROC curve of the classes, no calibration.")
    if not images.lesion.any():
        notes.append("No image has a lesion: no Dice, nothing that could be missed.")
    if images.lesion.all():
        notes.append("Every image has a lesion: no false masks, no ROC curve of the presence of a lesion.")
    if not evaluation.pair:
        notes.append("The classes are not benign and malignant: no curve of one against the other.")
    if (count := len(np.unique(evaluation.groups))) < FEWEST_GROUPS:
        notes.append(f"Fewer scans or patients than {FEWEST_GROUPS} ({count}): intervals of shares alone.")
    if images.boundary is None or images.parts is None:
        notes.append("No HD95, surface Dice and lesion-wise detection: they were not measured; evaluate again.")
    if images.component is None:
        notes.append(
            "An evaluation of an older version: no curve of missed lesions against false masks; evaluate again."
        )
    if evaluation.source and "mask_threshold" not in dict(evaluation.source):
        notes.append("This evaluation did not record the rule of the mask (mask_threshold, component_threshold).")
    if not evaluation.source:
        notes.append("metrics.json does not say which weights were evaluated.")
    return notes
