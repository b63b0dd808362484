"""What the gateway needs of Orthanc's REST API, and what each of its failures means."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import requests

ATTEMPT = (5, 60)  # seconds to connect, and between two pieces of an answer
LARGEST = 2**30  # bytes of an object; one is in memory two or three times
FULL = ("full", "write", "space", "sqlite")  # words of what Orthanc says where its disk has no room
NO_ORTHANC = "answers, but not as an Orthanc does"
STORED = ("Success", "AlreadyStored")


class Away(Exception):
    """Orthanc, or room on a disk, is missing: nobody's image is at fault, wait and try again."""


class Gone(Exception):
    """Orthanc has no such thing (any more)."""


class Fault(Exception):
    """Orthanc is there, but fails on this object."""


class Change(NamedTuple):
    """An object that Orthanc has received, as a change with a number."""

    number: int
    instance: str


class Orthanc:
    """A client, for one thread.

    Args:
        url: such as ``http://127.0.0.1:8042``; with https the certificate is checked, against the authorities of the
            file in REQUESTS_CA_BUNDLE where that is set.
        user: empty for an Orthanc without authentication.
        password: of the user.
    """

    def __init__(self, url: str, user: str = "", password: str = "") -> None:
        self.url = url.rstrip("/")
        self.session = requests.Session()
        self.session.trust_env = False  # a PACS is in the house: no proxy, no netrc
        self.session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        self.session.auth = (user.encode(), password.encode()) if user else None  # UTF-8, as Orthanc reads them

    def changes(self, since: int, limit: int = 500) -> tuple[list[Change], int, bool]:
        """The new objects behind a change: these, the number of the last change that was read, and whether it is all.

        Numbers that begin anew, as those of a new database do, are those behind 0.
        """
        try:
            found = self._json("GET", f"/changes?since={since}&limit={limit}")
            if found["Last"] < since:
                return self.changes(0, limit)
            new = [Change(c["Seq"], c["ID"]) for c in found["Changes"] if c["ChangeType"] == "NewInstance"]
            return new, found["Last"], found["Done"]
        except (Gone, KeyError, TypeError):
            raise Away(f"{self.url} {NO_ORTHANC}") from None

    def describe(self, kind: str, identifier: str) -> dict:
        """Main tags and parents of one of ``instances``, ``series``, ``studies``."""
        return self._json("GET", f"/{kind}/{identifier}")

    def sop_class(self, instance: str) -> str:
        """Its UID; empty where this Orthanc does not tell."""
        try:
            return self._ask("GET", f"/instances/{instance}/metadata/SopClassUid").text.strip()
        except Gone:
            return ""

    def file(self, instance: str) -> bytes:
        """The object, as a file holds it.

        Raises:
            Fault: it is larger than the gateway loads.
        """
        size = int(self._ask("GET", f"/instances/{instance}/attachments/dicom/size").text)
        if size > LARGEST:
            raise Fault(f"an object of {size / 2**20:.0f} MB, more than the {LARGEST / 2**20:.0f} that are loaded")
        return self._ask("GET", f"/instances/{instance}/file").content

    def store(self, made: bytes) -> str:
        """Store an object; ``Success``, or ``AlreadyStored`` where one of its UID is there.

        Raises:
            Fault: Orthanc, or a filter in it, does not take it.
        """
        status = self._json("POST", "/instances", data=made)["Status"]
        if status not in STORED:
            raise Fault(f"Orthanc does not store a result ({status})")
        return status

    def _json(self, method: str, path: str, **options: object) -> dict:
        """``_ask``, for an answer in JSON."""
        try:
            return self._ask(method, path, **options).json()
        except ValueError:
            raise Away(f"{self.url} {NO_ORTHANC}") from None

    def _ask(self, method: str, path: str, **options: object) -> requests.Response:
        """The answer to a request.

        Raises:
            Away, Gone, Fault: see there.
            PermissionError: wrong credentials.
        """
        try:
            answer = self.session.request(method, self.url + path, timeout=ATTEMPT, **options)
        except requests.RequestException as error:
            cause = list(_causes(error))[-1]
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise PermissionError(
                    f"{self.url}: its certificate is not trusted ({cause.verify_message}); name its authority's file "
                    "in REQUESTS_CA_BUNDLE"
                ) from None
            raise Away(f"Orthanc does not answer at {self.url} ({type(cause).__name__})") from None
        if answer.ok:
            return answer
        if answer.status_code in (401, 403):
            raise PermissionError(
                f"{self.url}: Orthanc refuses the credentials; set ORTHANC_USER and ORTHANC_PASSWORD to those of its "
                "RegisteredUsers"
            )
        if answer.status_code == 404:
            raise Gone(path)
        said = _said(answer)
        if answer.status_code == 507 or method == "POST" and any(word in said.lower() for word in FULL):
            raise Away(f"Orthanc cannot write ({said}); make room on its disk")
        if answer.status_code in (502, 503, 504):
            raise Away(f"Orthanc is not ready ({said})")
        raise Fault(f"Orthanc fails at {method} {path.split('?')[0]} ({said})")


def _causes(error: object) -> Iterator[BaseException]:
    """An error of requests, and what it wraps."""
    while isinstance(error, BaseException):
        yield error
        error = getattr(error, "reason", None) or error.__cause__ or next(iter(error.args), None)


def _said(answer: requests.Response) -> str:
    """Status and Orthanc's own message, which names no patient."""
    try:
        message = answer.json().get("Message", "")
    except (ValueError, AttributeError):
        message = answer.reason
    return f"{answer.status_code} {message}".strip()
