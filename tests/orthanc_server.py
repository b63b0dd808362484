"""A real Orthanc with the project's own configuration, the gateway beside it, and what can go wrong between them."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from pydicom import dcmread

from breast_ultrasound.dicom import MAKER
from conftest import ROOT, free_port

PATIENCE_S = 600  # an Orthanc is up in 1 to 5 s, a gateway in 5 to 10; a machine with other work takes longer
USER = {"ORTHANC_USER": "gateway", "ORTHANC_PASSWORD": "not #a secret: ключ"}
MISSING = [name for name in ("Orthanc", "storescu") if shutil.which(name) is None]


def wait_for(found, what, patience=PATIENCE_S):
    """Wait until a function gives something true, and return that."""
    end = time.time() + patience
    while time.time() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {patience} s")


class OrthancServer:
    """An Orthanc whose files lie in a folder; begun again, it is the same."""

    def __init__(self, folder):
        self.folder, self.variables = folder, {}
        folder.mkdir(parents=True, exist_ok=True)
        self.http, self.dicom = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        self.session = requests.Session()
        self.session.auth = tuple(value.encode() for value in USER.values())
        self.process = None

    def start(self, launcher=()):
        """Begin, and wait until it answers."""
        own = {"ORTHANC_STORAGE": str(self.folder / "storage"), "ORTHANC_STABLE_AGE": "1", **USER}
        own |= {"ORTHANC_HTTP_PORT": str(self.http), "ORTHANC_DICOM_PORT": str(self.dicom), **self.variables}
        with open(self.folder / "orthanc.log", "a") as log:
            self.process = subprocess.Popen(
                [*launcher, "Orthanc", str(ROOT / "deploy" / "orthanc.json")],
                env=os.environ | own,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self.answers, f"Orthanc, {self.folder / 'orthanc.log'}")
        return self

    def answers(self):
        assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()
        try:
            return self.session.get(f"{self.url}/system", timeout=5).ok
        except requests.RequestException:
            return False

    def stop(self, how=signal.SIGTERM):
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def get(self, path):
        answer = self.session.get(self.url + path, timeout=60)
        assert answer.ok, (path, answer.status_code)
        return answer.json() if "json" in answer.headers["Content-Type"] else answer.content

    def send(self, *files):
        """Send files as a scanner does."""
        command = ["storescu", "-aec", "ORTHANC", "-aet", "STORESCU", "127.0.0.1", str(self.dicom), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr

    def upload(self, content):
        """Store an object, also one that no association would take; its identifier."""
        answer = self.session.post(f"{self.url}/instances", data=content, timeout=60)
        assert answer.ok, answer.text
        return answer.json()["ID"]

    def results(self):
        """The gateway's objects as {UID of the image: {SOP class: number}}."""
        found = {}
        for series in self.get("/series"):
            described = self.get(f"/series/{series}")
            if described["MainDicomTags"].get("Manufacturer") != MAKER:
                continue
            for instance in described["Instances"]:
                made = dcmread(io.BytesIO(self.get(f"/instances/{instance}/file")), stop_before_pixels=True)
                kinds = found.setdefault(str(image_of(made)), {})
                kinds[made.Modality] = kinds.get(made.Modality, 0) + 1
        return found


def image_of(made):
    """UID of the image that a result is about; empty where it names none."""
    if "SourceImageSequence" in made:
        return made.SourceImageSequence[0].ReferencedSOPInstanceUID
    if "ReferencedSeriesSequence" in made:
        return made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    if "CurrentRequestedProcedureEvidenceSequence" not in made:
        return ""
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    return study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID


class GatewayProcess:
    """The command, with a folder of its own; begun again, it goes on."""

    def __init__(self, folder, url, weights, **options):
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        options = {"output_dir": folder / "out", "url": url, "ckpt_dir": weights, "poll": 0.2, **options}
        options = {"health_port": self.port, **options}
        self.command = [sys.executable, str(ROOT / "scripts" / "gateway.py")]
        self.command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self.variables = {**USER}
        self.process = None

    def start(self, launcher=()):
        with open(self.folder / "gateway.log", "a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.variables
            self.process = subprocess.Popen(
                [*launcher, *self.command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def stop(self, how=signal.SIGTERM):
        """End it; its exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def said(self):
        return (self.folder / "gateway.log").read_text(encoding="utf-8")

    def lines(self):
        """The lines of its log: of images, and of studies."""
        file = self.folder / "out" / "images.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [line for line in lines if "image" in line], [line for line in lines if "image" not in line]

    def outcomes(self):
        """What became of each image by its UID; all its lines say the same."""
        found = {}
        for line in self.lines()[0]:
            assert found.setdefault(line["image"], line["outcome"]) == line["outcome"]
        return found

    def wait_for_images(self, number):
        """Wait until so many images are told, and return what became of them."""

        def enough():
            assert self.process.poll() is None, self.said()
            found = self.outcomes()
            return found if len(found) >= number else None

        return wait_for(enough, f"{number} images, {self.said()}")


class Between:
    """A proxy between the gateway and Orthanc that can break what passes: by default it passes everything.

    `before` and `after` are called with method, path and a count; what `before` returns, (status, body), is answered
    in Orthanc's place. `after` is called when Orthanc has answered, and before the gateway is told.
    """

    def __init__(self, target):
        self.target, self.port = target, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.before = lambda method, path: None
        self.after = lambda method, path: None
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                replaced = between.before(self.command, self.path)
                if replaced is None:
                    headers = (
                        {"Authorization": self.headers["Authorization"]} if "Authorization" in self.headers else {}
                    )
                    try:
                        answer = requests.request(
                            self.command, between.target + self.path, data=body or None, headers=headers, timeout=60
                        )
                    except requests.RequestException:
                        self.close_connection = True
                        return
                    replaced = answer.status_code, answer.content
                    between.after(self.command, self.path)
                self.send_response(replaced[0])
                self.send_header("Content-Length", str(len(replaced[1])))
                self.end_headers()
                self.wfile.write(replaced[1])

            do_GET = do_POST = handle_any

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # the gateway was killed
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
