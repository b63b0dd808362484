"""Statistics of an evaluation: intervals that know of groups, calibration by slope and intercept, reliability, ROC.

A group is a scan or a patient with several images, which do not answer independently of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import pandas
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import beta, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from tqdm import tqdm

from breast_ultrasound.metrics import auroc

DRAWS = 1000
TAILS = (0.025, 0.975)  # of all intervals: 95 %
NAN = float("nan")
SMALLEST = 1e-6  # of a probability; tables hold six digits
FEWEST_GROUPS = 5  # of a bootstrap
FALSE_POSITIVE_RATES = np.linspace(0, 1, 101)  # where the band of a ROC curve is computed


class Answers(Protocol):
    """What can be drawn from, such as ``metrics.Images``."""

    def take(self, index: np.ndarray) -> Answers:
        """Those of an index (M,)."""


class Estimate(NamedTuple):
    """A value with its interval of 95 %; NaN where it, or its interval, cannot be had.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        hits: of a share, how many.
        total: of a share, out of how many.
    """

    value: float
    low: float = NAN
    high: float = NAN
    hits: int | None = None
    total: int | None = None


def share(hits: np.ndarray, groups: np.ndarray) -> Estimate:
    """A share with the interval of Clopper and Pearson (Biometrika 26, 1934), which holds near 0 and 1 too.

    Where groups have several images, the effective number of images takes the place of theirs (Korn and Graubard,
    Survey Methodology 24, 1998). Where all images agree nothing is known of how alike a group's are: then that is the
    number of groups.

    Args:
        hits: (N,), bool.
        groups: (N,), the name of each one's group.
    """
    n, k = len(hits), int(np.sum(hits))
    if n == 0:
        return Estimate(NAN, hits=0, total=0)
    size = _effective_size(np.asarray(hits, dtype=float), groups)
    found, others = size * k / n, size * (n - k) / n
    low = beta.ppf(TAILS[0], found, others + 1) if k else 0.0
    high = beta.ppf(TAILS[1], found + 1, others) if k < n else 1.0
    return Estimate(k / n, float(low), float(high), k, n)


def _effective_size(hits: np.ndarray, groups: np.ndarray) -> float:
    """The number of independent images that would give a share the variance which these groups give it."""
    member = np.unique(groups, return_inverse=True)[1]
    n, count, p = len(hits), int(member.max()) + 1, hits.mean()
    if count == n:
        return n
    if count == 1 or p in (0, 1):
        return count
    residuals = np.bincount(member, weights=hits - p) / n
    variance = count / (count - 1) * float(residuals @ residuals)
    size = min(n, p * (1 - p) / variance) if variance > 0 else n
    return float(size * (t.ppf(TAILS[1], n - 1) / t.ppf(TAILS[1], count - 1)) ** 2)


def bootstrap(
    measure: Callable[[np.ndarray], Mapping[str, float]],
    groups: np.ndarray,
    draws: int = DRAWS,
    title: str | None = None,
) -> dict[str, Estimate]:
    """Percentile intervals of a bootstrap over groups (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

    An interval is withheld (NaN) with fewer than five groups, where more than one draw in twenty has no value, where
    all draws agree, as for an AUROC of 1, and where it would not hold its own value: then the bootstrap knows nothing.

    Args:
        measure: values by name of the images of an index (M,).
        groups: (N,), the name of each image's group.
        draws: number of draws.
        title: of a progress bar; none by default.
    """
    members = list(pandas.Series(groups).groupby(np.asarray(groups)).indices.values())
    random = np.random.default_rng(0)
    value = measure(np.arange(len(groups)))
    drawn = []
    count = draws if len(members) >= FEWEST_GROUPS else 0
    for _ in tqdm(range(count), desc=title, disable=None if title else True, leave=False):
        chosen = random.integers(len(members), size=len(members))
        drawn.append(measure(np.concatenate([members[i] for i in chosen])))
    sample = pandas.DataFrame(drawn, columns=list(value), dtype=float)
    low, high = sample.quantile(TAILS[0]), sample.quantile(TAILS[1])
    known = sample.notna().sum() >= 0.95 * draws
    told = {k: count and known[k] and low[k] <= v <= high[k] and low[k] < high[k] for k, v in value.items()}
    return {k: Estimate(v, float(low[k]), float(high[k])) if told[k] else Estimate(v) for k, v in value.items()}


def difference(
    measure: Callable[[Answers], Mapping[str, float]],
    first: Answers,
    second: Answers,
    groups: np.ndarray,
    draws: int = DRAWS,
    title: str | None = None,
) -> dict[str, Estimate]:
    """How much more of each measure `second` has than `first`, with the interval of a paired ``bootstrap``: both are
    drawn together, so that what makes an image hard for either drops out.

    Args:
        measure: values by name of some images' answers; one that either lacks is left out.
        first: answers about N images; ``take`` of an index (M,) gives those of a draw.
        second: others about the same images in the same order.
        groups: (N,), the name of each image's group.
        draws: number of draws.
        title: of a progress bar; none by default.
    """

    def between(index: np.ndarray) -> dict[str, float]:
        before, after = measure(first.take(index)), measure(second.take(index))
        return {name: after[name] - value for name, value in before.items() if name in after}

    return bootstrap(between, groups, draws, title)


def net_benefit(p: np.ndarray, outcome: np.ndarray, threshold: float) -> float:
    """True positives less the false ones that weigh as much, per image, where a probability from a threshold on leads
    to action (Vickers and Elkin, Medical Decision Making 26, 2006); NaN of no image.

    Args:
        p: (N,), probability of the outcome.
        outcome: (N,), bool.
        threshold: in [0, 1); with 0.1 nine false alarms weigh as much as one that is right.
    """
    acted = p >= threshold
    odds = threshold / (1 - threshold)
    return float((acted & outcome).mean() - odds * (acted & ~outcome).mean()) if len(p) else NAN


def brier(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Brier's score over all classes, in [0, 2] (Monthly Weather Review 78, 1950), of probabilities (N, K) and true
    classes (N,); NaN of no image."""
    truth = np.eye(probabilities.shape[1])[classes]
    return float(((probabilities - truth) ** 2).sum(1).mean()) if len(classes) else NAN


def calibration(p: np.ndarray, outcome: np.ndarray) -> dict[str, float]:
    """How a class's probabilities hold (Van Calster et al., BMC Medicine 17:230, 2019).

    Args:
        p: (N,), probability of the class.
        outcome: (N,), bool, whether it is the class.

    Returns:
        ``excess``, mean probability minus frequency (0 is right); ``intercept``, what has to be added to the logits for
        the mean to be right (0; below 0: the probabilities are too high); ``slope`` of the outcome on the logits (1;
        below 1: too extreme). NaN without both kinds, the slope also where the probabilities part them without error.
    """
    found = {"excess": float(p.mean() - outcome.mean()) if len(p) else NAN, "intercept": NAN, "slope": NAN}
    if outcome.any() and not outcome.all():
        logits = logit(np.clip(p, SMALLEST, 1 - SMALLEST))
        found["intercept"] = float(brentq(lambda a: float(expit(logits + a).sum() - outcome.sum()), -60, 60))
        if 0 < auroc(outcome, p) < 1 and np.ptp(logits) > 0:
            found["slope"] = _slope(logits, outcome, found["intercept"])
    return found


def _slope(logits: np.ndarray, outcome: np.ndarray, intercept: float) -> float:
    """The slope of a logistic regression by Newton's steps from slope 1 on, which a bootstrap can afford; by
    scikit-learn where they do not arrive."""
    x, weights = np.column_stack([np.ones_like(logits), logits]), np.array([intercept, 1.0])
    for _ in range(20):
        p = expit(x @ weights)
        curvature = (x * (p * (1 - p))[:, None]).T @ x
        if not np.isfinite(curvature).all() or np.linalg.cond(curvature) > 1e12:
            break
        step = np.linalg.solve(curvature, x.T @ (outcome - p))
        weights += step
        if np.abs(step).max() < 1e-8:
            return float(weights[1])
    return float(LogisticRegression(C=np.inf, solver="newton-cholesky").fit(logits[:, None], outcome).coef_[0, 0])


def reliability_bins(
    p: np.ndarray, outcome: np.ndarray, groups: np.ndarray, bins: int = 10, draws: int = DRAWS
) -> pandas.DataFrame:
    """Predicted and observed frequency of a class in bins of equal size, with what chance would give.

    Args:
        p: (N,), probability of the class.
        outcome: (N,), bool, whether it is the class.
        groups: (N,), the name of each image's group; images of one group are drawn together.
        bins: most bins; fewer where they would hold less than ten images.
        draws: draws of outcomes from the probabilities, as if these were right (Bröcker and Smith, Weather and
            Forecasting 22, 2007).

    Returns:
        a row a bin, from the lowest probability on: ``predicted`` and ``observed`` in [0, 1], ``images``, and ``low``
        and ``high``, between which 95 % of the observed frequencies would lie.
    """
    member = np.unique(groups, return_inverse=True)[1]
    chance = np.random.default_rng(0).random((draws, member.max() + 1))
    rows = []
    for part in np.array_split(np.argsort(p, kind="stable"), max(1, min(bins, len(p) // 10))):
        drawn = (chance[:, member[part]] < p[part]).mean(axis=1)
        low, high = np.quantile(drawn, TAILS)
        row = {"predicted": p[part].mean(), "observed": outcome[part].mean(), "images": len(part)}
        rows.append({**row, "low": low, "high": high})
    return pandas.DataFrame(rows)


def roc_points(positive: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Sensitivity at each of ``FALSE_POSITIVE_RATES``, by the rate as text; NaN where one of the two kinds is missing.

    Args:
        positive: (N,), bool.
        scores: (N,), higher for positive.
    """
    keys = [f"{rate:.2f}" for rate in FALSE_POSITIVE_RATES]
    if not positive.any() or positive.all():
        return dict.fromkeys(keys, NAN)
    false, true, _ = roc_curve(positive, scores)
    # Where the curve rises straight up, its upper end counts.
    at = np.searchsorted(false, FALSE_POSITIVE_RATES + 1e-12, side="right") - 1
    following = np.minimum(at + 1, len(false) - 1)
    width = np.maximum(false[following] - false[at], 1e-12)
    along = np.clip((FALSE_POSITIVE_RATES - false[at]) / width, 0, 1)
    return dict(zip(keys, true[at] + along * (true[following] - true[at])))
