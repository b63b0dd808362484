"""From the network's scores to a class with probabilities, and to the table of a folder."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform

from .calibration import NEUTRAL
from .files import write_csv


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
    """Turn the mask's probabilities ``pred`` (2, M, N) into the lesion mask (1, M, N), 0 or 1, uint8.

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
        mask = (item["pred"][1:] >= self.threshold).to(torch.uint8)
        if float(item["class_probs"][0]) > self.normal_gate:
            mask = torch.zeros_like(mask)
        smallest = self.smallest_share * mask[0].numel()
        if smallest > 1 and mask.any():
            _, parts, stats, _ = cv2.connectedComponentsWithStats(np.asarray(mask[0].cpu()), connectivity=8)
            small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < smallest)
            mask[0][torch.as_tensor(np.isin(parts, small[small > 0]), device=mask.device)] = 0
        item["pred"] = mask
        return item


class PredictionTable:
    """Handler of the inference engine that writes ``predictions.csv`` when all pictures are done.

    Columns: ``filename``, ``class``, ``p_<class>`` for each class (sum 1), ``lesion_area_px`` (pixels of the mask at
    the picture's own size), ``suspicious`` and ``unsure`` (yes, no; empty where the weights have no calibration).

    Args:
        output_dir: folder of the table.
        class_names: names in the order of the class indices.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str]) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.class_names = list(class_names)
        self.rows: list[dict] = []

    def attach(self, engine: Engine) -> None:
        """Collect after each batch, write at the end."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        """Add a row for each picture of the batch."""
        for batch, output in zip(engine.state.batch, engine.state.output):
            item = {**batch, **output}
            row = {"filename": Path(str(item["image"].meta["filename_or_obj"])).name, "class": item["result"]["class"]}
            row |= {f"p_{entry['label']}": entry["score"] for entry in item["result"]["classification"]}
            row["lesion_area_px"] = int((item["pred"] > 0).sum())
            row |= {k: "yes" if item["result"][k] else "no" for k in ("suspicious", "unsure") if k in item["result"]}
            self.rows.append(row)

    def write(self, engine: Engine) -> None:
        """Write the table."""
        columns = [
            "filename",
            "class",
            *(f"p_{name}" for name in self.class_names),
            "lesion_area_px",
            "suspicious",
            "unsure",
        ]
        write_csv(self.path, self.rows, columns)
        engine.logger.info(f"{len(self.rows)} pictures: masks and {self.path.name} in {self.path.parent}")
