"""What is measured of one evaluation, with intervals: masks, classes, calibration, subgroups, failures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas
from monai.metrics import compute_froc_curve_data
from tools.evaluations import Evaluation, suspicious, thirds
from tools.statistics import Estimate, bootstrap, brier, calibration, difference, net_benefit, roc_points, share

from breast_ultrasound.data import UNKNOWN_CLASS
from breast_ultrasound.metrics import MISSED_BELOW, TOLERANCE, Images, auroc, single_metrics

WORST = 10  # masks that are named
MALIGNANT = "malignant"
ACTED_FROM = (0.05, 0.1, 0.2, 0.3)  # probabilities of malignant whose net benefit is told
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # an index of M images, whether each is positive, and its score


def curves(evaluation: Evaluation) -> dict[str, Curve]:
    """What each ROC curve is of, by the name of the area under it; those that these images cannot give are left out.

    The presence of a lesion is scored by the probability of all classes that may have one, and by the mask's best part.
    """
    images, p, names = evaluation.images, evaluation.images.probabilities, evaluation.images.class_names
    known = np.flatnonzero(images.true_class != UNKNOWN_CLASS)
    found = {f"auroc_{name}": (known, images.of_class(name)[known], p[known, k]) for k, name in enumerate(names)}
    if evaluation.pair:
        found["auroc_benign_malignant"] = images.malignant_against_benign()
    free = [names.index(name) for name in evaluation.lesion_free]
    if free:
        found["auroc_lesion"] = (np.arange(len(images)), images.lesion, 1 - p[:, free].sum(axis=1))
    if images.component is not None:
        found["auroc_mask"] = (np.arange(len(images)), images.lesion, images.component)
    return {name: curve for name, curve in found.items() if curve[1].any() and not curve[1].all()}


def bands(evaluation: Evaluation, of: dict[str, Curve], draws: int) -> dict[str, dict[str, Estimate]]:
    """Sensitivity with its interval along each ROC curve."""
    return {
        name: bootstrap(
            lambda drawn: roc_points(positive[drawn], scores[drawn]), evaluation.groups[index], draws, f"ROC, {name}"
        )
        for name, (index, positive, scores) in of.items()
    }


def measures(images: Images, presence: np.ndarray | None = None) -> dict[str, float]:
    """The figures of some images that are no shares, NaN where they cannot be had; `presence` scores a lesion (N,)."""
    known = images.true_class != UNKNOWN_CLASS
    classes, p = images.true_class[known], images.probabilities[known]
    found = single_metrics(images) | {"brier": brier(p, classes)}
    for k, name in enumerate(images.class_names):
        found |= {f"{key}_{name}": value for key, value in calibration(p[:, k], classes == k).items()}
    if MALIGNANT in images.class_names:
        k = images.class_names.index(MALIGNANT)
        found |= {f"gain_{t:g}": gain(p[:, k], classes == k, t) for t in ACTED_FROM}
    if presence is not None:
        found["auroc_lesion"] = auroc(images.lesion, presence)
    if images.component is not None:
        found["auroc_mask"] = auroc(images.lesion, images.component)
    return found


def gain(p: np.ndarray, outcome: np.ndarray, threshold: float) -> float:
    """The ``net_benefit`` over the larger one of acting on all images and on none; NaN without both kinds."""
    if not outcome.any() or outcome.all():
        return float("nan")
    return net_benefit(p, outcome, threshold) - max(0.0, net_benefit(np.ones(len(p)), outcome, threshold))


def figures(evaluation: Evaluation, of: dict[str, Curve], points: dict, draws: int) -> dict[str, dict[str, Estimate]]:
    """Every figure with its interval, by the section of the page and by what the figure is called there."""
    images, names = evaluation.images, evaluation.images.class_names
    presence = of["auroc_lesion"][2] if "auroc_lesion" in of else None

    def measure(index: np.ndarray) -> dict[str, float]:
        return measures(images.take(index), None if presence is None else presence[index])

    found = bootstrap(measure, evaluation.groups, draws, "Figures")
    found |= shares(images, evaluation.groups, evaluation.table["threshold"].to_numpy(dtype=float))
    if "auroc_benign_malignant" in points:
        found["sensitivity_at_90"] = points["auroc_benign_malignant"]["0.10"]
    sections = {
        section: {title: found[name] for name, title in titles.items() if name in found}
        for section, titles in figure_titles(names, curve_titles(evaluation, of)).items()
    }
    return {section: {k: v for k, v in rows.items() if not np.isnan(v.value)} for section, rows in sections.items()}


def figure_titles(names: Sequence[str], areas: dict[str, str]) -> dict[str, dict[str, str]]:
    """What the figures are called, by section; `areas` has the titles of the areas under the curves."""
    masks = {"lesion_dice": "Dice, images with lesion", "lesion_iou": "IoU, images with lesion"}
    masks |= {f"dice_{name}": f"Dice, {name}" for name in names}
    masks["missed_rate"] = f"images with lesion, missed (Dice under {MISSED_BELOW})"
    masks["false_mask_rate"] = "images without lesion that have a mask"
    masks["hd95"] = "HD95 as a fraction of the diagonal, median of the images with lesion"
    masks["nsd"] = f"normalised surface Dice at {100 * TOLERANCE:g} % of the diagonal, images with lesion"
    masks["lesion_sensitivity"] = "lesions found (each on its own, by a part with Dice 0.1 or more)"
    masks["false_parts_per_image"] = "parts of masks that find no lesion, per image"
    masks["area_ratio"] = "predicted over true area, median of the lesions found"
    masks["auroc_mask"] = "AUROC, presence of a lesion by its mask"
    classes = {"accuracy": "accuracy"}
    for name in names:
        classes |= {f"{key}_{name}": f"{name}: {key}" for key in ("sensitivity", "specificity", "precision")}
    classes["operating_point_sensitivity"] = "suspicious, of the malignant (sensitivity at the stored threshold)"
    classes["operating_point_specificity"] = "not suspicious, of the others (specificity at it)"
    classes |= {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"} | areas
    classes["sensitivity_at_90"] = "sensitivity at specificity 0.90, malignant against benign"
    held = {}
    for name in names:
        held |= {f"slope_{name}": f"{name}: slope (1)", f"intercept_{name}": f"{name}: intercept (0)"}
        held[f"excess_{name}"] = f"{name}: mean probability minus frequency (0)"
    held["brier"] = "Brier score, all classes"
    for t in ACTED_FROM:
        held[f"gain_{t:g}"] = f"net benefit, acting from p(malignant) {t:g} on, over all or none (above 0)"
    return {"Masks": masks, "Classes": classes, "Calibration": held}


def curve_titles(evaluation: Evaluation, of: Iterable[str]) -> dict[str, str]:
    """What the area under each curve is called."""
    titles = {"auroc_benign_malignant": "AUROC, malignant against benign"}
    titles |= {f"auroc_{name}": f"AUROC, {name} against the rest" for name in evaluation.images.class_names}
    titles["auroc_lesion"] = "AUROC, presence of a lesion"
    return {name: title for name, title in titles.items() if name in of}


def shares(images: Images, groups: np.ndarray, thresholds: np.ndarray | None = None) -> dict[str, Estimate]:
    """All figures that are k of n images: missed lesions and false masks, and of the class accuracy, sensitivity,
    specificity and precision.

    Args:
        images: N images.
        groups: (N,), the name of each one's group.
        thresholds: (N,), of malignancy, whose sensitivity and specificity are those of the ``operating_point``.
    """
    lesion, known = images.lesion, images.true_class != UNKNOWN_CLASS
    found = {"missed_rate": (images.dice < MISSED_BELOW, lesion), "false_mask_rate": (images.areas[:, 0] > 0, ~lesion)}
    found["accuracy"] = (images.predicted_class == images.true_class, known)
    for k, name in enumerate(images.class_names):
        true, called = images.of_class(name), images.predicted_class == k
        found[f"sensitivity_{name}"] = (called, true)
        found[f"specificity_{name}"] = (~called, known & ~true)
        found[f"precision_{name}"] = (true, called & known)
    reached = None if thresholds is None else suspicious(images, thresholds)
    if reached is not None:
        positive = images.of_class(MALIGNANT)
        found["operating_point_sensitivity"] = (reached, positive)
        found["operating_point_specificity"] = (~reached, known & ~positive)
    counted = {name: share(hits[among], groups[among]) for name, (hits, among) in found.items()}
    if images.lesions is not None:
        hits = np.concatenate([np.arange(total) < hit for total, hit, _ in images.lesions.astype(int)] or [[]])
        counted["lesion_sensitivity"] = share(hits.astype(bool), np.repeat(groups, images.lesions[:, 0].astype(int)))
    return counted


def froc(images: Images) -> tuple[np.ndarray, np.ndarray] | None:
    """False parts per image and fraction of the lesions found (each (M,)), by the least probability of a part: the
    free-response ROC curve (MONAI's ``compute_froc_curve_data``). None where there is no lesion, or nothing is told of
    parts.

    A lesion counts with the surest part that finds it.
    """
    if images.parts is None or not images.lesions[:, 0].sum():
        return None
    false, found = [], []
    for text in images.parts:
        best: dict[int, float] = {}
        for probability, lesion in (part.split(":") for part in text.split()):
            if int(lesion):
                best[int(lesion)] = max(best.get(int(lesion), 0.0), float(probability))
            else:
                false.append(float(probability))
        found += best.values()
    probabilities = np.array(false), np.array(found)
    per_image, sensitivity = compute_froc_curve_data(*probabilities, int(images.lesions[:, 0].sum()), len(images))
    everything = len(false) / len(images), len(found) / images.lesions[:, 0].sum()  # which MONAI's curve leaves out
    return np.append(everything[0], per_image), np.append(everything[1], sensitivity)


COMPARED = (
    "lesion_dice",
    "hd95",
    "nsd",
    "lesion_sensitivity",
    "missed_rate",
    "false_mask_rate",
    "area_ratio",
    "accuracy",
    "macro_f1",
    "auroc_malignant",
)
COMPARED += ("auroc_macro", "auroc_benign_malignant", "brier")


def compared(
    images: Images,
    filenames: Sequence[str],
    others: Images,
    other_filenames: Sequence[str],
    groups: np.ndarray,
    draws: int,
    title: object,
) -> dict[str, Estimate]:
    """How much more an evaluation has than another one of the same images, by paired bootstrap over groups.

    Args:
        images: of the one that is compared.
        filenames: their N names.
        others: of the other, which may hold more.
        other_filenames: their names.
        groups: (N,), the name of each image's group.
        draws: of the bootstrap.
        title: what the other is called, in an error.

    Raises:
        ValueError: the other lacks an image, or has another class or true mask for it.
    """
    index = pandas.Index(other_filenames).get_indexer(list(filenames))
    if (index < 0).any():
        lost = filenames[int(np.argmin(index))]
        raise ValueError(
            f"{title}: lacks {(index < 0).sum()} images, {lost} among them; compare what has the same images"
        )
    others = others.take(index)
    same = (others.true_class == images.true_class) & (others.areas[:, 1] == images.areas[:, 1])
    if others.class_names != images.class_names or not same.all():
        lost = filenames[int(np.argmin(same))]
        raise ValueError(f"{title}: other classes or true masks, as of {lost}; compare what has the same labels")
    found = difference(quick_measures, others, images, groups, draws, f"{title}, compared")
    return {name: estimate for name, estimate in found.items() if not np.isnan(estimate.value)}


def quick_measures(images: Images) -> dict[str, float]:
    """The figures that are compared; no fits, which take their time."""
    known = images.true_class != UNKNOWN_CLASS
    found = single_metrics(images) | {"brier": brier(images.probabilities[known], images.true_class[known])}
    return {name: found[name] for name in COMPARED if name in found}


def figure_title(name: str, names: Sequence[str]) -> str:
    """What a figure is called on the page; `names` are those of the classes."""
    areas = {f"auroc_{k}": f"AUROC, {k} against the rest" for k in names} | {
        "auroc_macro": "AUROC, mean of the classes"
    }
    areas["auroc_benign_malignant"] = "AUROC, malignant against benign"
    return {k: v for titles in figure_titles(names, areas).values() for k, v in titles.items()}[name]


def subgroups(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Masks (N,) of the subgroups by name: class, size of the lesion in thirds, and each column of the datalist."""
    images = evaluation.images
    found = {f"class: {name}": images.of_class(name) for name in images.class_names}
    lesion, fraction = images.lesion, images.areas[:, 1] / images.areas[:, 3]
    if lesion.sum() >= 3:
        parts, (small, large) = thirds(fraction, lesion)
        titles = (f"up to {100 * small:.1f} %", "between", f"over {100 * large:.1f} %")
        found |= {f"lesion, of the image: {title}": part for title, part in zip(titles, parts)}
    for name in evaluation.columns:
        values = evaluation.table[f"column {name}"]
        found |= {f"{name}: {value}": (values == value).to_numpy() for value in sorted(set(values), key=_natural)}
    return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}


def _natural(text: str) -> list:
    """A key that sorts 9 before 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def subgroup_figures(evaluation: Evaluation, draws: int) -> dict[str, dict[str, Estimate | int]]:
    """For each subgroup the numbers of its images and groups, and its main figures."""
    rows = {}
    key = "auroc_benign_malignant" if evaluation.pair else "auroc_macro"
    title = "AUROC, malignant against benign" if evaluation.pair else "AUROC, mean of the classes"
    for name, mask in subgroups(evaluation).items():
        images, groups = evaluation.images.take(mask), evaluation.groups[mask]
        found = bootstrap(lambda index: single_metrics(images.take(index)), groups, draws, name)
        counted = shares(images, groups)
        rows[name] = {
            "images": len(images),
            "groups": len(np.unique(groups)),
            "Dice": found["lesion_dice"],
            "missed": counted["missed_rate"],
            "false masks": counted["false_mask_rate"],
            "accuracy": counted["accuracy"],
            title: found[key],
        }
    return rows


def failures(images: Images, filenames: Sequence[str]) -> list[dict]:
    """A row for each of the worst masks, each mask on an image without lesion, and each image of a malignant lesion
    that was taken for another class or whose mask missed it."""
    lesion, dice = images.lesion, images.dice
    order = np.argsort(np.where(lesion, dice, 2), kind="stable")[:WORST]
    kinds = {"worst mask": order[lesion[order]], "false mask": np.flatnonzero(~lesion & (images.areas[:, 0] > 0))}
    if MALIGNANT in images.class_names:
        called = images.predicted_class == images.class_names.index(MALIGNANT)
        kinds["malignant missed"] = np.flatnonzero(images.of_class(MALIGNANT) & (~called | (dice < MISSED_BELOW)))
    return [
        {
            "failure": kind,
            "filename": filenames[i],
            "true_class": (*images.class_names, "unknown")[images.true_class[i]],
            "predicted_class": images.class_names[images.predicted_class[i]],
            "probability": round(float(images.probabilities[i].max()), 3),
            "dice": round(float(dice[i]), 3),
        }
        for kind, found in kinds.items()
        for i in found
    ]
