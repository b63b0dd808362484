"""Fit temperature, class offsets and operating point of trained weights, and keep them beside the weights.

    python -m monai.bundle run evaluating --config_file
        "['bundle/configs/train.json','bundle/configs/evaluate.json']" --bundle_root bundle
        --dataset_dir runs/busi --ckpt_dir runs/models --split validation --output_dir runs/validation
    python scripts/calibrate.py --evaluation runs/validation --ckpt_dir runs/models

or, on five times as many images, with what a finished cross-validation of the same recipe answered about them:

    python scripts/calibrate.py --cross_validation runs/cross_validation --datalist runs/busi/datalist.json
        --ckpt_dir runs/models

or, for weights that have seen several hospitals, with what others, each without one of these, answered about all images
of the one that they lacked (--split training+validation+testing); every hospital weighs the same:

    python scripts/calibrate.py --left_out "['runs/busi_left_out','runs/bus_bra_left_out']" --ckpt_dir runs/models

Out: `calibration.json` in --ckpt_dir, which inference and evaluation with these weights use from then on. With
--evaluation or --cross_validation the testing split stays unseen: an evaluation has to be of the validation split, and
from a cross-validation only the images in the datalist's training and validation splits are taken, each as answered by
the network that had not seen it. --left_out takes all images of each hospital. The weights' own validation split makes
them look better than they are, since the best epoch was chosen on it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.cli import run


def calibrate(
    ckpt_dir: Path,
    evaluation: Path | None = None,
    cross_validation: Path | None = None,
    datalist: Path | None = None,
    left_out: tuple[Path, ...] = (),
    sensitivity: float = 0.95,
    unsure_fraction: float = 0.2,
    suspicious_classes: tuple[str, ...] = ("malignant",),
) -> dict:
    """Write `calibration.json`.

    Args:
        ckpt_dir: folder of the weights, `model.pt`.
        evaluation: output folder of an evaluation of the validation split, with `images.csv` and `metrics.json`.
        cross_validation: instead of an evaluation, folder of scripts/cross_validate.py.
        datalist: with it, the datalist that the weights were trained with.
        left_out: instead of both, output folders of evaluations, each of a hospital by weights without it.
        sensitivity: of the operating point for images of the suspicious classes, in (0, 1].
        unsure_fraction: images of least confidence, as a fraction of all, whose class is to count as unsure, in [0, 1).
        suspicious_classes: classes that make an image suspicious, by the sum of their probabilities.

    Returns:
        dict: what was written.

    Raises:
        ValueError: the evaluation is of another split or of other weights, or has no such class.
        FileNotFoundError: a file is missing.
    """
    if bool(evaluation) + bool(cross_validation) + bool(left_out) != 1:
        raise ValueError("--evaluation, --cross_validation and --left_out: give one of them")
    if cross_validation and not datalist:
        raise ValueError("--datalist is missing; give the one that the weights were trained with")
    if not 0 < sensitivity <= 1:
        raise ValueError(f"--sensitivity {sensitivity}: pass a number above 0 and up to 1")
    if not 0 <= unsure_fraction < 1:
        raise ValueError(f"--unsure_fraction {unsure_fraction}: pass a number from 0 on and below 1")
    weights = ckpt_dir / "model.pt"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: missing; pass the --ckpt_dir of the training")
    from tools import fitting

    from breast_ultrasound.calibration import MASK, NEUTRAL, SUSPICIOUS, load_calibration
    from breast_ultrasound.files import NOTICE, sha256, write_json

    if cross_validation:
        source = "out-of-fold predictions of training and validation"
        answers = fitting.read_folds(cross_validation, datalist)
    elif left_out:
        source = "hospitals left out, each by weights that had not seen it"
        answers = fitting.read_left_out(left_out, weights)
    else:
        source = "validation"
        answers = fitting.read_evaluation(evaluation, source, "evaluate with --split validation", weights)
    unknown = [name for name in suspicious_classes if name not in answers.names]
    if unknown and tuple(suspicious_classes) != SUSPICIOUS:
        raise ValueError(f"--suspicious_classes {unknown[0]}: no such class; there are {', '.join(answers.names)}")
    if few := fitting.few_images(answers):
        print(few, file=sys.stderr)
    fitted, measured = fitting.fit(answers, sensitivity, unsure_fraction, suspicious_classes)
    target = weights.with_name("calibration.json")
    before = load_calibration(str(target), str(weights)) if target.is_file() else NEUTRAL
    mask = {name: before[name] for name in MASK}
    content = {"notice": NOTICE, "weights_sha256": sha256(weights), **fitted, **mask}
    content["fitted_on"] = {"split": source, "images": len(answers.classes), **measured}
    write_json(target, content)
    threshold = fitted["malignancy_threshold"]
    called = ", ".join(suspicious_classes)
    absent = f"no class called {called}, so no threshold; --suspicious_classes names others"
    absent = absent if unknown else f"no {called} image, so no threshold"
    point = absent if threshold is None else f"threshold of {called} {threshold:.3f}"
    shift = ", ".join(f"{name} {value:+.2f}" for name, value in fitted["class_offsets"].items())
    needed = "one hospital's mix of classes" if left_out else f"{fitting.LEAST_OF_CLASS} images of each"
    shift = f"class offsets {shift}" if shift else f"no class offsets, which take {needed}"
    print(f"temperature {fitted['temperature']:.3f}, {shift}, {point}: {target}")
    return content


if __name__ == "__main__":
    run(calibrate)
