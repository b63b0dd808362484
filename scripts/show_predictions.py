"""Show predictions: the outlines on each image, and a page to sort, filter and look at the failures.

    python scripts/show_predictions.py --predictions DIR --images DIR --output_dir DIR [--labels DIR] [--datalist FILE]
        [--grad_cam True] [--probability_map True] [--ckpt_dir DIR] [--image_size 128 ...]

PREDICTIONS is the output folder of the bundle's inference, or of its evaluation with --save_masks True. OUTPUT_DIR gets
a PNG for each image and `index.html`, which shows them; copy the folder as a whole. With --labels (true masks) and,
for inference, --datalist (true classes) the page lists the worst masks, every missed malignant image and false masks.

--grad_cam shows where the class comes from, scored against the true masks in `grad_cam.json`; --probability_map the
mask's probabilities. Both run the network of --ckpt_dir; options of the bundle that belong to the weights are given
as for its inference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from command_line import BUNDLE, run
from fire.parser import DefaultParseValue
from pages.grad_cam import LAYER, Explainer, score
from pages.style import NOTICE, OTHER_COLOUR, TRUE_COLOUR, bgr, class_colours, class_names, write_page
from tqdm import tqdm

from scripts.data import read_datalist
from scripts.files import output_stem, read_csv, write_csv, write_json
from scripts.metrics import MISSED_BELOW, Images, overlap
from scripts.transforms import open_image, to_grey, to_mask

FOOTER_WIDTH = 250  # pixels; narrower images get a black margin on the right, so that the footer can be read
WORST = 12  # masks in the gallery
ERRORS = ("wrong class", "missed malignant", "missed lesion", "false mask")
DOUBTS = ("unsure", "disagreement")
STRIP = 44  # height of the text below a drawing of up to 500 pixels' width, in pixels; it grows with wider ones


def show_predictions(
    predictions: Path,
    images: Path,
    output_dir: Path,
    labels: Path | None = None,
    datalist: Path | None = None,
    grad_cam: bool = False,
    probability_map: bool = False,
    ckpt_dir: Path = BUNDLE / "models",
    **options: str,
) -> dict[str, int]:
    """Write one PNG an image, the predicted outline in its class's colour, the true one in white, and `index.html`.

    Args:
        predictions: folder with masks and `predictions.csv` (inference) or `pictures.csv` (evaluation).
        images: folder of the images.
        output_dir: folder for the drawings; made if missing.
        labels: folder of true masks (0 and 255) named like the images; none by default.
        datalist: datalist of a prepared folder, for the true classes; an evaluation knows them.
        grad_cam: whether to draw and score Grad-CAM of the predicted class.
        probability_map: whether to draw the mask's probabilities.
        ckpt_dir: folder of the weights and their calibration, which holds the limit of "unsure".
        options: ids of the bundle's inference with other values, for the maps.

    Returns:
        dict: number of images drawn and of those that could not be drawn (each is named).

    Raises:
        ValueError: an option is wrong.
        FileNotFoundError: there is no table of predictions, or a file that an option names.
    """
    output = output_dir
    if output.resolve() in [folder.resolve() for folder in (predictions, images, labels) if folder]:
        raise ValueError(f"--output_dir {output}: the drawings would replace what lies there; choose another folder")
    if labels and not labels.is_dir():
        raise FileNotFoundError(f"{labels}: no such folder; give --labels the folder of the true masks")
    rows, limits = read_rows(predictions, ckpt_dir, datalist)
    colours = class_colours(list(rows[0]["probabilities"]) if rows else [])
    parsed = {name: DefaultParseValue(value) for name, value in options.items()}
    explainer = Explainer(ckpt_dir, **parsed) if grad_cam or probability_map else None

    output.mkdir(parents=True, exist_ok=True)
    shown, scores, left_out = [], [], []
    for row in tqdm(rows, desc="Drawing", disable=not rows):
        name = row["filename"]
        stem = Path(name).with_name(output_stem(images / name)).as_posix()
        picture, mask = _read(images / name), _read(predictions / f"{stem}_seg.png", to_mask)
        if picture is None or mask is None or picture.shape != mask.shape:
            left_out.append(f"{name}: left out, its image or its mask is missing, unreadable or of another size")
            tqdm.write(left_out[-1])
            continue
        true = _read(labels / name, to_mask) if labels else None
        if true is not None and true.shape != picture.shape:
            tqdm.write(f"{name}: its true mask has another size and is left out")
            true = None
        row["files"] = {"outlines": f"{stem}.png", "plain": f"plain/{stem}.png"}
        measure(row, mask, true)
        colour = bgr(colours.get(row["class"], OTHER_COLOUR))
        plain = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
        _write(output / row["files"]["plain"], captioned(plain, row["said"], colour))
        _write(output / f"{stem}.png", captioned(outlined(plain, mask, true, colour), row["said"], colour))
        if grad_cam and row["class"] in explainer.class_names:
            heat = explainer.grad_cam(images / name, row["class"])
            row["files"]["Grad-CAM"] = f"grad_cam/{stem}.jpg"
            _write_map(output / row["files"]["Grad-CAM"], picture, heat, heat.max(), f"Grad-CAM, {row['class']}", true)
            if true is not None and (true > 127).any():
                scores.append(_score(row, heat, true > 127))
        if probability_map:
            heat = explainer.lesion_probability(images / name)
            row["files"]["probability of lesion"] = f"probability/{stem}.jpg"
            _write_map(output / row["files"]["probability of lesion"], picture, heat, 1, "lesion: 0 to 1", true)
        shown.append(row)
    summary = _write_scores(output, scores) if scores else None
    values = page_values(shown, left_out, summary)
    write_page(output / "index.html", "predictions.html", **values, colours=colours, limits=limits)
    print(f"{len(shown)} drawn, {len(left_out)} left out: {output / 'index.html'}")
    return {"drawn": len(shown), "left_out": len(left_out)}


def read_rows(predictions: Path, ckpt_dir: Path, datalist: Path | None) -> tuple[list[dict], dict]:
    """The images of a table of inference or evaluation.

    Returns:
        list of dicts with `filename`, `class`, `true_class` (empty: unknown), `probabilities` by class, `suspicious`
        and `unsure` (yes, no, or empty where no limit is stored), `disagreement` of mask and class (empty: none, or an
        evaluation), and, from an evaluation, `dice`; and the limits that stand behind `suspicious` and `unsure`,
        `malignancy_threshold` and `unsure_below`, where they are known.
    """
    table, evaluation = predictions / "predictions.csv", predictions / "pictures.csv"
    if not table.is_file() and not evaluation.is_file():
        raise FileNotFoundError(f"{table} does not exist; run the bundle's inference first")
    if not table.is_file() and not any(predictions.glob("*_seg.png")):
        raise FileNotFoundError(f"{predictions}: an evaluation without masks; run it with --save_masks True")
    if datalist and not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; give --datalist the datalist.json of a prepared folder")
    true = _true_classes(datalist) if datalist else {}
    limits = {} if table.is_file() else _limits(predictions, ckpt_dir)
    rows = []
    source = table if table.is_file() else evaluation
    for line, found in enumerate(read_csv(source), 1):
        try:
            rows.append(_row(found, true, limits))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a cell that is missing or no number
            kind = f"{type(error).__name__}: {error}"
            raise ValueError(f"{source}, row {line}: not of this bundle ({kind}); predict or evaluate again") from None
    return rows, limits if limits else _limits_of(rows, ckpt_dir)


def _row(found: dict[str, str], true: dict[str, str], limits: dict[str, float | None]) -> dict:
    """A row of the table with numbers in it."""
    row = {"filename": found["filename"], "class": found.get("class") or found["predicted_class"]}
    row["probabilities"] = {k[2:]: float(v) for k, v in found.items() if k.startswith("p_")}
    row["true_class"] = found.get("true_class") or true.get(found["filename"], "")
    row |= {name: found.get(name) or "" for name in ("suspicious", "unsure", "disagreement")}
    if "dice" in found:
        row |= {"dice": float(found["dice"]), "true_area_px": float(found["true_area_px"])}
    if limits.get("malignancy_threshold") is not None and "malignant" in row["probabilities"]:
        row["suspicious"] = "yes" if row["probabilities"]["malignant"] >= limits["malignancy_threshold"] else "no"
    if limits.get("unsure_below") is not None:
        row["unsure"] = "yes" if max(row["probabilities"].values()) < limits["unsure_below"] else "no"
    return row


def _limits(evaluation: Path, ckpt_dir: Path) -> dict[str, float | None]:
    """Both limits of the weights that were evaluated; the evaluation itself keeps only that of malignancy."""
    figures = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    limits = {"malignancy_threshold": figures.get("malignancy_threshold")}
    calibration = ckpt_dir / "calibration.json"
    if calibration.is_file():
        content = json.loads(calibration.read_text(encoding="utf-8"))
        if content["weights_sha256"] == figures.get("weights_sha256"):
            return limits | {"unsure_below": content["unsure_below"]}
    print(f"{calibration}: missing or of other weights, so that no class can be marked unsure; give --ckpt_dir")
    return limits


def _limits_of(rows: list[dict], ckpt_dir: Path) -> dict[str, float | None]:
    """The stored limits of these weights, each where it explains every row of an inference's table."""
    calibration = ckpt_dir / "calibration.json"
    content = json.loads(calibration.read_text(encoding="utf-8")) if calibration.is_file() else {}
    found = {}
    for name, column, mark in (
        ("malignancy_threshold", "suspicious", lambda p, limit: p.get("malignant", 0) >= limit),
        ("unsure_below", "unsure", lambda p, limit: max(p.values()) < limit),
    ):
        limit = content.get(name)
        if limit is not None and all(row[column] == ("no", "yes")[mark(row["probabilities"], limit)] for row in rows):
            found[name] = limit
    return found


def _true_classes(datalist: Path) -> dict[str, str]:
    content = read_datalist(datalist)
    names = class_names(content)
    items = [item for part in content.values() if isinstance(part, list) for item in part if isinstance(item, dict)]
    return {Path(item["image"]).name: names[item["class"]] for item in items if item.get("class", -1) >= 0}


def measure(row: dict, mask: np.ndarray, true: np.ndarray | None) -> None:
    """Add areas in pixels, Dice (where the true mask is known), and the image's `errors` to its row."""
    row["picture_px"], row["predicted_area_px"] = mask.size, int((mask > 127).sum())
    if true is not None:
        counts = overlap(torch.from_numpy(mask > 127), torch.from_numpy(true > 127))
        probabilities = np.array([list(row["probabilities"].values())])
        (found,) = Images(tuple(row["probabilities"]), np.array([-1]), probabilities, np.array([counts])).rows()
        row |= {key: found[key] for key in ("dice", "true_area_px")}
    chosen = row["probabilities"].get(row["class"], float("nan"))
    row["said"] = f"{row['class']} {chosen:.2f}" + ", unsure" * (row["unsure"] == "yes")  # never without probability
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
            "Mask (%)": f"{100 * row['predicted_area_px'] / row['picture_px']:.1f}",
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


def _write_scores(output: Path, scores: list[dict]) -> dict:
    """Write the scores of Grad-CAM an image and their means, and return the latter."""
    columns = ("pointing_game", "energy_inside", "centre", "chance")
    means = {key: float(np.mean([row[key] for row in scores])) for key in columns}
    summary = {"notice": NOTICE, "layer": LAYER, "pictures": len(scores), **means}
    write_csv(output / "grad_cam.csv", scores, list(scores[0]))
    write_json(output / "grad_cam.json", summary)
    text = "Grad-CAM on {pictures} images with a lesion: largest value inside {pointing_game:.2f} (image's centre "
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


def _write_map(
    path: Path, picture: np.ndarray, heat: np.ndarray, top: float, text: str, true: np.ndarray | None
) -> None:
    """Draw a map (height, width) from 0 to `top` over its image, with the true outline and a bar of its colours."""
    levels = (heat / max(float(top), 1e-12) * 255).clip(0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)
    drawing = cv2.addWeighted(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), 0.5, coloured, 0.5, 0)
    bar = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_VIRIDIS)[0]
    _write(path, captioned(outlined(drawing, None, true, None), text, bgr(OTHER_COLOUR), bar))


if __name__ == "__main__":
    run(show_predictions)
