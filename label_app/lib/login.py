"""One shared token for a server that listens to the network; without a token everybody is let in."""

from __future__ import annotations

import asyncio
import os
import secrets

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

TOKEN = os.environ.get("LABEL_APP_TOKEN", "")
COOKIE = "label_token"
OPEN = ("/annotate/login", "/annotate/login.html", "/annotate/style.css", "/annotate/icon.svg")
router = APIRouter()


def admitted(request: Request) -> bool:
    """Whether a request carries the token, as the page's cookie or as ``Authorization: Bearer``."""
    given = request.cookies.get(COOKIE) or request.headers.get("authorization", "").removeprefix("Bearer ")
    return not TOKEN or request.url.path in OPEN or secrets.compare_digest(given.encode(), TOKEN.encode())


@router.post("/annotate/login", include_in_schema=False)
async def login(token: str = Form("")) -> Response:
    """Let in who knows the token."""
    if not secrets.compare_digest(token.strip().encode(), TOKEN.encode()):
        await asyncio.sleep(1)  # whoever guesses guesses slowly
        return RedirectResponse("/annotate/login.html?wrong", 303)
    response = RedirectResponse("/annotate/", 303)
    response.set_cookie(COOKIE, TOKEN, httponly=True, samesite="strict")
    return response
