"""Which weights serve, and all that ever did."""

from __future__ import annotations

import functools
import json
import shutil
import threading
import time
from pathlib import Path

from breast_ultrasound.files import sha256, write_json, write_whole
from breast_ultrasound.predictor import Predictor
from breast_ultrasound.weights import settings_file, stored_settings


@functools.lru_cache(8)
def _digest(weights: Path, changed_ns: int) -> str:
    return sha256(weights)


class Models:
    """Weights of a bundle, only read, and those fine-tuned from them, in a folder of their own.

    The folder holds ``model.pt`` where fine-tuned weights serve, every model that was trained or replaced as
    ``model_<first digits of its SHA-256>.pt``, and ``history.json``, an entry for each training.

    Args:
        bundle: the bundle; nothing is written there.
        folder: where fine-tuned weights go.

    Raises:
        FileNotFoundError: the bundle has no weights.
    """

    def __init__(self, bundle: str | Path, folder: str | Path) -> None:
        self.bundle = Path(bundle)
        self.folder = Path(folder)
        self.shipped = self.bundle / "models" / "model.pt"
        self.own = self.folder / "model.pt"
        self.note = self.folder / ".training.json"
        if not self.shipped.is_file():
            raise FileNotFoundError(f"{self.shipped}: missing; train the bundle (README.md), or name one with weights")
        self.class_names = stored_settings(self.shipped)["class_names"]
        self._lock = threading.Lock()
        self._loaded: tuple = ()  # path and time of the weights in _predictors
        self._predictors: dict[str, Predictor] = {}

    def serving(self) -> Path:
        """The weights that answer now."""
        return self.own if self.own.is_file() else self.shipped

    def digest(self) -> str:
        """SHA-256 of the weights that answer now."""
        weights = self.serving()
        return _digest(weights, weights.stat().st_mtime_ns)

    def predictor(self, device: str = "") -> Predictor:
        """The bundle's inference with the weights that serve; loaded anew where others do.

        Args:
            device: of PyTorch, such as ``cpu``; a GPU by default, where there is one.

        Raises:
            ValueError: the weights are damaged.
        """
        weights = self.serving()
        loaded = weights, weights.stat().st_mtime_ns
        with self._lock:
            if loaded != self._loaded:
                self._predictors.clear()
                self._loaded = loaded
            if device not in self._predictors:
                ids = {"device": device} if device else {}
                # A person looks at each answer, and is told of the check
                ids |= {"predict_refused": True}
                self._predictors[device] = Predictor(self.bundle, ckpt_dir=str(weights.parent), **ids)
            return self._predictors[device]

    def history(self) -> list[dict]:
        """Entries of all trainings, oldest first."""
        file = self.folder / "history.json"
        try:
            return list(json.loads(file.read_text(encoding="utf-8"))["trainings"]) if file.is_file() else []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: damaged ({type(error).__name__}); restore it or move it away") from None

    def training_started(self) -> None:
        """Note that a training was asked for; a crash leaves the note behind."""
        write_json(self.note, {"time": time.strftime("%Y-%m-%d %H:%M:%S")})

    def training_ended(self) -> None:
        """Take the note away, whatever came out."""
        self.note.unlink(missing_ok=True)

    def training_cut_off(self) -> str:
        """When the training began that was cut off by the end of the server; empty where none was."""
        if not self.note.is_file():
            return ""
        try:
            return str(json.loads(self.note.read_text(encoding="utf-8"))["time"])
        except (ValueError, KeyError, TypeError):  # cut off with it
            return "an unknown time"

    def keep(self, weights: Path) -> Path:
        """Copy weights into the folder under a name of their own, and return it."""
        kept = self.folder / f"model_{sha256(weights)[:8]}.pt"
        if not kept.is_file():
            self._copy(weights, kept)
        return kept

    def _copy(self, weights: Path, target: Path) -> None:
        """Copy weights and then the settings beside them; between the two, they have none."""
        settings_file(target).unlink(missing_ok=True)
        write_whole(target, lambda path: shutil.copy(weights, path))
        if settings_file(weights).is_file():
            write_whole(settings_file(target), lambda path: shutil.copy(settings_file(weights), path))

    def add(self, entry: dict, weights: Path) -> None:
        """Note a training, and let its weights serve where the entry says ``promoted``.

        Every step is whole or did not happen; a process killed between two leaves the earlier weights serving.
        """
        self.keep(self.serving())
        kept = self.keep(weights)
        trainings = [*self.history(), {**entry, "model": kept.name}]
        write_json(self.folder / "history.json", {"trainings": trainings})
        if entry["promoted"]:
            self._copy(kept, self.own)
