"""MONAI Label's server with its open doors shut; `--uvicorn_app lib.server:app` takes it.

0.8.5 echoes any origin with credentials, answers under any host name, lets a client replace or remove the weights, and
answers 500 to most mistakes of a client.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from starlette.middleware.trustedhost import TrustedHostMiddleware

LOCAL = ["127.0.0.1", "localhost"]


def refuse(status: int, message: str) -> JSONResponse:
    """An answer in the form of FastAPI's own."""
    return JSONResponse({"detail": message}, status)


@app.exception_handler(ValueError)
async def answer_value_error(request: Request, error: ValueError) -> JSONResponse:
    """Errors that carry a status, and params that are not JSON; others are the server's own fault."""
    if isinstance(error, json.JSONDecodeError):
        return refuse(400, f"params are not valid JSON: {error}")
    status = getattr(error, "status", 500)
    return refuse(status, str(error))


@app.exception_handler(MONAILabelException)
async def answer_not_found(request: Request, error: MONAILabelException) -> JSONResponse:
    """MONAI Label raises these for pictures, labels and tasks that it does not know."""
    return refuse(404, error.msg)


@app.middleware("http")
async def guard(request: Request, call_next):
    """Refuse pages of other sites, changes of the weights past the training, and a training without label."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return refuse(403, f"origin {origin} is not this server")
    path = request.url.path
    if path.startswith("/model") and request.method not in ("GET", "HEAD"):
        return refuse(405, "weights change by training only")
    task = re.fullmatch(r"/(train|batch/infer)/?(.*)", path)
    if task and request.method == "POST":
        # Here, since a task's last lines, its error among them, may be lost to GET /train/.
        try:
            options = json.loads(await request.body() or b"{}")
            app_instance().check_task(*task.groups(), options if isinstance(options, dict) else {})
        except ValueError as error:
            return await answer_value_error(request, error)
    return await call_next(request)


# Without it no other origin may read an answer; the guard refuses to act for one as well.
app.user_middleware[:] = [entry for entry in app.user_middleware if entry.cls is not CORSMiddleware]
hosts = [name for name in os.environ.get("LABEL_APP_HOSTS", "").split(",") if name]
app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL + hosts)
