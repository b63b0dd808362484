"""The package is the same each time, holds what belongs and nothing else."""

import hashlib
import json
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

NAME = "breast_ultrasound_segmentation_classification"
VERSION = json.loads((ROOT / "bundle/configs/metadata.json").read_text(encoding="utf-8"))["version"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The zip, made by the command."""
    folder = tmp_path_factory.mktemp("package")
    command = [sys.executable, "scripts/package_bundle.py", "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / f"{NAME}_v{VERSION}.zip"


def test_twice_the_same_bytes_and_their_checksum(package, tmp_path):
    command = [sys.executable, "scripts/package_bundle.py", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    assert (package.parent / f"{package.name}.sha256").read_text() == f"{digest}  {package.name}\n"


def test_it_holds_the_tracked_files_of_the_bundle(package):
    listed = subprocess.run(["git", "ls-files", "bundle"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {line.replace("bundle", NAME, 1) for line in listed.stdout.splitlines()}
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == tracked
    assert package.stat().st_size < 25e6


def test_unknown_options_end_with_one_line():
    command = [sys.executable, "scripts/package_bundle.py", "--outptu", "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "unknown option --outptu" in done.stderr and done.stderr.count("\n") == 1
