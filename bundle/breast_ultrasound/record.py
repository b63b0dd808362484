"""What a run was: versions, files by their hash, options, device, times and counts, as its output folder keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import bundle_version
from .files import NOTICE, RECORD, locked, sha256, write_json

if TYPE_CHECKING:  # a command that uses no network does without PyTorch
    import torch
    from ignite.engine import Engine

# Files in a folder that is given to a command, or that it writes, which tell what a result depends on
TOLD = ("model.pt", "calibration.json", "datalist.json", "metrics.json", "images.csv", "predictions.csv")


def versions() -> dict[str, str]:
    """Versions of what results depend on, the bundle's own among them."""
    return {"bundle": bundle_version(), **{name: metadata.version(name) for name in ("monai", "torch", "numpy")}}


def now() -> str:
    """Date and time (UTC) to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def run_facts(started: str, device: torch.device | str, inferer: Callable) -> dict:
    """What is told of any run of a network at its end.

    Args:
        started: its first moment, as ``now`` gave it.
        device: that it computed on.
        inferer: that called the network.

    Returns:
        ``started``, ``finished``, ``device``, ``bfloat16`` (whether the network computed in it), ``threads`` (of
        PyTorch, in each of the ``processes``), and ``options``: those of ``checks.RULES`` in force, empty outside of
        ``python -m monai.bundle``.
    """
    import torch
    import torch.distributed as dist

    from .checks import options_in_force
    from .inferers import AutocastInferer

    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else ""
    return {
        "started": started,
        "finished": now(),
        "device": f"{device} ({name})" if name else str(device),
        "bfloat16": isinstance(inferer, AutocastInferer) and inferer.enabled(device),
        "threads": torch.get_num_threads(),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "options": options_in_force(),
    }


def digests(files: Mapping[str, str | Mapping[str, object]]) -> dict[str, str | dict]:
    """``<name>_sha256`` of files by name; those that do not exist are left out. Of several under one name, by path."""
    found = {}
    for name, path in files.items():
        if isinstance(path, Mapping):
            found[f"{name}_sha256"] = {str(one): sha256(one) for one in path if Path(one).is_file()}
        elif Path(path).expanduser().is_file():
            found[f"{name}_sha256"] = sha256(Path(path).expanduser())
    return found


def write_record(folder: Path, command: str, started: str, options: Mapping[str, object], counts: object) -> None:
    """Write ``run.json`` of a command that runs no engine itself.

    Args:
        folder: of its results.
        command: its name.
        started: its first moment, as ``now`` gave it.
        options: all that it was called with, by name; of files, and of ``TOLD`` in folders, the hashes are told.
        counts: what it returned; whole numbers by name are told.
    """
    files: dict[str, dict[str, None]] = {}
    for name, value in options.items():
        for path in value if isinstance(value, (list, tuple)) else [value]:
            inside = [path, *(path / file for file in TOLD)] if isinstance(path, Path) else []
            files[name] = files.get(name, {}) | {str(one): None for one in inside if one.is_file()}
    whole = {k: v for k, v in counts.items() if type(v) is int} if isinstance(counts, Mapping) else {}
    told = {"notice": NOTICE, "command": command, "versions": versions()}
    told |= digests({name: paths for name, paths in files.items() if paths})
    told |= {"started": started, "finished": now(), "options": json.loads(json.dumps(options, default=str))}
    write_json(folder / RECORD, {**told, "counts": whole})


class RunRecord:
    """Handler of the engine of a training or an evaluation that writes ``run.json`` when the run is complete.

    It stands behind all others. Beside ``run_facts`` the file holds ``versions``, the ``digests`` of files, and counts.

    Args:
        output_dir: folder of the file.
        device: that the engine computes on.
        files: paths by name; hashed at the end, when the run has written its own.
        counts: whole numbers by name, such as images.
    """

    def __init__(
        self,
        output_dir: str,
        device: torch.device | str,
        files: Mapping[str, str | Mapping[str, object]],
        counts: Mapping[str, int],
    ) -> None:
        self.path = Path(output_dir).expanduser() / RECORD
        self.device = device
        self.files = files
        self.counts = counts
        self.started = ""

    def attach(self, engine: Engine) -> None:
        """Note the start, write at the end."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def alone(self, run: Callable[..., object], *given: object) -> None:
        """Call what runs the engine while no other training or evaluation writes to the folder.

        Raises:
            ValueError: another one does.
        """
        import torch.distributed as dist

        first = not dist.is_initialized() or dist.get_rank() == 0
        with locked(self.path.parent, "run", "--output_dir") if first else nullcontext():
            run(*given)

    def start(self, engine: Engine) -> None:
        """Note the time; what another run left there tells nothing of this one."""
        self.started = now()
        if engine.state.rank == 0:
            self.path.unlink(missing_ok=True)

    def write(self, engine: Engine) -> None:
        """Write on the first rank."""
        if engine.state.rank == 0:
            counts = {**self.counts, "epochs": engine.state.epoch}
            facts = {**run_facts(self.started, self.device, engine.inferer), "counts": counts}
            write_json(self.path, {"notice": NOTICE, "versions": versions(), **digests(self.files), **facts})
