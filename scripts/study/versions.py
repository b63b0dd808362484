"""Whether the bundle runs with other versions than the pinned ones: each row of `ROWS` in an environment of its own."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from command_line import BUNDLE, ROOT, bundle_arguments

from scripts.files import read_csv, write_json

PACKAGES = ("monai", "torch", "numpy", "pytorch-ignite")
SHOWN = ("name", "python", *PACKAGES, "outcome", "error")
SMALL = {"image_size": 64, "features": "[8,8,16,16,32,8]", "epochs": 2, "batch_size": 4}


@dataclass(frozen=True)
class Row:
    """An interpreter and what is installed for it.

    Args:
        name: what the table calls it.
        python: version of the interpreter, found on the PATH as `python<version>`.
        versions: of the packages of `metadata.json` by name, the others the newest that fit them; without any, what
            `requirements.txt` pins.
    """

    name: str
    python: str
    versions: dict[str, str] | None = None

    def requirements(self) -> list[str]:
        """What pip is asked to install."""
        if self.versions is None:
            return ["-r", "requirements.txt"]
        metadata = json.loads((BUNDLE / "configs/metadata.json").read_text(encoding="utf-8"))
        versions = dict.fromkeys(["monai", "torch", "numpy", *metadata["required_packages_version"]]) | self.versions
        return [f"{name}=={version}" if version else name for name, version in versions.items()]


# The first row is what the predictions of the others are compared with. MONAI 1.5 asks for PyTorch 2.4.1 or newer.
ROWS = (
    Row("pinned", "3.11"),
    Row("pinned", "3.12"),
    Row("pinned", "3.13"),
    Row("newest", "3.13", {}),
    Row("newest", "3.10", {}),
    Row("oldest", "3.10", {"monai": "1.5.0", "torch": "2.4.1", "numpy": "1.26.4"}),
    Row("older", "3.10", {"monai": "1.4.0", "torch": "2.4.1", "numpy": "1.26.4"}),
)


class Failed(Exception):
    """A command of a row failed; the message is the last line of its output."""


def try_versions(folder: Path, output: Path, rows: tuple[Row, ...] = ROWS) -> None:
    """Build each row's environment, go from phantoms to predictions in it, and remove it.

    Args:
        folder: for the environments; one takes up to 8 GB while it is there.
        output: JSON file to write, with an entry for each row: versions, `works` or the step that failed with its
            error, seconds of the steps after the installation, and how far a probability of the released weights is
            from that of the first row.
        rows: what to try.

    Raises:
        ValueError: an interpreter is not on the PATH, or the first row does not work.
    """
    interpreters = {row.python: shutil.which(f"python{row.python}") for row in rows}
    missing = [f"python{version}" for version, path in interpreters.items() if path is None]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not on the PATH; pyenv and uv install interpreters")
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            found.append(_try(row, interpreters[row.python], Path(inner)))
        print(", ".join(f"{key} {found[-1].get(key, '')}" for key in SHOWN), flush=True)
        if found[0]["outcome"] != "works":
            raise ValueError(
                f"{row.name}: {found[0]['outcome']} ({found[0]['error']}); the others need its predictions"
            )
    first = found[0]["probabilities"]
    for entry in found:
        own = entry.pop("probabilities", {})
        entry["largest_probability_difference"] = max((abs(own[key] - first[key]) for key in own), default=None)
    write_json(output, found)


def _try(row: Row, interpreter: str, folder: Path) -> dict:
    """The entry of one row, and the probabilities of its predictions."""
    entry = {"name": row.name, "date": datetime.date.today().isoformat(), "python": row.python}
    python, step, start = str(folder / "venv/bin/python"), "installation", time.monotonic()
    try:
        _run(interpreter, "-m", "venv", folder / "venv")
        _run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--prefer-binary", *row.requirements())
        entry["python"] = _run(python, "-c", "import platform; print(platform.python_version())").strip()
        packages = {p["name"]: p["version"] for p in json.loads(_run(python, "-m", "pip", "list", "--format", "json"))}
        entry |= {name: packages[name].partition("+")[0] for name in PACKAGES}
        start = time.monotonic()
        for step, arguments in _steps(folder, row.versions is None).items():
            _run(python, *arguments)
        rows = read_csv(folder / "predictions/predictions.csv")
        numbers = {f"{r['filename']} {key}": float(r[key]) for r in rows for key in r if key.startswith("p_")}
        entry |= {"outcome": "works", "error": "", "probabilities": numbers}
    except Failed as error:
        entry |= {"outcome": f"{step} fails", "error": str(error)}
    return entry | {"seconds": round(time.monotonic() - start)}


def _steps(folder: Path, project: bool) -> dict[str, list]:
    """What follows `python` from nothing to predictions, by step; with all packages of the project to drawings."""
    data, predictions = folder / "prepared", folder / "predictions"
    places = {"dataset_dir": data, "ckpt_dir": folder / "models", "output_dir": folder / "evaluation"}
    shown = ["--predictions", predictions, "--images", data / "images", "--output_dir", folder / "drawings"]
    steps = {
        "phantoms": ["scripts/make_phantoms.py", "--output_dir", folder / "phantoms", "--count", 12],
        "conversion": ["scripts/prepare_busi.py", "--source", folder / "phantoms", "--output_dir", data],
        "training": bundle_arguments("training", "train", **places, **SMALL),
        "evaluation": bundle_arguments("evaluating", ["train", "evaluate"], **places),
        # By the released weights, in single precision everywhere
        "prediction": bundle_arguments(
            "run", "inference", dataset_dir=data / "images", output_dir=predictions, amp=False
        ),
    }
    return {**steps, "drawing": ["scripts/show_predictions.py", *shown]} if project else steps


def _run(*command: object) -> str:
    """Run a command in the repository's root, on the CPU with one thread, and return what it prints.

    Raises:
        Failed: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    texts = [str(part) for part in command]
    done = subprocess.run(texts, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Failed(lines[-1] if lines else f"exit status {done.returncode}")
    return done.stdout
