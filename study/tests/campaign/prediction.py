"""The Predictor's options, and images of every kind as arrays: the answer of the same grey values, or a line."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from campaign.images import scan
from campaign.process import Case, Input, ends
from PIL import Image

NUMBERS = (-1, 0, 1.5, 2, float("nan"), float("inf"), "0.5", None, True, [0.5], "maybe")
OPTIONS: dict[str, tuple[object, ...]] = {
    "mask_threshold": NUMBERS,
    "smallest_fraction": (-0.1, 1, 1.5, float("nan"), "x", None, [0]),
    "component_threshold": (-0.1, 1, 5, float("nan"), "x", None),
    "image_size": (0, -64, 8, 64.5, "64", None, [64, 64], 10**9, True),
    "device": ("quantum", "cuda:99", 3.5, None, "", ["cpu"]),
    "amp": ("yes", 1, None, 0.5, []),
    "class_names": ("abc", [], ["a"], ["a", "a"], [1, 2, 3], ["a", ""], ["a", "b\n"], {"a": 1}),
    "features": ([1, 2], "abc", [0] * 6, 7, None, [4.5] * 6),
    "downscale_factor": (0, 3, "x", 1.5, None),
    "ckpt_dir": ("/nowhere", "", 5, "/etc/passwd", "~nobody", "a\0b"),
    "weights": ("/nowhere.pt", "/etc/passwd", "", 5),
    "onnx_file": ("/nowhere.onnx", "/etc/passwd", "", 5),
    "num_workers": (-1, "x", 0.5),
    "batch_size": (0, "x", -4, 2.5),
    "load_pretrain": ("maybe", 2, None),
    "output_dtype": ("uint16", "np.uint8", "x"),
    "output_ext": (".jpg", "png", 5),
    "mask_treshold": (0.5,),
    "test_time_flip": (True,),
}
KINDS = "uint8 uint16 int16 int32 int64 float16 float32 float64 longdouble >u2 >f4 fortran negative readonly".split()
KINDS += "channels1 channels3 channels4 pillow 16bitpillow palette tensor cuda-less bool256 file path".split()
REFUSED: dict[str, Callable[[np.ndarray], object]] = {
    "complex": lambda grey: grey.astype(complex),
    "text": lambda grey: grey.astype(str),
    "objects": lambda grey: grey.astype(object),
    "NaN": lambda grey: np.where(grey == 255, np.nan, grey),
    "infinite": lambda grey: np.where(grey == 255, np.inf, grey),
    "one row of three axes": lambda grey: grey[None],
    "two channels": lambda grey: np.dstack([grey, grey]),
    "five channels": lambda grey: np.dstack([grey] * 5),
    "one axis": lambda grey: grey[0],
    "no pixel": lambda grey: grey[:0],
    "a number": lambda grey: np.float64(3),
    "one grey": lambda grey: np.full_like(grey, 7),
    "a line": lambda grey: np.resize(grey, (1, 5000)),
    "masked": lambda grey: np.ma.masked_equal(grey, 0),
    "bytes": lambda grey: saved(grey),
    "a stream": lambda grey: io.BytesIO(saved(grey)),
    "nothing": lambda grey: None,
    "a dictionary": lambda grey: {"image": grey},
    "a generator": lambda grey: (row for row in grey),
    "no file": lambda grey: "/nowhere.png",
    "no image": lambda grey: "/etc/passwd",
    "a folder": lambda grey: "/",
    "a complex tensor": lambda grey: torch.zeros(9, 9, dtype=torch.complex64),
    "a list of numbers": lambda grey: grey[0].tolist(),
}
# One of these must stand in the line, beside "pass" where a type is wrong
WORDS = ("pass ", "NaN or infinite", "no pixel", "one grey alone", "one side is", "nowhere.png", "passwd", "directory")


def saved(grey: np.ndarray) -> bytes:
    """A PNG."""
    memory = io.BytesIO()
    Image.fromarray(grey).save(memory, "PNG")
    return memory.getvalue()


def as_kind(kind: str, grey: np.ndarray, file: Path) -> object:
    """The same grey values in another form."""
    forms: dict[str, Callable[[], Any]] = {
        "fortran": lambda: np.asfortranarray(grey),
        "negative": lambda: np.ascontiguousarray(grey[::-1, ::-1])[::-1, ::-1],
        "readonly": lambda: np.frombuffer(grey.tobytes(), np.uint8).reshape(grey.shape),
        "channels1": lambda: grey[..., None],
        "channels3": lambda: np.dstack([grey] * 3),
        "channels4": lambda: np.dstack([grey] * 3 + [np.zeros_like(grey)]),
        "pillow": lambda: Image.fromarray(grey),
        "16bitpillow": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "palette": lambda: Image.fromarray(grey).convert("P"),
        "tensor": lambda: torch.from_numpy(grey.copy()),
        "cuda-less": lambda: torch.from_numpy(grey.astype(np.float32)).requires_grad_(),
        "bool256": lambda: grey.astype(np.uint16) * 257,
        "file": lambda: str(file),
        "path": lambda: file,
    }
    return forms[kind]() if kind in forms else grey.astype(kind)


def small_bundle(project: Path, folder: Path) -> Path:
    """Folder of weights of a small network, untrained."""
    from monai.bundle import ConfigParser

    from breast_ultrasound.networks import settings_of
    from breast_ultrasound.weights import write_weights

    config = ConfigParser(ConfigParser.load_config_file(str(project / "bundle" / "configs" / "train.json")))
    config.update({"bundle_root": str(project / "bundle"), "image_size": 64, "features": [4, 4, 8, 8, 8, 4]})
    config.update({"class_names": ["normal", "benign", "malignant"], "pretrained": ""})
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def")
    settings = settings_of(network, class_names=["normal", "benign", "malignant"], image_size=64)
    write_weights(folder / "model.pt", network.state_dict(), settings)
    return folder


def prediction_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Half options, half images."""
    from breast_ultrasound.predictor import Predictor

    draw, pixels = random.Random(seed), np.random.default_rng(seed)
    models = small_bundle(project, folder)
    predictor = Predictor(project / "bundle", ckpt_dir=models, device="cpu")
    refused = lambda found: ""  # noqa: E731
    inputs = []
    for number in range(count):
        if number % 2:
            name = draw.choice(list(OPTIONS))
            value = draw.choice(OPTIONS[name])
            call = partial(Predictor, project / "bundle", **{"ckpt_dir": models, "device": "cpu", name: value})
            inputs.append(Input("Predictor option", f"{name}={value!r}", call, refused, (name, str(value) or name)))
            continue
        grey = scan(pixels)
        if draw.random() < 0.5:
            kind = draw.choice(list(REFUSED))
            inputs.append(
                Input(
                    "Predictor input", kind, partial(lambda k, g: predictor(REFUSED[k](g)), kind, grey), refused, WORDS
                )
            )
            continue
        kind = draw.choice(KINDS)
        file = folder / f"{number}.png"
        file.write_bytes(saved(grey))

        def judge(found: Any, grey: np.ndarray = grey) -> str:
            expected = predictor(grey)
            near = np.allclose(found.lesion_probability, expected.lesion_probability, atol=0.02)
            return "right" if near and found.mask.shape == grey.shape else ""

        inputs.append(
            Input(
                "Predictor input", kind, partial(lambda k, g, f: predictor(as_kind(k, g, f)), kind, grey, file), judge
            )
        )
    return ends(inputs)
