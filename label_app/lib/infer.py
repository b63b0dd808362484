"""Mask and class of an image from the weights that serve."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from monai.transforms import CopyItemsd
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.transform.post import FindContoursd
from monailabel.transform.writer import Writer

from .errors import RequestError
from .models import Models

EXTENSIONS = (".png", ".nrrd", ".nii.gz", ".nii")  # of the mask; the last three as a volume of one slice


class PictureInfer(BundleInferTask):
    """The bundle's ``inference.json``, with the weights that serve in place of those beside it.

    Params of a request: ``result_extension`` (``.png`` by default, ``.nrrd`` and ``.nii.gz`` for 3D Slicer) and
    ``polygons`` (true adds the lesion's outlines to the answer, in the form that MONAI Label's plugin for CVAT reads;
    its own request, which has ``output`` ``json``, gets them as well). The page's ``probability_map`` adds
    ``probability_file`` to the answer: the lesion's probabilities as PNG (255 is 1), of the size of the mask.

    Args:
        models: names the bundle and the weights that serve.
    """

    def __init__(self, models: Models) -> None:
        super().__init__(str(models.bundle), {}, type=InferType.SEGMENTATION, add_post_restore=False, load_strict=True)
        self.models = models
        self._served: tuple = ()
        # A client could name any file with it.
        self._config.pop("model_filename")
        self._config |= {"result_extension": list(EXTENSIONS), "polygons": False}

    def get_path(self, validate: bool = True) -> str:
        """Path of the weights that serve."""
        return str(self.models.serving())

    def refresh(self) -> None:
        """Read the config anew where other weights serve: a calibration belongs to one file of weights."""
        path = self.get_path()
        served = path, os.stat(path).st_mtime_ns
        if served != self._served:
            self.bundle_config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
            self.bundle_config["ckpt_dir"] = str(Path(path).parent)
            self._networks.clear()
            self._served = served

    def pre_transforms(self, data=None) -> list:
        """As the bundle has them."""
        self.refresh()
        return super().pre_transforms(data)

    def post_transforms(self, data=None) -> list:
        """As the bundle has them; where a map is asked for, the probabilities are kept before they become a mask."""
        transforms = []
        for transform in super().post_transforms(data):
            if data and data.get("probability_map") and type(transform).__name__ == "LesionMaskd":
                transforms.append(CopyItemsd(keys="pred", names="lesion_probability"))
            transforms.append(transform)
        return transforms

    def network_and_picture(self, path: str, device: str) -> tuple[torch.nn.Module, torch.Tensor]:
        """The network in evaluation mode, and an image (1, 1, W, H) as it sees it."""
        item = {"image": path}
        for transform in self.pre_transforms({"device": device}):
            item = transform(item)
        picture = item["image"]
        picture = picture.as_tensor() if hasattr(picture, "as_tensor") else torch.as_tensor(picture)
        return self._get_network(device, None), picture[None].to(device)

    def writer(self, data, extension=None, dtype=None) -> tuple[str, dict]:
        """Write the mask, uint8, and give file and params of the answer: 255 is lesion in a PNG, 1 in a volume.

        Raises:
            RequestError: the client asks for another format.
        """
        mask = data["pred"]
        mask = np.asarray(mask.array if hasattr(mask, "array") else mask).astype(np.uint8)
        result = dict(data["result"])
        extension = extension or data.get("result_extension") or ".png"
        # MONAI Label's clients may send the list of choices back as they got it.
        extension = extension[0] if isinstance(extension, list) else extension
        if extension not in EXTENSIONS:
            raise RequestError(400, f"result_extension {extension!r} is not served; use {', '.join(EXTENSIONS)}")
        if data.get("polygons") or data.get("output") == "json":
            found = FindContoursd(keys="pred", labels=self.labels)({"pred": mask, "result": {}})
            result["annotations"] = [{"annotation": found["result"].get("annotation", {"elements": []})}]
        if "lesion_probability" in data:
            probability = np.asarray(data["lesion_probability"].cpu())[0]
            pixels = (255 * probability).round().astype(np.uint8)
            result["probability_file"] = Writer()({"pred": pixels, "result_extension": ".png", "logging": "WARNING"})[0]
        volume = 255 * mask if extension == ".png" else mask[..., None]
        content = {"pred": volume, "result_extension": extension, "logging": "WARNING"}
        return Writer(label="pred", json="result")({**content, "result": result})
