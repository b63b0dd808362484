"""A folder's predictions, table and what made it: noted batch by batch, written when all images are done."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from .data import image_name
from .files import NOTICE, append_csv, locked, read_csv, shown, write_csv, write_json
from .images import is_image_name, split_frame
from .record import digests, now, run_facts, versions

logger = logging.getLogger(__name__)


class PredictionTable:
    """Handler of the inference engine that writes ``predictions.csv`` when all images are done, and nothing else does.

    Beside it ``predictions.json`` tells what the rows depend on: ``source``, ``versions``, the ``digests`` of files,
    ``record.run_facts``, and the numbers of images with a prediction (``images``), without one (``refused``), of
    predicted ones to be looked at (``look``), of
    masks that ``component_threshold`` erased, and of images with further frames, which nothing looks at.

    Columns: ``filename`` (from ``root`` on), ``class``, ``p_<class>`` for each class (sum 1), ``lesion_area_px``
    (pixels of the mask at the image's own size), ``suspicious`` and ``unsure`` (yes, no; empty where the weights have
    no calibration), ``disagreement`` of mask and class (as ``Disagreementd`` words it, empty where there is none),
    ``check`` (ok, look, refused) and ``reason`` of the input check. What is refused, or cannot be read, has no other
    entries and is named in the log too. Every image has a row, or ``run`` fails.

    Each process notes its images batch by batch in a hidden file of its own, after their masks are written. The first
    one joins those of all processes at the end; after an interruption they say which images are done.

    Args:
        output_dir: folder of the table, locked from ``run`` on.
        class_names: names in the order of the class indices.
        images: as ``breast_ultrasound.data.list_images`` returns them.
        root: folder that the names of images are relative to.
        source: what predictions depend on, such as the hash of the weights, by name; a run with another one is not
            gone on with.
        network: what tells networks apart, such as their text; likewise.
        resume: whether to go on with an interrupted run.
        device: that the network computes on.
        files: paths by name, to be told by their hash.
        more_columns: of the table, filled from entries of these names in an image's ``result``.
        complete: fills in what only all rows together tell.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        images: Sequence[Mapping[str, str]],
        root: str,
        source: Mapping | None = None,
        network: str = "",
        resume: bool = False,
        device: torch.device | str = "cpu",
        files: Mapping[str, str] | None = None,
        more_columns: Sequence[str] = (),
        complete: Callable[[list[dict]], None] | None = None,
    ) -> None:
        self.started, self.device, self.files = now(), device, files or {}
        self.folder = Path(output_dir).expanduser()
        self.path, self.about = self.folder / "predictions.csv", self.folder / "predictions.json"
        probabilities = [f"p_{name}" for name in class_names]
        self.columns = ["filename", "class", *probabilities, "lesion_area_px", "suspicious", "unsure", "disagreement"]
        self.columns += ["check", "reason"]
        self.more_columns, self.complete = list(more_columns), complete
        self.columns += self.more_columns
        self.root = root
        self.images = {image_name(item["image"], root): dict(item) for item in images}
        self.versions = {name: _version(item["image"]) for name, item in self.images.items()}
        self.source = {**(source or {}), "versions": versions()}
        self.tag = hashlib.sha256(repr((self.source, network)).encode()).hexdigest()[:8]
        self.resume = resume
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def to_do(self) -> list[dict[str, str]]:
        """The images that an interrupted run has not finished; all where it is not to be gone on with."""
        done = self._done() if self.resume else {}
        if self.resume:
            logger.info(f"{self.folder}: {len(done)} images are done" if done else "nothing to resume")
        return [item for name, item in self.images.items() if name not in done]

    def run(self, evaluator: Engine) -> None:
        """Predict what is to be done and write the table; alone in the folder, and with a word where it is cut short.

        Raises:
            ValueError: where another run writes to the folder, or no image could be read.
            RuntimeError: where an image has neither a row nor a reason.
        """
        with locked(self.folder, "predictions", "--output_dir") if self.rank == 0 else nullcontext():
            self._start()
            try:
                if len(evaluator.data_loader.dataset):
                    evaluator.run()
            except BaseException:
                # Not by the log, which a command that is stopped silences
                done = f"{len(self._done())} of {len(self.images)} images are done, no table yet"
                print(f"{self.folder}: {done}", file=sys.stderr)
                raise
            self._wait()
            if self.rank == 0:
                self._write(evaluator)

    def attach(self, engine: Engine) -> None:
        """Note after each batch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Engine) -> None:
        """Note a row for each image of the batch, whose mask is written by then."""
        rows = []
        for batch, output in zip(engine.state.batch, engine.state.output):
            item = {**batch, **output}
            if "class" not in item["result"]:
                self.refuse(item["image"].meta["filename_or_obj"], item["result"]["reason"])
                continue
            name = image_name(item["image"].meta["filename_or_obj"], self.root)
            row = {"filename": name, "class": item["result"]["class"]}
            row |= {f"p_{entry['label']}": entry["score"] for entry in item["result"]["classification"]}
            row["lesion_area_px"] = int((item["pred"] > 0).sum())
            row |= {k: "yes" if item["result"][k] else "no" for k in ("suspicious", "unsure") if k in item["result"]}
            row |= {k: item["result"].get(k, "") for k in ("disagreement", "check", "reason", *self.more_columns)}
            mask = os.path.relpath(item["pred"].meta["saved_to"], self.folder)
            more = {
                "erased": int(item.get("erased", False)),
                "unseen_frames": int(item["image"].meta.get("unseen_frames", 0)),
            }
            rows.append(row | {"version": self.versions[name], "mask": mask, **more})
        self._append(rows)

    def refuse(self, image: str, reason: str) -> None:
        """Name an image that has no prediction, in the log and for the count at the end."""
        logger.error(f"{shown(image)}: no prediction, {reason}")
        self._append([{"filename": image_name(image, self.root), "check": "refused", "reason": reason}])

    def _append(self, rows: list[dict]) -> None:
        append_csv(self._note(self.rank), rows, self._note_columns())

    def _start(self) -> None:
        """Forget other runs, once every process has asked for the images that are done."""
        self._wait()
        if self.rank == 0:
            notes = list(self.folder.glob(".predictions_*.csv"))
            kept = list(self._done().values()) if self.resume else []
            if notes and not kept:
                logger.warning(f"{self.folder}: an interrupted run is made anew; --resume True goes on with one")
            # Written anew, since the last line of a file may have been cut off.
            write_csv(self._note("done"), kept, self._note_columns())
            for file in notes:
                if file != self._note("done"):
                    file.unlink()
            for file in (self.path, self.about):
                file.unlink(missing_ok=True)  # its masks are about to change
        self._wait()

    def _write(self, evaluator: Engine) -> None:
        """Write the table of all processes, and what made it."""
        noted = self._noted()
        missing = [name for name in self.images if name not in noted]
        if missing:
            raise RuntimeError(
                f"{self.folder}: {len(missing)} of {len(self.images)} images have no prediction, {shown(missing[0])} "
                "among them; the same command with --resume True goes on"
            )
        table = [noted[name] for name in sorted(noted)]
        rows = [row for row in table if row["class"]]
        refused = len(noted) - len(rows)
        if not rows:
            raise ValueError(f"{self.root}: none of {len(noted)} images can be predicted; pass another --dataset_dir")
        counts = {"images": len(rows), "refused": refused, "look": sum(row["check"] == "look" for row in rows)}
        counts |= {"erased_masks": sum(row["erased"] == "1" for row in rows)}
        counts["of_several_frames"] = sum(row["unseen_frames"] == "1" for row in rows)
        if self.complete:
            self.complete(rows)
        facts = {**digests(self.files), **run_facts(self.started, self.device, evaluator.inferer)}
        write_json(self.about, {"notice": NOTICE, **counts, **self.source, **facts})
        write_csv(self.path, table, self.columns)
        for file in self.folder.glob(".predictions_*.csv"):
            file.unlink()
        named = f"; {refused} without prediction, named above" if refused else ""
        logger.info(f"{len(rows)} of {len(noted)} images: masks and {self.path.name} in {self.folder}{named}")
        if counts["look"]:
            logger.info(f"{counts['look']} of {len(rows)} are unusual: look at them, {self.path.name} says why")
        if counts["erased_masks"]:
            logger.info(f"{counts['erased_masks']} of {len(rows)} masks erased: doubtful by component_threshold")
        if counts["of_several_frames"]:
            logger.warning(
                f"images of several frames (pages), of which the first counts: {counts['of_several_frames']}"
            )
        masks = {self.folder / row["mask"] for row in rows}
        others = [f for d in {m.parent for m in masks} for f in d.iterdir() if is_image_name(f) and f not in masks]
        if others:
            logger.warning(
                f"{self.folder}: {len(others)} more images there are not of this run: {shown(others[0].name)}..."
            )

    def _note(self, name: object) -> Path:
        return self.folder / f".predictions_{self.tag}_{name}.csv"

    def _note_columns(self) -> list[str]:
        return [*self.columns, "version", "mask", "erased", "unseen_frames"]

    def _noted(self) -> dict[str, dict[str, str]]:
        """The rows of all processes by name."""
        files = sorted(self.folder.glob(self._note("*").name))
        rows = [row for file in files for row in read_csv(file) if None not in row.values()]
        return {row["filename"]: row for row in rows if row["filename"] in self.images}

    def _done(self) -> dict[str, dict[str, str]]:
        """The rows whose image is the same file as then and whose mask is there."""
        return {
            name: row
            for name, row in self._noted().items()
            if row["version"] == self.versions[name] and (self.folder / (row["mask"] or "?")).is_file()
        }

    @staticmethod
    def _wait() -> None:
        if dist.is_initialized():
            dist.barrier()


def _version(file: str) -> str:
    """What shows whether a file is still the same: its path, size and time of change; empty where it is gone."""
    try:
        status = os.stat(split_frame(file)[0])
    except OSError:
        return ""
    return f"{os.path.abspath(file)} {status.st_size} {status.st_mtime_ns}"
