"""benchmark compares the three settings in one run and writes their ratios."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def run(*options):
    """Run the command in the repository's root."""
    command = [sys.executable, "scripts/benchmark.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_ratios_follow_from_the_times(tiny_prepared, tmp_path):
    output = tmp_path / "bench mark.json"
    options = ["--image_size", "64", "--pictures", "5", "--rounds", "1"]
    done = run("--dataset_dir", str(tiny_prepared), "--output", str(output), *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert (figures["image_size"], figures["pictures"], figures["rounds"]) == (64, 5, 1)
    settings = figures["settings"]
    assert set(settings) == {"plain", "same", "bundle"}
    # Folding 2 x 2 and thinner layers: far fewer operations for the bundle, the same number for the same network
    assert settings["same"]["gflop_per_picture"] == settings["plain"]["gflop_per_picture"]
    assert settings["bundle"]["gflop_per_picture"] < settings["plain"]["gflop_per_picture"] / 4
    for name in ("same", "bundle"):
        for what, ratio in figures["faster_than_plain"][name].items():
            assert ratio["median"] == pytest.approx(settings["plain"][what] / settings[name][what], rel=0.02)
            assert f"{ratio['median']} times as fast as plain" in done.stdout
    assert [f.name for f in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--dataset", "x"], "unknown option --dataset; valid options: --dataset_dir"),
        (["--dataset_dir", "nowhere"], "datalist.json does not exist; give --dataset_dir a folder of scripts/prepare"),
    ],
)
def test_wrong_options_end_with_one_line(options, message):
    done = run(*options)
    assert done.returncode != 0
    assert message in done.stderr and done.stderr.count("\n") == 1
