"""The joint loss of the two heads."""

from __future__ import annotations

import torch
from torch import nn

from .data import UNKNOWN_CLASS


class JointLoss(nn.Module):
    """Segmentation loss + weight * classification loss, with images of unknown class left out of the second.

    Args:
        segmentation_loss: takes logits (B, C, M, N) and the mask (B, 1, M, N).
        classification_loss: takes logits (B, K) and class indices (B,).
        classification_weight: weight of the second term.
    """

    def __init__(
        self, segmentation_loss: nn.Module, classification_loss: nn.Module, classification_weight: float
    ) -> None:
        super().__init__()
        self.segmentation_loss = segmentation_loss
        self.classification_loss = classification_loss
        self.classification_weight = classification_weight
        self.terms: dict[str, float] = {}

    def forward(self, outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the scalar loss; ``targets`` holds ``label`` (B, 1, M, N) and ``class`` (B,), -1 where unknown."""
        segmentation = self.segmentation_loss(outputs["pred"].float(), targets["label"])
        logits, classes = outputs["class_logits"].float(), targets["class"]
        known = classes != UNKNOWN_CLASS
        # The mean over no image at all would be NaN; a sum over none is a zero that still has a gradient.
        classification = self.classification_loss(logits[known], classes[known]) if known.any() else logits[known].sum()
        loss = segmentation + self.classification_weight * classification
        self.terms = {
            "loss": loss.item(),
            "segmentation_loss": segmentation.item(),
            "classification_loss": classification.item(),
        }
        return loss

    def last_terms(self, _output=None) -> dict[str, float]:
        """The terms of the latest batch by name; an ``output_transform`` of the logging handlers."""
        return self.terms
