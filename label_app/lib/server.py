"""MONAI Label's server with its open doors shut; `--uvicorn_app lib.server:app` takes it.

0.8.5 echoes any origin with credentials, answers under any host name, lets a client replace or remove the weights,
unpacks archives to wherever their members' names lead, shows pages that run scripts of other sites, holds what it is
sent in memory whatever its size, and answers 500 to most mistakes of a client.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from typing import Annotated, BinaryIO
from urllib.parse import urlsplit

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from . import login, page
from .consensus import is_read
from .datastore import ONE_AT_A_TIME
from .endpoints import PLAIN_BYTES, UPLOAD_BYTES, add_routes
from .errors import RequestError, in_one_line
from .export import dataset_archive

with contextlib.redirect_stdout(None):  # "Allow Origins: ['*']", which is not so below
    from monailabel.app import app

logger = logging.getLogger(__name__)
LOCAL = ["127.0.0.1", "localhost"]
os.environ["LABEL_APP_SERVER"] = str(os.getpid())  # the processes of tasks end with it
# In place of MONAI Label's page, which loads its scripts from another site
PAGE = """<!doctype html>
<html lang="en">
<title>Breast ultrasound: MONAI Label</title>
<h1>Breast ultrasound</h1>
<p>MONAI Label runs here. Research software, not a medical device.</p>
<p><a href="/annotate/">Annotate</a></p>
<ul>
<li><a href="/info/">models, training, numbers of images and labels</a>
<li><a href="/datastore/?output=all">images and labels</a>
<li><a href="/logs/?text=true">log</a>
<li><a href="/openapi.json">all calls, as OpenAPI</a>
</ul>
<p>How to label, by the page, curl, 3D Slicer or CVAT: docs/annotate.md of the project.</p>
</html>
"""


def refuse(status: int, message: str) -> JSONResponse:
    """An answer in the form of FastAPI's own."""
    # Names in it are as a client sent them, with ends of lines and half surrogate pairs.
    line = " ".join(message.encode("utf-8", "replace").decode("utf-8").split())
    return JSONResponse({"detail": line}, status)


@app.exception_handler(ValueError)
async def answer_value_error(request: Request, error: ValueError) -> JSONResponse:
    """Errors that carry a status; others are the server's own fault."""
    status = getattr(error, "status", 500)
    if status == 500:
        logger.error(f"{request.method} {request.url.path}: {error}", exc_info=error)
    return refuse(status, str(error))


@app.exception_handler(MONAILabelException)
async def answer_not_found(request: Request, error: MONAILabelException) -> JSONResponse:
    """MONAI Label raises these for images, labels and tasks that it does not know, and for faults of its own."""
    if error.error in (MONAILabelError.APP_ERROR, MONAILabelError.INVALID_INPUT):
        return refuse(404, error.msg)
    logger.error(f"{request.method} {request.url.path}: {error.msg}", exc_info=error)
    return refuse(500, error.msg)


@app.exception_handler(RequestValidationError)
@app.exception_handler(ValidationError)
async def answer_invalid(request: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
    """Values of another type or range, and missing ones, in one sentence."""
    return refuse(422, in_one_line(error.errors()))


@app.exception_handler(413)
async def answer_too_large(request: Request, error: HTTPException) -> JSONResponse:
    """A body that grew past the limit while it came."""
    return refuse(
        413, f"too much was sent; use at most {UPLOAD_BYTES >> 20} MB with files, {PLAIN_BYTES >> 10} kB without"
    )


@app.exception_handler(OSError)
async def answer_disk(request: Request, error: OSError) -> JSONResponse:
    """A full or broken disk of the server."""
    logger.error(f"{request.method} {request.url.path}: {error}", exc_info=error)
    return refuse(507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 500, str(error))


@app.middleware("http")
async def guard(request: Request, call_next):
    """Refuse what must not be done before MONAI Label sees it."""
    try:
        check_head(request)
    except RequestError as error:
        return refuse(error.status, str(error))
    if not await login.admitted(request):
        wants_page = "text/html" in request.headers.get("accept", "")
        return RedirectResponse("/annotate/login.html") if wants_page else refuse(401, "log in at /annotate/")
    if not login.allowed(request):
        return refuse(403, "a reader's token is for /annotate/ alone; use the server's own")
    if request.url.path in ("/logs", "/logs/") and request.query_params.get("text") != "true":
        return RedirectResponse(request.url.include_query_params(text="true"))
    app_instance().behind.asked = time.monotonic()
    response = await call_next(request)
    app_instance().behind.asked = time.monotonic()
    own = request.url.path.startswith("/annotate")
    response.headers["Content-Security-Policy"] = page.POLICY if own else "default-src 'self'"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def check_head(request: Request) -> None:
    """Look at a request's head.

    Raises:
        RequestError: it comes from a page of another site, or announces more than the server takes.
    """
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise RequestError(403, f"origin {origin} is not this server")
    # An image or link in a page of another site has no Origin; browsers tell the site nevertheless.
    opened = (request.method, request.url.path, headers.get("sec-fetch-mode")) == ("GET", "/", "navigate")
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not opened:
        raise RequestError(403, "a page of another site asked for this")
    most = UPLOAD_BYTES if headers.get("content-type", "").startswith("multipart/") else PLAIN_BYTES
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise RequestError(413, f"{length} bytes are too many; send at most {most}")


add_routes(app)
# Without it no other origin may read an answer; the guard refuses to act for one as well.
app.user_middleware[:] = [entry for entry in app.user_middleware if entry.cls is not CORSMiddleware]
hosts = [name for name in os.environ.get("LABEL_APP_HOSTS", "").split(",") if name]
app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL + hosts)


@app.get("/", include_in_schema=False)
async def start_page() -> HTMLResponse:
    """What there is to look at."""
    return HTMLResponse(PAGE)


@app.get("/datastore/dataset")
def dataset(limit_cases: Annotated[int | None, Query(ge=1)] = None) -> StreamingResponse:
    """Images and submitted labels as ZIP archive."""
    with ONE_AT_A_TIME:
        store = app_instance().datastore()
        labels, state = store.labels("final"), store.json()
    trained = {name: kept for name, kept in labels.items() if is_read(kept.info)}
    archive = dataset_archive(trained, state, limit_cases)
    headers = {"Content-Disposition": 'attachment; filename="dataset.zip"'}
    return StreamingResponse(chunks(archive), media_type="application/zip", headers=headers)


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """What an open file holds; it is closed at the end."""
    with file:
        while chunk := file.read(2**16):
            yield chunk


app.include_router(login.router)
app.include_router(page.router)
app.mount("/annotate", page.files)
