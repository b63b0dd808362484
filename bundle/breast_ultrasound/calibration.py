"""What was chosen for the weights and lies beside them: temperature, operating point, limit of doubt, rule of the mask.

``scripts/calibrate.py`` of the project writes it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import sha256

logger = logging.getLogger(__name__)
# For weights that have no calibration, or one of an older version
MASK = {"mask_threshold": 0.3, "smallest_fraction": 0.002, "component_threshold": 0.65}
SUSPICIOUS = ("malignant",)  # the classes that make an image suspicious where nothing else is said
NEUTRAL = {"temperature": 1.0, "malignancy_threshold": None, "suspicious_classes": list(SUSPICIOUS)}
NEUTRAL |= {"unsure_below": None, **MASK, "class_offsets": {}, "fitted_prevalence": {}}
# What a calibration of an older version need not have
LATER = {name: NEUTRAL[name] for name in ("suspicious_classes", "class_offsets", "fitted_prevalence", *MASK)}
# What the values of a calibration have to be: a test, and its words
DUE = {
    "temperature": (lambda v: v is not None and 0 < v < math.inf, "a number above 0"),
    **dict.fromkeys(MASK, (lambda v: v is not None and 0 <= v < 1, "a number from 0 to less than 1")),
    **dict.fromkeys(
        ["malignancy_threshold", "unsure_below"],
        (lambda v: v is None or 0 <= v < 1.001, "a number from 0 to 1 or null"),
    ),
}
REMEDY = "run scripts/calibrate.py for these weights, or remove the file"
OWN = (*NEUTRAL, "weights_sha256")


def offsets(calibration: Mapping[str, object], class_names: Sequence[str], shifted: bool = True) -> list[float]:
    """What is added to each class's logit once it is divided by the temperature.

    ``class_offsets``, fitted with the temperature (Alexandari et al., "Maximum Likelihood with Bias-Corrected
    Calibration is Hard-To-Beat at Label Shift Adaptation", ICML 2020), bring the probabilities to the mix of classes
    that they were fitted on; ``prevalence`` brings them from there to another (Saerens et al., Neural Computation 14,
    2002). Without ``fitted_prevalence`` the classes count as equally frequent, as training draws them.

    Args:
        calibration: as ``load_calibration`` returns it.
        class_names: K names in the order of the class indices.
        shifted: whether to the prevalence that is asked for.

    Returns:
        K numbers; minus infinity for a class that does not occur.
    """
    own, wanted = calibration.get("class_offsets") or {}, calibration.get("prevalence") or {}
    found = [own.get(name, 0.0) for name in class_names]
    if not (wanted and shifted):
        return found
    fitted = calibration.get("fitted_prevalence") or dict.fromkeys(class_names, 1 / len(class_names))
    ratios = [wanted[name] / fitted[name] for name in class_names]
    return [value + (math.log(ratio) if ratio else -math.inf) for value, ratio in zip(found, ratios)]


def suspicion(probabilities: Mapping[str, float], suspicious_classes: Sequence[str]) -> float | None:
    """The probability of the suspicious classes together, of probabilities by class name; None where one is missing."""
    if not suspicious_classes or not set(suspicious_classes) <= probabilities.keys():
        return None
    return round(sum(probabilities[name] for name in suspicious_classes), 6)


def no_calibration(weights: str = "") -> dict:
    """What stands for a calibration where there is none: as the network gives the probabilities, the mask by ``MASK``.

    Args:
        weights: whose SHA-256 is given as ``weights_sha256``; empty where there is no such file.
    """
    return {**NEUTRAL, "weights_sha256": sha256(weights) if Path(weights).is_file() else ""}


def load_calibration(
    path: str,
    weights: str,
    own: Mapping[str, object] | None = None,
    prevalence: Mapping[str, float] | None = None,
    class_names: Sequence[str] = (),
) -> dict:
    """Read what ``scripts/calibrate.py`` wrote beside the weights.

    Without the file, or where it belongs to other weights, ``no_calibration`` holds; the log says so.

    Args:
        path: the file.
        weights: that it has to belong to.
        own: values that a network brings along in place of ``weights``, such as an ONNX file's metadata: they hold
            unless the file is of the same weights.
        prevalence: fraction of each class that is expected, 1 in all; as in the images of the calibration by default.
        class_names: of the network, whose names the values of classes have to have; not looked at by default.

    Returns:
        ``temperature``; ``malignancy_threshold`` (probability from which on an image is suspicious, that of all
        ``suspicious_classes`` together) and ``unsure_below`` (largest probability under which the class is unsure),
        both None without calibration; ``mask_threshold``, ``smallest_fraction`` and ``component_threshold`` as
        ``transforms.LesionMaskd`` takes them; ``class_offsets``, ``fitted_prevalence`` and ``prevalence`` as
        ``offsets`` takes them, each empty where there is none; ``weights_sha256``, empty where there are no weights.

    Raises:
        ValueError: the file is damaged, a value is out of range, or ``prevalence`` is of other classes.
    """
    if prevalence and class_names and set(prevalence) != set(class_names):
        raise ValueError(f"--prevalence {dict(prevalence)}: give a fraction for each of {', '.join(class_names)}")
    found = _loaded(path, weights, own)
    for name in ("class_offsets", "fitted_prevalence"):
        if found[name] and class_names and set(found[name]) != set(class_names):
            raise ValueError(f"{path}: {name} {found[name]}: the classes are {', '.join(class_names)}; {REMEDY}")
    return {**found, "prevalence": dict(prevalence or {})}


def _loaded(path: str, weights: str, own: Mapping[str, object] | None) -> dict:
    neutral = {name: own.get(name, NEUTRAL.get(name)) for name in OWN} if own else no_calibration(weights)
    if not belongs(path, neutral["weights_sha256"]) and own:
        return neutral
    if not Path(path).is_file():
        logger.info(f"{path}: missing, the probabilities are not calibrated")
        return neutral
    try:
        content = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        found = {name: content.get(name, LATER[name]) if name in LATER else content[name] for name in neutral}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a calibration ({type(error).__name__}: {error}); {REMEDY}") from None
    if found["weights_sha256"] != neutral["weights_sha256"]:
        logger.warning(
            f"{path}: made for other weights than {weights}, left unused; run scripts/calibrate.py for these"
        )
        return neutral
    for name, (fits, words) in DUE.items():
        value = found[name]
        if not fits(value if type(value) in (int, float, type(None)) else math.nan):
            raise ValueError(f"{path}: {name} {value}: {words} is due; {REMEDY}")
    for name, least in (("class_offsets", -math.inf), ("fitted_prevalence", 0)):
        value = found[name]
        if not isinstance(value, dict) or any(
            type(v) not in (int, float) or not least < v < math.inf for v in value.values()
        ):
            raise ValueError(f"{path}: {name} {value}: a number for each class is due; {REMEDY}")
    return found


def belongs(path: str, weights_sha256: str) -> bool:
    """Whether there is a calibration at ``path`` and it says that it is of these weights."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))["weights_sha256"] == weights_sha256
    except (OSError, ValueError, TypeError, KeyError):
        return False


def file_in_force(path: str, calibration: Mapping[str, object]) -> str:
    """``path`` where a loaded calibration comes from there, else empty."""
    return path if belongs(path, calibration["weights_sha256"]) else ""
