"""Fit the temperature and the operating point of trained weights, and keep them beside the weights.

    python -m monai.bundle run evaluating --config_file
        "['bundle/configs/train.json','bundle/configs/evaluate.json']" --bundle_root bundle
        --dataset_dir runs/busi --ckpt_dir runs/models --part validation --output_dir runs/validation
    python scripts/calibrate.py --evaluation runs/validation --ckpt_dir runs/models

or, on five times as many pictures, with what a finished cross-validation of the same recipe answered about them:

    python scripts/calibrate.py --cross_validation runs/cross_validation --datalist runs/busi/datalist.json
        --ckpt_dir runs/models

Out: `calibration.json` in --ckpt_dir. Inference and evaluation with these weights use it from then on. The testing part
has to stay unseen: an evaluation has to be of the validation part, and from a cross-validation only the pictures in the
datalist's training and validation parts are taken, each as answered by the network that had not seen it. The weights'
own validation part makes them look better than they are, since the best epoch was chosen on it. Research software, not
a medical device.
"""

import json
import sys
from pathlib import Path

import fire
import numpy as np
from command_line import asked_for_help

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts import calibration  # noqa: E402
from scripts.files import read_csv, write_json  # noqa: E402

SENSITIVITY = 0.95  # the operating point's, for malignant pictures
UNSURE_SHARE = 0.2  # of the validation pictures, those of the lowest confidence


def calibrate(evaluation="", ckpt_dir="", cross_validation="", datalist="", *extra, **unknown):
    """Write `calibration.json`.

    Args:
        evaluation: output folder of an evaluation of the validation part, with `pictures.csv` and `metrics.json`.
        ckpt_dir: folder of the weights, `model.pt`.
        cross_validation: instead of an evaluation, folder of scripts/cross_validate.py.
        datalist: with it, the datalist that the weights were trained with.

    Returns:
        dict: what was written.

    Raises:
        ValueError: an option is unknown or missing, or the evaluation is of another part or other weights.
        FileNotFoundError: a file is missing.
    """
    if asked_for_help(calibrate, extra, unknown):
        return None
    given = {"ckpt_dir": ckpt_dir}
    given |= (
        {"cross_validation": cross_validation, "datalist": datalist} if cross_validation else {"evaluation": evaluation}
    )
    for name, value in given.items():
        if value in ("", True):
            raise ValueError(f"--{name} is missing")
    if evaluation and cross_validation:
        raise ValueError("--evaluation and --cross_validation: give one of them")
    weights = Path(str(ckpt_dir)) / "model.pt"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: missing; pass the --ckpt_dir of the training")
    if cross_validation:
        source = "out-of-fold predictions of training and validation"
        folders = sorted(Path(str(cross_validation)).glob("fold_*/uncalibrated"))
        if not folders:
            raise FileNotFoundError(f"{cross_validation}: no fold_0/uncalibrated; run scripts/cross_validate.py first")
        found = [_read(folder, "testing", "run scripts/cross_validate.py again") for folder in folders]
        names, raw, classes = _seen(_join(found), Path(str(datalist)))
    else:
        source = "validation"
        names, raw, classes, _ = _read(Path(str(evaluation)), source, "evaluate with --part validation", weights)

    temperature = calibration.fit_temperature(raw, classes)
    fitted = calibration.tempered(raw, temperature)
    malignant = names.index("malignant")
    positive = classes == malignant
    threshold, sensitivity, specificity = None, None, None
    if positive.any():
        threshold = calibration.threshold_for_sensitivity(fitted[:, malignant], positive, SENSITIVITY)
        suspicious = fitted[:, malignant] >= threshold
        sensitivity = float(suspicious[positive].mean())
        specificity = float((~suspicious)[~positive].mean()) if not positive.all() else None
    content = {
        "notice": "research software, not a medical device",
        "weights_sha256": calibration.sha256(weights),
        "temperature": temperature,
        "malignancy_threshold": threshold,
        "unsure_below": float(np.quantile(fitted.max(axis=1), UNSURE_SHARE)),
        "fitted_on": {
            "part": source,
            "pictures": len(classes),
            "log_loss": {"before": calibration.log_loss(raw, classes), "after": calibration.log_loss(fitted, classes)},
            "expected_calibration_error": {
                "before": calibration.expected_calibration_error(raw, classes),
                "after": calibration.expected_calibration_error(fitted, classes),
            },
            "malignancy_sensitivity": sensitivity,
            "malignancy_specificity": specificity,
        },
    }
    write_json(weights.with_name("calibration.json"), content)
    point = "no malignant picture, so no threshold" if threshold is None else f"malignancy threshold {threshold:.3f}"
    print(f"temperature {temperature:.3f}, {point}: {weights.with_name('calibration.json')}")
    return content


def _read(folder, part, remedy, weights=None):
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
        raise ValueError(f"{folder / 'pictures.csv'}: no picture of a known class; nothing to calibrate on")
    classes = np.array([names.index(row["true_class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    # Back to the network's own, where the evaluation used an earlier calibration.
    raw = calibration.tempered(probabilities, 1 / figures["temperature"])
    return names, raw, classes, [row["filename"] for row in rows]


def _join(found):
    """The evaluations of all folds as one."""
    names, raw, classes, files = zip(*found)
    return names[0], np.concatenate(raw), np.concatenate(classes), sum(files, [])


def _seen(found, datalist):
    """Of an evaluation, what the datalist has in its training and validation parts."""
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; give --datalist the one that the weights were trained with")
    parts = json.loads(datalist.read_text(encoding="utf-8"))
    seen = {Path(item["image"]).name for part in ("training", "validation") for item in parts[part]}
    names, raw, classes, files = found
    chosen = np.array([file in seen for file in files])
    if not chosen.any():
        raise ValueError(
            f"{datalist}: its pictures are not those of the cross-validation; give the datalist of the same set"
        )
    return names, raw[chosen], classes[chosen]


if __name__ == "__main__":
    try:
        fire.Fire(calibrate, serialize=lambda _: None)
    except (OSError, ValueError) as error:
        sys.exit(f"calibrate: {error}")
