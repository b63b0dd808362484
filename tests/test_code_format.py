"""The code has the format that the Model Zoo asks for: black, isort, flake8 at 120 columns (see pyproject.toml)."""

import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.parametrize("tool", [["black", "--check"], ["isort", "--check"], ["flake8"]], ids=lambda tool: tool[0])
def test_format(tool):
    folders = ["bundle", "scripts", "label_app", "study", "tests", "conftest.py"]
    done = subprocess.run([sys.executable, "-m", *tool, *folders], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
