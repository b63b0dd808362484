"""Bodies of requests to the label server: fields of wrong types and sizes, forms that end early, bodies without end."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
from campaign.images import scan
from campaign.prediction import small_bundle
from campaign.process import Case
from PIL import Image

SIZE = (60, 40)
DEEP = "[" * 5000 + "]" * 5000
NASTY = (
    None,
    True,
    5,
    -1,
    1.5,
    1e308,
    [],
    {},
    [[]],
    "",
    " ",
    "x" * 3000,
    "\ud800",
    "a\nb",
    "../x",
    "/etc/passwd",
    "\0",
)
RAW = (
    "",
    "{",
    "[]",
    "null",
    '"x"',
    "NaN",
    '{"reader": 1e999}',
    DEEP,
    '{"a":' * 3000,
    "\ufeff{}",
    "{'reader': 'a'}",
    "5",
    "%00",
)
ROUTES: dict[str, tuple[str, str, dict]] = {
    "next": ("POST", "/annotate/api/next", {"reader": "a", "order": "first", "skip": []}),
    "box": ("POST", "/annotate/api/box", {"image": "i0", "box": [5, 5, 30, 30]}),
    "label": ("PUT", "/annotate/api/label?image=i0&reader=a", {"class": "benign", "seconds": 3.0, "tools": "brush"}),
    "train": ("POST", "/train/breast_ultrasound", {"max_epochs": 0}),
    "activelearning": ("POST", "/activelearning/first", {"client_id": "x"}),
}
LENGTHLESS = ("application/json", "multipart/form-data; boundary=b", "application/x-www-form-urlencoded", "text/plain")


def png(pixels: np.ndarray) -> bytes:
    """A PNG."""
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "PNG")
    return memory.getvalue()


def one(draw: random.Random, mask: bytes) -> tuple[str, str, tuple]:
    """A random request: kind, name, arguments of `InProcess.request`."""
    route = draw.choice(list(ROUTES))
    method, path, body = ROUTES[route]
    kind = draw.choice(["field", "field", "raw", "without end", "form", "query"])
    options: dict = {}
    repeats, headers = 1, {"Content-Type": "application/json"}
    field = draw.choice([*body, "more"])
    value = draw.choice(NASTY)
    changed = json.dumps({**body, field: value})
    if kind == "raw":
        changed = draw.choice(RAW)
    if kind == "query":
        path = f"/annotate/api/{draw.choice(['image', 'thumbnail', 'reading', 'images', 'label'])}"
        names = {"image": "i0", "reader": "a", "again": "false"}
        names[draw.choice(list(names))] = str(value).encode("utf-8", "replace").decode()
        method, options = "GET", {"params": names}
        changed = str(names)
    elif kind == "without end":
        content = draw.choice(LENGTHLESS)
        part = b'--b\r\nContent-Disposition: form-data; name="mask"; filename="m"\r\n\r\n' + b"x" * 2**15
        paths = [path, "/annotate/login", "/annotate/api/images", "/annotate/api/label?image=i0&reader=a"]
        path, repeats, changed = draw.choice(paths), 0, content
        method = "PUT" if "label" in path else "POST"
        options = {"headers": {"Content-Type": content}, "data": part}
    elif kind == "form":
        damage = draw.choice(
            ["no mask", "no params", "empty mask", "cut mask", "other size", "text mask", "two masks", "cut form"]
        )
        method, path, changed = "PUT", "/annotate/api/label?image=i0&reader=a", damage
        contents = {"empty mask": b"", "cut mask": mask[: len(mask) // 2], "text mask": b"<html>"}
        contents["other size"] = png(np.zeros((9, 9), np.uint8))
        sent = [("mask", ("m.png", contents.get(damage, mask)))] * (2 if damage == "two masks" else 1)
        options = {"files": sent, "data": {"params": '{"class": "benign"}'}}
        if damage == "no mask":
            options = {"files": [("x", ("m.png", mask))], "data": options["data"]}
        elif damage == "no params":
            options["data"] = {}
        elif damage == "cut form":
            options = {"data": b"--b\r\nContent-Dispo", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    elif route == "label":
        options = {"files": {"mask": ("m.png", mask)}, "data": {"params": changed}}
    else:
        options = {"data": changed.encode("utf-8", "surrogatepass"), "headers": headers}
    return f"body, {kind}", f"{method} {path} {changed[:200]!r}", (method, path, repeats, "127.0.0.1", options)


def body_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Requests to the app in a process of MONAI Label's environment; nothing where that is missing."""
    sys.path.append(str(project / "tests"))
    from label_process import InProcess

    venv = Path(os.environ.get("LABEL_VENV", project / ".venv-label")).resolve()
    if not venv.is_dir():
        return []
    draw, studies, bundle = random.Random(seed), folder / "studies", folder / "bundle"
    studies.mkdir()
    shutil.copytree(project / "bundle", bundle, ignore=shutil.ignore_patterns("models", "__pycache__"))
    (bundle / "models").mkdir()
    small_bundle(project, bundle / "models")
    pixels = np.random.default_rng(seed)
    for k in range(3):
        Image.fromarray(np.resize(scan(pixels), SIZE[::-1])).save(studies / f"i{k}.png")
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[5:20, 5:30] = 255
    found = []
    label = studies / "labels" / "reader_a" / "i0.png"
    with InProcess(venv, studies, bundle, folder / "log") as server:
        for _ in range(count):
            kind, name, request = one(draw, png(mask))
            before = label.read_bytes() if label.is_file() else b""
            answer = server.request(request[0], request[1], request[2], request[3], **request[4])
            kept = label.is_file() and label.read_bytes() or b""
            found.append(
                (Case(kind, f"{name}: {answer.status} {answer.content[:200]!r}", None), judge(answer, before == kept))
            )
    return found


def judge(answer: object, same: bool) -> str:
    """An answer; or one line of refusal, which leaves the label as it was and reads no more than the server takes."""
    if 200 <= answer.status < 400:
        return "right"
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return "opaque"
    one_line = isinstance(detail, str) and "\n" not in detail and 400 <= answer.status < 500
    return ("named" if same and answer.taken < 101 * 2**20 else "silent") if one_line else "opaque"
