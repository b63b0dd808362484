"""Weights and, beside them, what they were trained with: written, read, checked, started from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn

from . import BUNDLE
from .files import sha256, write_checkpoint, write_json

logger = logging.getLogger(__name__)
TRAIN_CONFIG = BUNDLE / "configs" / "train.json"
SETTINGS = ("class_names", "image_size", "network_def#network", "features", "downscale_factor", "network_def#norm")
HEAD = "classifier"  # the classification branch, whose size is the number of classes


def settings_file(weights: str | Path) -> Path:
    """Where the settings lie that weights were trained with: ``model.json`` beside ``model.pt``."""
    return Path(weights).with_suffix(".json")


def write_weights(path: str | Path, state: Mapping[str, torch.Tensor], settings: Mapping[str, object]) -> None:
    """Save weights, alone as ``torch.load(..., weights_only=True)`` reads them, and beside them their settings.

    Args:
        path: file of the weights.
        state: of the network.
        settings: those of ``breast_ultrasound.networks.settings_of``; the SHA-256 of the weights is added.
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


def image_size_of(weights: str, default: int) -> int:
    """The image size, in pixels, that weights were trained with, where a file tells it; ``weights`` may be empty."""
    return read_settings(weights).get("image_size", default) if weights else default


def stored_settings(weights: str | Path) -> dict:
    """``read_settings``, completed by those that train.json has: what evaluation and inference go by."""
    parser = ConfigParser(ConfigParser.load_config_file(TRAIN_CONFIG))
    parser["class_names"] = parser["class_names#default"]  # a datalist's need not be those of the weights
    own = {name.rpartition("#")[2]: parser.get_parsed_content(name) for name in SETTINGS}
    return own | read_settings(weights)


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """The dictionary in a file of weights or of a checkpoint; nothing in it is run.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch has one for each kind of damage, with a page of text
        kind = type(error).__name__
        raise ValueError(f"{path}: not readable as weights ({kind}); name another file, or train anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no weights but {type(content).__name__}; name another file, or train anew")
    return content


class LoadWeights:
    """What evaluation and inference load their weights with, when called: checked, so that none answers wrongly.

    Args:
        network: to fill, whole.
        path: file of the weights.
        settings: those in force, by the options' names, compared with those that lie beside the weights.
        load: False: leave the network as it is, and warn of that.
    """

    def __init__(self, network: nn.Module, path: str, settings: Mapping[str, object], load: bool = True) -> None:
        self.network = network
        self.path = path
        self.settings = settings
        self.load = load

    def __call__(self, engine: object = None) -> None:
        """Load.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the weights are damaged, hold NaN or infinite values, or belong to another network or to other
                settings.
        """
        if not self.load:
            logger.warning("--load_pretrain False: random weights, whose predictions mean nothing")
            return
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
        unlike = [name for name in {**own, **state} if _kind(own, name) != _kind(state, name)]
        if unlike:
            names = ", ".join(self.settings)
            raise ValueError(f"{self.path}: {unlike[0]} does not fit; give the values of its training for {names}")
        check_finite(state, self.path)
        network.load_state_dict(state)
        logger.info(f"{self.path}: weights loaded")


def check_finite(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Raise a ValueError where a tensor holds NaN or infinite values."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values; name other weights, or train anew")


def _kind(state: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Size, bool] | None:
    """Shape of an entry, and whether it holds floats; None where it is no tensor or missing."""
    value = state.get(name)
    return (value.shape, value.is_floating_point()) if isinstance(value, torch.Tensor) else None


def load_pretrained(network: nn.Module, path: str, class_names: Sequence[str] = ()) -> None:
    """Start from weights of an earlier training; layers that they lack keep their initialisation.

    So does the last layer of the classification branch where the weights know other classes, or in another order.

    Args:
        network: the network to fill.
        path: a ``state_dict`` as ``torch.load(..., weights_only=True)`` reads it; empty for none.
        class_names: of this training; the number of classes alone is compared where one of both tells no names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, or NaN or infinite ones, or is not the one that ``model.json`` beside it
            tells of, or a layer has another shape or does not exist in the network.
    """
    if not path:
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: missing; name weights with --pretrained, or leave the option out")
    there = list(read_settings(path).get("class_names", class_names))
    state = load_tensors(path)
    check_finite(state, path)
    own = network.state_dict()
    unlike = [name for name in state if name not in own or _kind(own, name) != _kind(state, name)]
    if class_names and there != list(class_names):
        unlike = sorted({*unlike, *(name for name in state if name.startswith(HEAD))})
    if unlike and all(name in own and name.startswith(HEAD) for name in unlike):
        classes = f": {', '.join(there)} there, {', '.join(class_names)} here" if class_names else ""
        logger.info(f"{path}: {HEAD} excluded, other classes{classes}")
        state, unlike = {name: value for name, value in state.items() if name not in unlike}, []
    if unlike:
        raise ValueError(f"{path}: {unlike[0]} does not fit; give the features, norm and factor that it was made with")
    if not state:
        raise ValueError(f"{path}: holds nothing that the network has; name other weights with --pretrained")
    network.load_state_dict(state, strict=False)
    logger.info(f"{path}: {len(state)} of {len(own)} entries taken over")
