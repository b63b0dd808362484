"""Requests to a running server, good and hostile: each ends in the right answer, or in one line that names the problem.

``campaign`` and ``kills`` give their totals, which are all that other tests take from here.
"""

import gzip
import io
import json
import os
import shutil
import signal
import socket
import threading
import time
import zlib
from urllib.parse import quote

import nibabel
import numpy as np
import pytest
import requests
from label_server import png_bytes, serve_app
from PIL import Image

from conftest import CLASS_NAMES

MODEL = "breast_ultrasound"
pytestmark = pytest.mark.slow


def encoded(image, kind="png", **options):
    """A Pillow image as bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width, height, data, depth=8, colour=0):
    """A PNG whose checksums are right, whatever its compressed data is."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def nifti_of(shape, content=b""):
    """A .nii.gz, uint8, whose header tells this shape whatever follows."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return gzip.compress(header.binaryblock + bytes(4) + content)


def nrrd_of(shape, content=b"", encoding="raw", **fields):
    """An NRRD file, uint8, whose header tells this shape whatever follows."""
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in fields.items()]
    sizes = " ".join(map(str, shape))
    head = ["NRRD0004", "type: uint8", f"dimension: {len(shape)}", f"sizes: {sizes}", f"encoding: {encoding}", *lines]
    return "\n".join(head).encode() + b"\n\n" + content


def detail(response):
    """The line that names the problem; empty where there is none."""
    try:
        text = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        text = response.text if response.status_code == 400 and len(response.text) < 100 else ""
    return text if isinstance(text, str) and "\n" not in text else ""


class Campaign:
    """Sends requests and counts how each ended."""

    def __init__(self, server):
        self.server = server
        self.totals = {"requests": 0, "answered": 0, "named": 0, "third_way": []}

    def send(self, name, method, path, want="named", check=None, **options):
        """Send one request, and note a third way where it does not end as wanted.

        Args:
            name: of the request, for the list of third ways.
            method: of HTTP.
            path: of the address.
            want: ``answered``, ``named``, or ``either``.
            check: takes the response of an answer, and gives whether it is right.
            options: of ``requests.request``.
        """
        try:
            response = requests.request(method, self.server.url + path, timeout=30, **options)
        except requests.RequestException as error:
            self.note(name, "lost", want, str(error))
            return requests.Response()
        if response.ok:
            ended = "answered" if check is None or check(response) else "wrong"
        else:
            ended = "named" if 400 <= response.status_code < 500 and detail(response) else "unnamed"
        self.note(name, ended, want, f"{response.status_code} {response.text[:300]}")
        return response

    def note(self, name, ended, want, found):
        """Count one request."""
        self.totals["requests"] += 1
        if ended == want or (want == "either" and ended in ("answered", "named")):
            self.totals[ended] += 1
        else:
            self.totals["third_way"].append(f"{name}: {ended}, wanted {want}: {found}")


def campaign(server, seed=0):
    """Send good and hostile requests to a server that has images and no label.

    Args:
        server: a running ``label_server.Server``.
        seed: of what is random.

    Returns:
        ``requests``, ``answered`` (with the right answer) and ``named`` (refused in one line), numbers of requests, and
        ``third_way``, a line for each that ended otherwise.
    """
    random = np.random.default_rng(seed)
    run = Campaign(server)
    names = sorted(json.loads(server.request("GET", "/datastore/?output=all").text)["objects"])
    readable = [name for name in names if "(" in name]
    name = readable[0]
    content = server.request("GET", f"/datastore/image?image={quote(name)}").content
    image = Image.open(io.BytesIO(content)).convert("L")
    width, height = image.size
    mask = np.zeros((height, width), bool)
    mask[10:20, 10:30] = True
    white = np.where(mask, 255, 0).astype(np.uint8)

    good_answers(run, name, image)
    good_labels(run, name, mask)
    masks_of_many_kinds(run, name, white)
    hostile_files(run, name, image, random)
    hostile_params(run, name, png_bytes(mask))
    hostile_addresses(run, name, random)
    hostile_tasks(run)
    too_large(run, name)
    # The server is the same as before
    kept = run.send("the label is still there", "GET", f"/datastore/label?label={quote(name)}&tag=final", "answered")
    assert kept.ok, run.totals["third_way"]
    good_answers(run, name, image)
    return run.totals


def mask_of(response):
    """The mask (height, width) that an answer holds."""
    return np.asarray(Image.open(io.BytesIO(response.content)))


def good_answers(run, name, image):
    """Every way to a mask and to the next image."""
    infer = f"/infer/{MODEL}"
    first = []

    def same(response):
        first.append(mask_of(response))
        return np.array_equal(first[0], first[-1]) and first[0].shape == image.size[::-1]

    run.send("mask", "POST", f"{infer}?image={quote(name)}&output=image", "answered", same)
    for kind in ("png", "bmp", "tiff", "gif", "webp"):
        if kind not in ("gif", "webp"):
            files = {"file": (f"x.{kind}", encoded(image, kind))}
            run.send(f"sent as {kind}", "POST", f"{infer}?output=image", "answered", same, files=files)
    colour = encoded(Image.merge("RGB", [image] * 3).convert("RGBA"))
    run.send("sent in colour", "POST", f"{infer}?output=image", "answered", same, files={"file": ("x.png", colour)})

    def has_class(response):
        return response.json()["class"] in CLASS_NAMES

    path = f"{infer}?image={quote(name)}&output=json"
    run.send("class", "POST", path, "answered", has_class)
    for params in ({"result_extension": ".nrrd"}, {"result_extension": [".png"]}, {"logging": 5, "client_id": "me"}):
        run.send(f"params {params}", "POST", path, "answered", has_class, data={"params": json.dumps(params)})
    for strategy in ("uncertainty", "random", "first"):
        address = f"/activelearning/{strategy}"
        run.send(strategy, "POST", address, "answered", lambda r: "bad" not in r.json()["id"], json={"client_id": "me"})
    session = run.send("session", "PUT", "/session/", "answered", files={"files": ("x.png", encoded(image))})
    own = session.json()["session_id"]
    run.send("mask of a session", "POST", f"{infer}?session_id={own}&output=image", "answered", same)
    run.send("session's state", "GET", f"/session/{own}", "answered")
    run.send("session removed", "DELETE", f"/session/{own}", "answered")
    run.send("session gone", "GET", f"/session/{own}")
    for path in ("/", "/info/", "/datastore/", "/openapi.json", "/logs/?text=true&lines=5"):
        run.send(path, "GET", path, "answered")
    run.send("image", "HEAD", f"/datastore/image?image={quote(name)}", "answered")


def good_labels(run, name, mask):
    """A label in each format, and its class."""
    address, height, width = f"/datastore/label?image={quote(name)}", *mask.shape
    volume = mask.T.astype(np.uint8).tobytes(order="F")
    get = f"?label={quote(name)}&tag=final"

    def kept(kind, content, params):
        files, data = {"label": (f"x.{kind}", content)}, {"params": json.dumps(params)}
        run.send(f"label as {kind}", "PUT", address, "answered", files=files, data=data)
        run.send("kept mask", "GET", f"/datastore/label{get}", "answered", lambda r: equal(mask_of(r), mask))
        info = run.send("kept class", "GET", f"/datastore/label/info{get}", "answered").json()
        if info.get("class") != "benign" or "warning" in info:
            run.note(f"class after {kind}", "wrong", "answered", str(info))

    kept("png", png_bytes(mask), {"class": "benign"})
    # No class any more: the one above stays
    kept("nii.gz", nifti_of((width, height, 1), volume), {})
    kept("nrrd", nrrd_of((width, height, 1), gzip.compress(volume), "gzip"), {"class": ""})
    kept("nrrd", nrrd_of((width, height), volume), {"note": "π"})
    empty = {"label": ("x.png", png_bytes(np.zeros_like(mask)))}
    run.send("no lesion, no class, but benign before", "PUT", address, files=empty)
    run.send("lesion, but normal", "PUT", address, files={"label": ("x.png", png_bytes(mask))}, data=params("normal"))
    run.send("foreign class", "PUT", address, files={"label": ("x.png", png_bytes(mask))}, data=params("birads 4"))
    run.send("dataset", "GET", "/datastore/dataset", "answered", lambda r: r.content[:2] == b"PK")


def params(given):
    """Form with a class."""
    return {"params": json.dumps({"class": given})}


def equal(found, mask):
    """Whether a kept label is this mask."""
    return np.array_equal(found, mask * np.uint8(255))


def masks_of_many_kinds(run, name, white):
    """The same mask as paint programs write it: kept to the pixel, or refused in one line."""
    address, get = f"/datastore/label?image={quote(name)}", f"/datastore/label?label={quote(name)}&tag=final"
    grey, mask = Image.fromarray(white), white > 0
    red = np.dstack([np.full_like(white, 255), 255 - white, 255 - white, white])
    palette = Image.fromarray((~mask).astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    seconds = {
        "zero and one": encoded(Image.fromarray(mask.astype(np.uint8))),
        "one value": encoded(Image.fromarray(mask * np.uint8(38))),
        "one bit": encoded(grey.convert("1")),
        "white with index 0": encoded(palette),
        "quantized": encoded(grey.quantize(2)),
        "lesion on transparent white": encoded(Image.fromarray(red)),
        "grey and alpha": encoded(Image.fromarray(np.dstack([np.full_like(white, 255), white]))),
        "16 bit": encoded(Image.fromarray(mask * np.uint16(65535))),
        "bmp": encoded(grey, "bmp"),
        "tiff": encoded(grey, "tiff"),
        "0, 1 and 255": encoded(
            Image.fromarray(np.where(np.arange(len(white))[:, None] < 15, mask, white).astype("u1"))
        ),
        "0, 128 and 255": encoded(Image.fromarray(np.where(np.arange(len(white))[:, None] < 15, white // 2, white))),
    }
    for kind, content in seconds.items():
        response = run.send(f"mask: {kind}", "PUT", address, "either", files={"label": ("x.png", content)})
        if response.ok:
            run.send(f"kept: {kind}", "GET", get, "answered", lambda r: equal(mask_of(r), mask))
    noise = {"label": ("x.jpg", encoded(grey, "jpeg", quality=85))}
    run.send("mask: jpeg", "PUT", address, "either", files=noise)
    run.send("kept: jpeg", "GET", get, "answered", lambda r: (mask_of(r) != white).sum() <= 2)
    inverted = {"label": ("x.png", encoded(Image.fromarray(255 - white)))}
    run.send("mask: inverted", "PUT", address, "answered", lambda r: "inverted" in r.json()["warning"], files=inverted)
    run.send("mask again", "PUT", address, "answered", files={"label": ("x.png", encoded(grey))})


def hostile_files(run, name, image, random):
    """Files that are no image or no label, that lie, or that grow."""
    width, height = image.size
    address = f"/datastore/label?image={quote(name)}"
    lines = bytes(width + 1) * height
    bomb = gzip.compress(bytes(200 * 2**20), 1)
    files = {
        "nothing": ("x.png", b""),
        "noise": ("x.png", random.bytes(1000)),
        "text": ("x.png", b"no image\n" * 50),
        "half a image": ("x.png", encoded(image)[:200]),
        "broken data": ("x.png", png_of(width, height, zlib.compress(lines)[:-30])),
        "bad filter": ("x.png", png_of(width, height, zlib.compress(b"\x09" + lines[1:]))),
        "too few pixels": ("x.png", png_of(width, height, zlib.compress(lines[: len(lines) // 2]))),
        "a name of many dots": ("a.b" * 100, b"x"),
        "a name that leads out": ("../../x.png", b"x"),
    }
    for kind, file in files.items():
        run.send(f"file: {kind}", "POST", f"/infer/{MODEL}", files={"file": file})
        run.send(f"label: {kind}", "PUT", address, files={"label": file})
        run.send(f"image: {kind}", "PUT", "/datastore/image?image=new", files={"file": file})
    lies = {
        "30000 x 30000": ("x.png", png_of(30000, 30000, zlib.compress(bytes(30001)), 1)),
        "13000 x 13000": ("x.png", png_of(13000, 13000, zlib.compress(bytes(13001 * 13000), 1))),
    }
    for kind, file in lies.items():
        run.send(f"file: {kind}", "POST", f"/infer/{MODEL}", files={"file": file})
        run.send(f"label: {kind}", "PUT", address, files={"label": file})
    out = {"data_file": "/etc/passwd"}
    labels = {
        "half the size": ("x.png", png_bytes(np.zeros((height // 2, width // 2)))),
        "turned": ("x.png", png_bytes(np.zeros((width, height)))),
        "two slices": ("x.nii.gz", nifti_of((width, height, 2), bytes(2 * width * height))),
        "one number": ("x.nii.gz", nifti_of((1,), b"x")),
        "30000 x 30000 x 1": ("x.nii.gz", nifti_of((30000, 30000, 1), bytes(1000))),
        "a bomb of the right size": ("x.nrrd", nrrd_of((width, height), bomb, "gzip")),
        "a bomb in nifti": ("x.nii.gz", bomb),
        "nifti cut off": ("x.nii.gz", nifti_of((width, height, 1), bytes(100))[:-20]),
        "nifti too short": ("x.nii.gz", nifti_of((width, height, 1), bytes(100))),
        "no nifti": ("x.nii", b"no nifti"),
        "nrrd too short": ("x.nrrd", nrrd_of((width, height), bytes(100))),
        "nrrd without an end": ("x.nrrd", b"NRRD0004\ntype: uint8"),
        "no nrrd": ("x.nrrd", random.bytes(300)),
        "100000 x 100000": ("x.nrrd", nrrd_of((100000, 100000))),
        "detached header": ("x.nrrd", nrrd_of((width, height), **out)),
        "detached header, other spelling": ("x.nrrd", nrrd_of((width, height), datafile="x.raw")),
        "detached header, a list": ("x.nrrd", nrrd_of((width, height), b"/etc/passwd\n", data_file="LIST")),
        "lines to skip": ("x.nrrd", nrrd_of((width, height), bytes(width * height), line_skip=-3)),
        "blocks": ("x.nrrd", nrrd_of((width, height), b"", "hex")),
    }
    for kind, file in labels.items():
        run.send(f"label: {kind}", "PUT", address, files={"label": file})


def nested(depth):
    """JSON of lists in lists."""
    return '{"x": ' + "[" * depth + "]" * depth + "}"


def hostile_params(run, name, label):
    """Params that are no JSON object, or one that cannot be given back."""
    infer, address = f"/infer/{MODEL}?image={quote(name)}", f"/datastore/label?image={quote(name)}"
    info = f"/datastore/label/info?label={quote(name)}&tag=final"
    texts = [
        "{",
        '["x"]',
        "null",
        "5",
        '{"class": NaN}',
        '{"x": 1e999}',
        '{"x": "\\ud800"}',
        '{"x": ' + "9" * 5000 + "}",
    ]
    texts += [nested(30), nested(100_000), '{"x": "' + "x" * 2**20 + '"}']
    for text in texts:
        kind = f"{text[:30]} ({len(text)})"
        run.send(f"infer with {kind}", "POST", infer, data={"params": text}, files={"x": b""})
        run.send(f"label with {kind}", "PUT", address, data={"params": text}, files={"label": ("x.png", label)})
        run.send(f"info with {kind}", "PUT", info, data={"info": text})
        if text != "null":
            run.send(f"next with {kind}", "POST", "/activelearning/first", data=text, headers=JSON)
    for given in ({"device": "tpu"}, {"device": 5}, {"result_extension": ".jpg"}, {"result_extension": {"x": 1}}):
        run.send(f"infer with {given}", "POST", infer, data={"params": json.dumps(given)})
    for given in (
        {"image": "/etc/passwd"},
        {"image": ["x"]},
        {"model": "x"},
        {"save_label": True, "label_tag": "../x"},
    ):
        run.send(f"infer with {given}", "POST", infer, data={"params": json.dumps(given)})
    run.send("no form", "PUT", address, data=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"})
    run.send("no label", "PUT", address, data={"params": "{}"})
    run.send("no field", "PUT", "/datastore/label", files={"label": ("x.png", label)})


JSON = {"Content-Type": "application/json"}


def hostile_addresses(run, name, random):
    """Ids, sessions, tags and paths that name nothing, lead out of the folder or to other parts of MONAI Label."""
    ids = ["nobody", "../x", "..%2f..%2fetc%2fpasswd", "%00", "%ff%fe", "x" * 3000, quote("🩻\n"), quote(f"{name}.png")]
    ids += [quote(bytes(random.integers(1, 256, 12, dtype=np.uint8))) for _ in range(4)]
    label = {"label": ("x.png", png_bytes(np.zeros((5, 5))))}
    for text in ids:
        run.send(f"image {text[:40]}", "GET", f"/datastore/image?image={text}")
        run.send(f"label {text[:40]}", "GET", f"/datastore/label?label={text}&tag=final")
        run.send(f"mask of {text[:40]}", "POST", f"/infer/{MODEL}?image={text}")
        run.send(f"label for {text[:40]}", "PUT", f"/datastore/label?image={text}", files=label)
        run.send(f"remove {text[:40]}", "DELETE", f"/datastore/image?id={text}")
        run.send(f"remove label {text[:40]}", "DELETE", f"/datastore/label?id={text}&tag=final")
        run.send(f"model {text[:40]}", "POST", f"/infer/{text}?image={quote(name)}")
        run.send(f"strategy {text[:40]}", "POST", f"/activelearning/{text}")
        run.send(f"session {text[:40]}", "POST", f"/infer/{MODEL}?session_id={text}")
    for tag in ("../../x", "..", "a/b", "x" * 300, "%00"):
        run.send(f"tag {tag[:20]}", "PUT", f"/datastore/label?image={quote(name)}&tag={tag}", files=label)
    two = [("files", ("meta.info", b"{}")), ("files", ("x.png", b"x"))]
    run.send("session of two files", "PUT", "/session/", files=two)
    run.send("archive", "PUT", "/session/?uncompress=true", files={"files": ("x.zip", b"x")})
    calls = (
        "POST /reload",
        "GET /proxy/dicom/wado/x",
        "GET /ohif/",
        "POST /infer/wsi/x",
        "GET /logs/gpu",
        "PUT /model/x",
    )
    for call in (*calls, f"DELETE /model/{MODEL}", "DELETE /info/", "PATCH /datastore/", "GET /model/x", "GET /x"):
        run.send(call, *call.split())
    for query in ("datastore/dataset?limit_cases=x", "datastore/dataset?limit_cases=-1", "datastore/?output=x"):
        run.send(query, "GET", f"/{query}")
    run.send("lines", "GET", "/logs/?text=true&lines=" + "9" * 30)
    for headers in ({"Origin": "http://x.example"}, {"Origin": "null"}, {"Host": "x.example"}, *ELSEWHERE):
        run.send(f"{headers}", "GET", "/datastore/dataset", headers=headers)
    for line in (b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n"):
        host, port = run.server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(line)
            answer = connection.recv(1000)
        run.note(f"{line!r}", "named" if answer.startswith(b"HTTP/1.1 400") else "unnamed", "named", repr(answer))


ELSEWHERE = [{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode} for mode in ("no-cors", "navigate")]


def hostile_tasks(run):
    """Trainings, scorings and inferences of the folder that cannot be: refused before a process starts."""
    options = [{"max_epochs": value} for value in (0, -1, 1.5, "5", True, None, 10**9, [5])]
    options += [{"learning_rate": 0}, {"val_split": 2}, {"batch_size": 10**6}, {"pretrained": 1}, {"epochs": 5}]
    options += [{"model": "x"}, {"gpus": [0]}]
    for given in options:
        run.send(f"train {given}", "POST", f"/train/{MODEL}", json=given)
    for address in ("train/x", f"train/{MODEL}?run_sync=true", f"batch/infer/{MODEL}?images=x", "scoring/x", "train/"):
        run.send(address, "POST", f"/{address}", json={"model": "x"} if address == "train/" else {})
    for given in ({"label_tag": "final"}, {"label_tag": "../x"}, {"images": ["x"]}, {"max_batch_size": "x"}):
        run.send(f"batch {given}", "POST", f"/batch/infer/{MODEL}", json=given)
    run.send("a long list", "POST", "/scoring/uncertainty", json={"x": ["x" * 100] * 1000})


def too_large(run, name):
    """More than the server takes: refused by the head of the request, or as soon as it is too much."""

    def zeros():
        for _ in range(110):
            yield bytes(2**20)

    run.send("100 MB announced", "POST", f"/infer/{MODEL}", files={"file": ("x.png", bytes(101 * 2**20))})
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
    run.send(
        "100 MB in pieces",
        "POST",
        f"/infer/{MODEL}",
        data=(part for part in (head, *zeros())),
        headers=form,
    )
    run.send("json in pieces", "POST", "/activelearning/first", data=zeros(), headers=JSON)


def kills(label_venv, images, bundle, folder, count=5, seed=0):
    """Kill a server again and again while it saves labels.

    Args:
        label_venv: environment of the server.
        images: files to label.
        bundle: whose weights serve.
        folder: for the server's work; made.
        count: how often.
        seed: of moments and masks.

    Returns:
        ``kills``, ``labels_acknowledged`` and ``labels_lost``: numbers.
    """
    random = np.random.default_rng(seed)
    studies = folder / "studies"
    studies.mkdir(parents=True)
    for image in images:
        shutil.copy(image, studies)
    names = sorted(file.stem for file in studies.iterdir())
    sizes = {file.stem: Image.open(file).size for file in studies.iterdir()}
    sent, known, acknowledged, lost = {}, {}, 0, set()

    def save(server, stop):
        """Save labels until the server is gone."""
        nonlocal acknowledged
        number = 0
        while not stop.is_set():
            name, kind = names[number % len(names)], ("benign", "malignant")[number % 2]
            width, height = sizes[name]
            mask = np.zeros((height, width), bool)
            top, left = random.integers(0, (height - 9, width - 9))
            mask[top : top + 9, left : left + 9] = True
            sent[name] = mask, kind
            try:
                server.save_label(name, mask, **{"class": kind})
            except requests.RequestException:
                return
            known[name] = sent[name]
            acknowledged += 1
            number += 1

    for _ in range(count + 1):
        with serve_app(label_venv, studies, bundle, folder / "server.log") as server:
            for name, expected in known.items():
                # What was acknowledged last, or what was on its way when the server was killed
                info = server.request("GET", f"/datastore/label/info?label={quote(name)}&tag=final").json()
                found = mask_of(server.request("GET", f"/datastore/label?label={quote(name)}&tag=final"))
                if not any(equal(found, mask) and info.get("class") == kind for mask, kind in (expected, sent[name])):
                    lost.add(name)
            if _ == count:
                break
            stop = threading.Event()
            saving = threading.Thread(target=save, args=(server, stop))
            saving.start()
            time.sleep(random.uniform(0.2, 0.8))
            os.kill(server.process.pid, signal.SIGKILL)
            stop.set()
            saving.join()
    return {"kills": count, "labels_acknowledged": acknowledged, "labels_lost": len(lost)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory, prepared):
    """Phantoms and files that pass for images until they are decoded."""
    folder = tmp_path_factory.mktemp("faults") / "studies"
    folder.mkdir()
    for file in sorted((prepared / "images").glob("*"))[::3]:
        shutil.copy(file, folder)
    Image.new("LAB", (60, 40)).save(folder / "a lab.tif")
    (folder / "a bad filter.png").write_bytes(png_of(40, 30, zlib.compress(b"\x09" + bytes(41 * 30 - 1))))
    (folder / "a bad bomb.png").write_bytes(png_of(13000, 13000, zlib.compress(bytes(13001 * 13000), 1)))
    return folder


def test_every_request_is_answered_rightly_or_refused_in_one_line(
    label_venv, studies, small_bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with serve_app(label_venv, studies, small_bundle, tmp_path / "server.log") as server:
        start, before = time.time(), set(os.listdir(tmp_path / "tmp"))
        totals = campaign(server)
        print(f"{time.time() - start:.0f} s:", json.dumps(totals, indent=1))
        status = open(f"/proc/{server.process.pid}/status").read() if os.path.isdir("/proc/self") else ""
        # Nothing of what was sent or answered stays behind
        assert set(os.listdir(tmp_path / "tmp")) <= before
    assert totals["requests"] >= 60 and totals["answered"] and totals["named"] and not totals["third_way"]
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024 if status else 0
    print(f"{peak:.0f} MB at most")
    assert peak < 1500


def test_no_acknowledged_label_is_lost_in_five_kills(label_venv, prepared, small_bundle, tmp_path):
    totals = kills(label_venv, sorted((prepared / "images").iterdir())[:8], small_bundle, tmp_path / "kills")
    print(totals)
    assert totals["labels_acknowledged"] > 10 and totals["labels_lost"] == 0
