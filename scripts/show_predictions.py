"""Draw the outlines of predicted (and true) masks on the pictures, with class and probability under each.

    python scripts/show_predictions.py --predictions DIR --images DIR --output DIR [--labels DIR]

PREDICTIONS is the output folder of the bundle's inference. Research software, not a medical device.
"""

import csv
import os
import sys
from pathlib import Path

import cv2
import fire
import numpy as np
from command_line import asked_for_help
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))  # pictures are read and outputs named as the bundle does

from scripts.data import to_grey  # noqa: E402
from scripts.files import output_stems  # noqa: E402

# Okabe and Ito's colours (BGR), told apart by colour-blind readers too
COLOURS = {"normal": (115, 158, 0), "benign": (178, 114, 0), "malignant": (0, 94, 213)}
OTHER_COLOUR = (200, 200, 200)
TRUE_COLOUR = (255, 255, 255)
FOOTER = "research only, not a medical device"
FOOTER_WIDTH = 240  # pixels; narrower pictures get a black margin on the right, so that the footer can be read


def show_predictions(predictions="", images="", output="", labels="", *extra, **unknown):
    """Write one PNG a picture: the predicted outline in its class's colour, the true one in white.

    Args:
        predictions: folder with `predictions.csv` and the masks that the inference wrote.
        images: folder of the pictures.
        output: folder for the drawings; made if missing.
        labels: folder of true masks (0 and 255) named like the pictures; none by default.

    Returns:
        dict: number of pictures drawn and of those that could not be drawn (each is named).

    Raises:
        ValueError: an option is unknown or missing.
        FileNotFoundError: there is no table of predictions.
    """
    if asked_for_help(show_predictions, extra, unknown):
        return None
    for name, value in (("predictions", predictions), ("images", images), ("output", output)):
        if value in ("", True):
            raise ValueError(f"--{name} needs a folder")
    predictions, images, output = Path(str(predictions)), Path(str(images)), Path(str(output))
    table = predictions / "predictions.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist; run the bundle's inference first")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    stems = output_stems(images) if images.is_dir() else {}
    output.mkdir(parents=True, exist_ok=True)
    counts = {"drawn": 0, "left_out": 0}
    for row in tqdm(rows, desc="Drawing", disable=not rows):
        name = row["filename"]
        stem = stems.get(name, Path(name).stem)
        picture, mask = _read(images / name), _read(predictions / f"{stem}_seg.png")
        if picture is None or mask is None or picture.shape != mask.shape:
            tqdm.write(f"{name}: left out, its picture or its mask is missing, unreadable or of another size")
            counts["left_out"] += 1
            continue
        true = _read(Path(str(labels)) / name) if labels else None
        drawing = _draw(picture, mask, true, row["class"], float(row[f"p_{row['class']}"]))
        temporary = output / f".{os.getpid()}.partial.png"
        cv2.imwrite(str(temporary), drawing)
        os.replace(temporary, output / f"{stem}.png")
        counts["drawn"] += 1
    return counts


def _read(path):
    """Read a picture as 8-bit grey (height, width), or return None."""
    try:
        with Image.open(path) as picture:
            return np.asarray(to_grey(picture))
    except Exception:  # Pillow raises half a dozen types, SyntaxError among them
        return None


def _draw(picture, mask, true, class_name, probability):
    """Return the picture (height, width) as BGR with the outlines, above a strip of text."""
    drawing = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    colour_of_class = COLOURS.get(class_name, OTHER_COLOUR)
    for region, colour in ((true, TRUE_COLOUR), (mask, colour_of_class)):
        if region is not None:
            outlines, _ = cv2.findContours((region > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawing, outlines, -1, colour, 2)
    margin = max(0, FOOTER_WIDTH - drawing.shape[1])
    drawing = cv2.copyMakeBorder(drawing, 0, 44, 0, margin, cv2.BORDER_CONSTANT)
    strip = drawing[-44:]
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, f"{class_name} {probability:.2f}", (6, 18), font, 0.5, colour_of_class, 1, cv2.LINE_AA)
    cv2.putText(strip, FOOTER, (6, 37), font, 0.38, (160, 160, 160), 1, cv2.LINE_AA)
    return drawing


if __name__ == "__main__":
    try:
        fire.Fire(show_predictions)
    except (OSError, ValueError) as error:
        sys.exit(f"show_predictions: {error}")
