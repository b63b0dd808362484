"""Mixed precision where the processor has it, and the mean of an image's scores and those of its mirror image."""

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
        flip: whether the logits are the mean over the image and its left-right mirror image (test-time augmentation).
    """

    def __init__(self, amp: bool | str = "auto", flip: bool = False) -> None:
        super().__init__()
        self.flip = flip
        if amp not in (True, False, "auto"):
            raise ValueError(f"amp is {amp!r}; use true, false or auto")
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network, *args, **kwargs):
        """Run the network on images (B, C, W, H), as MONAI loads them; tensors come back in float32."""
        device = inputs.device
        enabled = fast_bfloat16(device) if self.amp == "auto" else self.amp
        # The network needs no metadata, and plain tensors spare MetaTensor's bookkeeping in each layer.
        inputs = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        count = len(inputs)
        if self.flip:
            inputs = torch.cat([inputs, inputs.flip(2)])
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            outputs = super().__call__(inputs, network, *args, **kwargs)
        outputs = {name: value.float() for name, value in outputs.items()}
        if self.flip:
            outputs["pred"][count:] = outputs["pred"][count:].flip(2)
            outputs = {name: (value[:count] + value[count:]) / 2 for name, value in outputs.items()}
        return outputs
