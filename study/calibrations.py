"""Ways to calibrate, compared on hospitals that the weights have not seen.

All comes from images.csv and metrics.json of the evaluations. A hospital that was left out has the calibration that the
other ones give, each by its own weights; other evaluations have that of all of them, as the released weights have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from tools.evaluations import read_evaluation
from tools.fitting import calibrated, fit_calibration, mean_log_loss, threshold_for_sensitivity, uncalibrated
from tools.statistics import SMALLEST, brier, calibration

from breast_ultrasound.files import write_csv
from study import UNSEEN

Scaling = Callable[[np.ndarray], np.ndarray]  # from probabilities (N, K) to probabilities
Method = Callable[[np.ndarray, np.ndarray, np.ndarray], Scaling]  # fitted on probabilities, classes, weights

SENSITIVITY = 0.95  # of the operating point, where it is chosen


def as_trained(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> Scaling:
    """Probabilities as the network gives them."""
    return lambda q: q


def temperature(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> Scaling:
    """One temperature (Guo et al., ICML 2017)."""
    return _least(p, y, w, [0.0], lambda q, x: calibrated(q, np.exp(x[0])))


def temperature_and_prior(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> Scaling:
    """A temperature, and the classes' frequencies in place of the equal ones of training."""
    shift = np.log(_frequencies(y, p.shape[1], w))
    return _least(p, y, w, [0.0], lambda q, x: calibrated(q, np.exp(x[0]), shift))


def temperature_and_offsets(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> Scaling:
    """What scripts/calibrate.py fits to one hospital."""
    found = fit_calibration(p, y, w)
    return lambda q: calibrated(q, *found)


def vector_scaling(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> Scaling:
    """A factor and an offset for each class (Guo et al., ICML 2017)."""
    k = p.shape[1]

    def scaled(q: np.ndarray, x: np.ndarray) -> np.ndarray:
        logits = _logits(q)
        return softmax((logits - logits.mean(axis=1, keepdims=True)) * np.exp(x[:k]) + np.append(x[k:], 0), axis=1)

    return _least(p, y, w, np.zeros(2 * k - 1), scaled)


def dirichlet(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> Scaling:
    """Logistic regression on the log probabilities (Kull et al., NeurIPS 2019), scikit-learn's penalty."""
    fitted = LogisticRegression(max_iter=1000).fit(_logits(p), y, w * len(y))
    return lambda q: fitted.predict_proba(_logits(q))


METHODS = (as_trained, temperature, temperature_and_prior, temperature_and_offsets, vector_scaling, dirichlet)


def _logits(p: np.ndarray) -> np.ndarray:
    return log_softmax(np.log(np.clip(p, SMALLEST, None)), axis=1)


def _least(p: np.ndarray, y: np.ndarray, w: np.ndarray, start: Iterable[float], of: Callable) -> Scaling:
    """The parameters of least log loss."""
    found = minimize(lambda x: mean_log_loss(of(p, x), y, w), np.asarray(start)).x
    return lambda q: of(q, found)


def compare_calibrations(evaluations: Path, left_out: Iterable[str], others: Mapping[str, str], output: Path) -> None:
    """Write a row for each way and evaluation, and a further one at each evaluation's own prevalence.

    Beside how the probabilities hold, a row has the sensitivity and specificity for malignancy that an operating point
    reaches which has a sensitivity of 0.95 where it was chosen.

    Args:
        evaluations: folder with all of them.
        left_out: evaluations of a whole hospital by weights that had not seen it, of ``study.UNSEEN``.
        others: further evaluations, and the hospitals that their images come from.
        output: CSV file to write.
    """
    known = {name: _raw(evaluations / name) for name in (*left_out, *others)}
    sites = {name: UNSEEN[name][2] for name in left_out} | dict(others)
    rows = []
    for method in METHODS:
        title = method.__name__.replace("_", " ")
        for name, (q, truth, names) in known.items():
            p, y, w = _joined([known[other] for other in left_out if sites[other] != sites.get(name, name)])
            scale, k = method(p, y, w), names.index("malignant")
            found = scale(q)
            reached = found[:, k] >= threshold_for_sensitivity(scale(p)[:, k], y == k, SENSITIVITY, w)
            point = {"sensitivity": reached[truth == k].mean(), "specificity": (~reached)[truth != k].mean()}
            rows.append({"method": title, "evaluation": name, **_held(found, truth, names), **point})
            if method is temperature_and_offsets:
                size = len(names)
                found = found * _frequencies(truth, size) / _frequencies(y, size, w)
                found /= found.sum(axis=1, keepdims=True)
                held = {**_held(found, truth, names), **dict.fromkeys(point)}
                rows.append({"method": f"{title}, with --prevalence", "evaluation": name, **held})
    write_csv(output, rows, list(rows[0]))


def _raw(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The network's own probabilities (N, K), the classes (N,), and their names."""
    found = read_evaluation(folder)
    content, names = json.loads((folder / "metrics.json").read_text(encoding="utf-8")), found.images.class_names
    folds = content.get("folds", [content])
    fold = np.zeros(len(found.images), dtype=int)
    if "folds" in content:
        fold = found.table["column fold"].astype(int).to_numpy()
    own = np.zeros_like(found.images.probabilities)
    for number, made in enumerate(folds):
        own[fold == number] = uncalibrated(found.images.probabilities[fold == number], made, names)
    return own, found.images.true_class, names


def _joined(parts: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, classes and weights, by which each hospital counts the same; 1 in all."""
    p, y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return p, y, np.concatenate([np.full(len(part[1]), 1 / len(part[1]) / len(parts)) for part in parts])


def _frequencies(y: np.ndarray, size: int, w: np.ndarray | None = None) -> np.ndarray:
    return np.bincount(y, w, minlength=size) / (len(y) if w is None else w.sum())


def _held(p: np.ndarray, y: np.ndarray, names: Iterable[str]) -> dict:
    found = {"images": len(y), "log_loss": mean_log_loss(p, y), "brier": brier(p, y)}
    found["accuracy"] = float((p.argmax(axis=1) == y).mean())
    for k, name in enumerate(names):
        told = calibration(p[:, k], y == k)
        found |= {f"{key}_{name}": None if pandas.isna(value) else value for key, value in told.items()}
    return found
