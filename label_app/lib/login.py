"""Tokens for a server that listens to the network: its own, and one for each reader; without, everybody is let in."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from weakref import WeakValueDictionary

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from monailabel.interfaces.utils.app import app_instance

from .study import ADJUDICATOR

TOKEN = os.environ.get("LABEL_APP_TOKEN", "")
SERVER = ""  # stands for who has the server's own token
WHO = {TOKEN: SERVER, **{token: name for name, token in json.loads(os.environ.get("LABEL_APP_READERS", "{}")).items()}}
SESSIONS = {secrets.token_urlsafe(): name for name in WHO.values()}  # of cookies: nobody guesses one
COOKIE = "label_token"
LOGIN_BYTES = 1024  # of a log-in, which anybody may send
WRONG_S = 1.0  # that an address waits after a wrong token
OPEN = ("/annotate/login", "/annotate/login.html", "/annotate/style.css", "/annotate/icon.svg")
router = APIRouter()
_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by address


async def admitted(request: Request) -> bool:
    """Whether a request carries the page's cookie, or a token as ``Authorization: Bearer``; notes whose it is."""
    if not TOKEN or request.url.path in OPEN:
        return True
    name = _among(SESSIONS, request.cookies.get(COOKIE, "").encode())
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if name is None and given:
        name = await owner(request, given.encode("latin-1"))  # as HTTP's headers are decoded
    request.state.reader = name
    return name is not None


def reader_of(request: Request) -> str | None:
    """Name of the reader whose token a request carries; None for the server's own, and where there is none."""
    return getattr(request.state, "reader", None) or None


def allowed(request: Request) -> bool:
    """Whether a request asks for what its token is for: a reader's for the page, an adjudicator's for trainings too."""
    name, path = reader_of(request), request.url.path
    role = name and app_instance().study.role(name)
    return not name or path.startswith("/annotate") or (role == ADJUDICATOR and path.startswith("/train/"))


def _among(known: dict[str, str], given: bytes) -> str | None:
    """Whose secret this is; compared with all of them, in a time that tells nothing."""
    found = [name for secret, name in known.items() if secrets.compare_digest(given, secret.encode())]
    return found[0] if found else None


async def owner(request: Request, given: bytes) -> str | None:
    """Whose token this is. The guesses of one address are looked at one by one, however many come at once."""
    address = request.client.host if request.client else ""
    turn = _turns.setdefault(address, asyncio.Lock())
    async with turn:
        name = _among(WHO, given.strip())
        await asyncio.sleep(WRONG_S if name is None else 0)
    return name


@router.post("/annotate/login", include_in_schema=False, max_body_size=LOGIN_BYTES)
async def login(request: Request, token: str = Form("")) -> Response:
    """Let in who knows a token."""
    name = await owner(request, token.encode("utf-8", "replace"))
    if name is None:
        return RedirectResponse("/annotate/login.html#wrong", 303)
    response = RedirectResponse("/annotate/", 303)
    cookie = next(session for session, known in SESSIONS.items() if known == name)
    response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict")
    return response
