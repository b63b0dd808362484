"""Fit the temperature and the operating point of trained weights, and keep them beside the weights.

    python -m monai.bundle run evaluating --config_file
        "['bundle/configs/train.json','bundle/configs/evaluate.json']" --bundle_root bundle
        --dataset_dir runs/busi --ckpt_dir runs/models --part validation --output_dir runs/validation
    python scripts/calibrate.py --evaluation runs/validation --ckpt_dir runs/models

Out: `calibration.json` in --ckpt_dir. Inference and evaluation with these weights use it from then on. Only an
evaluation of the validation part is taken: the testing part has to stay unseen. Research software, not a medical
device.
"""

import csv
import json
import sys
from pathlib import Path

import fire
import numpy as np
from command_line import asked_for_help

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts import calibration  # noqa: E402
from scripts.files import write_json  # noqa: E402

SENSITIVITY = 0.95  # the operating point's, for malignant pictures
UNSURE_SHARE = 0.2  # of the validation pictures, those of the lowest confidence


def calibrate(evaluation="", ckpt_dir="", *extra, **unknown):
    """Write `calibration.json`.

    Args:
        evaluation: output folder of an evaluation of the validation part, with `pictures.csv` and `metrics.json`.
        ckpt_dir: folder of the weights, `model.pt`, that were evaluated.

    Returns:
        dict: what was written.

    Raises:
        ValueError: an option is unknown or missing, or the evaluation is of another part.
        FileNotFoundError: a file is missing.
    """
    if asked_for_help(calibrate, extra, unknown):
        return None
    for name, value in (("evaluation", evaluation), ("ckpt_dir", ckpt_dir)):
        if value in ("", True):
            raise ValueError(f"--{name} needs a folder")
    evaluation, weights = Path(str(evaluation)), Path(str(ckpt_dir)) / "model.pt"
    for file, remedy in (
        (evaluation / "metrics.json", "evaluate with --part validation"),
        (evaluation / "pictures.csv", "evaluate with --part validation"),
        (weights, "pass the --ckpt_dir of the evaluation"),
    ):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    figures = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    if figures["part"] != "validation":
        raise ValueError(f"{evaluation}: evaluates the part {figures['part']}; evaluate with --part validation")
    if figures["weights_sha256"] != calibration.sha256(weights):
        raise ValueError(f"{evaluation}: made with other weights than {weights}; evaluate these first")
    names = list(figures["pictures_by_class"])
    with open(evaluation / "pictures.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["true_class"]]
    if not rows:
        raise ValueError(f"{evaluation / 'pictures.csv'}: no picture of a known class; nothing to calibrate on")
    classes = np.array([names.index(row["true_class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    # Back to the network's own, where the evaluation used an earlier calibration.
    raw = calibration.tempered(probabilities, 1 / figures["temperature"])

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
        "weights_sha256": figures["weights_sha256"],
        "temperature": temperature,
        "malignancy_threshold": threshold,
        "unsure_below": float(np.quantile(fitted.max(axis=1), UNSURE_SHARE)),
        "fitted_on": {
            "part": "validation",
            "pictures": len(rows),
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


if __name__ == "__main__":
    try:
        fire.Fire(calibrate, serialize=lambda _: None)
    except (OSError, ValueError) as error:
        sys.exit(f"calibrate: {error}")
