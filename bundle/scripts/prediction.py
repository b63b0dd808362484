"""From the network's scores to a class with probabilities, and to the table of a folder."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform

from .files import write_csv


class ClassResultd(Transform):
    """Turn ``class_logits`` (K,) into ``class_probs`` (K,) and a plain ``result`` with class and probabilities.

    MONAI Label sends ``result`` to its clients along with the mask.

    Args:
        class_names: names in the order of the class indices.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the two entries added and the logits taken away."""
        item = dict(data)
        probabilities = torch.softmax(item.pop("class_logits").float(), dim=-1)
        item["class_probs"] = probabilities
        values = [round(float(p), 6) for p in probabilities]
        item["result"] = {
            "class": self.class_names[int(probabilities.argmax())],
            "classification": [{"label": name, "score": p} for name, p in zip(self.class_names, values)],
        }
        return item


class PredictionTable:
    """Handler of the inference engine that writes ``predictions.csv`` when all pictures are done.

    Columns: ``filename``, ``class``, ``p_<class>`` for each class (sum 1), ``lesion_area_px`` (pixels of the mask at
    the picture's own size).

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
            self.rows.append({**row, "lesion_area_px": int((item["pred"] > 0).sum())})

    def write(self, engine: Engine) -> None:
        """Write the table."""
        columns = ["filename", "class", *(f"p_{name}" for name in self.class_names), "lesion_area_px"]
        write_csv(self.path, self.rows, columns)
        engine.logger.info(f"{len(self.rows)} pictures: masks and {self.path.name} in {self.path.parent}")
