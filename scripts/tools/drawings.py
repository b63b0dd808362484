"""The drawings and the page of show_predictions.py: outlines, maps, and what goes wrong where."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from fire.parser import DefaultParseValue
from tools.grad_cam import Explainer, score
from tools.style import NOTICE, OTHER_COLOUR, TRUE_COLOUR, bgr, class_names
from tqdm import tqdm

from breast_ultrasound.calibration import SUSPICIOUS
from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import output_stem, read_csv, write_csv, write_json
from breast_ultrasound.images import open_image, to_grey, to_mask
from breast_ultrasound.metrics import MISSED_BELOW, Images, overlap

FOOTER_WIDTH = 250  # pixels; narrower images get a black margin on the right, so that the footer can be read
WORST = 12  # masks in the gallery
ERRORS = ("wrong class", "missed malignant", "missed lesion", "false mask")
DOUBTS = ("unsure", "disagreement")
LIMITS = ("malignancy_threshold", "suspicious_classes", "unsure_below")
STRIP = 44  # height of the text below a drawing of up to 500 pixels' width, in pixels; it grows with wider ones


def read_rows(predictions: Path, datalist: Path | None) -> tuple[list[dict], dict]:
    """The images of a table of inference or evaluation.

    Returns:
        list of dicts with `filename`, `class`, `true_class` (empty: unknown), `probabilities` by class, `suspicious`
        and `unsure` (yes, no, or empty where no limit is stored), `disagreement` of mask and class (empty: none, or an
        evaluation), and, from an evaluation, `dice`; and the limits that stand behind `suspicious` and `unsure`,
        `malignancy_threshold` of the `suspicious_classes` and `unsure_below`, where predictions were made with such.
    """
    table, evaluation = predictions / "predictions.csv", predictions / "images.csv"
    if not table.is_file() and not evaluation.is_file():
        raise FileNotFoundError(f"{table} does not exist; run the bundle's inference first")
    if not table.is_file() and not any(predictions.glob("*_seg.png")):
        raise FileNotFoundError(f"{predictions}: an evaluation without masks; run it with --save_masks True")
    if datalist and not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; give --datalist the datalist.json of a prepared folder")
    true = _true_classes(datalist) if datalist else {}
    source, about = (table, "predictions.json") if table.is_file() else (evaluation, "metrics.json")
    limits = _limits(predictions / about)
    rows = []
    for line, found in enumerate(read_csv(source), 1):
        try:
            if found.get("check") != "refused" or found["class"]:
                rows.append(_row(found, true, limits))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a cell that is missing or no number
            kind = f"{type(error).__name__}: {error}"
            raise ValueError(f"{source}, row {line}: not of this bundle ({kind}); predict or evaluate again") from None
    return rows, limits


def _row(found: dict[str, str], true: dict[str, str], limits: dict[str, float | None]) -> dict:
    """A row of the table with numbers in it."""
    row = {"filename": found["filename"], "class": found.get("class") or found["predicted_class"]}
    row["probabilities"] = {k[2:]: float(v) for k, v in found.items() if k.startswith("p_")}
    row["true_class"] = found.get("true_class") or true.get(found["filename"], "")
    row |= {name: found.get(name) or "" for name in ("suspicious", "unsure", "disagreement")}
    if "dice" in found:
        row |= {"dice": float(found["dice"]), "true_area_px": float(found["true_area_px"])}
    if "suspicious" not in found and "malignancy_threshold" in limits:
        together = sum(row["probabilities"].get(name, 0.0) for name in limits["suspicious_classes"])
        row["suspicious"] = "yes" if together >= limits["malignancy_threshold"] else "no"
    if "unsure" not in found and "unsure_below" in limits:
        row["unsure"] = "yes" if max(row["probabilities"].values()) < limits["unsure_below"] else "no"
    return row


def _limits(about: Path) -> dict:
    """The limits that predictions or an evaluation were made with; none of an older version that does not tell."""
    content = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    content = {"suspicious_classes": list(SUSPICIOUS), **content}
    return {name: content[name] for name in LIMITS if content.get(name) is not None}


def _true_classes(datalist: Path) -> dict[str, str]:
    content = read_datalist(datalist)
    names = class_names(content)
    items = [item for part in content.values() if isinstance(part, list) for item in part if isinstance(item, dict)]
    return {Path(item["image"]).name: names[item["class"]] for item in items if item.get("class", -1) >= 0}


class Folders(NamedTuple):
    """Where the images lie, what was predicted of them, their true masks if any, and where the drawings go."""

    predictions: Path
    images: Path
    labels: Path | None
    output: Path


class Found(NamedTuple):
    """An image, its predicted and its true mask (or None), uint8 (height, width), and the stem of its drawings."""

    image: np.ndarray
    mask: np.ndarray
    true: np.ndarray | None
    stem: str


def read_images(row: dict, folders: Folders) -> Found:
    """What belongs to a row of the table; a true mask of another size is left out with a line.

    Raises:
        ValueError: naming an image that cannot be drawn.
    """
    name = row["filename"]
    stem = Path(name).with_name(output_stem(folders.images / name)).as_posix()
    image, mask = _read(folders.images / name), _read(folders.predictions / f"{stem}_seg.png", to_mask)
    if image is None or mask is None or image.shape != mask.shape:
        raise ValueError(f"{name}: left out, its image or its mask is missing, unreadable or of another size")
    true = _read(folders.labels / name, to_mask) if folders.labels else None
    if true is not None and true.shape != image.shape:
        tqdm.write(f"{name}: its true mask has another size and is left out")
        true = None
    return Found(image, mask, true, stem)


def draw_outlines(row: dict, found: Found, folders: Folders, colours: dict[str, str]) -> None:
    """Write the image with its outlines and without, and add their `files` and what `measure` finds to the row."""
    row["files"] = {"outlines": f"{found.stem}.png", "plain": f"plain/{found.stem}.png"}
    measure(row, found.mask, found.true)
    colour = bgr(colours.get(row["class"], OTHER_COLOUR))
    plain = cv2.cvtColor(found.image, cv2.COLOR_GRAY2BGR)
    drawing = outlined(plain, found.mask, found.true, colour)
    _write(folders.output / row["files"]["plain"], captioned(plain, row["said"], colour))
    _write(folders.output / row["files"]["outlines"], captioned(drawing, row["said"], colour))


class Maps:
    """Grad-CAM and the lesion's probabilities, drawn over images.

    Args:
        folders: of the images and of the drawings.
        ckpt_dir: folder of the weights.
        options: ids of the bundle's inference with other values, as typed.
        grad_cam: whether to draw Grad-CAM of the predicted class.
        probability_map: whether to draw the mask's probabilities.

    Attributes:
        scores: of Grad-CAM on each image whose true mask holds a lesion.
    """

    def __init__(
        self, folders: Folders, ckpt_dir: Path, options: dict[str, str], grad_cam: bool, probability_map: bool
    ) -> None:
        parsed = {name: DefaultParseValue(value) for name, value in options.items()}
        self.explainer = Explainer(ckpt_dir, **parsed)
        self.folders, self.grad_cam, self.probability_map = folders, grad_cam, probability_map
        self.scores: list[dict] = []

    def draw(self, row: dict, found: Found) -> None:
        """Write the maps of an image and add their `files` to its row."""
        output, true = self.folders.output, found.true
        if self.grad_cam and row["class"] in self.explainer.class_names:
            heat = self.explainer.grad_cam(found.image, row["class"])
            target = row["files"]["Grad-CAM"] = f"grad_cam/{found.stem}.jpg"
            _write_map(output / target, found.image, heat, heat.max(), f"Grad-CAM, {row['class']}", true)
            if true is not None and (true > 127).any():
                self.scores.append(_score(row, heat, true > 127))
        if self.probability_map:
            heat = self.explainer.lesion_probability(found.image)
            target = row["files"]["probability of lesion"] = f"probability/{found.stem}.jpg"
            _write_map(output / target, found.image, heat, 1, "lesion: 0 to 1", true)


def measure(row: dict, mask: np.ndarray, true: np.ndarray | None) -> None:
    """Add areas in pixels, Dice (where the true mask is known), and the image's `errors` to its row."""
    row["image_px"], row["predicted_area_px"] = mask.size, int((mask > 127).sum())
    if true is not None:
        counts = overlap(torch.from_numpy(mask > 127), torch.from_numpy(true > 127))
        probabilities = np.array([list(row["probabilities"].values())])
        (found,) = Images(tuple(row["probabilities"]), np.array([-1]), probabilities, np.array([counts])).rows()
        row |= {key: found[key] for key in ("dice", "true_area_px")}
    chosen = row["probabilities"].get(row["class"], float("nan"))
    doubt = ", unsure" if row["unsure"] == "yes" else ""
    row["said"] = f"{row['class']} {chosen:.2f}{doubt}"  # never a class without its probability
    lesion = row.get("true_area_px", 0) > 0
    missed = lesion and row["dice"] < MISSED_BELOW
    row["errors"] = [
        name
        for name, holds in {
            "wrong class": row["true_class"] not in ("", row["class"]),
            "missed malignant": row["true_class"] == "malignant" and (row["class"] != "malignant" or missed),
            "missed lesion": missed,
            "false mask": "dice" in row and not lesion and row["predicted_area_px"] > 0,
        }.items()
        if holds
    ]


def page_values(rows: list[dict], left_out: list[str], scores: dict | None) -> dict:
    """What the page's template shows.

    Args:
        rows: the images, read and measured, each with `files`: drawing by title.
        left_out: a line on each image that could not be drawn.
        scores: mean scores of Grad-CAM, or None.
    """
    for row in rows:
        row["others"] = ", ".join(f"{n} {p:.2f}" for n, p in row["probabilities"].items() if n != row["class"])
        doubts = [name for name in DOUBTS if row[name] not in ("", "no")]
        row["kinds"] = ",".join([*row["errors"], *doubts]) or "none"
        row["cells"] = {
            "Image": row["filename"],
            "Class": row["class"],
            "Probability": f"{max(row['probabilities'].values()):.6f}",
            "Suspicious": row["suspicious"],
            "Disagreement": row["disagreement"],
            "True class": row["true_class"],
            "Dice": f"{row['dice']:.3f}" if "dice" in row else "",
            "Mask (%)": f"{100 * row['predicted_area_px'] / row['image_px']:.1f}",
            "Errors": ", ".join(row["errors"]),
        }
    lesions = sorted((r for r in rows if r.get("true_area_px", 0) > 0), key=lambda r: (r["dice"], r["filename"]))
    missed = [r for r in rows if "missed malignant" in r["errors"]]
    false = [r for r in rows if "false mask" in r["errors"]]
    about = "Malignant, but called another class, or the lesion not found (Dice under {})."
    sections = {}
    # Without the truth the page begins with its table.
    if lesions:
        about_worst = "Least Dice first, of the images with a lesion."
        sections["Worst masks"] = {"gallery": lesions[:WORST], "about": about_worst}
    if any(r["true_class"] == "malignant" for r in rows):
        sections["Missed malignant images"] = {"gallery": missed, "about": about.format(MISSED_BELOW)}
    if any("dice" in r for r in rows):
        sections["False masks"] = {"gallery": false, "about": "A mask, but no lesion."}
    if scores:
        sections["Grad-CAM"] = {"scores": scores}
    sections["All images"] = {}
    if left_out:
        sections["Not shown"] = {"lines": left_out}
    names = list(rows[0]["probabilities"]) if rows else []
    filters = [
        ("class", "Class", names),
        ("true", "True class", names),
        ("error", "Errors", ("none", *ERRORS, *DOUBTS)),
    ]
    if not any(r["true_class"] or "dice" in r for r in rows):
        filters = [filters[0], ("error", "Doubt", ("none", *DOUBTS))]
    titles = list(rows[0]["cells"]) if rows else []
    return {
        "title": "Predictions",
        "sections": sections,
        "rows": rows,
        "filters": filters,
        "columns": [name for name in titles if any(row["cells"][name] for row in rows)],
        "maps": list(dict.fromkeys(t for r in rows for t in r["files"] if t not in ("outlines", "plain"))),
    }


def _score(row: dict, heat: np.ndarray, lesion: np.ndarray) -> dict:
    return {"filename": row["filename"], "true_class": row["true_class"], "class": row["class"], **score(heat, lesion)}


def write_scores(output: Path, scores: list[dict], layer: str) -> dict:
    """Write the scores of Grad-CAM an image and their means, and return the latter."""
    columns = ("pointing_game", "energy_inside", "centre", "chance")
    means = {key: float(np.mean([row[key] for row in scores])) for key in columns}
    summary = {"notice": NOTICE, "layer": layer, "images": len(scores), **means}
    write_csv(output / "grad_cam.csv", scores, list(scores[0]))
    write_json(output / "grad_cam.json", summary)
    text = "Grad-CAM on {images} images with a lesion: largest value inside {pointing_game:.2f} (image's centre "
    text += "{centre:.2f}, chance {chance:.2f}), share of the energy inside {energy_inside:.2f} (chance {chance:.2f})"
    print(text.format(**summary))
    return summary


def _read(path: Path, convert: Callable[..., np.ndarray] = to_grey) -> np.ndarray | None:
    """Read an image as 8-bit grey, or with `to_mask` a mask, (height, width), or return None."""
    try:
        return convert(open_image(path))
    except (OSError, ValueError):
        return None


def _write(path: Path, drawing: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial{path.suffix}")
    cv2.imwrite(str(temporary), drawing)
    os.replace(temporary, path)


def outlined(
    drawing: np.ndarray, mask: np.ndarray | None, true: np.ndarray | None, colour: tuple[int, ...] | None
) -> np.ndarray:
    """Draw the outlines of two masks (height, width), either of them None, on a copy of an image (H, W, BGR)."""
    drawing, width = drawing.copy(), max(2, round(max(drawing.shape) / 170))
    for region, shade in ((true, bgr(TRUE_COLOUR)), (mask, colour)):
        if region is not None:
            outlines, _ = cv2.findContours((region > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawing, outlines, -1, shade, width)
    return drawing


def captioned(drawing: np.ndarray, text: str, colour: tuple[int, ...], bar: np.ndarray | None = None) -> np.ndarray:
    """An image (height, width, BGR) above a strip with a text, the notice and the colours (N, 3) of a map, if any."""
    size = max(1, drawing.shape[1] / 500)
    strip = np.zeros((STRIP, round(max(drawing.shape[1], FOOTER_WIDTH) / size), 3), np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.circle(strip, (12, 13), 5, colour, -1, cv2.LINE_AA)
    cv2.putText(strip, text, (24, 18), font, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    cv2.putText(strip, NOTICE, (6, 37), font, 0.36, (190, 190, 190), 1, cv2.LINE_AA)
    if bar is not None:
        strip[8:18, -66:-6] = cv2.resize(bar[None], (60, 10))
    margin = max(0, FOOTER_WIDTH - drawing.shape[1])
    drawing = cv2.copyMakeBorder(drawing, 0, 0, 0, margin, cv2.BORDER_CONSTANT)
    strip = cv2.resize(strip, (drawing.shape[1], round(STRIP * size)), interpolation=cv2.INTER_CUBIC)
    return np.vstack([drawing, strip])


def _write_map(path: Path, image: np.ndarray, heat: np.ndarray, top: float, text: str, true: np.ndarray | None) -> None:
    """Draw a map (height, width) from 0 to `top` over its image, with the true outline and a bar of its colours."""
    levels = (heat / max(float(top), 1e-12) * 255).clip(0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)
    drawing = cv2.addWeighted(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), 0.5, coloured, 0.5, 0)
    bar = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_VIRIDIS)[0]
    _write(path, captioned(outlined(drawing, None, true, None), text, bgr(OTHER_COLOUR), bar))
