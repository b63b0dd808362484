"""From the network's scores to a class with probabilities, and to the table of a folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.transforms import Transform

from .calibration import NEUTRAL
from .files import append_csv, read_csv, write_csv

logger = logging.getLogger(__name__)


class ClassResultd(Transform):
    """Turn ``class_logits`` (K,) into ``class_probs`` (K,) and a plain ``result`` with class and probabilities.

    MONAI Label sends ``result`` to its clients along with the mask. With a calibration, ``result`` also says whether
    the picture is ``suspicious`` (probability of malignancy at or above the stored operating point) and whether the
    class is ``unsure`` (largest probability below the stored limit).

    Args:
        class_names: names in the order of the class indices.
        calibration: as ``scripts.calibration.load_calibration`` returns it; none leaves the probabilities as they are.
    """

    def __init__(self, class_names: Sequence[str], calibration: Mapping[str, float | None] | None = None) -> None:
        self.class_names = list(class_names)
        self.calibration = {**NEUTRAL, **(calibration or {})}

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the two entries added and the logits taken away."""
        item = dict(data)
        probabilities = torch.softmax(item.pop("class_logits").float() / self.calibration["temperature"], dim=-1)
        item["class_probs"] = probabilities
        values = [round(float(p), 6) for p in probabilities]
        item["result"] = {
            "class": self.class_names[int(probabilities.argmax())],
            "classification": [{"label": name, "score": p} for name, p in zip(self.class_names, values)],
        }
        if self.calibration["malignancy_threshold"] is not None:
            malignant = values[self.class_names.index("malignant")]
            item["result"]["suspicious"] = malignant >= self.calibration["malignancy_threshold"]
        if self.calibration["unsure_below"] is not None:
            item["result"]["unsure"] = max(values) < self.calibration["unsure_below"]
        return item


class LesionMaskd(Transform):
    """Turn the lesion's probabilities ``pred`` (1, M, N) into its mask (1, M, N), 0 or 1, uint8.

    Args:
        threshold: smallest probability of a lesion pixel, in (0, 1).
        smallest_share: connected parts (8 neighbours) of a smaller share of the picture are erased, in [0, 1).
        normal_gate: probability of class 0 (normal) above which the whole mask is erased; 1 never erases it.
    """

    def __init__(self, threshold: float = 0.5, smallest_share: float = 0.0, normal_gate: float = 1.0) -> None:
        self.threshold = threshold
        self.smallest_share = smallest_share
        self.normal_gate = normal_gate

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with ``pred`` replaced; it must hold ``class_probs`` as well."""
        item = dict(data)
        mask = (item["pred"] >= self.threshold).to(torch.uint8)
        if float(item["class_probs"][0]) > self.normal_gate:
            mask = torch.zeros_like(mask)
        smallest = self.smallest_share * mask[0].numel()
        if smallest > 1 and mask.any():
            column, row, width, height = cv2.boundingRect(np.asarray(mask[0].cpu()))  # the rest holds no part
            lesion = mask[0, row : row + height, column : column + width]
            _, parts, stats, _ = cv2.connectedComponentsWithStats(np.asarray(lesion.cpu()), connectivity=8)
            kept = (stats[:, cv2.CC_STAT_AREA] >= smallest).astype(np.uint8)
            kept[0] = 0  # what lies between the parts
            lesion.copy_(torch.as_tensor(kept[parts]))
        item["pred"] = mask
        return item


class PredictionTable:
    """Handler of the inference engine that writes ``predictions.csv`` when all pictures are done.

    Columns: ``filename``, ``class``, ``p_<class>`` for each class (sum 1), ``lesion_area_px`` (pixels of the mask at
    the picture's own size), ``suspicious`` and ``unsure`` (yes, no; empty where the weights have no calibration).

    Each process notes its pictures batch by batch in a hidden file of its own. The first one joins those of all
    processes at the end; after an interruption they say which pictures are done.

    Args:
        output_dir: folder of the table.
        class_names: names in the order of the class indices.
        source: what the answers depend on, such as the hash of the weights; a run with another one is not gone on with.
        resume: whether to go on with an interrupted run.
    """

    def __init__(
        self, output_dir: str, class_names: Sequence[str], source: Mapping | None = None, resume: bool = False
    ) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        probabilities = [f"p_{name}" for name in class_names]
        self.columns = ["filename", "class", *probabilities, "lesion_area_px", "suspicious", "unsure"]
        self.tag = hashlib.sha256(repr(source).encode()).hexdigest()[:8]
        self.resume = resume
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def done(self) -> set[str]:
        """File names of the pictures that an interrupted run has finished; none where it is not to be gone on with."""
        if not self.resume:
            return set()
        found = {row["filename"] for row in self._noted()}
        logger.info(f"{self.path.parent}: {len(found)} pictures are done" if found else "nothing to resume")
        return found

    def attach(self, engine: Engine) -> None:
        """Note after each batch, write at the end."""
        engine.add_event_handler(Events.STARTED, lambda _: self.start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.write())

    def start(self) -> None:
        """Forget other runs, once every process has asked for the pictures that are done."""
        self._wait()
        if self.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._noted() if self.resume else []
            # Written anew, since the last line of a file may have been cut off.
            write_csv(self._note("done"), kept, self.columns)
            for file in self.path.parent.glob(".predictions_*"):
                if file != self._note("done"):
                    file.unlink()
        self._wait()

    def collect(self, engine: Engine) -> None:
        """Note a row for each picture of the batch, whose mask is written by then."""
        rows = []
        for batch, output in zip(engine.state.batch, engine.state.output):
            item = {**batch, **output}
            row = {"filename": Path(str(item["image"].meta["filename_or_obj"])).name, "class": item["result"]["class"]}
            row |= {f"p_{entry['label']}": entry["score"] for entry in item["result"]["classification"]}
            row["lesion_area_px"] = int((item["pred"] > 0).sum())
            row |= {k: "yes" if item["result"][k] else "no" for k in ("suspicious", "unsure") if k in item["result"]}
            rows.append(row)
        append_csv(self._note(self.rank), rows, self.columns)

    def write(self) -> None:
        """Write the table of all processes."""
        self._wait()
        if self.rank == 0:
            rows = sorted(self._noted(), key=lambda row: row["filename"])
            write_csv(self.path, rows, self.columns)
            for file in self.path.parent.glob(".predictions_*"):
                file.unlink()
            logger.info(f"{len(rows)} pictures: masks and {self.path.name} in {self.path.parent}")

    def write_without_pictures(self) -> None:
        """Take part in what the other processes do, or end an interrupted run, where no picture is left."""
        self.start()
        self.write()

    def _note(self, name: object) -> Path:
        return self.path.with_name(f".predictions_{self.tag}_{name}.csv")

    def _noted(self) -> list[dict[str, str]]:
        """The rows of all files; a picture counts once."""
        files = sorted(self.path.parent.glob(self._note("*").name))
        return list({row["filename"]: row for file in files for row in read_csv(file)}.values())

    @staticmethod
    def _wait() -> None:
        if dist.is_initialized():
            dist.barrier()
