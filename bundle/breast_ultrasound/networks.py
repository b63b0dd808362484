"""The network: one image in, a lesion map and class scores out."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet
from monai.utils import optional_import
from torch import nn
from torch.nn import functional as F

from .calibration import NEUTRAL
from .files import sha256
from .pretrained import PretrainedUNetClassifier, embedding
from .weights import read_settings, stored_settings

logger = logging.getLogger(__name__)
onnxruntime, has_onnxruntime = optional_import("onnxruntime")


class BasicUNetClassifier(BasicUNet):
    """MONAI's 2D ``BasicUNet`` whose encoder also feeds a classification branch.

    The branch reads the mean and the maximum of the deepest features, as in the global pooling of Lin et al.,
    "Network in Network" (2014), and of Woo et al., "CBAM" (2018). With ``downscale_factor`` r > 1 the image is folded
    into r * r channels before the first convolution and the mask is unfolded after the last one (pixel shuffle: Shi et
    al., CVPR 2016), so that no pixel is lost while every layer works on 1 / (r * r) of the positions.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the segmentation logits (background, lesion).
        num_classes: number of classes of the image.
        features: six widths as in ``BasicUNet``: five encoder levels, then the last decoder level.
        downscale_factor: r above; 1 switches the folding off.
        class_dropout: dropout in front of the classification layer, in [0, 1).
        kwargs: further arguments of ``BasicUNet`` (``act``, ``norm``, ``dropout``, ``upsample``).
    """

    deepest_layer = "down_4"  # for Grad-CAM: its map met more lesions on validation than that of the level before

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        num_classes: int = 3,
        features: Sequence[int] = (32, 32, 64, 128, 256, 32),
        downscale_factor: int = 1,
        class_dropout: float = 0.2,
        **kwargs,
    ) -> None:
        area = downscale_factor**2
        super().__init__(2, in_channels * area, out_channels * area, features, **kwargs)
        self.downscale_factor = downscale_factor
        norm = kwargs.get("norm", inspect.signature(BasicUNet).parameters["norm"].default)
        self.settings = {"features": features, "downscale_factor": downscale_factor, "norm": norm}
        self.classifier = nn.Sequential(nn.Dropout(class_dropout), nn.Linear(2 * features[4], num_classes))

    def feature_maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """All levels of the encoder (``x0`` to ``x4``, deepest last) and of the decoder (``u4`` to ``u1``).

        Args:
            x: float images of mean 0 and standard deviation 1, shape (B, in_channels, M, N): one side of at least 32 *
                downscale_factor, the other of at least half of that.

        Returns:
            maps of shape (B, width of the level, M / (r * 2**k), N / (r * 2**k)), sides rounded, for ``xk`` and the
            ``u`` of the same side.

        Raises:
            ValueError: the image is so small that a single position would remain at the deepest level.
        """
        height, width = x.shape[-2], x.shape[-1]
        r = self.downscale_factor
        if max(height, width) < 32 * r or min(height, width) < 16 * r:
            raise ValueError(f"{height} x {width} pixels is too small; use an image_size of {32 * r} or more")
        if r > 1:
            x = F.pad(x, [0, -width % r, 0, -height % r], "replicate")
            x = F.pixel_unshuffle(x, r)
        x0 = self.conv_0(x)
        x1 = self.down_1(x0)
        x2 = self.down_2(x1)
        x3 = self.down_3(x2)
        x4 = self.down_4(x3)
        u4 = self.upcat_4(x4, x3)
        u3 = self.upcat_3(u4, x2)
        u2 = self.upcat_2(u3, x1)
        u1 = self.upcat_1(u2, x0)
        return {"x0": x0, "x1": x1, "x2": x2, "x3": x3, "x4": x4, "u4": u4, "u3": u3, "u2": u2, "u1": u1}

    def forward(self, x: torch.Tensor, with_embedding: bool = False) -> dict[str, torch.Tensor]:
        """Outline the lesion and score the classes of images as ``feature_maps`` takes them.

        Returns:
            ``pred``: segmentation logits (B, out_channels, M, N); ``class_logits``: (B, num_classes); if asked for,
            ``embedding``, as ``pretrained.embedding`` gives it.
        """
        height, width = x.shape[-2], x.shape[-1]
        maps = self.feature_maps(x)
        pred = self.final_conv(maps["u1"])
        if self.downscale_factor > 1:
            pred = F.pixel_shuffle(pred, self.downscale_factor)[..., :height, :width]
        deepest = maps["x4"]
        outputs = {"pred": pred}
        outputs["class_logits"] = self.classifier(torch.cat([deepest.mean((2, 3)), deepest.amax((2, 3))], dim=1))
        if with_embedding:
            outputs["embedding"] = embedding(maps)
        return outputs


NETWORKS = {network.__name__: network for network in (BasicUNetClassifier, PretrainedUNetClassifier)}


def build_network(
    num_classes: int, network: str = BasicUNetClassifier.__name__, weights: str = "", **arguments: object
) -> nn.Module:
    """The network that weights are of, where ``model.json`` beside them tells another one; else the one named here.

    Args:
        num_classes: number of classes of the image.
        network: name in ``NETWORKS``.
        weights: file that is going to be loaded; empty for none.
        arguments: of the network named here.

    Raises:
        ValueError: ``NETWORKS`` has no such network.
    """
    stored = read_settings(weights) if weights else {}
    name = stored.get("network", network)
    if name not in NETWORKS:
        raise ValueError(f"{weights or network}: its network {name} is none of {', '.join(NETWORKS)}; name others")
    if name != network:
        wanted = inspect.signature(NETWORKS[name]).parameters
        arguments = {key: value for key, value in stored.items() if key in wanted}
    return NETWORKS[name](num_classes=num_classes, **arguments)


def settings_of(network: nn.Module, **options: object) -> dict:
    """What lies beside weights: options of their training, and the network's name and arguments where it tells them."""
    own = getattr(network, "settings", {})
    named = {"network": type(network).__name__} if own else {}
    return json.loads(json.dumps({**options, **named, **own}))  # lists for tuples, as the file has them


def onnx_session(path: str) -> onnxruntime.InferenceSession:
    """An ONNX file in ONNX Runtime, on the CPU, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads that spin would keep the reading and writing of images from the processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_metadata(path: str) -> dict[str, object]:
    """What ``scripts/export.py`` of the project told of the weights inside an ONNX file; empty where it did not.

    Returns:
        ``class_names``, ``image_size``, ``weights_sha256`` and the other values of ``calibration.load_calibration``.

    Raises:
        FileNotFoundError: the file is missing.
        ModuleNotFoundError: the package onnxruntime is not installed.
        ValueError: the file is not readable as ONNX.
    """
    network = OnnxNetwork(path)
    told = network.session.get_modelmeta().custom_metadata_map
    names = ("class_names", "image_size", *NEUTRAL, "weights_sha256")
    found = {name: told[name] if name == "weights_sha256" else json.loads(told[name]) for name in names if name in told}
    if not {"class_names", "image_size", "weights_sha256"} <= found.keys():
        logger.warning(
            f"{path}: does not tell its classes; those of --ckpt_dir are taken. Export with scripts/export.py"
        )
        return {}
    return found


def onnx_settings(metadata: Mapping[str, object], weights: str) -> dict:
    """``weights.stored_settings`` of the weights inside an ONNX file; of a file's where its metadata is empty."""
    own = {name: metadata[name] for name in ("class_names", "image_size") if name in metadata}
    return stored_settings(weights) | own


class OnnxNetwork(nn.Module):
    """An ONNX file that answers as ``BasicUNetClassifier`` does, on the CPU.

    Args:
        path: file that ``scripts/export.py`` of the project wrote, in float32 or INT8.

    Raises:
        FileNotFoundError: the file is missing.
        ModuleNotFoundError: the package onnxruntime is not installed.
        ValueError: the file is not readable as ONNX.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: missing; export the network first or name the file with --onnx_file")
        if not has_onnxruntime:
            raise ModuleNotFoundError("ONNX Runtime is not installed; pip install onnxruntime")
        self.path = str(path)
        try:
            self.session = onnx_session(self.path)
        except Exception as error:  # onnxruntime has one for each kind of damage
            raise ValueError(
                f"{path}: not readable as ONNX ({type(error).__name__}); export the network again"
            ) from None
        self.names = [output.name for output in self.session.get_outputs()]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by name for float images (B, 1, M, N) of mean 0 and deviation 1, both sides multiples of 32."""
        answers = self.session.run(self.names, {"image": np.ascontiguousarray(x.numpy())})
        return {name: torch.from_numpy(answer) for name, answer in zip(self.names, answers)}

    def digest(self) -> str:
        """The file's SHA-256 in hexadecimal digits."""
        return sha256(self.path)

    def extra_repr(self) -> str:
        """The file, so that networks of two files are told apart."""
        return self.path
