"""DICOM measured: grey levels of each encoding against dcmtk, and sizes of predicted against drawn lesions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tools.dicom_files import ENCODINGS, picture, save
from tqdm import tqdm

from breast_ultrasound import Predictor
from breast_ultrasound.data import items_digest, load_datalist
from breast_ultrasound.dicom import open_dicom, read_header, transfer_syntax
from breast_ultrasound.files import sha256, write_csv, write_json
from breast_ultrasound.images import open_image, to_grey, to_mask
from breast_ultrasound.measurements import lesions
from study.experiments import commit

SIZE = (480, 640)  # rows and columns of the picture that is encoded
# dcmtk's decoders by transfer syntax; those of JPEG 2000 are not free
DCMTK = {"JPEG-LS": "dcml2pnm", "JPEG 2000": ""}
LENGTHS = ("longest_diameter", "width", "height")
FOUND = 0.1  # Dice from which on a lesion counts as found, as in missed_rate


def measure_encodings(output: Path) -> None:
    """Write the error in grey levels of each encoding, against the picture that was encoded and against dcmtk."""
    colour, rows = picture(*SIZE), []
    grey = to_grey(Image.fromarray(colour))
    with TemporaryDirectory() as folder:
        for name, make in ENCODINGS.items():
            file = save(make(colour), Path(folder) / "image.dcm")
            image = open_dicom(file)
            other = by_dcmtk(file, image.info["frames"])
            drawn = grey if image.mode == "L" else colour
            row = {"encoding": name, "transfer_syntax": transfer_syntax(read_header(file)).name}
            row |= {f"{k}_from_picture": v for k, v in difference(np.asarray(image), drawn).items()}
            row |= {f"{k}_from_dcmtk": v for k, v in difference(np.asarray(image), other).items()}
            rows.append(row | {"commit": commit()})
    write_csv(output, rows, list(rows[0]))
    print(f"{len(rows)} encodings: {output}")


def difference(found: np.ndarray, expected: np.ndarray | None) -> dict[str, float | str]:
    """Mean and largest difference of two pictures in grey levels; empty where there is no second one."""
    if expected is None:
        return {"mean": "", "largest": ""}
    error = np.abs(found.astype(int) - expected)
    return {"mean": float(error.mean()), "largest": int(error.max())}


def by_dcmtk(file: Path, frames: int) -> np.ndarray | None:
    """What dcmtk makes of the middle frame; None where it has no decoder."""
    syntax = transfer_syntax(read_header(file)).name
    program = next((program for words, program in DCMTK.items() if words in syntax), "dcmj2pnm")
    if not program:
        return None
    if shutil.which(program) is None:
        raise FileNotFoundError(f"{program}: missing; install dcmtk")
    target = file.with_suffix(".png")
    target.unlink(missing_ok=True)
    command = [program, "--write-png", "--frame", str((frames + 1) // 2), str(file), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return np.asarray(Image.open(target))


def measure_sizes(dataset: Path, weights: Path, output: Path) -> None:
    """Write the sizes of drawn and predicted lesions of a prepared set, in pixels, and how far they agree.

    Args:
        dataset: prepared folder, whose testing split is taken.
        weights: folder of the weights.
        output: the table; `.json` beside it gets the agreement by Bland and Altman (Lancet 327, 1986).
    """
    predictor, rows = Predictor(ckpt_dir=str(weights), predict_refused=True), []
    items = load_datalist(str(dataset / "datalist.json"), "testing", str(dataset), predictor.class_names)
    for item in tqdm(items, unit="image"):
        true = to_mask(open_image(item["label"])) > 0
        if true.any():
            named = {"image": Path(item["image"]).name, "class": predictor.class_names[item["class"]]}
            rows.append(named | sizes_of(true, predictor(item["image"]).mask))
    write_csv(output, rows, list(rows[0]))
    source = {"weights_sha256": sha256(weights / "model.pt"), "images_sha256": items_digest(items)}
    source |= {"image_size": predictor.config.get_parsed_content("image_size"), **predictor.mask_rule}
    write_json(output.with_suffix(".json"), {**agreement(rows), **source, "commit": commit()})
    print(f"{len(rows)} lesions: {output}")


def sizes_of(true: np.ndarray, found: np.ndarray) -> dict:
    """Dice of two masks and the sizes of their largest parts in pixels; 0 where there is none."""
    row = {"dice": 2 * float((true & found).sum()) / float(true.sum() + found.sum())}
    for kind, mask in (("true", true), ("predicted", found)):
        largest = next(iter(lesions(mask)), None)
        row |= {f"{kind}_{name}": getattr(largest, name) if largest else 0.0 for name in LENGTHS}
    return row


def agreement(rows: Sequence[dict]) -> dict:
    """Bias and limits of agreement (predicted minus true, pixels and percent of the true length) of found lesions."""
    found = [row for row in rows if row["dice"] >= FOUND]
    result: dict = {"lesions": len(rows), "found": len(found)}
    for name in LENGTHS:
        true, predicted = (np.array([row[f"{kind}_{name}"] for row in found]) for kind in ("true", "predicted"))
        for unit, error in (("px", predicted - true), ("percent", 100 * (predicted - true) / true)):
            bias, deviation = float(error.mean()), float(error.std(ddof=1))
            result[f"{name}_{unit}"] = {
                "bias": bias,
                "standard_deviation": deviation,
                "limits": [bias - 1.96 * deviation, bias + 1.96 * deviation],
                "mean_absolute": float(np.abs(error).mean()),
                "median_absolute": float(np.median(np.abs(error))),
            }
    taller = [tuple(row[f"{k}_height"] > row[f"{k}_width"] for k in ("true", "predicted")) for row in found]
    result["taller_than_wide"] = {
        "both": taller.count((True, True)),
        "neither": taller.count((False, False)),
        "true_alone": taller.count((True, False)),
        "predicted_alone": taller.count((False, True)),
    }
    return result
