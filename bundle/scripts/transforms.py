"""From a file to grey pixels, and from the network's scores to a mask and a class with probabilities."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.networks.layers import gaussian_1d
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor
from PIL import Image

from .calibration import NEUTRAL


def to_grey(picture: Image.Image) -> Image.Image:
    """Turn a picture of any mode into 8-bit grey: a ``converter`` for MONAI's ``PILReader``.

    Colour is weighted as in ITU-R BT.601 (Pillow's ``L``) and alpha is ignored. 16-bit and float pictures, which
    Pillow would clip at 255, are scaled by their own largest value when that is above 255.
    """
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0).clip(min=0)
        largest = values.max(initial=0)
        return Image.fromarray((values * (255 / largest if largest > 255 else 1)).round().astype(np.uint8))
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGB")
    return picture.convert("L")


def to_mask(picture: Image.Image) -> Image.Image:
    """Turn a mask of any mode into 0 and 255 with the threshold in the middle, for MONAI's ``PILReader``."""
    return to_grey(picture).point(lambda value: 255 if value > 127 else 0)


class AntiAliasd(MapTransform):
    """Smooth pictures (C, M, N) that ``Resized`` is to shrink next, to the same values as its own ``anti_aliasing``.

    The standard deviation is (factor of shrinking - 1) / 2 pixels along each side, as in ``skimage.transform.resize``.
    MONAI's general convolution took more than half of the time of an inference; OpenCV's filter takes a tenth of that.

    Args:
        keys: of the pictures.
        spatial_size: size (M, N) that they get next, in pixels.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = spatial_size

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return a copy of the item with smoothed pictures, float32."""
        item = dict(data)
        for key in self.key_iterator(item):
            picture = item[key]
            factors = [side / target for side, target in zip(picture.shape[1:], self.spatial_size)]
            if max(factors) > 1:
                rows, columns = (gaussian_1d(torch.tensor(max(0.0, (f - 1) / 2))).numpy() for f in factors)
                channels = np.asarray(picture, dtype=np.float32)
                smooth = [cv2.sepFilter2D(c, -1, columns, rows, borderType=cv2.BORDER_CONSTANT) for c in channels]
                item[key] = convert_to_dst_type(np.stack(smooth), picture, dtype=torch.float32)[0]
        return item


class SplitOutputsd(Transform):
    """Lay the dictionaries of the network and of ``prepare_batch`` flat, since MONAI's transforms take tensors.

    ``pred`` of ``{pred, class_logits}`` and, where there is one, ``label`` of ``{label, class}`` become the entries
    ``pred``, ``class_logits``, ``label`` and ``true_class``, without metadata.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entries laid flat."""
        item = dict(data)
        outputs, targets = item["pred"], item.get("label")
        item |= {"pred": convert_to_tensor(outputs["pred"]), "class_logits": outputs["class_logits"]}
        if targets is not None:
            item |= {"label": convert_to_tensor(targets["label"]), "true_class": targets["class"]}
        return item


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
