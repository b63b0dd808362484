"""MONAI Label's inference task: the bundle's ``Predictor``, and its answers in the formats of MONAI Label's clients."""

from __future__ import annotations

import json

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.post import FindContoursd
from monailabel.transform.writer import Writer
from monailabel.utils.others.generic import device_list

from breast_ultrasound.predictor import Prediction

from .errors import RequestError
from .models import Models

EXTENSIONS = (".png", ".nrrd", ".nii.gz", ".nii")  # of the mask; the last three as a volume of one slice


def answer(prediction: Prediction) -> dict:
    """What clients get along with the mask; what needs a calibration only where there is one."""
    found = {
        "class": prediction.class_name,
        "classification": [{"label": k, "score": p} for k, p in prediction.class_probabilities.items()],
        "suspicious": prediction.suspicious,
        "unsure": prediction.unsure,
        "disagreement": prediction.disagreement,
        "check": prediction.check,
        "reason": prediction.reason,
    }
    return {name: value for name, value in found.items() if value is not None}


class ImageInfer(InferTask):
    """The bundle's inference with the weights that serve.

    Params of a request: ``result_extension`` (``.png`` by default, ``.nrrd`` and ``.nii.gz`` for 3D Slicer) and
    ``polygons`` (true adds the lesion's outlines to the answer, in the form that MONAI Label's plugin for CVAT reads;
    its own request, which has ``output`` ``json``, gets them as well).

    Args:
        models: the bundle and the weights that serve.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        metadata = json.loads((models.bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        self.version = metadata["version"]
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        labels = {name: int(channel) for channel, name in channels.items() if name != "background"}
        config = {"device": device_list(), "result_extension": list(EXTENSIONS), "polygons": False}
        super().__init__(InferType.SEGMENTATION, labels, 2, metadata["description"], config)

    def info(self) -> dict:
        """What clients are told of the model."""
        return {**super().info(), "version": self.version}

    def is_valid(self) -> bool:
        """Whether the model answers: it does, or the server would not have started."""
        return True

    def get_path(self, validate: bool = True) -> str:
        """Path of the weights that serve."""
        return str(self.models.serving())

    def __call__(self, request: dict) -> tuple[str, dict]:
        """Predict ``request["image"]``, as ``Predictor`` takes it, and give the mask's file and the answer's params.

        Raises:
            RequestError: the client asks for another format.
            ValueError: the image cannot be read.
        """
        extension = request.get("result_extension") or ".png"
        # MONAI Label's clients may send the list of choices back as they got it.
        extension = extension[0] if isinstance(extension, list) else extension
        if extension not in EXTENSIONS:
            raise RequestError(400, f"result_extension {extension!r} is not served; use {', '.join(EXTENSIONS)}")
        prediction = self.models.predictor(request.get("device") or "")(request["image"])
        mask = prediction.mask.T.astype(np.uint8)  # MONAI Label's order: columns, rows
        params = {**answer(prediction), "label_names": self.labels}
        if request.get("polygons") or request.get("output") == "json":
            found = FindContoursd(keys="pred", labels=self.labels)({"pred": mask, "result": {}})
            params["annotations"] = [{"annotation": found["result"].get("annotation", {"elements": []})}]
        volume = 255 * mask if extension == ".png" else mask[..., None]  # 255 is lesion in a PNG, 1 in a volume
        content = {"pred": volume, "result": params, "result_extension": extension, "logging": "WARNING"}
        return Writer(label="pred", json="result")(content)
