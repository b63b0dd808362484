"""Measure the bundle's inference command on folders of several sizes: pictures a second and peak memory.

    python scripts/benchmark_folders.py --dataset_dir PREPARED [--sizes "[1000,10000]"] [--output FILE]

Each folder holds links to the pictures of PREPARED, again and again under other names, until it has its size. The
command runs as a user types it, from its start to the table on disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from command_line import BUNDLE, ROOT, bundle_arguments, run

from scripts.files import write_json


def benchmark_folders(
    dataset_dir: Path,
    sizes: tuple[int, ...] = (1000, 10000),
    ckpt_dir: Path = BUNDLE / "models",
    output: Path | None = None,
) -> dict:
    """Measure and print; write the figures to `output` as JSON where it is given.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        sizes: numbers of pictures.
        ckpt_dir: folder of the weights.
        output: file for the figures.

    Returns:
        dict: the figures by size.

    Raises:
        ValueError: the command failed.
        FileNotFoundError: there are no pictures.
    """
    images = dataset_dir.resolve() / "images"
    pictures = sorted(images.glob("*.png"))
    if not pictures:
        raise FileNotFoundError(f"{images}: no pictures; give --dataset_dir a folder of scripts/prepare_busi.py")
    figures = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "pictures").mkdir()
            for number in range(size):
                (Path(folder) / "pictures" / f"{number}.png").symlink_to(pictures[number % len(pictures)])
            seconds, memory = _measure(folder, ckpt_dir.resolve())
            rows = (Path(folder) / "masks" / "predictions.csv").read_text(encoding="utf-8").count("\n") - 1
            if rows != size:
                raise ValueError(f"{rows} of {size} pictures in the table; see the command's log above")
        figures[str(size)] = {
            "seconds": round(seconds, 1),
            "pictures_a_second": round(size / seconds, 1),
            "peak_memory_mb": round(memory),
        }
        print(f"{size} pictures: {size / seconds:.1f} a second, peak memory {memory:.0f} MB", flush=True)
    if output:
        write_json(output, figures)
    return figures


def _measure(folder: str, ckpt_dir: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one run of the command."""
    paths = {"dataset_dir": f"{folder}/pictures", "output_dir": f"{folder}/masks", "ckpt_dir": ckpt_dir}
    command = [sys.executable, *bundle_arguments("run", "inference", **paths)]
    with open(f"{folder}/log", "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone, which getrusage cannot tell apart
        seconds = time.perf_counter() - start
    if status:
        raise ValueError(Path(f"{folder}/log").read_text(encoding="utf-8").strip().splitlines()[-1])
    return seconds, usage.ru_maxrss / 1024


if __name__ == "__main__":
    run(benchmark_folders)
