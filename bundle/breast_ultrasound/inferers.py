"""Mixed precision where the processor has it."""

from __future__ import annotations

import torch
from monai.inferers import SimpleInferer


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 natively; where it does not, autocast is many times slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)  # PyTorch 2.4 does not tell: float32


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under bfloat16 autocast; MONAI's own ``amp`` serves CUDA only.

    Args:
        amp: ``True``, ``False``, or ``"auto"`` for where ``fast_bfloat16`` holds.
        embedding: whether to ask the network for the ``embedding`` of its images too, if it has one.
    """

    def __init__(self, amp: bool | str = "auto", embedding: bool = False) -> None:
        super().__init__()
        self.embedding = embedding
        if amp not in (True, False, "auto"):
            raise ValueError(f"amp is {amp!r}; use true, false or auto")
        self.amp = amp

    def enabled(self, device: torch.device | str) -> bool:
        """Whether networks on a device compute in bfloat16."""
        return fast_bfloat16(device) if self.amp == "auto" else self.amp

    def __call__(self, inputs: torch.Tensor, network, *args, **kwargs):
        """Run the network on images (B, C, W, H), as MONAI loads them; tensors come back in float32."""
        device = inputs.device
        # The network needs no metadata, and plain tensors spare MetaTensor's bookkeeping in each layer.
        inputs = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        if self.embedding and hasattr(network, "feature_maps"):
            kwargs["with_embedding"] = True
        with torch.autocast(device.type, torch.bfloat16, enabled=self.enabled(device)):
            outputs = super().__call__(inputs, network, *args, **kwargs)
        return {name: value.float() for name, value in outputs.items()}
