"""The page to annotate in, `/annotate/`: what it asks the server for. Images, masks and maps travel as PNG."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, BackgroundTasks, Depends, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from PIL import Image
from pydantic import BaseModel, Field

from breast_ultrasound.images import EXTENSIONS, NORMAL, is_image_name
from breast_ultrasound.transforms import disagreement

from . import login, readers, study
from .box import RULE, Box, ask
from .clicks import Click, ask_at
from .consensus import NOT_READABLE, UNKNOWN, common_class, is_read, majority, says, staple
from .datastore import ONE_AT_A_TIME, Kept, Unlabelled, check_readable, grey_of
from .endpoints import PLAIN_BYTES, UPLOAD_BYTES
from .errors import RequestError
from .export import export
from .images import read_shown
from .infer import answer
from .pixels import STEPS, base64_png, png, to_steps
from .progress import PROGRESS
from .readers import Answer, Reading
from .summary import summary

PAGE = Path(__file__).resolve().parents[1] / "page"
# Nothing but this server's own files runs or is shown; no other page may frame this one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
CLICKS = 50  # at most, of one image; the model is asked about each
SMALL = 160  # pixels, the longer side of a thumbnail
router = APIRouter(prefix="/annotate/api", max_body_size=PLAIN_BYTES)
files = StaticFiles(directory=PAGE, html=True)


def one_at_a_time(route):
    """A call that uses folder or state, one at a time with MONAI Label's own."""

    @functools.wraps(route)
    def call(*values, **named):
        with ONE_AT_A_TIME:
            return route(*values, **named)

    return call


def path_of(image: str) -> str:
    """Path of an image of the folder."""
    with ONE_AT_A_TIME:
        return app_instance().datastore().path(image)


def grey(image: str) -> np.ndarray:
    """An image of the folder as the model sees it: 8-bit grey (height, width)."""
    return grey_of(path_of(image))


def as_shown(image: str) -> Image.Image:
    """The same as a person sees it: in its colours, where it has any."""
    path = path_of(image)
    check_readable(path)
    return Image.fromarray(read_shown(path))


def option(name: str) -> float:
    """A fraction that label_app/start.py was given."""
    return float(app_instance().conf.get(name, 0))


def asking(request: Request, reader: str = "") -> str:
    """Name of the reader who asks, whom her token names, or the page where readers have no tokens.

    Raises:
        RequestError: no name, that of another reader, or of none in the study's list.
    """
    own, name = login.reader_of(request), " ".join(reader.split())
    if own and name not in ("", own):
        raise RequestError(403, f"this is the log-in of {own}, not of {name}")
    name = own or name
    if problem := study.name_problem(name):
        raise RequestError(400, f"reader: {problem}")
    listed = app_instance().study
    if listed.role(name) is None:
        raise RequestError(403, f"{name} is no reader of this study; choose among {', '.join(listed.readers)}")
    return name


def adjudicating(reader: Annotated[str, Depends(asking)]) -> str:
    """``asking`` for what shows the labels of others.

    Raises:
        RequestError: as ``asking``, or the reader is no adjudicator.
    """
    if app_instance().study.role(reader) != study.ADJUDICATOR:
        raise RequestError(403, f"{reader} reads, and does not see what others say; ask an adjudicator")
    return reader


Reader = Annotated[str, Depends(asking)]
Adjudicator = Annotated[str, Depends(adjudicating)]


@contextmanager
def received(upload: UploadFile, suffix: str) -> Iterator[str]:
    """Path of a file that was sent, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sent{suffix}"
        with open(path, "wb") as file:
            shutil.copyfileobj(upload.file, file)
        yield str(path)


@router.get("/config")
def config(request: Request) -> dict:
    """Names of the classes in the set's order, how the next image can be chosen, the steps of maps, types of images,
    what tells this folder of images from others.

    ``disagreement`` says for each class what contradicts it where there is no outline, and where there is one;
    ``reader`` is the one whose token this is; ``readers`` are those of the study's list and what they may do.
    """
    app = app_instance()
    names = app.models.class_names
    own = login.reader_of(request)
    return {
        "classes": names,
        "no_lesion": NORMAL if NORMAL in names else None,
        "disagreement": {name: [disagreement(name, outline, names) for outline in (False, True)] for name in names},
        "orders": {name: strategy.description for name, strategy in app.orders.items()},
        "steps": STEPS,
        "extensions": EXTENSIONS,
        "folder": hashlib.sha256(os.fsencode(os.path.realpath(app.studies))).hexdigest()[:12],
        "reader": own,
        "readers": {own: app.study.role(own)} if own else app.study.readers,
        "fields": app.study.fields,
        "hide_names": app.study.hide_names,
    }


def assigned(reader: str) -> list[str]:
    """The images that a reader is to read, in her order."""
    app = app_instance()
    store = app.datastore()
    return app.study.assigned(reader, store.list_images(), store.labels(readers.GOLD))


def progress(reader: str) -> dict:
    """How many of her images a reader has labelled, of how many."""
    store, own = app_instance().datastore(), set(assigned(reader))
    return {"labelled": len(own & store.labels(readers.tag(reader)).keys()), "of": len(own)}


class NextImage(BaseModel):
    """By which strategy the next image is chosen, which ones the page has already, and which window asks."""

    order: str = "first"
    skip: set[str] = set()
    window: str = ""


WINDOW_S = 600  # a window that has asked for nothing for so long is taken as closed
windows: dict[str, dict[str, float]] = {}  # of each reader, and when they asked last


def other_window(reader: str, window: str) -> int | None:
    """Minutes since another window of this reader asked for an image; None where there is none."""
    now, own = time.monotonic(), windows.setdefault(reader, {})
    own[window] = now
    other = max((then for name, then in own.items() if name != window), default=-math.inf)
    return int((now - other) / 60) if now - other < WINDOW_S else None


@router.post("/next")
@one_at_a_time
def next_image(asked: NextImage, reader: Reader) -> dict:
    """The next image of a reader (``image``, None where none is left), and whether she sees it ``again``."""
    app = app_instance()
    store = app.datastore()
    if asked.order not in app.orders:
        raise RequestError(404, f"order {asked.order!r} is unknown; use {', '.join(app.orders)}")
    told = {"other_window": other_window(reader, asked.window), **progress(reader)}
    own = assigned(reader)
    repeated = readers.to_repeat(store, reader, own, option("repeated"), asked.skip)
    if repeated:
        return {"image": repeated, "again": True, "left_out": [], **told}
    done = store.labels(readers.tag(reader)).keys() | asked.skip
    unlabelled = [name for name in own if name not in done]
    chosen = app.orders[asked.order]({"strategy": asked.order}, Unlabelled(store, unlabelled)) or {"id": None}
    return {"image": chosen["id"], "again": False, "left_out": chosen.get("left_out", []), **told}


@router.get("/image")
def image(image: str) -> Response:
    """An image as PNG, 8-bit grey or in its colours; its ETag tells contents apart."""
    content = png(as_shown(image))
    return Response(content, media_type="image/png", headers={"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})


@router.get("/thumbnail")
def thumbnail(image: str) -> Response:
    """The same, small."""
    small = as_shown(image)
    small.thumbnail((SMALL, SMALL))
    return Response(png(small), media_type="image/png", headers={"Cache-Control": "private, max-age=600"})


def as_map(probability: np.ndarray, rule: dict[str, float]) -> dict:
    """A probability map as PNG in steps, and the values that make a mask of it by ``transforms.LesionMaskd``."""
    return {"probability": base64_png(to_steps(probability)), "rule": rule}


def sent(kept: Kept) -> dict:
    """A label as the page gets it; ``mark`` tells it from the one that replaces it."""
    return {**kept.info, "mask": mask_png(kept.mask()), "mark": readers.mark(kept)}


def mask_png(mask: np.ndarray) -> str:
    """A mask (height, width), bool, as PNG of 0 and 255 in base64."""
    return base64_png(255 * mask.astype(np.uint8))


@router.get("/reading")
def reading(image: str, reader: Reader, again: bool = False) -> dict:
    """What the page shows on an image: ``suggestion`` (None where it is withheld), the reader's own ``label``, and the
    times of ``versions`` of it."""
    app, tag = app_instance(), readers.tag(reader, again)
    pixels = grey(image)
    with ONE_AT_A_TIME:
        store = app.datastore()
        label, names = store.label(image, tag), store.list_images()
        versions = list(store.versions(image, tag))
    withheld = app.study.withheld(reader, image, names, option("without_suggestion"))
    suggestion = None
    if not withheld:
        predictor = app.models.predictor()
        prediction = predictor(pixels)
        suggestion = {
            **answer(prediction),
            **as_map(prediction.lesion_probability, predictor.mask_rule),
            "mask": mask_png(prediction.mask),
            "weights": app.models.digest()[:8],
        }
    return {"label": label and sent(label), "withheld": withheld, "suggestion": suggestion, "versions": versions}


@router.get("/version")
def version(image: str, version: str, reader: Reader, again: bool = False, final: bool = False) -> dict:
    """An earlier label of an image: the reader's own, or the final one."""
    tag = readers.FINAL if final else readers.tag(reader, again)
    if final:
        adjudicating(reader)
    with ONE_AT_A_TIME:
        found = app_instance().datastore().versions(image, tag).get(version)
    if not found:
        raise RequestError(404, f"image {image!r} has no earlier label {version!r}")
    return sent(found)


class DrawnBox(BaseModel):
    """Where a person sees the lesion: left, top, right, bottom, in pixels."""

    image: str
    box: Box


@router.post("/box")
def ask_box(drawn: DrawnBox) -> dict:
    """The lesion's map where a person has drawn a box."""
    pixels = grey(drawn.image)
    inside = box_inside(drawn.box, pixels)
    predictor = app_instance().models.predictor()
    whole = predictor(pixels).lesion_probability
    try:
        return as_map(ask(predictor, pixels, whole, inside), RULE)
    except ValueError as error:
        raise RequestError(422, f"the surroundings of the box: {error}") from error


def box_inside(box: Box, pixels: np.ndarray) -> Box:
    """A box as far as it is within the image (height, width).

    Raises:
        RequestError: it is less than two pixels wide or high there.
    """
    (height, width), (left, top, right, bottom) = pixels.shape, box
    inside = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if inside[2] - inside[0] < 2 or inside[3] - inside[1] < 2:
        raise RequestError(400, f"box {list(box)} is empty or outside the image")
    return inside


class Clicks(BaseModel):
    """Where a person has clicked, in pixels, and whether the lesion is there; the box before, if there was one, and the
    threshold that was chosen."""

    clicks: list[Click] = Field(min_length=1, max_length=CLICKS)
    box: Box | None = None
    threshold: float | None = Field(None, gt=0, lt=1)


@router.post("/clicks", max_body_size=UPLOAD_BYTES)
def ask_clicks(image: str, params: str = Form("{}"), mask: UploadFile = File(...)) -> dict:
    """The lesion's map after a person has clicked, where ``mask`` is the model's part of what is drawn."""
    asked = Clicks.model_validate_json(params)
    pixels = grey(image)
    box = asked.box and box_inside(asked.box, pixels)
    for x, y, _ in asked.clicks:
        if not (0 <= x < pixels.shape[1] and 0 <= y < pixels.shape[0]):
            raise RequestError(400, f"click {[x, y]} is outside the image")
    predictor = app_instance().models.predictor()
    with received(mask, ".png") as path, ONE_AT_A_TIME:
        drawn = app_instance().datastore().read_label(image, path)
    try:
        return as_map(*ask_at(predictor, pixels, drawn, asked.clicks, box, asked.threshold))
    except ValueError as error:
        raise RequestError(422, f"the surroundings of the box: {error}") from error


@router.put("/label", max_body_size=UPLOAD_BYTES)
def save(
    image: str, reader: Reader, again: bool = False, params: str = Form("{}"), mask: UploadFile = File(...)
) -> dict:
    """Keep what a reader says of an image, add a line to the log, and tell the progress."""
    app = app_instance()
    read = Reading.model_validate_json(params)
    check_fields(read)
    with received(mask, ".png") as path, ONE_AT_A_TIME:
        pixels = app.datastore().read_label(image, path)
        readers.keep(app.datastore(), app.studies, image, reader, again, read, pixels)
        return progress(reader)


def check_fields(said: Answer) -> None:
    """Refuse what the study does not ask for.

    Raises:
        RequestError: naming it.
    """
    fields = app_instance().study.fields
    for name, value in said.fields.items():
        if name not in fields or value not in fields[name]:
            raise RequestError(422, f"{name}: {value!r} is not asked for in {study.STUDY_FILE}")


@router.get("/outlines")
def outlines(image: str, reader: Adjudicator) -> dict:
    """What is needed to settle an image: ``labels`` of its readers, what most of them and STAPLE make of these, the
    ``final`` label that there is, if any, and the times of its ``versions``."""
    with ONE_AT_A_TIME:
        store = app_instance().datastore()
        given = readers.outlines(store, image)
        final, versions = store.label(image, readers.FINAL), list(store.versions(image, readers.FINAL))
    drawn = [one["mask"] for one in given if is_read(one["info"])]
    infos = [one["info"] for one in given]
    ways = {"majority": majority, "staple": staple} if len(drawn) > 1 else {}
    return {
        "labels": [
            {**one["info"], "reader": one["reader"], "says": says(one["info"]), "mask": mask_png(one["mask"])}
            for one in given
        ],
        "class": common_class(infos),
        "consensus": {name: mask_png(way(drawn)) for name, way in ways.items()},
        "final": final and sent(final),
        "versions": versions,
    }


@router.put("/final", max_body_size=UPLOAD_BYTES)
def settle(image: str, reader: Adjudicator, params: str = Form("{}"), mask: UploadFile = File(...)) -> dict:
    """Keep the final label of an image as an adjudicator says, and tell its ``source``."""
    said = Answer.model_validate_json(params)
    check_fields(said)
    with received(mask, ".png") as path, ONE_AT_A_TIME:
        store = app_instance().datastore()
        info = readers.adjudicate(store, image, reader, said, store.read_label(image, path))
    return {"source": info["source"]}


def said_by(tag: str, image: str, kept: Kept) -> dict:
    """Who gave a label, when, and what in it somebody should look at again."""
    named = {"flag": "flagged", "class_unsure": "unsure", "comment": "comment"}
    doubts = [word for mark, word in named.items() if kept.info.get(mark)]
    doubts += [said for said in (UNKNOWN, NOT_READABLE) if says(kept.info) == said]
    return {"reader": readers.name_of(tag, {image: kept}), "time": kept.info.get("ts"), "doubts": doubts}


@router.get("/images")
@one_at_a_time
def images(reader: Reader) -> list[dict]:
    """A reader's images in her order, with what she said, when, and ``doubts``; an adjudicator sees what all said."""
    app = app_instance()
    store, scores = app.datastore(), app.disagreement.scores()
    shown = app.study.role(reader) == study.ADJUDICATOR
    tags = [tag for tag in store.tags() if tag.startswith(readers.PREFIX)] if shown else [readers.tag(reader)]
    given = {tag: store.labels(tag) for tag in tags}
    own = given.get(readers.tag(reader), {})
    return [
        {
            "image": name,
            "state": says(own[name].info) if name in own else "open",
            "labelled": name in own,
            "by": [said_by(tag, name, labels[name]) for tag, labels in given.items() if name in labels],
            "disagree": scores.get(name, 0) > 1,
        }
        for name in assigned(reader)
    ]


@router.post("/images", max_body_size=UPLOAD_BYTES)
@one_at_a_time
def upload(file: UploadFile = File(...)) -> dict:
    """Add an image to the folder; none is ever replaced."""
    name, suffix = os.path.splitext(file.filename or "")
    if not is_image_name(file.filename or ""):
        raise RequestError(
            422, f"{suffix or 'a name without extension'} is no kind of image; send {', '.join(EXTENSIONS)}"
        )
    with received(file, suffix) as path:
        return {"image": app_instance().datastore().add_image(name, path, {})}


@router.get("/training")
@one_at_a_time
def training() -> dict:
    """The latest training of this server: ``status``, ``done`` (of its epochs, in [0, 1]), why it ``failed``; and what
    became of all."""
    task = AsyncTask.status("train")[0] or {"id": "", "status": "", "start_ts": ""}
    last_line = (task.get("details") or [""])[-1]
    return {
        "status": task["status"],
        "started": task["start_ts"],
        "done": PROGRESS.done(task["id"]),
        "failed": (PROGRESS.failed(task["id"]) or last_line) if task["status"] == "ERROR" else "",
        "history": [{name: entry[name] for name in ("time", "outcome")} for entry in app_instance().models.history()],
        "weights": app_instance().models.digest()[:8],
    }


AGREEMENT = readers.Agreement()
_computing = threading.Lock()  # of two who ask at once, the second one finds what the first one computed


@router.get("/agreement")
def agreement(reader: Adjudicator) -> dict:
    """How well the readers agree, with one another and with labels known to be right (``pairs``), and the images in
    which they differ, with what became of each."""
    with ONE_AT_A_TIME:
        store = app_instance().datastore()
        found = {tag: store.labels(tag) for tag in (*readers.reader_tags(store), readers.GOLD)}
        final = store.labels(readers.FINAL)
    with _computing:
        pairs = AGREEMENT.pairs(found)
    of_readers = [pair["differing"] for pair in pairs if pair["second"] != readers.GOLD]
    differing = dict.fromkeys(itertools.chain(*of_readers))
    return {
        "pairs": pairs,
        "differing": [
            {"image": name, "source": final[name].info.get("source", "") if name in final else ""} for name in differing
        ],
    }


@router.get("/summary")
def study_summary(reader: Adjudicator) -> dict:
    """What the study came to, with intervals; of those who read in it, where they are listed."""
    listed = [readers.tag(name) for name in app_instance().study.reading()]
    with ONE_AT_A_TIME:
        store = app_instance().datastore()
        found = {tag: store.labels(tag) for tag in readers.reader_tags(store) if tag in listed or not listed}
    with _computing:
        return summary(found, app_instance().studies)


@router.get("/export")
def download(background: BackgroundTasks, reader: Adjudicator) -> FileResponse:
    """All labels as one ZIP."""
    with ONE_AT_A_TIME:
        store = app_instance().datastore()
        labels = {tag: store.labels(tag) for tag in (readers.FINAL, *readers.reader_tags(store))}
    path = export(labels, store.class_names, app_instance().studies)
    background.add_task(os.unlink, path)
    return FileResponse(path, media_type="application/zip", filename="labels.zip", background=background)
