"""Explanations of a prediction: Grad-CAM of the class, the mask's probabilities, how well a map meets the lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from command_line import load_network
from monai.data import MetaTensor
from monai.transforms import Invertd
from monai.visualize import GradCAM
from torch import nn

# The deepest level of the encoder; its map met more lesions on validation than that of the level before.
LAYER = "down_4"


class ClassScores(nn.Module):
    """The network with the class scores (B, K) as its only output, as MONAI's `GradCAM` expects."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score images (B, 1, M, N)."""
        return self.network(x)["class_logits"]


class Explainer:
    """The trained network as the bundle's inference sets it up.

    Args:
        ckpt_dir: folder with `model.pt`.
        options: ids of bundle/configs/inference.json with other values, such as `image_size=128`.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights belong to another network.
    """

    def __init__(self, ckpt_dir: Path, **options: object) -> None:
        parser = load_network(ckpt_dir, **options)
        self.device = parser.get_parsed_content("device")
        self.network = parser.get_parsed_content("network")
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.restore = Invertd("pred", self.preprocessing, orig_keys="image", nearest_interp=False)
        self.inferer = parser.get_parsed_content("inferer")
        self.class_names = parser.get_parsed_content("class_names")
        # MONAI's own scaling turns the map over, and scaled per image it has no zero any more. In training mode it
        # would switch the network back to training after each map.
        self.cam = GradCAM(ClassScores(self.network).eval(), f"network.{LAYER}", postprocessing=lambda x: x)

    def _load(self, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """An image as the preprocessing leaves it, (1, W, H) with its history, and the network's batch of it."""
        image = self.preprocessing({"image": str(path)})["image"]
        return image, image.as_tensor()[None].to(self.device)

    def _restore(self, found: torch.Tensor, image: torch.Tensor) -> np.ndarray:
        """A map (1, W, H) of the preprocessed image as (height, width) of the file, without what was padded."""
        return self.restore({"image": image, "pred": MetaTensor(found.detach())})["pred"][0].cpu().numpy().T

    def grad_cam(self, path: Path, class_name: str) -> np.ndarray:
        """Grad-CAM of a class (Selvaraju et al., ICCV 2017), float32 (height, width) of the image, 0 or more."""
        image, batch = self._load(path)
        return self._restore(self.cam(batch, class_idx=self.class_names.index(class_name))[0], image)

    @torch.no_grad()
    def lesion_probability(self, path: Path) -> np.ndarray:
        """Probability of a lesion at each pixel, float32 (height, width) in [0, 1], as the inference thresholds it."""
        image, batch = self._load(path)
        return self._restore(self.inferer(batch, self.network)["pred"].softmax(1)[0, 1:], image)


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
