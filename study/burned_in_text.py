"""Burned-in text measured: how much of it the suggested masks cover, and what the network makes of marks in BUSI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from preparation.burned_in import suggest
from tools.phantoms import Screen, screen
from tools.statistics import bootstrap
from tqdm import tqdm

from breast_ultrasound import Predictor
from breast_ultrasound.data import items_digest, read_datalist
from breast_ultrasound.files import sha256, write_csv
from breast_ultrasound.images import open_image, to_grey, to_mask
from breast_ultrasound.input_check import mark_pixels
from study.experiments import commit

SCREENS = 40  # a mask is suggested from the first half, and used on the others
MALIGNANT = "malignant"
SPLITS = ("training", "validation", "testing")
COLUMNS = ["images", "altered", "number", "measure", "before", "after", "difference", "low", "high"]
COLUMNS += ["weights_sha256", "images_sha256", "commit"]


def measure_burned_in_text(prepared: Path, datalist: Path, ckpt_dir: Path, output: Path) -> None:
    """Write what is left of text on phantoms, and the network's answers before and after BUSI's marks are erased.

    Args:
        prepared: folder with all of BUSI's images, none left out; those with marks on the published list are taken.
        datalist: of the images that the weights know: its testing split was kept from training.
        ckpt_dir: folder of the weights.
        output: the table; differences have an interval of a bootstrap over scans.
    """
    rows = text_left([screen(number) for number in range(SCREENS)])
    predictor = Predictor(ckpt_dir=str(ckpt_dir), predict_refused=True)
    listed = read_datalist(prepared / "datalist.json")
    items = [{**i, "image": prepared / i["image"], "label": prepared / i["label"]} for s in SPLITS for i in listed[s]]
    items = [item for item in items if item["burned_in_marks"]]
    known = {Path(item["image"]).name: split for split in SPLITS for item in read_datalist(datalist)[split]}
    splits = np.array([known.get(item["image"].name, "") for item in items])
    groups, marks_of = (np.array([item[key] for item in items]) for key in ("group", "burned_in_marks"))
    text = np.array(["text" in marks for marks in marks_of])
    sets = {"BUSI, marks are listed": np.full(len(items), True), "of these, with text": text}
    sets |= {"of these, in the testing split": splits == "testing", "of these, trained on": splits == "training"}
    sets |= {"of these, in no split": splits == ""}
    before, blanked, filled, found = [], [], [], []
    for item in tqdm(items, desc="marks", unit="image", disable=None):
        image, true = to_grey(open_image(item["image"])), to_mask(open_image(item["label"])) > 0
        marks = cv2.dilate(mark_pixels(image).astype(np.uint8), np.ones((5, 5)))
        found.append(bool(marks.any()))
        before.append(answer(predictor, image, item["class"], true))
        for answers, altered in (
            (blanked, np.where(marks, np.uint8(0), image)),
            (filled, cv2.inpaint(image, marks, 3, cv2.INPAINT_TELEA)),
        ):
            answers.append(answer(predictor, altered, item["class"], true) if found[-1] else before[-1])
    source = {"weights_sha256": sha256(ckpt_dir / "model.pt"), "images_sha256": items_digest(items)}
    for name, chosen in sets.items():
        index = np.flatnonzero(chosen)
        share = float(np.mean(np.array(found)[index]))
        told = {"images": name, "number": len(index)}
        rows.append({**told, "altered": "", "measure": "marks found by their strokes", "after": share, **source})
        for altered, after in (("marks blanked", blanked), ("marks filled in from their rim", filled)):
            for row in compared(*(np.array(answers)[index] for answers in (before, after)), groups[index]):
                rows.append({**told, "altered": altered, **row, **source})
    write_csv(output, [row | {"commit": commit()} for row in rows], COLUMNS)
    print(f"{len(items)} images with marks, {SCREENS} phantoms: {output}")


def text_left(screens: Sequence[Screen]) -> list[dict]:
    """How much of each kind of text is seen on the second half of some screens, and of the tissue, after blanking."""
    half = len(screens) // 2
    blank = suggest([found.image for found in screens[:half]]).blank
    parts = {f"text seen, {kind}": [found.texts[kind] for found in screens[half:]] for kind in screens[0].texts}
    parts["tissue seen"] = [found.tissue for found in screens[half:]]
    told = {"images": "phantoms, whole screens", "altered": "blanked by the suggested mask", "number": half}
    left = {name: 1 - float(np.mean([blank[part].mean() for part in found])) for name, found in parts.items()}
    return [{**told, "measure": name, "before": 1.0, "after": share} for name, share in left.items()]


def answer(predictor: Predictor, image: np.ndarray, class_: int, true: np.ndarray) -> tuple[float, float, float, float]:
    """Class index, whether it is the true one, probability of malignancy, and Dice of the lesion (NaN without one)."""
    found = predictor(image)
    index = predictor.class_names.index(found.class_name)
    both, sizes = float((found.mask & true).sum()), float(found.mask.sum() + true.sum())
    dice = 2 * both / sizes if true.any() else float("nan")
    return float(index), float(index == class_), found.class_probabilities[MALIGNANT], dice


def compared(before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> list[dict]:
    """Rows on answers (N, 4) of ``answer`` before and after, about images of the same groups (N,)."""
    measures = ["class changed", "accuracy", "mean probability of malignancy", "lesion Dice"]

    def values(answers: np.ndarray, first: np.ndarray) -> list[float]:
        changed = (answers[:, 0] != first[:, 0]).mean()
        return [float(changed), *(float(np.nanmean(answers[:, k])) for k in (1, 2, 3))]

    def difference(index: np.ndarray) -> dict[str, float]:
        pairs = zip(values(before[index], before[index]), values(after[index], before[index]))
        return dict(zip(measures, (two - one for one, two in pairs)))

    estimates = bootstrap(difference, groups)
    both = zip(values(before, before), values(after, before))
    return [
        {"measure": name, "before": one, "after": two, "difference": e.value, "low": e.low, "high": e.high}
        for (name, e), (one, two) in zip(estimates.items(), both)
    ]
