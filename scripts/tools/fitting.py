"""From the network's confidence to probabilities that hold: temperature, class offsets, operating point."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import log_loss
from tools.evaluations import tables_of
from tools.statistics import SMALLEST, calibration

from breast_ultrasound.calibration import SUSPICIOUS, offsets
from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import read_csv, sha256

LEAST_IMAGES, LEAST_OF_CLASS = 50, 10  # to calibrate on
EVERYTHING = "training+validation+testing"


def calibrated(probabilities: np.ndarray, temperature: float, shift: Sequence[float] = (0.0,)) -> np.ndarray:
    """Divide the logits behind probabilities (N, K) by a temperature (above 1: less confident) and add what
    `offsets` gives (K,)."""
    return softmax(np.log(np.clip(probabilities, SMALLEST, None)) / temperature + np.asarray(shift), axis=1)


def uncalibrated(probabilities: np.ndarray, calibration: Mapping[str, object], names: Sequence[str]) -> np.ndarray:
    """The network's own probabilities (N, K) behind those of an evaluation whose metrics.json tells the calibration."""
    shift = np.asarray(offsets(calibration, names))
    temperature = calibration["temperature"]
    return calibrated(probabilities, 1 / temperature, -shift * temperature)


def mean_log_loss(probabilities: np.ndarray, classes: Sequence[int], weights: np.ndarray | None = None) -> float:
    """scikit-learn's ``log_loss`` where some of the K classes may be absent; probabilities (N, K), indices and weights
    (N,)."""
    return float(log_loss(classes, probabilities, sample_weight=weights, labels=range(probabilities.shape[1])))


def fit_calibration(
    probabilities: np.ndarray, classes: np.ndarray, weights: np.ndarray | None = None, with_offsets: bool = True
) -> tuple[float, list[float]]:
    """The temperature in [0.2, 10] and the class offsets with the least log loss (bias-corrected temperature scaling,
    Alexandari et al., ICML 2020).

    One temperature cannot undo that training draws the classes equally often; offsets can. Where a class has too few
    images to tell its frequency the temperature is fitted alone (Guo et al., ICML 2017).

    Args:
        probabilities: (N, K) of a network as trained.
        classes: (N,) indices.
        weights: (N,) of the images; equal by default.
        with_offsets: whether to fit offsets beside the temperature.

    Returns:
        the temperature, and K offsets of mean 0; none where there are too few images of a class, or none are wanted.
    """
    size = probabilities.shape[1]
    enough = with_offsets and bool(np.bincount(classes, minlength=size).min() >= LEAST_OF_CLASS)

    def parts(x: np.ndarray) -> tuple[float, np.ndarray]:
        shift = np.append(x[1:], 0.0) if enough else np.zeros(size)
        return float(np.exp(x[0])), shift - shift.mean()

    found = minimize(
        lambda x: mean_log_loss(calibrated(probabilities, *parts(x)), classes, weights),
        np.zeros(size if enough else 1),
        method="L-BFGS-B",
        bounds=[np.log([0.2, 10])] + [(None, None)] * (size - 1) * enough,
    )
    temperature, shift = parts(found.x)
    return temperature, shift.tolist() if enough else []


def threshold_for_sensitivity(
    scores: Sequence[float],
    positive: Sequence[bool],
    sensitivity: float = 0.95,
    weights: Sequence[float] | None = None,
) -> float:
    """The largest threshold at which ``score >= threshold`` finds at least this fraction of the positives, by their
    weights where these are given.

    None of numpy's quantiles is that: over n positives they count from n - 1 on, or stop one below.

    Raises:
        ValueError: where nothing is positive.
    """
    among = np.asarray(positive, dtype=bool)
    if not among.any():
        raise ValueError("no positive image to fix the operating point on; use a larger validation split")
    found = np.asarray(scores, dtype=float)[among]
    share = np.ones(len(found)) if weights is None else np.asarray(weights, dtype=float)[among]
    order = np.argsort(found)
    left_out = np.cumsum(share[order]) - share[order]  # what lies below each of them
    return float(found[order][left_out <= (1 - sensitivity) * share.sum() + 1e-9][-1])


class Answers(NamedTuple):
    """What a network said of images whose class is known.

    Attributes:
        names: of the classes.
        probabilities: the network's own, before any calibration, float (N, K).
        classes: indices of `names`, int (N,).
        files: names of the images.
        weights: of the images, float (N,); None: equal ones.
    """

    names: list[str]
    probabilities: np.ndarray
    classes: np.ndarray
    files: list[str]
    weights: np.ndarray | None = None


def read_evaluation(folder: Path, split: str, remedy: str, weights: Path | None = None) -> Answers:
    """The answers in an evaluation's tables.

    Args:
        folder: its output, with `metrics.json` and `images.csv`.
        split: the split that it has to be of.
        remedy: what to do where it is not, for the error.
        weights: `model.pt` that it has to be of, where that matters.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: the evaluation is of another split, of other weights or at a prevalence, or no class is known.
    """
    file, table = tables_of(folder, remedy)
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if metrics["split"] != split:
        raise ValueError(f"{folder}: evaluates the split {metrics['split']}; {remedy}")
    if weights and metrics["weights_sha256"] != sha256(weights):
        raise ValueError(f"{folder}: made with other weights than {weights}; evaluate these first")
    if metrics.get("prevalence"):
        raise ValueError(f"{folder}: evaluated at another prevalence; evaluate without --prevalence")
    names = list(metrics["images_by_class"])
    rows = [row for row in read_csv(table) if row["true_class"]]
    if not rows:
        raise ValueError(f"{table}: no image of a known class; nothing to calibrate on")
    classes = np.array([names.index(row["true_class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    # Back to the network's own, where the evaluation used an earlier calibration.
    own = uncalibrated(probabilities, metrics, names)
    return Answers(names, own, classes, [row["filename"] for row in rows])


def read_folds(cross_validation: Path, datalist: Path) -> Answers:
    """The answers of all folds of a cross-validation about what a datalist has in its training and validation splits.

    Raises:
        FileNotFoundError: a fold's tables or the datalist are missing.
        ValueError: the datalist has none of the images.
    """
    folders = sorted(cross_validation.glob("fold_*/uncalibrated"))
    if not folders:
        raise FileNotFoundError(f"{cross_validation}: no fold_0/uncalibrated; run scripts/cross_validate.py first")
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; give --datalist the one that the weights were trained with")
    folds = [read_evaluation(folder, "testing", "run scripts/cross_validate.py again") for folder in folders]
    files = [file for fold in folds for file in fold.files]
    splits = read_datalist(datalist)
    seen = {Path(item["image"]).name for split in ("training", "validation") for item in splits[split]}
    chosen = np.array([file in seen for file in files])
    if not chosen.any():
        raise ValueError(
            f"{datalist}: its images are not those of the cross-validation; give the datalist of the same set"
        )
    probabilities, classes = (np.concatenate([fold[i] for fold in folds])[chosen] for i in (1, 2))
    return Answers(folds[0].names, probabilities, classes, [file for file in files if file in seen])


def read_left_out(folders: Sequence[Path], weights: Path) -> Answers:
    """The answers about several hospitals, each by weights that had not seen it; every hospital weighs the same.

    Args:
        folders: outputs of evaluations of all images of a hospital.
        weights: `model.pt` that is calibrated, which cannot be the one that answered: it has seen them all.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: an evaluation is of a part of its images, of these very weights, or of other classes than the first.
    """
    found = [read_evaluation(folder, EVERYTHING, f"evaluate with --split {EVERYTHING}") for folder in folders]
    for folder, each in zip(folders, found):
        if each.names != found[0].names:
            raise ValueError(f"{folder}: its classes are {', '.join(each.names)}, of {folders[0]} others")
        if json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["weights_sha256"] == sha256(weights):
            raise ValueError(f"{folder}: made with {weights} itself; evaluate weights that have not seen this hospital")
    probabilities, classes = (np.concatenate([each[i] for each in found]) for i in (1, 2))
    share = np.concatenate([np.full(len(each.files), 1 / len(each.files)) for each in found])
    return Answers(found[0].names, probabilities, classes, [f for each in found for f in each.files], share)


def few_images(answers: Answers) -> str:
    """A line where a calibration has little to go by; empty where it has enough.

    A fraction of 50 images is uncertain by 0.14 either way (95 %), that of 10 images of a class by 0.3.
    """
    counts = {name: int((answers.classes == index).sum()) for index, name in enumerate(answers.names)}
    total = sum(counts.values())
    if total >= LEAST_IMAGES and min(counts.values()) >= LEAST_OF_CLASS:
        return ""
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f"warning: {total} images ({told}) are few to calibrate on, {LEAST_IMAGES} and {LEAST_OF_CLASS} of each class "
        "are the least; the limits may be far off, so add images or use --cross_validation"
    )


def fit(
    answers: Answers, sensitivity: float, unsure_fraction: float, suspicious_classes: Sequence[str] = SUSPICIOUS
) -> tuple[dict, dict]:
    """Temperature and limits for the classes that a network names.

    Args:
        answers: of images that the network was not trained on.
        sensitivity: of the operating point for images of the suspicious classes, in (0, 1].
        unsure_fraction: images of least confidence, as a fraction of all, in [0, 1).
        suspicious_classes: whose probabilities together have the operating point.

    Returns:
        `temperature`, `class_offsets` and `fitted_prevalence` by class (empty where a class has too few images),
        `malignancy_threshold` (None without an image of these classes), `suspicious_classes` and `unsure_below`; and
        what they reach on these images.
    """
    names, raw, classes, _, weights = answers
    # Of several hospitals the mix of classes is nobody's, and offsets learnt there made others worse
    # (study/results/search/calibration.csv).
    temperature, shift = fit_calibration(raw, classes, weights, with_offsets=weights is None)
    share = np.full(len(classes), 1 / len(classes)) if weights is None else weights / weights.sum()
    fitted = calibrated(raw, temperature, shift or [0.0])
    threshold, reached, specificity = None, None, None
    chosen = [names.index(name) for name in suspicious_classes if name in names]
    positive = np.isin(classes, chosen)
    if positive.any():
        scores = fitted[:, chosen].sum(axis=1)
        threshold = threshold_for_sensitivity(scores, positive, sensitivity, share)
        suspicious = scores >= threshold
        reached = float(np.average(suspicious[positive], weights=share[positive]))
        negative = ~positive
        specificity = float(np.average(~suspicious[negative], weights=share[negative])) if negative.any() else None
    frequencies = np.bincount(classes, minlength=len(names)) / len(classes)
    measured = {"malignancy_sensitivity": reached, "malignancy_specificity": specificity}
    return {
        "temperature": temperature,
        "class_offsets": dict(zip(names, shift)),
        "fitted_prevalence": dict(zip(names, frequencies.tolist())) if shift else {},
        "malignancy_threshold": threshold,
        "suspicious_classes": [names[index] for index in chosen] or list(suspicious_classes),
        "unsure_below": _quantile(fitted.max(axis=1), unsure_fraction, weights),
    }, {"before": _held(raw, classes, names, weights), "after": _held(fitted, classes, names, weights), **measured}


def _quantile(values: np.ndarray, fraction: float, weights: np.ndarray | None) -> float:
    """The value (N,) below which this fraction lies, of the weights where there are any."""
    if weights is None:
        return float(np.quantile(values, fraction))
    order = np.argsort(values)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(fraction * weights.sum(), below, values[order]))


def _held(
    probabilities: np.ndarray, classes: np.ndarray, names: Sequence[str], weights: np.ndarray | None = None
) -> dict:
    """How well probabilities hold: log loss, and `calibration` of each class, None where it cannot be had."""
    found = {name: calibration(probabilities[:, k], classes == k) for k, name in enumerate(names)}
    told = {name: {k: None if np.isnan(v) else v for k, v in values.items()} for name, values in found.items()}
    return {"log_loss": mean_log_loss(probabilities, classes, weights), **told}
