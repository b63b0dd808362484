"""MONAI Label's calls: what a client sends is looked at first, and a call that takes long stops nobody else's page."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    scoring,
    session,
    train,
)
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile

from breast_ultrasound.images import EXTENSIONS

from .datastore import ONE_AT_A_TIME
from .errors import RequestError

# Not among them: a proxy to other servers, whole-slide images, a viewer for DICOM, log-in by Keycloak, a new start.
OFFERED = (info, model, infer, batch_infer, train, activelearning, scoring, datastore, session, logs)
UPLOAD_BYTES = 100 * 2**20  # at most, of a request with files
PLAIN_BYTES = 32 * 2**10  # of any other; MONAI Label hands it to its tasks as one argument, of 128 kB in Linux
NESTED = 10  # lists and objects within one another that a client may send
LARGEST = 2**31  # of a whole number
VOLUMES = (".nii.gz", ".nii", ".nrrd")


def add_routes(app: FastAPI) -> None:
    """Put MONAI Label's calls into the app in place of its own routes.

    Its functions are coroutines that never wait for anything, so that the server answered nobody else meanwhile.
    """
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) == "/openapi.json"]
    for route in (route for module in OFFERED for route in module.router.routes if is_offered(route)):
        sends_files = any("UploadFile" in str(p.annotation) for p in parameters_of(route.endpoint))
        app.add_api_route(
            route.path,
            serialized(route),
            methods=route.methods,
            summary=route.summary,
            tags=route.tags,
            include_in_schema=route.include_in_schema,
            max_body_size=UPLOAD_BYTES if sends_files else PLAIN_BYTES,
        )


def is_offered(route: APIRoute) -> bool:
    """Whether a call is offered: none that changes weights past the training, and none that server.py has itself."""
    weights = route.path.startswith("/model") and route.methods != {"GET"}
    return not weights and route.path not in ("/logs/gpu", "/datastore/dataset")


def parameters_of(endpoint: Callable) -> list[inspect.Parameter]:
    """What a function takes."""
    return list(inspect.signature(endpoint).parameters.values())


def serialized(route: APIRoute) -> Callable:
    """One of MONAI Label's functions, one call at a time and in a thread, after a look at what it is given."""

    def call(**given):
        with ONE_AT_A_TIME:
            try:
                check_arguments(route.path, route.methods, given)
                return asyncio.run(route.endpoint(**given))
            except Exception:
                # They remove the copies of what was sent, and would not run after an error.
                if "background_tasks" in given:
                    asyncio.run(given["background_tasks"]())
                raise

    call.__name__, call.__doc__ = route.endpoint.__name__, route.endpoint.__doc__
    call.__signature__ = inspect.signature(route.endpoint)
    return call


def check_arguments(path: str, methods: set[str], given: dict) -> None:
    """Refuse what would fail in MONAI Label without naming a cause, or do harm there.

    Args:
        path: of the route, such as ``/infer/{model}``.
        methods: of the route.
        given: arguments by name; files get a plain name.

    Raises:
        RequestError: naming what is wrong.
    """
    for name, value in given.items():
        if name in ("params", "info") and value is not None:
            check_object(name, json_object(name, value) if isinstance(value, str) else value)
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise RequestError(400, f"{name} is {value}; use a smaller number")
        elif isinstance(value, UploadFile):
            if path in ("/datastore/", "/datastore/image"):
                given["image"] = given.get("image") or Path(value.filename or "").stem
            give_plain_name(value)
    if given.get("session_id"):
        check_session(given["session_id"])
    if path == "/session/" and "PUT" in methods:
        if given["uncompress"] or len(given["files"]) != 1:
            raise RequestError(400, "archives are not unpacked and a session holds one image; send the image itself")
        give_plain_name(given["files"][0])
    if path == "/infer/{model}":
        if getattr(given["output"], "value", None) == "dicom_seg":
            raise RequestError(400, "output dicom_seg needs DICOM images; use image, json or all")
        if not (given["image"] or given["session_id"] or given["file"]):
            raise RequestError(400, "no image: name one with image=ID or send a file")
        given["label"] = None  # a start for other models; ours needs none
    task = re.fullmatch(r"/(train|scoring|batch/infer)/(\{.*\})?", path)
    if task and "POST" in methods:
        if given["run_sync"]:
            raise RequestError(400, "run_sync would stop the server for everybody; ask for the task's state with GET")
        chosen = given.get(task.group(2).strip("{}")) if task.group(2) else ""
        app_instance().check_task(task.group(1), chosen, given["params"] or {})
    if path == "/train/" and "DELETE" in methods:
        app_instance().models.training_ended()


def json_object(name: str, text: str) -> dict:
    """What a form's field says.

    Raises:
        RequestError: it is no JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{name} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(400, f'{name} is not a JSON object, such as {{"class": "benign"}}')
    return value


def check_object(name: str, value: dict) -> None:
    """Refuse an object that could be kept but not be given back.

    Raises:
        RequestError: it is nested too deep, or holds text or numbers that JSON in UTF-8 has no signs for.
    """

    def depth(entry) -> int:
        below = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else None
        return 0 if below is None else 1 + max(map(depth, below), default=0)

    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
        too_deep = depth(value) > NESTED
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{name} holds what JSON cannot carry ({error})") from error
    if too_deep:
        raise RequestError(400, f"{name} is nested more than {NESTED} deep")


def give_plain_name(file: UploadFile) -> None:
    """Name a file that was sent after its kind alone: MONAI Label makes paths of the name."""
    name = (file.filename or "").lower()
    file.filename = "sent" + next((kind for kind in (*VOLUMES, *EXTENSIONS) if name.endswith(kind)), "")


def check_session(name: str) -> None:
    """Refuse a session's name that is not one of the server's own, which could lead out of their folder.

    Raises:
        RequestError: there is no such session.
    """
    sessions = app_instance().sessions()
    own = re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)
    if not own or not os.path.isfile(os.path.join(sessions.store_path, name, "meta.info")):
        raise RequestError(404, f"session {name!r} is unknown; make one with PUT /session/")
