"""Ways to calibrate, compared on the out-of-fold predictions of the cross-validation, and outside.

All comes from images.csv and metrics.json of the evaluations. At home each fold has the calibration that the other
folds' images give; elsewhere the one that the images outside BUSI's testing split give, as the released weights have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from tools.evaluations import read_evaluation
from tools.fitting import calibrated, fit_calibration, mean_log_loss, uncalibrated
from tools.statistics import SMALLEST, brier, calibration

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import write_csv

Method = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]  # fitted on probabilities and classes


def as_trained(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities as the network gives them."""
    return lambda q: q


def temperature(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """One temperature (Guo et al., ICML 2017)."""
    return _least(p, y, [0.0], lambda q, x: calibrated(q, np.exp(x[0])))


def temperature_and_prior(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A temperature, and the classes' frequencies in place of the equal ones of training."""
    shift = np.log(np.bincount(y, minlength=p.shape[1]) / len(y))
    return _least(p, y, [0.0], lambda q, x: calibrated(q, np.exp(x[0]), shift))


def temperature_and_offsets(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What scripts/calibrate.py fits."""
    found = fit_calibration(p, y)
    return lambda q: calibrated(q, *found)


def vector_scaling(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A factor and an offset for each class (Guo et al., ICML 2017)."""
    k = p.shape[1]

    def scaled(q: np.ndarray, x: np.ndarray) -> np.ndarray:
        logits = np.log(np.clip(q, SMALLEST, None))
        return softmax((logits - logits.mean(axis=1, keepdims=True)) * np.exp(x[:k]) + np.append(x[k:], 0), axis=1)

    return _least(p, y, np.zeros(2 * k - 1), scaled)


def dirichlet(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression on the log probabilities (Kull et al., NeurIPS 2019), scikit-learn's penalty."""
    fitted = LogisticRegression(max_iter=1000).fit(log_softmax(np.log(np.clip(p, SMALLEST, None)), axis=1), y)
    return lambda q: fitted.predict_proba(log_softmax(np.log(np.clip(q, SMALLEST, None)), axis=1))


METHODS = (as_trained, temperature, temperature_and_prior, temperature_and_offsets, vector_scaling, dirichlet)


def _least(p: np.ndarray, y: np.ndarray, start: Iterable[float], of: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """The parameters of least log loss."""
    found = minimize(lambda x: mean_log_loss(of(p, x), y), np.asarray(start)).x
    return lambda q: of(q, found)


def compare_calibrations(evaluations: Path, datalist: Path, others: Iterable[str], output: Path) -> None:
    """Write a row for each way and evaluation, and for the other evaluations a further one at their own prevalence.

    Args:
        evaluations: folder with `cross_validation` and the others.
        datalist: whose testing split is left out where a calibration is for the released weights.
        others: names of further evaluations.
        output: CSV file to write.
    """
    p, y, fold, names, files = _raw(evaluations / "cross_validation")
    left_out = {Path(item["image"]).name for item in read_datalist(datalist)["testing"]}
    seen = ~np.isin(files, list(left_out))
    rows = []
    for method in METHODS:
        title = method.__name__.replace("_", " ")
        out_of_fold = np.zeros_like(p)
        for number in np.unique(fold):
            out_of_fold[fold == number] = method(p[fold != number], y[fold != number])(p[fold == number])
        rows.append({"method": title, "evaluation": "cross_validation", **_held(out_of_fold, y, names)})
        fitted = method(p[seen], y[seen])
        for other in others:
            q, truth, _, _, _ = _raw(evaluations / other)
            rows.append({"method": title, "evaluation": other, **_held(fitted(q), truth, names)})
            if method is temperature_and_offsets:
                ratio = _frequencies(truth, names) / _frequencies(y[seen], names)
                shifted = fitted(q) * ratio
                shifted /= shifted.sum(axis=1, keepdims=True)
                title_of = f"{title}, with --prevalence"
                rows.append({"method": title_of, "evaluation": other, **_held(shifted, truth, names)})
    write_csv(output, rows, list(rows[0]))


def _raw(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...], list[str]]:
    """The network's own probabilities (N, K), the classes (N,), folds (N,), names of classes and of images."""
    found = read_evaluation(folder)
    content, names = json.loads((folder / "metrics.json").read_text(encoding="utf-8")), found.images.class_names
    folds = content.get("folds", [content])
    fold = np.zeros(len(found.images), dtype=int)
    if "folds" in content:
        fold = found.table["column fold"].astype(int).to_numpy()
    own = np.zeros_like(found.images.probabilities)
    for number, made in enumerate(folds):
        own[fold == number] = uncalibrated(found.images.probabilities[fold == number], made, names)
    return own, found.images.true_class, fold, names, list(found.table["filename"])


def _frequencies(y: np.ndarray, names: Iterable[str]) -> np.ndarray:
    return np.bincount(y, minlength=len(list(names))) / len(y)


def _held(p: np.ndarray, y: np.ndarray, names: Iterable[str]) -> dict:
    found = {"images": len(y), "log_loss": mean_log_loss(p, y), "brier": brier(p, y)}
    found["accuracy"] = float((p.argmax(axis=1) == y).mean())
    for k, name in enumerate(names):
        told = calibration(p[:, k], y == k)
        found |= {f"{key}_{name}": None if pandas.isna(value) else value for key, value in told.items()}
    return found
