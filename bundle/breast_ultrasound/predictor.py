"""Predictions in Python: an array or a file in, mask and class out, as ``inference.json`` makes them.

Whatever needs the network's answer in Python takes it from here: it is the same one everywhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd
from PIL import Image

from . import BUNDLE
from .checks import RULES, option_problems
from .cli import PATHS, as_ids
from .command import first_cause
from .images import array_to_grey, check_contrast, check_pixels, to_contrasted_grey
from .input_check import facts_of
from .transforms import ImageFileReader, LesionMaskd, crop_to_box
from .uncertainty import image_uncertainty

AHEAD = 4  # images of a list that are read while the network works on others


class Prediction(NamedTuple):
    """What the network says of one image of (rows, columns) pixels.

    Attributes:
        mask: of the lesion, bool (rows, columns).
        lesion_probability: of each pixel, in [0, 1], float32 (rows, columns).
        class_name: the class with the largest probability.
        class_probabilities: by class name, sum 1; calibrated where the weights have a calibration.
        suspicious: whether the probability of the suspicious classes is at or above the operating point, or None.
        unsure: whether the largest probability is below the stored limit; None without calibration.
        disagreement: of mask and class, as ``transforms.Disagreementd`` words it; empty where they agree.
        check: ``ok``, or ``look`` where the image is unusual; ``refused`` with ``predict_refused`` alone.
        reason: why it is not ok, as ``input_check.InputCheckd`` words it.
    """

    mask: np.ndarray
    lesion_probability: np.ndarray
    class_name: str
    class_probabilities: dict[str, float]
    suspicious: bool | None
    unsure: bool | None
    disagreement: str
    check: str = "ok"
    reason: str = ""


class Predictor:
    """The bundle's inference, loaded once. Threads may share it.

    Attributes:
        config: ``inference.json`` with the ids given, a ``ConfigParser``.
        network: in evaluation mode, on ``device``.
        class_names: in the order of the class indices.
        mask_rule: the three values that turn a map into a mask: ``mask_threshold``, ``smallest_fraction`` and
            ``component_threshold``.

    Args:
        bundle: folder of the bundle.
        onnx_file: a network that ``scripts/export.py`` of the project exported, for ONNX Runtime in place of PyTorch.
        ids: ids of ``inference.json`` with other values, such as ``ckpt_dir``, ``device`` or ``component_threshold``.

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
        onnx = {} if onnx_file is None else {"onnx_file": onnx_file}
        given = {"bundle_root": bundle, **onnx, **ids}
        given = {name: _expanded(value) if name in PATHS else value for name, value in given.items()}
        self.config.update(as_ids(given))
        problems = option_problems(self.config, given)
        if problems:
            raise ValueError("\n".join(line.removeprefix("--") for line in problems))
        get = self.config.get_parsed_content
        try:
            get("checkpointloader")(None)
            get("network")
            get("calibration")
        except Exception as error:  # MONAI's own names an expression of the config
            cause = first_cause(error)
            raise cause from None
        self.network = get("network").eval()
        self.device, self.inferer = get("device"), get("inferer")
        self.class_names = list(get("class_names"))
        self.mask_rule = {name: get(name) for name in ("mask_threshold", "smallest_fraction", "component_threshold")}
        # PyTorch's threads on the CPU and those of a reader beside them would wait for each other.
        self.busy = onnx_file is None and torch.device(self.device).type == "cpu"
        self.prepare = get("preprocessing").transforms[1:]  # behind the reading of a file
        steps = get("postprocessing").transforms
        decided = steps.index(get("lesion_mask"))
        self.score, self.decide = steps[:decided], steps[decided : steps.index(get("save_mask"))]
        (self.invert,) = (step for step in self.score if isinstance(step, Invertd))

    def __call__(
        self, image: str | Path | np.ndarray | Image.Image | Sequence[object]
    ) -> Prediction | list[Prediction]:
        """Predict one image, or each of a list of them.

        Args:
            image: a file of any type that inference reads, DICOM among them (``FILE#FRAME`` for a frame of a cine); or
                an array or a tensor as ``images.array_to_grey`` takes it, upright, of any size; or a Pillow image; or
                an ultrasound ``pydicom.Dataset``, of a cine the middle frame; or a list of such.

        Raises:
            ValueError: an image cannot be read, or the input check refuses it, saying why; the id
                ``predict_refused=True`` predicts what is refused.
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
        """An image as the network takes it, ``image`` of shape (1, W, H), padded, and its own ``size`` (W, H)."""
        grey, box, facts = _grey(image)
        meta = facts if box is None else facts | {"box": box}
        whole = MetaTensor(torch.from_numpy(grey.T.astype(np.float32)), meta=meta)
        item = {"image": crop_to_box(whole), "size": whole.shape}
        for transform in self.prepare:
            item = transform(item)
        return item

    def restored(self, values: torch.Tensor, item: dict) -> np.ndarray:
        """Bring what was computed on an image as ``prepared`` left it back to the image's own pixels.

        Args:
            values: a map (1, W, H) of the padded image, such as one of Grad-CAM, without gradient.
            item: what ``prepared`` gave.

        Returns:
            the map (rows, columns), float32, bilinear, without what was padded.
        """
        found = self.invert({"image": item["image"], "pred": MetaTensor(values)})
        return np.asarray(found["pred"].reshape(item["size"]).cpu()).T

    def mask(
        self,
        lesion_probability: np.ndarray,
        *,
        mask_threshold: float | None = None,
        smallest_fraction: float | None = None,
        component_threshold: float | None = None,
    ) -> np.ndarray:
        """The mask of a map by the bundle's rule (``transforms.LesionMaskd``), as bool (rows, columns).

        Args:
            lesion_probability: float (rows, columns) in [0, 1], such as that of a ``Prediction``.
            mask_threshold: smallest probability of a lesion pixel, in (0, 1).
            smallest_fraction: area of the smallest part that is kept, as a fraction of the image, in [0, 1).
            component_threshold: smallest mean probability of a part that is kept, in [0, 1). Each of the three is that
                of ``mask_rule`` where it is not given.
        """
        given = dict(zip(self.mask_rule, (mask_threshold, smallest_fraction, component_threshold)))
        rule = {name: self.mask_rule[name] if value is None else value for name, value in given.items()}
        wrong = [
            f"{name} {value}: give {RULES[name].words}" for name, value in rule.items() if not RULES[name].fits(value)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        item = {"pred": torch.from_numpy(np.ascontiguousarray(lesion_probability))[None]}
        return LesionMaskd(*rule.values())(item)["pred"][0].numpy() > 0

    def uncertainty(self, image: str | Path | np.ndarray | Image.Image) -> float:
        """How hard an image is for the network, in [0, 1], as ``uncertainty.image_uncertainty`` measures it.

        Raises:
            ValueError: the image cannot be read, saying why.
            OSError: there is no such file.
        """
        batch = self.prepared(image)["image"].as_tensor()[None].to(self.device)
        return float(image_uncertainty(self.network, batch))

    def _predict(self, item: dict) -> Prediction:
        with torch.inference_mode():
            outputs = self.inferer(item["image"][None].to(self.device), self.network)
        item["pred"] = {name: value[0] for name, value in outputs.items()}
        for transform in self.score:
            item = transform(item)
        item["pred"] = item["pred"].reshape(1, *item["size"])  # MONAI drops a side of one pixel
        probability = np.asarray(item["pred"][0].cpu()).T
        for transform in self.decide:
            item = transform(item)
        result = item["result"]
        if "class" not in result:
            raise ValueError(f"refused, {result['reason']}; predict_refused=True predicts it all the same")
        return Prediction(
            mask=np.asarray(item["pred"][0].cpu()).T > 0,
            lesion_probability=probability,
            class_name=result["class"],
            class_probabilities={entry["label"]: entry["score"] for entry in result["classification"]},
            suspicious=result.get("suspicious"),
            unsure=result.get("unsure"),
            disagreement=result["disagreement"],
            check=result["check"],
            reason=result["reason"],
        )


def _expanded(path: object) -> object:
    """A path with ``~`` replaced; anything else as it is."""
    return os.path.expanduser(path) if isinstance(path, (str, os.PathLike)) else path


def _grey(image: object) -> tuple[np.ndarray, tuple[int, int, int, int] | None, dict]:
    """Any image as uint8 (rows, columns), the box of a DICOM object that shows tissue, and what the check notes."""
    if isinstance(image, torch.Tensor):
        image = image.numpy(force=True)
    if isinstance(image, np.ma.MaskedArray):
        raise ValueError("a masked array; pass its data with a value for what is masked: array.filled(0)")
    if isinstance(image, np.ndarray):
        grey = check_contrast(array_to_grey(image))
        return grey, None, facts_of(image, grey, None)
    if hasattr(image, "SOPClassUID"):
        from .dicom import open_dicom

        image = open_dicom(image)
    if isinstance(image, Image.Image):
        check_pixels(image.size)
        grey, box = to_contrasted_grey(image), image.info.get("box")
        return grey, box, facts_of(image, grey, box)
    if not isinstance(image, (str, os.PathLike)):
        kinds = "a file, a NumPy array, a tensor, a Pillow image or a pydicom.Dataset"
        raise ValueError(f"a {type(image).__name__}; pass {kinds}")
    found = ImageFileReader(to_contrasted_grey, look=True).read(_expanded(image))
    return np.asarray(found), found.info["box"], found.info["facts"]
