"""Give the bundle's commands several hundred bad inputs and faults, and count how each ends.

    python tests/fault_campaign.py --output results/faults.json

Every input must end in one of two ways: `right` (the prediction or result that it must give) or `named` (a line of the
error or the log names the file or the option). Two others are counted as faults: `silent` (lost or wrong, without a
word) and `opaque` (an error that names neither). The exit status is 1 where there is a fault. The same seed gives the
same inputs; `--project` points at another checkout, such as that of an earlier release, whose totals stand beside the
others in the file. Commands run in forks of this process, which has imported what they need.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import hashlib
import io
import json
import os
import random
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import ignite.handlers  # noqa: E402, F401
import monai.bundle  # noqa: E402, F401
import monai.engines  # noqa: E402, F401
import monai.handlers  # noqa: E402, F401
import numpy as np  # noqa: E402
import sklearn.metrics  # noqa: E402, F401
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402, F401
from PIL import Image, features  # noqa: E402

SMALL = {"image_size": 64, "features": "[4,4,8,8,8,4]", "batch_size": 4}
NAMES = ("normal", "benign", "malignant")
NETWORK = '''
import torch
class Corners(torch.nn.Module):
    """Marks what is brighter than the mean, and classifies by the corners: any wrong pixel or turn shows."""
    def __init__(self, norm):
        super().__init__()
    def forward(self, x):
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)
        w, h = x.shape[2] // 2, x.shape[3] // 2
        corners = [x[:, 0, :w, :h], x[:, 0, w:, :h], x[:, 0, :w, h:]]
        return {"pred": torch.cat([-x, x], 1), "class_logits": torch.stack([c.mean((1, 2)) for c in corners], 1)}
'''


class Job(NamedTuple):
    """A command to run: `monai.bundle` where it has no script, else that script of the project."""

    arguments: list[str]
    log: Path
    script: str = ""
    kill_after: float | None = None  # seconds
    folder: Path | None = None  # to be on PYTHONPATH


class Case(NamedTuple):
    """An input: what it was made from, and how to judge its end."""

    kind: str
    name: str
    expected: object


def options(**values: object) -> list[str]:
    """Options of a command as a list of texts."""
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def start(project: Path, job: Job) -> int:
    """Fork a child that runs the command, and return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        os.chdir(project)
        sys.path[:0] = [str(job.folder)] if job.folder else []
        if job.script:
            sys.path.insert(0, str(project / "scripts"))
            sys.argv = [job.script, *job.arguments]
            runpy.run_path(str(project / "scripts" / job.script), run_name="__main__")
        else:
            sys.argv = ["monai.bundle", "run", *job.arguments]
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def run(project: Path, jobs: list[Job], at_once: int = 2, limit: float = 240) -> list[int]:
    """Run commands, some at a time, and return their exit statuses; -9 for those that were killed."""
    statuses: dict[int, int] = {}
    running: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(jobs))
    while waiting or running:
        while waiting and len(running) < at_once:
            index, job = waiting.pop(0)
            running[start(project, job)] = (index, time.time())
        for process, (index, began) in list(running.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                statuses[index] = os.waitstatus_to_exitcode(status)
                del running[process]
            elif time.time() - began > (jobs[index].kill_after or limit):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[index] for index in range(len(jobs))]


def text_of(log: Path) -> str:
    """What a command printed."""
    return log.read_bytes().decode("utf-8", "backslashreplace")


def end_of(log: Path) -> str:
    """The last error of a log: what stands after the last traceback."""
    lines = [line for line in text_of(log).splitlines() if line.strip()]
    inner = [i for i, line in enumerate(lines) if line.startswith(("  ", "Traceback")) or "_mode_=debug" in line]
    return "\n".join(lines[inner[-1] + 1 if inner else -1 :])


def printable(name: str) -> str:
    """A name with what does not print escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


# Images


def scan(draw: np.random.Generator) -> np.ndarray:
    """A grey image (height, width), uint8, whose values are from 0 to 255, with a gradient and a bright box."""
    height, width = (int(n) for n in draw.integers(40, 90, 2))
    rows, columns = np.mgrid[:height, :width]
    grey = 60 + 50 * rows / height + 30 * columns / width + draw.normal(0, 8, (height, width))
    top, left = int(draw.integers(2, height // 2)), int(draw.integers(2, width // 2))
    grey[top : top + height // 3, left : left + width // 3] += 90
    grey = grey.clip(1, 254).astype(np.uint8)
    grey[0, 0], grey[0, 1] = 255, 0
    return grey


def saved(image: Image.Image, kind: str, **parameters: object) -> bytes:
    """An image file's bytes."""
    memory = io.BytesIO()
    image.save(memory, kind, **parameters)
    return memory.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's chunk with a right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(grey: np.ndarray, rows: bytes | None = None, size: tuple[int, int] | None = None, packed: bytes | None = None):
    """A PNG written by hand: with rows, a size or packed data that may contradict each other, checksums right."""
    height, width = size or grey.shape
    rows = b"".join(b"\0" + bytes(row) for row in grey) if rows is None else rows
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows) if packed is None else packed
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 in integers."""
    red, green, blue = (rgb[..., i].astype(int) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def good_images(draw: np.random.Generator) -> tuple[str, str, bytes, np.ndarray]:
    """Kind, extension, bytes and grey values of a random file that has a right prediction."""
    grey = scan(draw)
    image = Image.fromarray(grey)
    noise = draw.integers(0, 256, (*grey.shape, 2)).astype(np.uint8)
    rgb = np.dstack([grey, noise])
    jpeg = saved(image, "JPEG", quality=int(draw.integers(60, 98)))
    turns = {3: (grey[::-1, ::-1]), 6: np.rot90(grey, -1), 8: np.rot90(grey, 1), 2: grey[:, ::-1]}
    flag = int(draw.choice(list(turns)))
    exif = Image.Exif()
    exif[0x0112] = flag
    palette = image.convert("P")
    kinds = {
        "grey png": (".png", saved(image, "PNG"), grey),
        "colour png": (".png", saved(Image.fromarray(rgb), "PNG"), luma(rgb)),
        "alpha png": (".png", saved(Image.fromarray(np.dstack([grey, noise[..., 0]])), "PNG"), grey),
        "palette png": (".png", saved(palette, "PNG"), grey),
        "one bit png": (".png", saved(image.point(lambda v: 255 * (v > 127)).convert("1"), "PNG"), 255 * (grey > 127)),
        "16 bit png": (".png", saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), grey),
        "bmp": (".bmp", saved(image, "BMP"), grey),
        "jpeg": (".jpg", jpeg, np.asarray(Image.open(io.BytesIO(jpeg)))),
        "tiff": (".tif", saved(image, "TIFF"), grey),
        "16 bit tiff": (".tiff", saved(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"), grey),
        "float tiff": (".tif", saved(Image.fromarray(grey.astype(np.float32)), "TIFF"), grey),
        "float tiff in 0 to 1": (".tif", saved(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), grey),
        "turned by EXIF": (".png", saved(image, "PNG", exif=exif), turns[flag]),
        "handmade png": (".png", png(grey), grey),
        "gif": (".gif", saved(image, "GIF"), grey),
    }
    if features.check("webp"):
        kinds["webp"] = (".webp", saved(Image.fromarray(np.dstack([grey] * 3)), "WEBP", lossless=True), grey)
    kind = str(draw.choice(list(kinds)))
    return (kind, *kinds[kind][:2], np.asarray(kinds[kind][2], dtype=np.uint8))


def bad_images(draw: np.random.Generator) -> tuple[str, str, bytes, None]:
    """Kind, extension and bytes of a random file that has no right prediction and must be named."""
    grey = scan(draw)
    whole = saved(Image.fromarray(grey), "PNG")
    cut = int(draw.integers(20, len(whole) - 40))
    noise = draw.bytes(200)
    rows = b"".join(b"\0" + bytes(row) for row in grey)
    filters = b"".join(bytes([int(draw.integers(5, 255))]) + bytes(row) for row in grey)
    packed = zlib.compress(rows)
    kinds = {
        "empty": (".png", b""),
        "text": (".jpg", b"<html>not found</html>"),
        "noise": (".bmp", noise),
        "cut png": (".png", whole[:cut]),
        "cut jpeg": (".jpg", saved(Image.fromarray(grey), "JPEG")[: int(draw.integers(30, 500))]),
        "png with changed data": (".png", whole[:cut] + bytes([whole[cut] ^ 255]) + whole[cut + 1 :]),
        "png with packed noise": (".png", png(grey, packed=noise)),
        "png without data": (".png", png(grey, packed=b"")),
        "png of too few rows": (".png", png(grey, rows=rows[: len(rows) // 2])),
        "png with wrong filters": (".png", png(grey, rows=filters)),
        "png cut inside its data": (".png", png(grey, packed=packed[: len(packed) // 2])),
        "png of a larger header": (".png", png(grey, size=(grey.shape[0] * 9, grey.shape[1] * 9))),
        "ppm called png": (".png", saved(Image.fromarray(grey), "PPM")),
        "postscript": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    }
    kind = str(draw.choice(list(kinds)))
    return (kind, *kinds[kind], None)


def odd_names(extension: str) -> list[str]:
    """Names that file systems allow; each is put on a good image, whose row and mask must be right."""
    stems = ["line\nend", "carriage\rreturn", "=1+1", "+cmd", "-x", "@sum", "tab\there", "'=quoted", '"', "a,b", "%20"]
    return [stem + extension for stem in [*stems, "k" * 240, "größe", "<b>&", "two..x", " "]]


def image_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Inference of folders of twenty images of every kind, good, bad and oddly named."""
    draw = np.random.default_rng([seed, 1])
    cases: list[tuple[Case, Path]] = []
    twins = folder / "twins"
    twins.mkdir(parents=True)
    names = iter(odd_names(".png"))
    files = []
    for number in range(count):
        kind, extension, content, expected = (bad_images if draw.random() < 0.4 else good_images)(draw)
        files.append((kind, f"{number:04} {kind}{extension}", content, expected))
        if number % 20 == 7 and (name := next(names, None)):
            grey = scan(draw)
            files.append(("odd name", name, saved(Image.fromarray(grey), "PNG"), grey))
    files.append(("not UTF-8", os.fsdecode(b"latin\xe9.png"), saved(Image.fromarray(scan(draw)), "PNG"), None))
    bomb = png(np.zeros((1, 1), np.uint8), size=(13000, 13000), packed=zlib.compress(bytes(13001 * 13000), 1))
    files.append(("bomb", "bomb.png", bomb, None))
    for kind, name, content in (
        ("hidden file", "._x.png", b"\0\5\26\7"),
        ("other type", "notes.dcm", b"DICM"),
    ):
        files.append((kind, name, content, "ignored"))
    jobs = []
    (folder / "corners.py").write_text(NETWORK)
    (folder / "corners.json").write_text(json.dumps({"network_def": {"_target_": "corners.Corners", "norm": "batch"}}))
    config = f"['bundle/configs/inference.json','{folder / 'corners.json'}']"
    common = options(config_file=config, bundle_root="bundle", load_pretrain=False, image_size=64, batch_size=4)
    known = json.loads((project / "bundle" / "configs" / "inference.json").read_text(encoding="utf-8"))
    (smallest,) = {"smallest_share", "smallest_fraction"} & set(known)  # the former until 0.3.1
    common += options(mask_threshold=0.5, **{smallest: 0}, ckpt_dir=folder / "none")
    for number, (kind, name, content, expected) in enumerate(files):
        place = folder / f"images {number // 20}"
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
        cases.append((Case(kind, name, expected), place))
        if isinstance(expected, np.ndarray):
            Image.fromarray(expected).save(twins / f"{number:04}.png")
    places = list(dict.fromkeys(place for _, place in cases))
    for place in [*places, twins]:
        where = options(dataset_dir=place, output_dir=folder / f"masks of {place.name}")
        jobs.append(Job([*common, *where], folder / f"{place.name}.log", folder=folder))
    statuses = dict(zip([*places, twins], run(project, jobs)))
    expected_rows = predictions(folder / "masks of twins")
    ends = []
    for number, (case, place) in enumerate(cases):
        masks, log = folder / f"masks of {place.name}", text_of(folder / f"{place.name}.log")
        twin = expected_rows.get(f"{number:04}.png")
        ends.append((case, judge_image(case, statuses[place], predictions(masks), masks, log, twin)))
    return ends


def predictions(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of an inference's table by name; none where there is no table."""
    if not (folder / "predictions.csv").is_file():
        return {}
    with open(folder / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    return {re.sub("^'(?='*[=+\\-@\t\r])", "", row["filename"]): row for row in rows}


def judge_image(case: Case, status: int, rows: dict, masks: Path, log: str, twin: dict | None) -> str:
    """How an image ended: right, named, silent or opaque."""
    named = any(printable(case.name) in line and re.search("ERROR|Error", line) for line in log.splitlines())
    row = rows.get(case.name)
    if case.expected == "ignored" if isinstance(case.expected, str) else False:
        return "named" if re.search("ignored: .*(hidden|other) file", log) else "silent"
    if row is None:
        return "named" if named else "opaque" if status else "silent"
    if case.expected is None:
        return "silent"  # an answer to what cannot be read
    close = twin is not None and all(abs(float(row[f"p_{name}"]) - float(twin[f"p_{name}"])) < 0.02 for name in NAMES)
    stem = Path(case.name).stem
    found = [masks / f"{s}_seg.png" for s in (stem, case.name) if len(os.fsencode(s)) < 248]
    found += [f for f in masks.glob("*_seg.png") if len(stem) > 200 and f.name.startswith(stem[:200])]
    found = [f for f in found if f.is_file()]
    if not close or not found:
        return "silent"
    mask = np.asarray(Image.open(found[0]))
    area = int((mask > 0).sum())
    right = mask.shape == case.expected.shape and area == int(row["lesion_area_px"])
    return "right" if right and abs(area - int(twin["lesion_area_px"])) <= 0.03 * mask.size else "silent"


# Masks


def masks_of(draw: np.random.Generator) -> tuple[str, bytes, int | None]:
    """Kind, bytes and lesion pixels of a random label of 60 rows and 80 columns; None where it must be refused."""
    mask = np.zeros((60, 80), bool)
    top, left = int(draw.integers(0, 30)), int(draw.integers(0, 40))
    mask[top : top + int(draw.integers(5, 25)), left : left + int(draw.integers(5, 35))] = True
    area = int(mask.sum())
    white = mask.astype(np.uint8) * 255
    red = np.dstack([white, white * 0, white * 0])
    three = np.where(mask, 255, 0).astype(np.uint8)
    three[-2:, :10] = int(draw.choice([1, 128]))
    whole = saved(Image.fromarray(white), "PNG")
    index = Image.fromarray(mask.astype(np.uint8)).convert("P")
    index.putpalette([0, 0, 0, 255, 255, 255])
    swapped = Image.fromarray((~mask).astype(np.uint8)).convert("P")
    swapped.putpalette([255, 255, 255, 0, 0, 0])
    kinds = {
        "0 and 255": (whole, area),
        "0 and 1": (saved(Image.fromarray(mask.astype(np.uint8)), "PNG"), area),
        "one bit": (saved(Image.fromarray(mask), "PNG"), area),
        "palette": (saved(index, "PNG"), area),
        "palette with white first": (saved(swapped, "PNG"), area),
        "red on black": (saved(Image.fromarray(red), "PNG"), area),
        "lesion on transparent white": (
            saved(Image.fromarray(np.dstack([red[..., :1] * 0 + 255, 255 - red[..., :2] * 0, white])), "PNG"),
            area,
        ),
        "0 and 65535": (saved(Image.fromarray(white.astype(np.uint16) * 257), "PNG"), area),
        "empty": (saved(Image.fromarray(white * 0), "PNG"), 0),
        "three greys": (saved(Image.fromarray(three), "PNG"), None),
        "another size": (saved(Image.fromarray(white[:30]), "PNG"), None),
        "one pixel": (saved(Image.fromarray(white[:1, :1]), "PNG"), None),
        "cut": (whole[: len(whole) // 2], None),
        "no image": (b"mask", None),
        "missing": (b"", None),
    }
    kind = str(draw.choice(list(kinds)))
    return (kind, *kinds[kind])


def write_set(folder: Path, items: dict[str, list[dict]]) -> Path:
    """A datalist of a folder."""
    (folder / "datalist.json").write_text(json.dumps(items))
    return folder


def mask_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Evaluation of labels: those that an error names are taken out, until the rest is evaluated."""
    draw = np.random.default_rng([seed, 2])
    (folder / "data").mkdir(parents=True)
    (folder / "corners.py").write_text(NETWORK)
    (folder / "corners.json").write_text(
        json.dumps(
            {
                "network_def": {"_target_": "corners.Corners", "norm": "batch"},
                "checkpointloader": "$lambda evaluator: None",
            }
        )
    )
    left = []
    for number in range(count):
        kind, content, area = masks_of(draw)
        image, label = f"m{number:03}.png", f"label{number:03}.png"
        Image.fromarray(draw.integers(0, 256, (60, 80)).astype(np.uint8)).save(folder / "data" / image)
        if kind != "missing":
            (folder / "data" / label).write_bytes(content)
        left.append((Case(kind, label, area), {"image": image, "label": label, "class": number % 3}))
    config = f"['bundle/configs/train.json','bundle/configs/evaluate.json','{folder / 'corners.json'}']"
    common = options(config_file=config, bundle_root="bundle", image_size=64, ckpt_dir=folder / "none")
    common += options(dataset_dir=folder / "data")
    ends: list[tuple[Case, str]] = []

    def evaluate(groups: list[list]) -> list[tuple[list, int, Path, Path]]:
        jobs, results = [], []
        for group in groups:
            number = len(list(folder.glob("*.log"))) + len(jobs)
            datalist, log = folder / f"datalist{number}.json", folder / f"{number}.log"
            items = [item for _, item in group]
            datalist.write_text(json.dumps({"training": items, "validation": items, "testing": items}))
            where = options(datalist=datalist, output_dir=folder / f"out{number}")
            jobs.append(Job(["evaluating", *common, *where], log, folder=folder))
            results.append((group, log, folder / f"out{number}"))
        return [(g, status, log, out) for (g, log, out), status in zip(results, run(project, jobs))]

    def settle(group: list, status: int, log: Path, out: Path) -> list:
        """Judge what a run decides; return what it does not."""
        if status == 0:
            rows = {}
            if (out / "pictures.csv").is_file():
                with open(out / "pictures.csv", newline="", encoding="utf-8") as file:
                    rows = {row["filename"]: row for row in csv.DictReader(file)}
            for case, item in group:
                row = rows.get(item["image"])
                right = row is not None and case.expected is not None and int(row["true_area_px"]) == case.expected
                ends.append((case, "right" if right else "silent"))
            return []
        error = end_of(log)
        named = [entry for entry in group if entry[0].name in error]
        for case, _ in named:
            ends.append((case, "named" if case.expected is None else "opaque"))
        return [entry for entry in group if entry not in named]

    before = len(left) + 1
    while left and len(left) < before:
        before = len(left)
        left = settle(*evaluate([left])[0])
    if left:  # an error that names none of them: one by one
        for result in evaluate([[entry] for entry in left]):
            ends += [(case, "opaque") for case, _ in settle(*result)]
    return ends


# Options and datalists


BAD_OPTIONS = {
    "epochs": ["abc", 0, -1, 1.5, "[1]"],
    "batch_size": ["x", 0, -4, 2.5],
    "learning_rate": ["nan", "abc", 0, -0.1, "inf"],
    "image_size": [0, "abc", "[64,64]", -64, 8, 64.5],
    "features": ["[1,2]", "abc", "[0,1,2,3,4,5]", 7],
    "downscale_factor": [0, -1, "x", 1.5],
    "class_names": ["['a','b']", "abc", "[]", "[1,2,3]"],
    "classification_weight": ["nan", -1, "x", "inf"],
    "val_interval": [0, -1, "x", 99],
    "early_stop_patience": [-1, "x", 1.5],
    "num_workers": [-1, "x", 0.5],
    "seed": ["abc", -1, 1.5],
    "amp": [1, "yes", 0.5],
    "resume": ["maybe", 2, "yes"],
    "pretrained": ["/nowhere/model.pt", "bundle/LICENSE"],
    "dataset_dir": ["/nowhere", "bundle/LICENSE"],
    "datalist": ["/nowhere/datalist.json", "bundle/LICENSE", "bundle/configs/metadata.json"],
    "epoch": [3],
}
DAMAGES = (
    "missing image",
    "missing label",
    "class 3",
    "class -2",
    "class 1.5",
    "class a word",
    "class null",
    "no class",
)
DAMAGES += ("no label", "no split", "empty split", "no list", "broken image", "text label", "size", "not JSON")


def tiny_set(folder: Path, per_class: int = 2) -> Path:
    """A prepared set of small images."""
    draw = np.random.default_rng(0)
    items: dict[str, list[dict]] = {"training": [], "validation": [], "testing": []}
    folder.mkdir(parents=True)
    for split in items:
        for number in range(3 * per_class):
            grey, mask = scan(draw), None
            mask = np.where(grey > 170, 255, 0).astype(np.uint8) * (number % 3 > 0)
            item = {"image": f"{split}{number}.png", "label": f"{split}{number}_label.png", "class": number % 3}
            Image.fromarray(grey).save(folder / item["image"])
            Image.fromarray(mask).save(folder / item["label"])
            items[split].append(item)
    return write_set(folder, items)


def damaged(source: Path, folder: Path, damage: str, draw: random.Random) -> tuple[Path, list[str]]:
    """A copy of a set with one thing wrong, and the words of which an error must hold one."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "datalist.json").read_text())
    split = draw.choice(["training", "validation"])
    item = draw.choice(content[split])
    image, label = item["image"], item["label"]
    words = [image]
    if damage.startswith("missing"):
        key = damage.split()[1]
        words = [item[key]]
        (folder / item[key]).unlink()
    elif damage.startswith("class"):
        values = {"3": 3, "-2": -2, "1.5": 1.5, "a word": "tumour", "null": None}
        item["class"] = values[damage.removeprefix("class ")]
    elif damage in ("no class", "no label"):
        del item[damage.split()[1]]
    elif damage == "no split":
        del content[split]
        words = [split]
    elif damage == "empty split":
        content[split] = []
        words = [split]
    elif damage == "no list":
        content[split] = image
        words = [split, "datalist.json"]
    elif damage == "broken image":
        whole = (folder / image).read_bytes()
        (folder / image).write_bytes(whole[: len(whole) // 2])
    elif damage == "text label":
        (folder / label).write_text("mask")
        words = [label]
    elif damage == "size":
        Image.open(folder / label).resize((20, 20)).save(folder / label)
        words = [label]
    (folder / "datalist.json").write_text("{" if damage == "not JSON" else json.dumps(content))
    return folder, ["datalist.json"] if damage == "not JSON" else words


def training(data: Path, models: Path, output: Path, **more: object) -> list[str]:
    """Arguments of a small training."""
    given = {"dataset_dir": data, "ckpt_dir": models, "output_dir": output, **SMALL, "epochs": 1, **more}
    return ["training", *options(config_file="bundle/configs/train.json", bundle_root="bundle", **given)]


def option_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Trainings with one wrong option, or a datalist with one thing wrong; each must be refused by name."""
    draw = random.Random(seed)
    data = tiny_set(folder / "data")
    jobs, cases = [], []
    for number in range(count):
        where = {"data": data, "models": folder / f"m{number}", "output": folder / f"o{number}"}
        if draw.random() < 0.6:
            name = draw.choice(list(BAD_OPTIONS))
            value = draw.choice(BAD_OPTIONS[name])
            case = Case("option", f"--{name} {value}", [f"--{name}", f"{value}:"])
            arguments = training(**where, **{name: value})
        else:
            damage = draw.choice(DAMAGES)
            where["data"], words = damaged(data, folder / f"data{number}", damage, draw)
            case = Case("datalist", damage, words)
            arguments = training(**where)
        cases.append(case)
        jobs.append(Job(arguments, folder / f"{number}.log"))
    return [
        (case, "silent" if status == 0 else "named" if any(w in end_of(job.log) for w in case.expected) else "opaque")
        for case, job, status in zip(cases, jobs, run(project, jobs))
    ]


def checkpoint_campaign(project: Path, folder: Path) -> list[tuple[Case, str]]:
    """Damaged and foreign files as checkpoint, as weights of an evaluation and as weights to start from."""
    data = tiny_set(folder / "data")
    run(project, [Job(training(data, folder / "m", folder / "o"), folder / "first.log")])
    whole = (folder / "m" / "checkpoint.pt").read_bytes()
    memory = io.BytesIO()
    torch.save({"a": torch.ones(2)}, memory)
    contents = {"garbage": b"garbage" * 99, "empty": b"", "cut": whole[: len(whole) // 2], "other": memory.getvalue()}
    jobs, cases = [], []
    evaluate = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
    for kind, content in contents.items():
        for use in ("checkpoint.pt", "model.pt", "pretrained.pt"):
            models = folder / f"{kind} {use}"
            models.mkdir()
            (models / use).write_bytes(content)
            where = {"dataset_dir": data, "ckpt_dir": models, "output_dir": models / "out", **SMALL}
            arguments = ["evaluating", *options(config_file=evaluate, bundle_root="bundle", **where)]
            if use != "model.pt":
                more = {"resume": True} if use == "checkpoint.pt" else {"pretrained": models / use}
                arguments = training(data, models, models / "out", **more)
            cases.append(Case(f"{kind} {use}", use, use))
            jobs.append(Job(arguments, folder / f"{kind} {use}.log"))
    return [
        (case, "silent" if status == 0 else "named" if case.name in end_of(job.log) else "opaque")
        for case, job, status in zip(cases, jobs, run(project, jobs))
    ]


# Kills, and a full disk


def content_of(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the files of a folder, of weights that of their tensors."""
    files = [f for pattern in patterns for f in folder.rglob(pattern) if f.is_file()]
    result = {}
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".pt":
            state = torch.load(file, weights_only=True)
            content = b"".join(state[name].numpy().tobytes() for name in sorted(state))
        result[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return result


def kill_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Training, inference and conversion, killed at a random moment and started again: the same result, or a line."""
    draw = random.Random(seed)
    data = tiny_set(folder / "data", 8)
    source = folder / "source"
    for name in NAMES:
        (source / name).mkdir(parents=True)
    for number, item in enumerate(sorted(data.glob("training*_label.png"))):
        name = NAMES[number % 3]
        for suffix, file in (("", item.with_name(item.name.replace("_label", ""))), ("_mask", item)):
            shutil.copy(file, source / name / f"{name} ({number}){suffix}.png")
    output_option = "output_dir" if "output_dir" in (project / "scripts" / "prepare_busi.py").read_text() else "output"
    (folder / "corners.py").write_text(NETWORK)
    (folder / "corners.json").write_text(json.dumps({"network_def": {"_target_": "corners.Corners", "norm": "batch"}}))
    config = f"['bundle/configs/inference.json','{folder / 'corners.json'}']"
    infer = options(config_file=config, bundle_root="bundle", load_pretrain=False, image_size=64, batch_size=1)
    infer += options(ckpt_dir=folder / "none", dataset_dir=data)

    def job(task: str, place: Path, log: str, after: float | None = None, again: bool = False) -> Job:
        resume = {"resume": True} if again else {}
        if task == "training":
            return Job(training(data, place, place / "out", epochs=3, **resume), folder / log, kill_after=after)
        if task == "inference":
            arguments = [*infer, *options(output_dir=place, **resume)]
            return Job(arguments, folder / log, kill_after=after, folder=folder)
        arguments = options(source=source, **{output_option: place})
        return Job(arguments, folder / log, "prepare_busi.py", after)

    patterns = {"training": ("model.pt",), "inference": ("*.png", "*.csv"), "conversion": ("*.png", "*.json")}
    tasks = list(patterns)
    began = {}
    for task in tasks:
        start_time = time.time()
        if run(project, [job(task, folder / task, f"{task}.log")]) != [0]:
            raise RuntimeError(f"{task} without a fault fails: {end_of(folder / f'{task}.log')}")
        began[task] = time.time() - start_time
    whole = {task: content_of(folder / task, patterns[task]) for task in tasks}
    runs = []
    for number in range(count):
        task = tasks[number % len(tasks)]
        runs.append((task, folder / f"{task} {number}", draw.uniform(0.3, 1.0) * began[task]))
    run(project, [job(task, place, f"{place.name} killed.log", after) for task, place, after in runs])
    again = [job(task, place, f"{place.name} again.log", again=True) for task, place, _ in runs]
    ends = []
    for (task, place, _), command, status in zip(runs, again, run(project, again)):
        if status == 0:
            left = [f for f in place.rglob(".*") if "partial" in f.name or f.name.startswith(".predictions")]
            end = "right" if content_of(place, patterns[task]) == whole[task] and not left else "silent"
        else:
            end = "named" if place.name in end_of(command.log) else "opaque"
        ends.append((Case(f"{task} killed", place.name, None), end))
    return ends


def full_disk_campaign(project: Path, folder: Path) -> list[tuple[Case, str]]:
    """Training and inference onto a small file system in memory; nothing where the rights to mount one are missing."""
    data = tiny_set(folder / "data", 8)
    ends = []
    for task, kilobytes in (("training", 60), ("training", 200), ("inference", 40), ("inference", 80)):
        place = folder / f"{task} {kilobytes}"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            return []
        try:
            if task == "training":
                job = Job(training(data, place / "m", folder / f"o{kilobytes}"), folder / f"{place.name}.log")
            else:
                (folder / "corners.py").write_text(NETWORK)
                (folder / "corners.json").write_text(
                    json.dumps({"network_def": {"_target_": "corners.Corners", "norm": "batch"}})
                )
                config = f"['bundle/configs/inference.json','{folder / 'corners.json'}']"
                arguments = options(config_file=config, bundle_root="bundle", load_pretrain=False, image_size=64)
                arguments += options(ckpt_dir=folder / "none", dataset_dir=data, output_dir=place)
                job = Job(arguments, folder / f"{place.name}.log", folder=folder)
            (status,) = run(project, [job])
            error = end_of(job.log)
            named = str(place) in error and "No space left" in error
            end = "silent" if status == 0 else "named" if named else "opaque"
            half = [f for f in place.rglob("*.p*") if "partial" in f.name]
            ends.append((Case(f"disk full, {task}", place.name, None), "silent" if half else end))
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return ends


def campaign(project: Path, folder: Path, seed: int, scale: float) -> dict[str, dict[str, int]]:
    """Run all parts; print each fault, and return the totals by part."""
    parts: dict[str, Callable[[Path], list[tuple[Case, str]]]] = {
        "images": lambda f: image_campaign(project, f, seed, round(300 * scale)),
        "masks": lambda f: mask_campaign(project, f, seed, round(100 * scale)),
        "options and datalists": lambda f: option_campaign(project, f, seed, round(100 * scale)),
        "checkpoints": lambda f: checkpoint_campaign(project, f),
        "kills": lambda f: kill_campaign(project, f, seed, round(20 * scale)),
        "disk full": lambda f: full_disk_campaign(project, f),
    }
    totals = {}
    for name, part in parts.items():
        began = time.time()
        place = folder / name
        place.mkdir(parents=True)
        ends = part(place)
        counts = Counter(end for _, end in ends)
        totals[name] = {end: counts[end] for end in ("right", "named", "opaque", "silent")}
        for case, end in ends:
            if end in ("opaque", "silent"):
                print(f"  {end}: {case.kind}, {printable(case.name)}")
        print(f"{name}: {totals[name]} in {time.time() - began:.0f} s", flush=True)
    return totals


def main() -> int:
    """Run the campaign as the command line says; 1 where an input ended in a third way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--output", type=Path, help="JSON file that gets the totals, beside those of other runs")
    parser.add_argument("--name", help="of these totals in the file; the project's version by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1, help="of the number of inputs")
    parser.add_argument("--keep", type=Path, help="new folder for inputs and logs, which are removed otherwise")
    given = parser.parse_args()
    project = given.project.resolve()
    version = json.loads((project / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    folder = given.keep or Path(
        tempfile.mkdtemp()
    )  # a TemporaryDirectory would be removed by the first child that ends
    try:
        totals = campaign(project, folder, given.seed, given.scale)
    finally:
        if not given.keep:
            shutil.rmtree(folder)
    if given.output:
        content = json.loads(given.output.read_text(encoding="utf-8")) if given.output.is_file() else {}
        runs = content.get("runs", {}) | {given.name or version: totals}
        text = json.dumps({"seed": given.seed, "runs": dict(sorted(runs.items()))}, indent=4)
        given.output.write_text(text + "\n", encoding="utf-8")
    return int(any(part["opaque"] or part["silent"] for part in totals.values()))


if __name__ == "__main__":
    sys.exit(main())
