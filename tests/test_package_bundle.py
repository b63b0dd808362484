"""The package is the same each time, holds what belongs, and works alone with the packages that it declares."""

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from conftest import ROOT

NAME = "breast_ultrasound_segmentation_classification"
VERSION = json.loads((ROOT / "bundle/configs/metadata.json").read_text(encoding="utf-8"))["version"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The zip, made by the command."""
    folder = tmp_path_factory.mktemp("package")
    command = [sys.executable, "scripts/package_bundle.py", "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / f"{NAME}_v{VERSION}.zip"


def test_twice_the_same_bytes_and_their_checksum(package, tmp_path):
    command = [sys.executable, "scripts/package_bundle.py", "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    assert (package.parent / f"{package.name}.sha256").read_text() == f"{digest}  {package.name}\n"


def test_it_holds_the_tracked_files_of_the_bundle(package):
    listed = subprocess.run(["git", "ls-files", "bundle"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {line.replace("bundle", NAME, 1) for line in listed.stdout.splitlines()}
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == tracked | {f"{NAME}/README.md"}
        page, card = (archive.read(f"{NAME}/{name}").decode() for name in ("README.md", "docs/README.md"))
    head, text = page.removeprefix("---\n").split("---\n", 1)
    assert text == card
    assert {"license": "apache-2.0", "library_name": "monai"}.items() <= yaml.safe_load(head).items()
    assert package.stat().st_size < 25e6


@pytest.fixture(scope="module")
def unpacked(package, tmp_path_factory):
    """The package alone in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
def test_it_predicts_trains_and_loads_with_the_declared_packages_alone(unpacked, tiny_prepared, tmp_path):
    metadata = json.loads((unpacked / NAME / "configs/metadata.json").read_text(encoding="utf-8"))
    declared = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    declared |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    packages = [f"{name}=={version}" for name, version in declared.items()]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            [python, *map(str, command)], cwd=unpacked / NAME, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    images, masks, noise = tiny_prepared / "images", tmp_path / "masks", ["--predict_refused", "True"]
    bundle = ["-m", "monai.bundle", "run"]
    run(*bundle, "--config_file", "configs/inference.json", "--dataset_dir", images, "--output_dir", masks, *noise)
    files = len(list(images.iterdir()))
    assert len(list(masks.glob("*_seg.png"))) == files
    assert (masks / "predictions.csv").read_text().count("\n") == files + 1
    training = ["training", "--config_file", "configs/train.json", "--dataset_dir", tiny_prepared, "--epochs", "1"]
    run(*bundle, *training, "--ckpt_dir", tmp_path / "models", "--output_dir", tmp_path / "curves")
    assert (tmp_path / "models" / "model.pt").is_file()
    weights = "net_override={'weights': 'models/model.pt'}"
    load = "import sys; sys.path.insert(0, '.'); from monai.bundle import load"
    load += f"; net = load('{NAME}', bundle_dir='..', {weights})"
    assert "PretrainedUNetClassifier" in run("-c", f"{load}; print(type(net).__name__)")


@pytest.mark.parametrize("place", ["checkout", "package"])
def test_the_documented_load_gives_the_network_that_predicts(place, unpacked):
    folder, name = {"checkout": (ROOT, "bundle"), "package": (unpacked, NAME)}[place]
    card = (ROOT / "bundle/docs/README.md").read_text(encoding="utf-8")
    (load,) = re.findall(r"`(monai\.bundle\.load\(.+?)`", card)
    code = f"""
import sys
sys.path.insert(0, "{name}")
import monai.bundle, torch
from breast_ultrasound.predictor import Predictor
loaded, own = {load.replace('"bundle', f'"{name}')}, Predictor().network
assert all(torch.equal(value, own.state_dict()[name]) for name, value in loaded.state_dict().items())
image = torch.rand(1, 1, 256, 224)
for one, other in zip(loaded(image).values(), own(image).values()):
    assert torch.allclose(one, other, atol=1e-3)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Hub(BaseHTTPRequestHandler):
    """As much of a Hugging Face server as an upload talks to; `received` keeps each request."""

    received: dict = {}

    def do_POST(self):
        """Answer and remember."""
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Hub.received[self.path] = content
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(content)["files"]]
            answer = {"files": [{**f, "shouldIgnore": False} for f in files]}
        else:
            address = f"http://{self.headers['Host']}/someone/bundle"
            answer = {"url": address, "commitUrl": f"{address}/commit/1", "commitOid": "1"}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.mark.slow
def test_the_documented_upload_sends_the_whole_folder_with_its_page(unpacked):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("python -c") and "push_to_hf_hub" in line]
    arguments = shlex.split(
        line.replace("OWNER", "someone").replace("FOLDER", str(unpacked)).replace("VERSION", VERSION)
    )[1:]
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": "none", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    server.shutdown()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(Hub.received["/api/repos/create"])["name"] == NAME
    (commit,) = [content for path, content in Hub.received.items() if "/commit/" in path]
    sent = [json.loads(line)["value"] for line in commit.splitlines()[1:]]
    files = {value["path"]: base64.b64decode(value["content"]) for value in sent}
    assert set(files) == {f.relative_to(unpacked / NAME).as_posix() for f in (unpacked / NAME).rglob("*.*")} | {
        "LICENSE"
    }
    assert files["models/model.pt"] == (ROOT / "bundle/models/model.pt").read_bytes()
    assert b"license: apache-2.0" in files["README.md"]
