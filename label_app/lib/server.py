"""MONAI Label's server with its open doors shut; `--uvicorn_app lib.server:app` takes it.

0.8.5 echoes any origin with credentials, answers under any host name, lets a client replace or remove the weights,
unpacks archives to wherever their members' names lead, shows pages that run scripts of other sites, and answers 500 to
most mistakes of a client.
"""

from __future__ import annotations

import json
import logging
import os
import re
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from monailabel.app import app
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .errors import RequestError

logger = logging.getLogger(__name__)
LOCAL = ["127.0.0.1", "localhost"]
# In place of MONAI Label's page, which loads its scripts from another site
PAGE = """<!doctype html>
<html lang="en">
<title>Breast ultrasound: MONAI Label</title>
<h1>Breast ultrasound</h1>
<p>MONAI Label runs here. Research software, not a medical device.</p>
<ul>
<li><a href="/info/">models, training, numbers of pictures and labels</a>
<li><a href="/datastore/?output=all">pictures and labels</a>
<li><a href="/logs/?text=true">log</a>
<li><a href="/openapi.json">all calls, as OpenAPI</a>
</ul>
<p>How to label, by curl, 3D Slicer or CVAT: docs/annotate.md of the project.</p>
</html>
"""


def refuse(status: int, message: str) -> JSONResponse:
    """An answer in the form of FastAPI's own."""
    return JSONResponse({"detail": message}, status)


@app.exception_handler(ValueError)
async def answer_value_error(request: Request, error: ValueError) -> JSONResponse:
    """Errors that carry a status, and params that are not JSON; others are the server's own fault."""
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return refuse(400, f"params are not valid JSON: {error}")
    status = getattr(error, "status", 500)
    if status == 500:
        logger.error(f"{request.method} {request.url.path}: {error}", exc_info=error)
    return refuse(status, str(error))


@app.exception_handler(MONAILabelException)
async def answer_not_found(request: Request, error: MONAILabelException) -> JSONResponse:
    """MONAI Label raises these for pictures, labels and tasks that it does not know, and for faults of its own."""
    if error.error in (MONAILabelError.APP_ERROR, MONAILabelError.INVALID_INPUT):
        return refuse(404, error.msg)
    logger.error(f"{request.method} {request.url.path}: {error.msg}", exc_info=error)
    return refuse(500, error.msg)


@app.middleware("http")
async def guard(request: Request, call_next):
    """Refuse what must not be done, and what a client did wrong, before MONAI Label sees it."""
    try:
        await check(request)
    except ValueError as error:
        return await answer_value_error(request, error)
    except HTTPException as error:  # of the form's parser
        return refuse(error.status_code, error.detail)
    if request.url.path in ("/logs", "/logs/") and request.query_params.get("text") != "true":
        return RedirectResponse(request.url.include_query_params(text="true"))
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = "default-src 'self'"
    return response


async def check(request: Request) -> None:
    """Look at a request.

    Raises:
        RequestError: it comes from a page of another site, changes the weights past the training, unpacks an archive,
            or would fail in MONAI Label with an error that names no cause.
        ValueError: its params are not JSON.
        HTTPException: its form is broken.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise RequestError(403, f"origin {origin} is not this server")
    path, query = request.url.path, request.query_params
    if path.startswith("/model") and request.method not in ("GET", "HEAD"):
        raise RequestError(405, "weights change by training only")
    if path.startswith("/session") and query.get("uncompress", "false").lower() not in ("false", "0", "no", "off"):
        raise RequestError(400, "archives are not unpacked; send the picture itself")
    task = re.fullmatch(r"/(train|scoring|batch/infer)/?(.*)", path)
    if task and request.method == "POST":
        # Here, since a task's last lines, its error among them, may be lost to GET /train/. In a thread, since a
        # training looks at every label.
        options = json.loads(await request.body() or b"{}")
        options = options if isinstance(options, dict) else {}
        await run_in_threadpool(app_instance().check_task, *task.groups(), options)
    if path.startswith(("/infer", "/datastore")) and request.method in ("POST", "PUT"):
        await check_form(request)


async def check_form(request: Request) -> None:
    """Look at what comes with a picture or label; errors as those of ``check``."""
    await request.body()  # whole and first: what is only streamed here would be lost to the call itself
    async with request.form() as form:
        for name in ("params", "info"):
            value = form.get(name) or "{}"
            if not isinstance(value, str) or not isinstance(json.loads(value), dict):
                raise RequestError(400, f'{name} is not a JSON object, such as {{"class": "benign"}}')
        if request.url.path.startswith("/infer"):
            query = request.query_params
            if query.get("output") == "dicom_seg":
                raise RequestError(400, "output dicom_seg needs DICOM pictures; use image, json or all")
            if not (query.get("image") or query.get("session_id") or form.get("file")):
                raise RequestError(400, "no picture: name one with image=ID or send a file")


# Without it no other origin may read an answer; the guard refuses to act for one as well.
app.user_middleware[:] = [entry for entry in app.user_middleware if entry.cls is not CORSMiddleware]
hosts = [name for name in os.environ.get("LABEL_APP_HOSTS", "").split(",") if name]
app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL + hosts)

app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in ("/", "/docs")]


@app.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """What there is to look at."""
    return HTMLResponse(PAGE)
