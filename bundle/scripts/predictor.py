"""Predictions in Python: an array or a file in, mask and class out, as ``inference.json`` makes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image

from .transforms import ImageFileReader, array_to_grey, check_contrast, to_contrasted_grey

BUNDLE = Path(__file__).resolve().parents[1]
AHEAD = 4  # images of a list that are read while the network works on others


class Prediction(NamedTuple):
    """What the network says of one image of (rows, columns) pixels.

    Attributes:
        mask: of the lesion, bool (rows, columns).
        lesion_probability: of each pixel, in [0, 1], float32 (rows, columns).
        class_name: the class with the largest probability.
        class_probabilities: by class name, sum 1; calibrated where the weights have a calibration.
        suspicious: whether the probability of malignant is at or above the operating point; None without calibration.
        unsure: whether the largest probability is below the stored limit; None without calibration.
        disagreement: of mask and class, as ``scripts.transforms.Disagreementd`` words it; empty where they agree.
    """

    mask: np.ndarray
    lesion_probability: np.ndarray
    class_name: str
    class_probabilities: dict[str, float]
    suspicious: bool | None
    unsure: bool | None
    disagreement: str


class Predictor:
    """The bundle's inference, loaded once. Threads may share it.

    Args:
        bundle: folder of the bundle.
        onnx_file: a network that ``scripts/export.py`` of the project exported, for ONNX Runtime in place of PyTorch.
        ids: ids of ``inference.json`` with other values, such as ``ckpt_dir``, ``device`` or ``part_threshold``.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: an id is unknown, or the weights are damaged or belong to other settings.
    """

    def __init__(self, bundle: str | Path = BUNDLE, onnx_file: str | Path | None = None, **ids: object) -> None:
        names = ["inference"] + ["inference_onnx"] * (onnx_file is not None)
        files = [str(Path(bundle) / "configs" / f"{name}.json") for name in names]
        self.config = ConfigParser(ConfigParser.load_config_files(files))
        unknown = [name for name in ids if name not in self.config]
        if unknown:
            raise ValueError(f"{unknown[0]}: no id of {files[0]}; docs/reference.md of the bundle explains them")
        onnx = {} if onnx_file is None else {"onnx_file": str(onnx_file)}
        self.config.update({"bundle_root": str(bundle), **onnx, **ids})
        get = self.config.get_parsed_content
        get("checkpointloader")(None)
        self.network = get("network").eval()
        self.device, self.inferer = get("device"), get("inferer")
        # PyTorch's threads on the CPU and those of a reader beside them would wait for each other.
        self.busy = onnx_file is None and torch.device(self.device).type == "cpu"
        self.prepare = get("preprocessing").transforms[1:]  # behind the reading of a file
        steps = get("postprocessing").transforms
        decided = steps.index(get("lesion_mask"))
        self.score, self.decide = steps[:decided], steps[decided : steps.index(get("save_mask"))]

    def __call__(
        self, image: str | Path | np.ndarray | Image.Image | Sequence[object]
    ) -> Prediction | list[Prediction]:
        """Predict one image, or each of a list of them.

        Args:
            image: a file of any type that inference reads; or an array as ``scripts.transforms.array_to_grey`` takes
                it, upright, of any size; or a Pillow image; or a list of such.

        Raises:
            ValueError: an image cannot be read, saying why.
            OSError: there is no such file.
        """
        if isinstance(image, (list, tuple)):
            return [self._predict(item) for item in self._items(image)]
        return self._predict(self.prepared(image))

    def _items(self, images: Sequence[object]) -> Iterator[dict]:
        """Prepare images, some of them ahead in a thread of its own where that thread is free."""
        if self.busy:
            yield from map(self.prepared, images)
            return
        with ThreadPoolExecutor(1) as pool:
            waiting: deque = deque()
            for image in images:
                waiting.append(pool.submit(self.prepared, image))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def prepared(self, image: str | Path | np.ndarray | Image.Image) -> dict:
        """An image as the network takes it: ``{"image": tensor}`` of shape (1, W, H), padded."""
        item = {"image": MetaTensor(torch.from_numpy(_grey(image).T.astype(np.float32)))}
        for transform in self.prepare:
            item = transform(item)
        return item

    def _predict(self, item: dict) -> Prediction:
        with torch.inference_mode():
            outputs = self.inferer(item["image"][None].to(self.device), self.network)
        item["pred"] = {name: value[0] for name, value in outputs.items()}
        for transform in self.score:
            item = transform(item)
        probability = np.asarray(item["pred"][0].cpu()).T
        for transform in self.decide:
            item = transform(item)
        result = item["result"]
        return Prediction(
            mask=np.asarray(item["pred"][0].cpu()).T > 0,
            lesion_probability=probability,
            class_name=result["class"],
            class_probabilities={entry["label"]: entry["score"] for entry in result["classification"]},
            suspicious=result.get("suspicious"),
            unsure=result.get("unsure"),
            disagreement=result["disagreement"],
        )


def _grey(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """Any image as uint8 (rows, columns)."""
    if isinstance(image, np.ndarray):
        return check_contrast(array_to_grey(image))
    if isinstance(image, Image.Image):
        return to_contrasted_grey(image)
    return np.asarray(ImageFileReader(to_contrasted_grey).read(image))
