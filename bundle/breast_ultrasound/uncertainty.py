"""How hard an image is for the network: which one a person should label next."""

from __future__ import annotations

import math

import torch
from torch import nn

SMALLEST_SHARE = 0.01  # of the image; a lesion of less than this counts as that large


def image_uncertainty(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Predictive entropy over each image and its mirror image, of mask and class (Settles, "Active Learning
    Literature Survey", 2009; the mean over transformed copies as in Wang et al., Neurocomputing 338 (2019) 34-45).

    The mask's part is the entropy in bits summed over the pixels, as a multiple of the lesion's expected area, at most
    1; the class's part is the entropy as a share of that of a uniform guess. Both count half.

    Args:
        network: gives ``pred`` (B, 2, M, N) and ``class_logits`` (B, K) as in ``networks``; in evaluation mode.
        images: (B, 1, W, H), as inference.json's preprocessing leaves them.

    Returns:
        one value in [0, 1] an image, shape (B,), float32 on the CPU.
    """
    count = len(images)
    with torch.no_grad():
        outputs = network(torch.cat([images, images.flip(2)]))
    masks = outputs["pred"].float().softmax(1)
    masks = (masks[:count] + masks[count:].flip(2)) / 2
    classes = outputs["class_logits"].float().softmax(1)
    classes = (classes[:count] + classes[count:]) / 2
    area = masks[:, 1].mean((1, 2)) + SMALLEST_SHARE
    mask_part = (_entropy(masks).mean((1, 2)) / math.log(2) / area).clamp(max=1)
    class_part = _entropy(classes) / math.log(classes.shape[1])
    return ((mask_part + class_part) / 2).cpu()


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over dimension 1, in nats."""
    return torch.special.entr(probabilities).sum(1)
