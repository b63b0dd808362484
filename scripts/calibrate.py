"""Fit the temperature and the operating point of trained weights, and keep them beside the weights.

    python -m monai.bundle run evaluating --config_file
        "['bundle/configs/train.json','bundle/configs/evaluate.json']" --bundle_root bundle
        --dataset_dir runs/busi --ckpt_dir runs/models --part validation --output_dir runs/validation
    python scripts/calibrate.py --evaluation runs/validation --ckpt_dir runs/models

or, on five times as many images, with what a finished cross-validation of the same recipe answered about them:

    python scripts/calibrate.py --cross_validation runs/cross_validation --datalist runs/busi/datalist.json
        --ckpt_dir runs/models

Out: `calibration.json` in --ckpt_dir. Inference and evaluation with these weights use it from then on. The testing part
has to stay unseen: an evaluation has to be of the validation part, and from a cross-validation only the images in the
datalist's training and validation parts are taken, each as answered by the network that had not seen it. The weights'
own validation part makes them look better than they are, since the best epoch was chosen on it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from command_line import run

from scripts import calibration
from scripts.data import read_datalist
from scripts.files import NOTICE, read_csv, write_json


def calibrate(
    ckpt_dir: Path,
    evaluation: Path | None = None,
    cross_validation: Path | None = None,
    datalist: Path | None = None,
    sensitivity: float = 0.95,
    unsure_fraction: float = 0.2,
) -> dict:
    """Write `calibration.json`.

    Args:
        ckpt_dir: folder of the weights, `model.pt`.
        evaluation: output folder of an evaluation of the validation part, with `pictures.csv` and `metrics.json`.
        cross_validation: instead of an evaluation, folder of scripts/cross_validate.py.
        datalist: with it, the datalist that the weights were trained with.
        sensitivity: of the operating point for malignant images, in (0, 1].
        unsure_fraction: images of least confidence, as a fraction of all, whose class is to count as unsure, in [0, 1).

    Returns:
        dict: what was written.

    Raises:
        ValueError: the evaluation is of another part or other weights.
        FileNotFoundError: a file is missing.
    """
    if bool(evaluation) == bool(cross_validation):
        raise ValueError("--evaluation and --cross_validation: give one of them")
    if cross_validation and not datalist:
        raise ValueError("--datalist is missing; give the one that the weights were trained with")
    if not 0 < sensitivity <= 1:
        raise ValueError(f"--sensitivity {sensitivity}: pass a number above 0 and up to 1")
    if not 0 <= unsure_fraction < 1:
        raise ValueError(f"--unsure_fraction {unsure_fraction}: pass a number from 0 on and below 1")
    weights = ckpt_dir / "model.pt"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: missing; pass the --ckpt_dir of the training")
    if cross_validation:
        source = "out-of-fold predictions of training and validation"
        folders = sorted(cross_validation.glob("fold_*/uncalibrated"))
        if not folders:
            raise FileNotFoundError(f"{cross_validation}: no fold_0/uncalibrated; run scripts/cross_validate.py first")
        found = [_read(folder, "testing", "run scripts/cross_validate.py again") for folder in folders]
        names, raw, classes = _seen(_join(found), datalist)
    else:
        source = "validation"
        names, raw, classes, _ = _read(evaluation, source, "evaluate with --part validation", weights)

    temperature = calibration.fit_temperature(raw, classes)
    fitted = calibration.tempered(raw, temperature)
    threshold, reached, specificity = None, None, None
    positive = classes == names.index("malignant") if "malignant" in names else np.zeros(len(classes), bool)
    if positive.any():
        scores = fitted[:, names.index("malignant")]
        threshold = calibration.threshold_for_sensitivity(scores, positive, sensitivity)
        suspicious = scores >= threshold
        reached = float(suspicious[positive].mean())
        specificity = float((~suspicious)[~positive].mean()) if not positive.all() else None
    content = {
        "notice": NOTICE,
        "weights_sha256": calibration.sha256(weights),
        "temperature": temperature,
        "malignancy_threshold": threshold,
        "unsure_below": float(np.quantile(fitted.max(axis=1), unsure_fraction)),
        "fitted_on": {
            "part": source,
            "pictures": len(classes),
            "log_loss": {
                "before": calibration.mean_log_loss(raw, classes),
                "after": calibration.mean_log_loss(fitted, classes),
            },
            "expected_calibration_error": {
                "before": calibration.expected_calibration_error(raw, classes),
                "after": calibration.expected_calibration_error(fitted, classes),
            },
            "malignancy_sensitivity": reached,
            "malignancy_specificity": specificity,
        },
    }
    write_json(weights.with_name("calibration.json"), content)
    absent = "no malignant image" if "malignant" in names else "no class called malignant"
    point = f"{absent}, so no threshold" if threshold is None else f"malignancy threshold {threshold:.3f}"
    print(f"temperature {temperature:.3f}, {point}: {weights.with_name('calibration.json')}")
    return content


Found = tuple[list[str], np.ndarray, np.ndarray, list[str]]


def _read(folder: Path, part: str, remedy: str, weights: Path | None = None) -> Found:
    """Class names, the network's own probabilities (N, 3), class indices (N,) and file names of an evaluation."""
    for file in (folder / "metrics.json", folder / "pictures.csv"):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if figures["part"] != part:
        raise ValueError(f"{folder}: evaluates the part {figures['part']}; {remedy}")
    if weights and figures["weights_sha256"] != calibration.sha256(weights):
        raise ValueError(f"{folder}: made with other weights than {weights}; evaluate these first")
    names = list(figures["pictures_by_class"])
    rows = [row for row in read_csv(folder / "pictures.csv") if row["true_class"]]
    if not rows:
        raise ValueError(f"{folder / 'pictures.csv'}: no image of a known class; nothing to calibrate on")
    classes = np.array([names.index(row["true_class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    # Back to the network's own, where the evaluation used an earlier calibration.
    raw = calibration.tempered(probabilities, 1 / figures["temperature"])
    return names, raw, classes, [row["filename"] for row in rows]


def _join(found: list[Found]) -> Found:
    """The evaluations of all folds as one."""
    names, raw, classes, files = zip(*found)
    return names[0], np.concatenate(raw), np.concatenate(classes), sum(files, [])


def _seen(found: Found, datalist: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Of an evaluation, what the datalist has in its training and validation parts."""
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; give --datalist the one that the weights were trained with")
    parts = read_datalist(datalist)
    seen = {Path(item["image"]).name for part in ("training", "validation") for item in parts[part]}
    names, raw, classes, files = found
    chosen = np.array([file in seen for file in files])
    if not chosen.any():
        raise ValueError(
            f"{datalist}: its images are not those of the cross-validation; give the datalist of the same set"
        )
    return names, raw[chosen], classes[chosen]


if __name__ == "__main__":
    run(calibrate)
