"""From the network's confidence to probabilities that hold: temperature, operating point, and where they are kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss

from .files import sha256

logger = logging.getLogger(__name__)
NEUTRAL = {"temperature": 1.0, "malignancy_threshold": None, "unsure_below": None}
SMALLEST = 1e-6  # tables hold six digits


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits behind probabilities (N, K) by a temperature: above 1 less, below 1 more confident."""
    return softmax(np.log(np.clip(probabilities, SMALLEST, None)) / temperature, axis=1)


def mean_log_loss(probabilities: np.ndarray, classes: Sequence[int]) -> float:
    """scikit-learn's ``log_loss`` where some of the K classes may be absent; probabilities (N, K), indices (N,)."""
    return float(log_loss(classes, probabilities, labels=range(probabilities.shape[1])))


def fit_temperature(probabilities: np.ndarray, classes: Sequence[int]) -> float:
    """The temperature in [0.2, 10] with the least log loss (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017); probabilities (N, K) of a network as trained, class indices (N,)."""
    found = minimize_scalar(
        lambda x: mean_log_loss(tempered(probabilities, np.exp(x)), classes), bounds=np.log([0.2, 10]), method="bounded"
    )
    return float(np.exp(found.x))


def expected_calibration_error(probabilities: np.ndarray, classes: Sequence[int], bins: int = 15) -> float:
    """Mean distance of accuracy from confidence over bins of equal mass, in [0, 1] (Nguyen and O'Connor, EMNLP 2015).

    Confidence is the largest probability of each row (N, K); bins differ by one image at most.
    """
    return sum(b["share"] * abs(b["accuracy"] - b["confidence"]) for b in reliability(probabilities, classes, bins))


def reliability(probabilities: np.ndarray, classes: Sequence[int], bins: int = 15) -> list[dict[str, float]]:
    """Confidence, accuracy and share of the images in each bin, from the least to the most confident."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == np.asarray(classes)
    parts = [p for p in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(p)]
    return [
        {
            "confidence": float(confidence[p].mean()),
            "accuracy": float(correct[p].mean()),
            "share": len(p) / len(confidence),
        }
        for p in parts
    ]


def threshold_for_sensitivity(scores: Sequence[float], positive: Sequence[bool], sensitivity: float = 0.95) -> float:
    """The largest threshold at which ``score >= threshold`` finds at least this fraction of the positives.

    None of numpy's quantiles is that: over n positives they count from n - 1 on, or stop one below.

    Raises:
        ValueError: where nothing is positive.
    """
    found = np.sort(np.asarray(scores, dtype=float)[np.asarray(positive, dtype=bool)])
    if len(found) == 0:
        raise ValueError("no positive image to fix the operating point on; use a larger validation split")
    return float(found[int(np.floor((1 - sensitivity) * len(found) + 1e-9))])


def load_calibration(path: str, weights: str) -> dict:
    """Read what ``scripts/calibrate.py`` wrote beside the weights.

    Without the file, or where it belongs to other weights, the probabilities stay as the network gives them; the log
    says so.

    Returns:
        ``temperature``; ``malignancy_threshold`` (probability from which on an image is suspicious) and
        ``unsure_below`` (largest probability under which the class is unsure), both None without calibration;
        ``weights_sha256``, empty where there are no weights.
    """
    neutral = {**NEUTRAL, "weights_sha256": sha256(weights) if Path(weights).is_file() else ""}
    if not Path(path).is_file():
        logger.info(f"{path}: missing, the probabilities are not calibrated")
        return neutral
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if content["weights_sha256"] != neutral["weights_sha256"]:
        logger.warning(
            f"{path}: made for other weights than {weights}, left unused; run scripts/calibrate.py for these"
        )
        return neutral
    return {name: content[name] for name in neutral}
