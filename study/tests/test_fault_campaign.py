"""Several hundred bad inputs, kills and full disks: each ends in the right result or in a line that names it."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_every_fault_ends_in_the_right_result_or_in_a_line_that_names_it(label_venv, tmp_path):
    file = tmp_path / "faults.json"
    command = [sys.executable, "study/tests/fault_campaign.py", "--output", str(file)]
    variables = os.environ | {"LABEL_VENV": str(label_venv)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    (totals,) = json.loads(file.read_text(encoding="utf-8"))["runs"].values()
    tried = {part: sum(ends.values()) for part, ends in totals.items()}
    least = {"images": 300, "masks": 100, "options and datalists": 100, "kills": 20}
    least |= {"tables": 120, "paths": 200, "predictor": 60, "resume": 80, "label server": 150}
    assert all(tried[part] >= count for part, count in least.items()), tried
    for part in ("images", "masks", "tables", "label server"):
        assert totals[part]["right"] > 15 and totals[part]["named"] > 30, totals
