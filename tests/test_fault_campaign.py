"""Several hundred bad inputs, kills and full disks: each ends in the right result or in a line that names it."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_every_fault_ends_in_the_right_result_or_in_a_line_that_names_it(tmp_path):
    file = tmp_path / "faults.json"
    command = [sys.executable, "tests/fault_campaign.py", "--output", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    (totals,) = json.loads(file.read_text(encoding="utf-8"))["runs"].values()
    tried = {part: sum(ends.values()) for part, ends in totals.items()}
    least = {"images": 300, "masks": 100, "options and datalists": 100, "kills": 20}
    assert all(tried[part] >= count for part, count in least.items()), tried
    for part in ("images", "masks"):
        assert totals[part]["right"] > 30 and totals[part]["named"] > 30, totals
