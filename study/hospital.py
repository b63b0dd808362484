"""DICOM measured: encodings against dcmtk, sizes of predicted against drawn lesions, throughput beside an Orthanc."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tools.cli import ROOT, as_arguments
from tools.dicom_files import ENCODINGS, picture, save, ultrasound
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
OBJECTS = 100  # that the gateway answers
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


def measure_gateway(dataset: Path, weights: Path, output: Path) -> None:
    """Write how many objects a minute the gateway answers through a real Orthanc on this machine.

    Args:
        dataset: prepared folder, of whose testing split the first images are sent.
        weights: folder of the weights.
        output: the JSON file.
    """
    from tools.gateway.orthanc import Orthanc

    items = load_datalist(str(dataset / "datalist.json"), "testing", str(dataset), ["normal", "benign", "malignant"])
    items = items[:OBJECTS]
    with TemporaryDirectory() as folder, _orthanc(Path(folder)) as (url, variables):
        server = Orthanc(url, variables["ORTHANC_USER"], variables["ORTHANC_PASSWORD"])
        for number, item in enumerate(items, 1):
            made = ultrasound(to_grey(open_image(item["image"])), Path(item["image"]).name, InstanceNumber=number)
            server.store(save(made, Path(folder) / "image.dcm").read_bytes())
        options = {"output_dir": f"{folder}/gateway", "url": url, "ckpt_dir": weights, "health_port": 0}
        command = [sys.executable, "scripts/gateway.py", *as_arguments(options)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | variables)
        try:
            log, lines, moments = Path(folder) / "gateway" / "images.jsonl", [], []
            while len(lines) < len(items):
                if process.poll() is not None:
                    raise ValueError("the gateway has ended; see its line above")
                time.sleep(0.05)
                told = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
                lines = [line for line in map(json.loads, told) if "image" in line]
                moments += [time.time()] * (len(lines) - len(moments))
        finally:
            process.terminate()
            process.wait()
    # The first one waits for all that the network loads late.
    minutes = (moments[-1] - moments[0]) / 60
    result = {
        "objects": len(lines),
        "outcomes": {
            name: sum(line["outcome"] == name for line in lines) for name in ("answered", "refused", "failed")
        },
        "results_stored": sum(line.get("stored", 0) for line in lines),
        "objects_a_minute": (len(lines) - 1) / minutes,
        "median_seconds": statistics.median(line["seconds"] for line in lines),
        "cores": os.cpu_count(),
        "images_sha256": items_digest(items),
        "weights_sha256": sha256(weights / "model.pt"),
    }
    write_json(output, {**result, "commit": commit()})
    print(f"{result['objects_a_minute']:.0f} objects a minute: {output}")


@contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A running Orthanc with the project's configuration: its address, and the variables that it was begun with."""
    if shutil.which("Orthanc") is None:
        raise FileNotFoundError("Orthanc: missing; install Debian's package orthanc")
    from tools.gateway.orthanc import Away, Orthanc

    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    variables = {"ORTHANC_USER": "study", "ORTHANC_PASSWORD": secrets.token_hex(8), "ORTHANC_STABLE_AGE": "1"}
    variables |= dict(zip(("ORTHANC_HTTP_PORT", "ORTHANC_DICOM_PORT"), ports)) | {
        "ORTHANC_STORAGE": f"{folder}/orthanc"
    }
    command = ["Orthanc", str(ROOT / "deploy" / "orthanc.json")]
    with open(folder / "orthanc.log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{ports[0]}"
        server = Orthanc(url, variables["ORTHANC_USER"], variables["ORTHANC_PASSWORD"])
        while process.poll() is None:
            try:
                server.changes(0)
                break
            except Away:
                time.sleep(0.2)
        yield url, variables
    finally:
        process.terminate()
        process.wait()
