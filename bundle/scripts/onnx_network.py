"""The exported network in ONNX Runtime, so that the bundle's own inference runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.utils import optional_import
from torch import nn

onnxruntime, has_onnxruntime = optional_import("onnxruntime")


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
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Idle threads that spin would keep the reading and writing of pictures from the processor.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.path = str(path)
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by name for float pictures (B, 1, image_size, image_size) in [0, 1]."""
        answers = self.session.run(self.names, {"image": np.ascontiguousarray(x.numpy())})
        return {name: torch.from_numpy(answer) for name, answer in zip(self.names, answers)}

    def extra_repr(self) -> str:
        """The file, so that networks of two files are told apart."""
        return self.path
