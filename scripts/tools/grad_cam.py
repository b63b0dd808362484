"""Explanations of a prediction: Grad-CAM of the class, the mask's probabilities, how well a map meets the lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.visualize import GradCAM
from tools.cli import BUNDLE
from torch import nn

from breast_ultrasound.predictor import Predictor


class ClassScores(nn.Module):
    """The network with the class scores (B, K) as its only output, as MONAI's `GradCAM` expects."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score images (B, 1, M, N)."""
        return self.network(x)["class_logits"]


class Explainer:
    """Maps of what the bundle's inference sees in an image.

    Args:
        ckpt_dir: folder with `model.pt`.
        options: ids of bundle/configs/inference.json with other values, such as `image_size=128`.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights belong to another network.
    """

    def __init__(self, ckpt_dir: Path, **options: object) -> None:
        self.predictor = Predictor(BUNDLE, ckpt_dir=str(ckpt_dir), **options)
        self.class_names = self.predictor.class_names
        self.layer = self.predictor.network.deepest_layer
        # MONAI's own scaling turns the map over, and scaled per image it has no zero any more. In training mode it
        # would switch the network back to training after each map.
        network = ClassScores(self.predictor.network).eval()
        self.cam = GradCAM(network, f"network.{self.layer}", postprocessing=lambda x: x)

    def grad_cam(self, image: Path | np.ndarray, class_name: str) -> np.ndarray:
        """Grad-CAM of a class (Selvaraju et al., ICCV 2017), float32 (height, width) of the image, 0 or more.

        Args:
            image: as `Predictor` takes it.
            class_name: one of `class_names`.
        """
        item = self.predictor.prepared(image)
        batch = item["image"].as_tensor()[None].to(self.predictor.device)
        found = self.cam(batch, class_idx=self.class_names.index(class_name))[0]
        return self.predictor.restored(found.detach(), item)

    def lesion_probability(self, image: Path | np.ndarray) -> np.ndarray:
        """Probability of a lesion at each pixel, float32 (height, width) in [0, 1], as the inference thresholds it."""
        return self.predictor(image).lesion_probability


def score(heat: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """How well a map meets the lesion of an image, beside chance.

    Args:
        heat: map (height, width), 0 or more.
        mask: true mask (height, width), bool, not empty.

    Returns:
        dict: `pointing_game`, whether the map's largest value lies in the lesion (Zhang et al., "Top-down Neural
        Attention by Excitation Backprop", ECCV 2016), and `energy_inside`, the share of its sum that does (Wang et al.,
        "Score-CAM", CVPR Workshops 2020): 0 both for an empty map. Beside them `centre`, whether the image's centre
        lies in the lesion, and `chance`, the lesion's share of the image: what a random point and an even map reach.
    """
    total = float(heat.sum())
    return {
        "pointing_game": int(total > 0 and mask[np.unravel_index(heat.argmax(), heat.shape)]),
        "energy_inside": float(heat[mask].sum()) / total if total > 0 else 0.0,
        "centre": int(mask[mask.shape[0] // 2, mask.shape[1] // 2]),
        "chance": float(mask.mean()),
    }
