"""`make` tells what there is, which Python it needs, and makes an environment of another Python again."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

FAKE = """#!/bin/sh
if [ "$1" = -c ]; then
    shift
    exec {python} -c "import sys; sys.version_info = {version}
$1"
fi
echo "FAKE $@"
"""


@pytest.fixture
def checkout(tmp_path):
    """The Makefile alone, with a finished environment of this Python and interpreters of other versions."""
    for name in ("Makefile", "requirements.txt", "requirements-label.txt", "requirements-label-no-deps.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / "installed").touch()
    for minor in (10, 11, 12, 13, 14):
        fake = tmp_path / f"python3.{minor}"
        fake.write_text(FAKE.format(python=sys.executable, version=(3, minor, 1)))
        fake.chmod(0o755)
    return tmp_path


def make(folder, *words):
    """Run make there, with its interpreters first on the path, as if no other make had started the tests."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    others = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "VENV", "PYTHON", "MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")
    environment = {k: v for k, v in os.environ.items() if k not in others}
    environment |= {"PATH": path, "LABEL_VENV": str(folder / ".venv-label")}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, env=environment)


def test_help_names_every_target(checkout):
    targets = (ROOT / "Makefile").read_text(encoding="utf-8").split(".PHONY: help ")[1].split("\n")[0].split()
    text = make(checkout).stdout
    assert all(f"make {name}" in text for name in targets)
    assert "minutes" in text and text == make(checkout, "help").stdout


@pytest.mark.parametrize("minor", [10, 14])
def test_another_python_is_named_in_one_line_before_anything_is_made(checkout, minor):
    shutil.rmtree(checkout / ".venv")
    done = make(checkout, "demo", f"PYTHON=python3.{minor}")
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"Python 3.11, 3.12 or 3.13 is needed, python3.{minor} is 3.{minor}; name another: ")
    assert all(line.startswith("make: ***") for line in rest) and not done.stdout and done.returncode
    assert not (checkout / ".venv").exists()


def test_an_environment_of_another_python_is_made_again_and_only_such(checkout):
    own = sys.version_info.minor
    other = 12 if own != 12 else 13
    for words, again in (((), False), ((f"PYTHON=python3.{own}",), False), ((f"PYTHON=python3.{other}",), True)):
        text = make(checkout, "-n", "demo", *words).stdout
        assert ("-m venv --clear" in text) == again == ("pip install" in text), words
    os.utime(checkout / "requirements.txt", (2**31, 2**31))  # changed since
    text = make(checkout, "-n", "demo").stdout
    assert "-m venv" in text and "pip install" in text and "--clear" not in text


def test_waiting_threads_sleep_in_all_that_make_starts(checkout):
    (checkout / "scripts").mkdir()
    (checkout / "scripts" / "demo.py").write_text("import os; print(os.environ['OMP_WAIT_POLICY'])")
    assert make(checkout, "demo").stdout.splitlines()[-1] == "PASSIVE"
    assert make(checkout, "demo", "OMP_WAIT_POLICY=ACTIVE").stdout.splitlines()[-1] == "ACTIVE"
