"""Image files for inference, and masks for an evaluation."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from campaign.process import NAMES, NETWORK, Case, Job, end_of, options, printable, run, text_of
from PIL import Image, features


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
    return {re.sub("^'(?='*[=+\\-@\t\r])", "", row["filename"]): row for row in rows if row["class"]}


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
            if (out / "images.csv").is_file():
                with open(out / "images.csv", newline="", encoding="utf-8") as file:
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
