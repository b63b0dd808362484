"""The joint loss: its two terms, unknown classes, empty masks."""

import json
import math

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from breast_ultrasound.losses import JointLoss
from conftest import ROOT


def joint_loss(weight=0.5):
    """Cross-entropy for both terms, simple enough to work out by hand."""
    return JointLoss(
        lambda logits, label: nn.functional.cross_entropy(logits, label[:, 0]), nn.CrossEntropyLoss(), weight
    )


def batch(classes, lesion=0):
    """Even logits for len(classes) images of 2 x 2 pixels."""
    size = len(classes)
    outputs = {"pred": torch.zeros(size, 2, 2, 2), "class_logits": torch.zeros(size, 3)}
    outputs = {name: value.requires_grad_() for name, value in outputs.items()}
    return outputs, {"label": torch.full((size, 1, 2, 2), lesion), "class": torch.tensor(classes)}


def test_the_sum_of_both_terms():
    loss = joint_loss()
    value = loss(*batch([0, 2]))
    assert value.item() == pytest.approx(math.log(2) + 0.5 * math.log(3))
    terms = loss.last_terms()
    assert terms == {
        "loss": pytest.approx(value.item()),
        "segmentation_loss": pytest.approx(math.log(2)),
        "classification_loss": pytest.approx(math.log(3)),
    }


def test_unknown_classes_do_not_count():
    outputs, targets = batch([-1, 1])
    with torch.no_grad():
        outputs["class_logits"][0] = torch.tensor([9.0, 0.0, -9.0])
    loss = joint_loss()
    loss(outputs, targets).backward()
    assert loss.last_terms()["classification_loss"] == pytest.approx(math.log(3))
    assert outputs["class_logits"].grad[0].abs().sum() == 0


def test_without_any_known_class_the_mask_still_learns():
    outputs, targets = batch([-1, -1])
    value = joint_loss()(outputs, targets)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert outputs["pred"].grad.abs().sum() > 0


def test_in_the_bundles_loss_a_false_mask_costs_more_than_none():
    config = json.loads((ROOT / "bundle" / "configs" / "train.json").read_text())
    loss = ConfigParser(config).get_parsed_content("loss")
    label = torch.zeros(2, 1, 32, 32)
    label[0, :, 8:16, 8:16] = 1
    right = torch.cat([1 - label, label], dim=1) * 12 - 6
    wrong = right.clone()
    wrong[1] = right[0]  # the same lesion in the empty image
    values = []
    for pred in (right, wrong):
        outputs = {"pred": pred, "class_logits": torch.zeros(2, 3)}
        loss(outputs, {"label": label, "class": torch.tensor([1, 0])})
        values.append(loss.last_terms()["segmentation_loss"])
    # Dice over the batch: 2 * 64 / (128 + 64), and the cross-entropy of the wrong pixels
    assert values[1] - values[0] > 1 / 3
