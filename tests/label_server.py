"""MONAI Label's real server in its own environment, and the few REST calls that the tests make."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from email.parser import BytesParser
from pathlib import Path

import numpy as np
import requests
from filelock import FileLock
from PIL import Image

from conftest import CLASS_NAMES, ROOT, free_port

START_S = 180  # a server is up in 10 to 20 s; a machine with other work takes longer
APP = ROOT / "label_app"
SHIM = APP / "shim"


def label_environment():
    """Folder of the virtual environment in LABEL_VENV (.venv-label by default), made where it is missing."""
    folder = (ROOT / os.environ.get("LABEL_VENV", ".venv-label")).resolve()
    command = ["make", "label_environment", f"LABEL_VENV={folder}", f"PYTHON={sys.executable}"]
    with FileLock(f"{folder}.lock"):  # tests run in two processes
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def environment(venv, **variables):
    """Variables of a shell in which the environment is active, with a dead proxy: no request can leave the machine."""
    own = {**os.environ, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        own[name] = "http://127.0.0.1:9"
    return {**own, "no_proxy": "", "CUDA_VISIBLE_DEVICES": "", **variables}


class Server:
    """A running server; `url` is its address, `log` the file of its output."""

    def __init__(self, url, log, process):
        self.url = url
        self.log = log
        self.process = process
        self.headers = {}

    def request(self, method, path, code=200, **options):
        """Send a request and return the response, which must have this status."""
        options["headers"] = self.headers | options.get("headers", {})
        response = requests.request(method, self.url + path, timeout=300, **options)
        assert response.status_code == code, f"{response.status_code}: {response.text[:2000]}"
        return response

    def infer(self, model, image=None, file=None, **params):
        """Mask as numpy array (height, width), or None, and the params of the answer."""
        options = {"params": {"image": image} if image else {}, "data": {"params": json.dumps(params)}}
        if file is not None:
            options["files"] = {"file": (file.name, file.read_bytes())}
        response = self.request("POST", f"/infer/{model}", **options)
        parts = answer_parts(response)
        return np.asarray(Image.open(io.BytesIO(parts["image"]))), json.loads(parts["params"])

    def save_label(self, image, mask, code=200, name="label.png", tag=None, raw_params=None, **params):
        """Submit a label: a mask (height, width) of 0 and 1 sent as PNG, or bytes of another file."""
        data = mask if isinstance(mask, bytes) else png_bytes(mask)
        query = {"image": image} | ({"tag": tag} if tag else {})
        params = raw_params or json.dumps(params)
        options = {"params": query, "data": {"params": params}, "files": {"label": (name, data)}}
        return self.request("PUT", "/datastore/label", code, **options).json()

    def wait_for(self, kind, seconds=600):
        """Wait until the background task (train, scoring, batch/infer) has ended, and return it."""
        end = time.time() + seconds
        while time.time() < end:
            task = self.request("GET", f"/{kind}/").json()
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.5)
        raise AssertionError(f"{kind} still runs after {seconds} s: {task}")


def answer_parts(response):
    """Parts of a multipart answer by name, as bytes."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + response.content)
    names = [part.get_param("name", header="content-disposition") for part in message.get_payload()]
    return {name: part.get_payload(decode=True) for name, part in zip(names, message.get_payload())}


def run_inference(bundle, images, folder, *options):
    """Copy images to `folder`/in, and have `monai.bundle run` write their masks and table to `folder`/out."""
    (folder / "in").mkdir()
    for image in images:
        shutil.copy(image, folder / "in")
    options = ["--dataset_dir", folder / "in", "--output_dir", folder / "out", *options]
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *map(str, options)]
    subprocess.run([sys.executable, *command], cwd=bundle, check=True, capture_output=True)


def bundle_answer(bundle, image, folder):
    """Mask (height, width) and probabilities by class that `monai.bundle run` gives for a image."""
    run_inference(bundle, [image], folder)
    with open(folder / "out" / "predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    mask = np.asarray(Image.open(next((folder / "out").glob("*_seg.png")))) > 0
    return mask, {name: float(row[f"p_{name}"]) for name in CLASS_NAMES}


def same_answer(mask, params, expected):
    """Whether an answer is that of `bundle_answer`, but for a border pixel that is rounded differently."""
    true, probabilities = expected
    scores = {entry["label"]: entry["score"] for entry in params["classification"]}
    close = all(abs(scores[name] - probabilities[name]) < 1e-3 for name in CLASS_NAMES)
    return true.any() and mask.shape == true.shape and ((mask > 0) != true).mean() < 0.001 and close


# The holes of MONAI Label 0.8.5: each function fails where the server has one.


def label_outside_the_folder(server, image, mask, studies):
    """A label's tag must not lead out of the folder."""
    with contextlib.suppress(requests.RequestException):
        server.save_label(image, mask, code=400, tag="../../escaped", **{"class": "benign"})
    assert not (studies.parent / "escaped").exists() and not (studies / "escaped").exists()


def foreign_origin(server, image, mask, studies):
    """A page of another site must neither read an answer nor have a call carried out."""
    response = requests.get(server.url + "/info/", headers={"Origin": "http://elsewhere.example"})
    assert response.status_code == 403 and "access-control-allow-origin" not in response.headers


def foreign_host(server, image, mask, studies):
    """Another host name must not be answered (DNS rebinding)."""
    assert requests.get(server.url + "/info/", headers={"Host": "elsewhere.example"}).status_code == 400


def weights_replaced(server, image, mask, studies):
    """Weights must not change but by training; 415 would mean that a complete request is carried out."""
    response = requests.put(server.url + "/model/breast_ultrasound")
    assert response.status_code == 405


def file_of_the_machine(server, image, mask, studies):
    """A path must not be taken for a image's name."""
    path = studies / f"{image}.png"
    response = requests.post(server.url + "/infer/breast_ultrasound", params={"image": str(path)})
    assert response.status_code == 404


def archive_outside_its_folder(server, image, mask, studies):
    """The names in an archive must not lead out of the folder that it is unpacked in."""
    target = studies.parent / "unpacked"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(tarfile.TarInfo(str(target)))
    files = {"files": ("x.tar", archive.getvalue())}
    response = requests.put(server.url + "/session/", params={"uncompress": "true"}, files=files)
    assert not target.exists() and response.status_code == 400


def foreign_scripts(server, image, mask, studies):
    """Pages must not load scripts of other sites, which would act with the rights of ours, and need the internet."""
    for path in ("/", "/logs/"):
        response = requests.get(server.url + path)
        assert response.ok and not re.search(r"(src|href)=.?(https?:)?//", response.text)
        assert response.headers["Content-Security-Policy"] == "default-src 'self'"


HOLES = [label_outside_the_folder, foreign_origin, foreign_host, weights_replaced, file_of_the_machine]
HOLES += [archive_outside_its_folder, foreign_scripts]


def png_bytes(mask):
    """A mask (height, width) of 0 and 1 as PNG with 0 and 255."""
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255).save(buffer, "png")
    return buffer.getvalue()


@contextlib.contextmanager
def serve(command, log, port=0, **options):
    """Start a server with a command that lacks its port, and yield it when it answers; 0: it takes one and tells it."""
    host = command[command.index("--host") + 1] if "--host" in command else "127.0.0.1"
    told = Path(log).stat().st_size if Path(log).is_file() else 0
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    server = Server(f"http://{host}:{port}", log, process)
    opened = re.compile(rb"Open http://\S+:(\d+)/annotate/")
    if "--token" in command:
        server.headers["Authorization"] = f"Bearer {command[command.index('--token') + 1]}"
    try:
        end = time.time() + START_S
        while True:
            assert process.poll() is None and time.time() < end, Path(log).read_text()[-3000:]
            if not port and (found := opened.search(Path(log).read_bytes()[told:])):
                port = int(found[1])
                server.url = f"http://{host}:{port}"
            if port:
                with contextlib.suppress(requests.ConnectionError):
                    server.request("GET", "/info/")
                    break
            time.sleep(0.3)
        yield server
    finally:
        # As Ctrl-C in a terminal, the signal goes to background tasks as well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serve_app(venv, studies, bundle, log, *options):
    """Start label_app as `make annotate` does."""
    command = [venv / "bin" / "python", APP / "start.py", "--studies", studies, "--bundle", bundle, *options]
    return serve(command, log, env=environment(venv), cwd=ROOT)


def serve_stock(venv, apps, studies, bundle, log, **variables):
    """Start MONAI Label's own monaibundle app with the documented commands and a copy of the bundle."""
    env = environment(venv, PYTHONPATH=str(SHIM), **variables)
    if not (apps / "monaibundle").is_dir():
        download = ["monailabel", "apps", "--download", "--name", "monaibundle", "--output", str(apps)]
        subprocess.run(download, env=env, check=True, capture_output=True)
        shutil.copytree(bundle, apps / "monaibundle" / "model" / "breast_ultrasound")
    command = ["monailabel", "start_server", "--app", apps / "monaibundle", "--studies", studies]
    command += ["--conf", "models", "breast_ultrasound", "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    return serve([*command, "--host", "127.0.0.1"], log, free_port(), env=env, cwd=ROOT)
