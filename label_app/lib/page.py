"""The page to annotate in, `/annotate/`: what it asks the server for. Images, masks and maps travel as PNG."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from fastapi import APIRouter, BackgroundTasks, File, Form, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.others.generic import name_to_device
from PIL import Image

from scripts.data import EXTENSIONS, names_a_picture
from scripts.files import sha256
from scripts.transforms import open_image, to_grey

from . import readers
from .box import fuse, surroundings
from .datastore import Unlabelled
from .endpoints import ONE_AT_A_TIME
from .errors import RequestError
from .export import export

PAGE = Path(__file__).resolve().parents[1] / "page"
# Nothing but this server's own files runs or is shown; no other page may frame this one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
SMALL = 160  # pixels, the longer side of a thumbnail
EPOCH = re.compile(r"[Ee]poch\D{0,3}(\d+)\s*/\s*(\d+)")
router = APIRouter(prefix="/annotate/api")
files = StaticFiles(directory=PAGE, html=True)


def alone(route):
    """A call that uses folder or model, one at a time with MONAI Label's own."""

    @functools.wraps(route)
    def call(*values, **named):
        with ONE_AT_A_TIME:
            return route(*values, **named)

    return call


def png(image: Image.Image) -> bytes:
    """An image as PNG, written quickly."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def base64_png(pixels: np.ndarray) -> str:
    """8-bit pixels (height, width) as PNG in base64."""
    return base64.b64encode(png(Image.fromarray(pixels))).decode("ascii")


def path_of(image: str) -> str:
    """File of a readable image of the folder."""
    with ONE_AT_A_TIME:
        return app_instance().datastore().picture(image)


def grey(image: str) -> Image.Image:
    """An image of the folder as the model sees it: 8-bit grey."""
    return Image.fromarray(to_grey(open_image(path_of(image))))


def option(name: str) -> float:
    """A fraction that label_app/start.py was given."""
    return float(app_instance().conf.get(name, 0))


def infer(path: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Mask (bool) and lesion probability in [0, 1] of a file, both (height, width), and the answer's params."""
    request = {"image": path, "device": name_to_device("cuda"), "probability_map": True, "logging": "WARNING"}
    with ONE_AT_A_TIME:
        mask_file, params = app_instance().infer_task(request)
    arrays = []
    for file in (mask_file, params.pop("probability_file")):
        with Image.open(file) as image:
            arrays.append(np.asarray(image))
        os.unlink(file)
    return arrays[0] > 0, arrays[1] / np.float32(255), params


@contextlib.contextmanager
def kept(upload: UploadFile, suffix: str):
    """Path of a file that was sent, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sent{suffix}"
        with open(path, "wb") as file:
            shutil.copyfileobj(upload.file, file)
        yield str(path)


@router.get("/config")
def config() -> dict:
    """Names of the classes in the set's order, how the next image can be chosen, and the mask's threshold."""
    app = app_instance()
    classes = app.models.class_names
    return {
        "classes": classes,
        "no_lesion": "normal" if "normal" in classes else None,
        "orders": {name: strategy.description for name, strategy in app._strategies.items()},
        "threshold": app.infer_task.bundle_config.get_parsed_content("mask_threshold"),
    }


def progress(reader: str) -> dict:
    """How many images a reader has labelled, of how many."""
    store = app_instance().datastore()
    return {"labelled": len(readers.labels(store, readers.tag(reader))), "of": len(store.list_images())}


@router.post("/next")
@alone
def following(request: dict) -> dict:
    """The next image of a reader (``image``, None where none is left), and whether she sees it ``again``.

    Args:
        request: ``reader``, ``order`` (a strategy), ``skip`` (ids that the page has already).
    """
    app, reader, order = app_instance(), request.get("reader"), request.get("order", "first")
    store, skip = app.datastore(), set(request.get("skip", []))
    done = set(readers.labels(store, readers.tag(reader)))
    if order not in app._strategies:
        raise RequestError(404, f"order {order!r} is unknown; use {', '.join(app._strategies)}")
    repeated = readers.to_repeat(store, reader, option("repeated"), skip)
    if repeated:
        return {"image": repeated, "again": True, **progress(reader)}
    unlabelled = [name for name in store.list_images() if name not in done | skip]
    answer = app._strategies[order]({"strategy": order}, Unlabelled(store, unlabelled)) or {"id": None}
    return {"image": answer["id"], "again": False, "left_out": answer.get("left_out", []), **progress(reader)}


@router.get("/image")
def image(image: str) -> Response:
    """An image as PNG, 8-bit grey."""
    return Response(png(grey(image)), media_type="image/png")


@router.get("/thumbnail")
def thumbnail(image: str) -> Response:
    """The same, small."""
    small = grey(image)
    small.thumbnail((SMALL, SMALL))
    return Response(png(small), media_type="image/png", headers={"Cache-Control": "private, max-age=600"})


@router.get("/reading")
@alone
def reading(image: str, reader: str, again: bool = False) -> dict:
    """What the page shows on an image: ``suggestion`` (None where it is withheld) and the reader's own ``label``."""
    app = app_instance()
    store, tag = app.datastore(), readers.tag(reader, again)
    path = store.picture(image)
    label = readers.labels(store, tag).get(image)
    if label:
        label = {**label, "mask": base64_png(255 * store.mask(image, tag).astype(np.uint8))}
    withheld = readers.chance("suggestion", tag, image) < option("without_suggestion")
    suggestion = None
    if not withheld:
        mask, probability, params = infer(path)
        suggestion = {name: params[name] for name in ("class", "classification")}
        suggestion |= {name: params.get(name) for name in ("suspicious", "unsure", "disagreement")}
        suggestion["mask"] = base64_png(255 * mask.astype(np.uint8))
        suggestion["probability"] = base64_png((255 * probability).round().astype(np.uint8))
        suggestion["weights"] = sha256(app.infer_task.get_path())[:8]
    return {"label": label, "withheld": withheld, "suggestion": suggestion}


@router.post("/box")
def box(request: dict) -> dict:
    """The lesion's ``probability`` (PNG) where a person has drawn a box (left, top, right, bottom, in pixels)."""
    name = str(request.get("image"))
    whole = grey(name)
    try:
        left, top, right, bottom = (int(value) for value in request["box"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(400, "box needs four whole numbers: left, top, right, bottom") from error
    drawn = max(0, left), max(0, top), min(whole.width, right), min(whole.height, bottom)
    if drawn[2] - drawn[0] < 2 or drawn[3] - drawn[1] < 2:
        raise RequestError(400, f"box {request['box']} is empty or outside the image")
    with tempfile.TemporaryDirectory() as folder:
        crop = Path(folder) / "crop.png"
        whole.crop(surroundings(drawn, *whole.size)).save(crop, compress_level=1)
        inside = infer(str(crop))[1]
    first = infer(path_of(name))[1]
    return {"probability": base64_png((255 * fuse(first, inside, drawn)).round().astype(np.uint8))}


@router.put("/label")
@alone
def save(image: str, reader: str, again: bool = False, params: str = Form("{}"), mask: UploadFile = File(...)) -> dict:
    """Keep a reader's mask and class (or ``cannot_tell``), add a line to the log, and tell the progress.

    What she says at first also becomes the label that trains; "cannot tell" takes it back where it was her own.
    """
    app = app_instance()
    store, values = app.datastore(), json.loads(params)
    tag, counted = readers.tag(reader, again), readers.counted(values)
    told = {"class": str(values.get("class") or ""), "cannot_tell": values.get("cannot_tell") is True}
    if not told["class"] and not told["cannot_tell"]:
        raise RequestError(422, f"no class; say one of {', '.join(store.class_names)}, or that you cannot tell")
    info = {"reader": reader, **({"cannot_tell": True} if told["cannot_tell"] else {"class": told["class"]})}
    if told["cannot_tell"] and image in readers.labels(store, tag):
        store.remove_label(image, tag)  # its class would stay with a mask that comes without one
    with kept(mask, ".png") as path:
        store.save_label(image, path, tag, info)
        if not again and not told["cannot_tell"]:
            store.save_label(image, path, "final", info)
    final = readers.labels(store, "final").get(image)
    if told["cannot_tell"] and not again and final and final.get("reader") == reader:
        store.remove_label(image, "final")
    line = {
        "reader": reader,
        "image": image,
        "again": int(again),
        **counted,
        "area_px": int(store.mask(image, tag).sum()),
    }
    line |= {"class": told["class"] or "cannot tell", "class_model": str(values.get("class_model") or "")}
    readers.add_to_log(app.studies, line)
    return progress(reader)


@router.get("/images")
@alone
def images(reader: str) -> list[dict]:
    """All images by name, with who labelled them and when, and whether mask and class of the model disagree."""
    app = app_instance()
    own, scores = readers.tag(reader), app.disagreement.scores()
    result = []
    for name, entry in sorted(app.datastore().json()["objects"].items()):
        given = {tag: label["info"] for tag, label in entry["labels"].items() if tag.startswith(readers.PREFIX)}
        mine = given.get(own, {})
        state = "cannot tell" if mine.get("cannot_tell") else "labelled" if own in given else "open"
        by = [{"reader": tag.removeprefix(readers.PREFIX), "time": info.get("ts")} for tag, info in given.items()]
        result.append({"image": name, "state": state, "class": mine.get("class", ""), "by": by})
        result[-1]["disagree"] = scores.get(name, 0) > 1
    return result


@router.post("/images")
@alone
def upload(file: UploadFile = File(...)) -> dict:
    """Add an image to the folder; none is ever replaced."""
    name, suffix = os.path.splitext(file.filename or "")
    if not names_a_picture(file.filename or ""):
        raise RequestError(
            422, f"{suffix or 'a name without extension'} is no kind of image; send {', '.join(EXTENSIONS)}"
        )
    with kept(file, suffix) as path:
        return {"image": app_instance().datastore().add_image(name, path, {})}


@router.get("/training")
@alone
def training() -> dict:
    """The latest training of this server: ``status``, ``done`` in [0, 1], last lines; and what became of all."""
    task, _ = AsyncTask.status("train")
    lines = list(task.get("details", [])) if task else []
    epochs = [match for line in lines if (match := EPOCH.search(line))]
    return {
        "status": task["status"] if task else "",
        "started": task["start_ts"] if task else "",
        "done": int(epochs[-1][1]) / int(epochs[-1][2]) if epochs else 0,
        "lines": lines[-5:],
        "history": [{name: entry[name] for name in ("time", "outcome")} for entry in app_instance().models.history()],
        "weights": sha256(app_instance().infer_task.get_path())[:8],
    }


@router.get("/agreement")
@alone
def agreement() -> list[dict]:
    """How well the readers agree."""
    return readers.agreement(app_instance().datastore())


@router.get("/export")
def download(background: BackgroundTasks) -> FileResponse:
    """All labels as one ZIP."""
    with ONE_AT_A_TIME:
        path = export(app_instance().datastore(), app_instance().studies)
    background.add_task(os.unlink, path)
    return FileResponse(path, media_type="application/zip", filename="labels.zip", background=background)
