"""The network: one image in, a lesion map and class scores out; its weights, and what they were trained with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet
from monai.utils import optional_import
from torch import nn
from torch.nn import functional as F

from .command import load_tensors
from .files import sha256, write_checkpoint, write_json

logger = logging.getLogger(__name__)
TRAIN_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "train.json"
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

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outline the lesion and score the classes of images as ``feature_maps`` takes them.

        Returns:
            ``pred``: segmentation logits (B, out_channels, M, N); ``class_logits``: (B, num_classes).
        """
        height, width = x.shape[-2], x.shape[-1]
        maps = self.feature_maps(x)
        pred = self.final_conv(maps["u1"])
        if self.downscale_factor > 1:
            pred = F.pixel_shuffle(pred, self.downscale_factor)[..., :height, :width]
        deepest = maps["x4"]
        class_logits = self.classifier(torch.cat([deepest.mean((2, 3)), deepest.amax((2, 3))], dim=1))
        return {"pred": pred, "class_logits": class_logits}


def onnx_session(path: str) -> onnxruntime.InferenceSession:
    """An ONNX file in ONNX Runtime, on the CPU, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads that spin would keep the reading and writing of images from the processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxNetwork(nn.Module):
    """An ONNX file that answers as ``BasicUNetClassifier`` does, on the CPU.

    Args:
        path: file that ``scripts/export.py`` of the project wrote, in float32 or INT8.

    Raises:
        FileNotFoundError: the file is missing.
        ModuleNotFoundError: the package onnxruntime is not installed.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: missing; export the network first or name the file with --onnx_file")
        if not has_onnxruntime:
            raise ModuleNotFoundError("ONNX Runtime is not installed; pip install onnxruntime")
        self.path = str(path)
        self.session = onnx_session(self.path)
        self.names = [output.name for output in self.session.get_outputs()]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by name for float images (B, 1, M, N) of mean 0 and deviation 1, both sides multiples of 32."""
        answers = self.session.run(self.names, {"image": np.ascontiguousarray(x.numpy())})
        return {name: torch.from_numpy(answer) for name, answer in zip(self.names, answers)}

    def extra_repr(self) -> str:
        """The file, so that networks of two files are told apart."""
        return self.path


def settings_file(weights: str | Path) -> Path:
    """Where the settings lie that weights were trained with: ``model.json`` beside ``model.pt``."""
    return Path(weights).with_suffix(".json")


def write_weights(path: str | Path, state: Mapping[str, torch.Tensor], settings: Mapping[str, object]) -> None:
    """Save weights, alone as ``torch.load(..., weights_only=True)`` reads them, and beside them their settings.

    Args:
        path: file of the weights.
        state: of the network.
        settings: the section ``settings`` of train.json; the SHA-256 of the weights is added.
    """
    settings_file(path).unlink(missing_ok=True)  # weights without settings load, with those of others they do not
    # On the CPU, so that other programs without a GPU read them, MONAI's exporters among them
    write_checkpoint(path, {name: value.cpu() for name, value in state.items()})
    write_json(settings_file(path), {"weights_sha256": sha256(path), **settings})


def read_settings(weights: str | Path) -> dict:
    """The settings beside weights; empty where there are none, as beside those of older versions.

    Raises:
        ValueError: the file is damaged, or the weights are not those that it was written for.
    """
    file = settings_file(weights)
    if not file.is_file():
        return {}
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
        digest = settings.pop("weights_sha256")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: not the settings of weights ({type(error).__name__}); remove the file") from None
    if Path(weights).is_file() and sha256(weights) != digest:
        raise ValueError(
            f"{weights}: damaged, or not the weights that {file.name} tells of; restore it or remove {file}"
        )
    return settings


def stored_settings(weights: str | Path) -> dict:
    """``read_settings``, completed by the section ``settings`` of train.json: what evaluation and inference go by."""
    parser = ConfigParser(ConfigParser.load_config_file(TRAIN_CONFIG))
    parser["datalist"] = ""  # whose classes need not be those of the weights
    return parser.get_parsed_content("settings") | read_settings(weights)


class LoadWeights:
    """What evaluation and inference load their weights with, when called: checked, so that none answers wrongly.

    Args:
        network: to fill, whole.
        path: file of the weights.
        settings: those in force, by the options' names, compared with those that lie beside the weights.
    """

    def __init__(self, network: nn.Module, path: str, settings: Mapping[str, object]) -> None:
        self.network = network
        self.path = path
        self.settings = settings

    def __call__(self, engine: object = None) -> None:
        """Load.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the weights are damaged, hold NaN or infinite values, or belong to another network or to other
                settings.
        """
        if not Path(self.path).is_file():
            raise FileNotFoundError(
                f"{self.path}: missing; name weights with --weights, or their folder with --ckpt_dir"
            )
        stored = read_settings(self.path)
        for name, value in self.settings.items():
            if name in stored and stored[name] != value:
                raise ValueError(f"{self.path}: trained with {name} {stored[name]}, not {value}; leave --{name} out")
        state = load_tensors(self.path)
        network = getattr(self.network, "module", self.network)  # without DistributedDataParallel around it
        own = network.state_dict()
        unlike = [name for name in {**own, **state} if _shape(own, name) != _shape(state, name)]
        if unlike:
            names = ", ".join(self.settings)
            raise ValueError(f"{self.path}: {unlike[0]} does not fit; give the values of its training for {names}")
        for name, value in state.items():
            if not value.isfinite().all():
                raise ValueError(f"{self.path}: {name} holds NaN or infinite values; name other weights, or train anew")
        network.load_state_dict(state)
        logger.info(f"{self.path}: weights loaded")


def _shape(state: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return getattr(state.get(name), "shape", None)
