"""The label server's app in a process without a socket: hundreds of requests in the time that a server takes to start.

The tests start it in MONAI Label's environment and send it requests, a JSON line each; so does the fault campaign.
"""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
from itertools import chain, repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "label_app"
CHUNK = 2**16  # bytes of a body that comes without an announced length


class Answer:
    """What a request got: `status`, `headers`, `content`, and `taken`, the bytes that the app read of the body."""

    def __init__(self, status, headers, content, taken):
        self.status, self.headers, self.taken = status, headers, taken
        self.content = base64.b64decode(content)

    def json(self):
        """The content as JSON."""
        return json.loads(self.content)


class InProcess:
    """The app; as a context it ends with it. Its log is `log`."""

    def __init__(self, venv, studies, bundle, log, token=""):
        paths = [APP, bundle, APP / "shim", ROOT / "tests"]
        variables = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "MONAI_LABEL_APP_DIR": str(APP),
            "MONAI_LABEL_STUDIES": str(studies),
            "MONAI_LABEL_APP_CONF": json.dumps({"bundle": str(bundle), "without_suggestion": 0}),
            "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            "LABEL_APP_TOKEN": token,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [str(venv / "bin" / "python"), __file__],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "wb"),
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)

    def request(self, method, path, repeats=1, address="127.0.0.1", **options):
        """Send one request, as `requests.request` takes it, and return its answer.

        Args:
            method: of HTTP.
            path: with the query.
            repeats: how often the body comes, in chunks; 0: without end. Its length is announced where it is 1.
            address: of the client.
            options: of `requests.Request`.
        """
        (answer,) = self.requests([(method, path, repeats, address, options)])
        return answer

    def requests(self, calls):
        """Send several requests at once, each a tuple of the arguments of `request`."""
        import requests

        asked = []
        for method, path, repeats, address, options in calls:
            made = requests.Request(method, f"http://127.0.0.1{path}", **options).prepare()
            headers = {name.lower(): value for name, value in made.headers.items()}
            if repeats != 1:
                headers.pop("content-length", None)
            body = made.body.encode() if isinstance(made.body, str) else made.body or b""
            path, _, query = made.path_url.partition("?")
            body = base64.b64encode(body).decode()
            asked.append([method, path, query, headers, body, repeats, address])
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return [Answer(*answer) for answer in json.loads(self.process.stdout.readline())]


async def call(app, method, path, query, headers, body, repeats, address):
    """Let an ASGI app answer one request."""
    from urllib.parse import unquote

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1"), *((k.encode(), v.encode("latin-1")) for k, v in headers.items())],
        "client": (address, 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "root_path": "",
    }
    whole = base64.b64decode(body)
    bodies = chain.from_iterable(
        (whole[i : i + CHUNK] for i in range(0, len(whole), CHUNK))
        for _ in (repeat(0) if repeats == 0 else range(repeats))
    )
    taken, ended, sent = 0, False, []

    async def receive():
        nonlocal taken, ended
        await asyncio.sleep(0)
        if ended:
            await asyncio.Event().wait()  # for the end of the connection, which the client does not close
        part = next(bodies, None)
        ended = part is None
        taken += len(part or b"")
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(Exception):  # the app has answered 500, and lets its server log the error
        await app(scope, receive, send)
    if not sent:
        return 0, {}, "", taken
    headers = {key.decode().lower(): value.decode() for key, value in sent[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], headers, base64.b64encode(content).decode(), taken


async def main(answers):
    """Answer the requests of each line at once, until there is no more line."""
    from lib.server import app

    while line := await asyncio.to_thread(sys.stdin.readline):
        found = await asyncio.gather(*(call(app, *asked) for asked in json.loads(line)))
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    stream, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    asyncio.run(main(stream))
