"""Feature pyramid network (Lin et al., CVPR 2017) with levels P2 to P7."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STAGE_LEVELS = {4: "p2", 8: "p3", 16: "p4", 32: "p5"}
TOP_LEVELS = {64: "p6", 128: "p7"}


class FPN(nn.Module):
    """Four backbone stages at strides 4 to 32 -> one map (B, channels, H / s, W / s) per stride s in `strides`.

    The lateral and output convolutions of P2 to P5 always exist, so that the weights can be transferred to a detector
    that uses P2. Those not needed for `strides` are neither computed nor trained (requires_grad is False, because DDP
    would wait for their gradients). P6 and P7 exist only if needed; P6 is computed from P5.
    """

    def __init__(self, stage_channels: list[int], channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.strides = strides
        levels = list(STAGE_LEVELS.values())
        self.lateral = nn.ModuleDict(
            {p: nn.Conv2d(c, channels, 1) for p, c in zip(levels, stage_channels, strict=True)}
        )
        self.output = nn.ModuleDict({p: nn.Conv2d(channels, channels, 3, padding=1) for p in levels})
        top = [p for stride, p in TOP_LEVELS.items() if stride <= max(strides)]
        self.top = nn.ModuleDict({p: nn.Conv2d(channels, channels, 3, stride=2, padding=1) for p in top})
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)
        for name in self.unused():
            self.get_submodule(name).requires_grad_(False)

    def unused(self) -> list[str]:
        """Names of the convolutions that are not needed for `strides`."""
        laterals = [f"lateral.{p}" for stride, p in STAGE_LEVELS.items() if stride < min(self.strides)]
        return laterals + [f"output.{p}" for stride, p in STAGE_LEVELS.items() if stride not in self.strides]

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        maps, merged, unused = {}, None, self.unused()
        # Top-down: P5 to P2, each added to the enlarged coarser level.
        for (stride, p), stage in reversed(list(zip(STAGE_LEVELS.items(), stages, strict=True))):
            if stride < min(self.strides):
                break
            lateral = self.lateral[p](stage)
            merged = lateral if merged is None else lateral + F.interpolate(merged, size=lateral.shape[-2:])
            if f"output.{p}" not in unused:
                maps[stride] = self.output[p](merged)
        # P6 from P5, P7 from ReLU(P6).
        for stride, p in TOP_LEVELS.items():
            if p in self.top:
                below = maps[stride // 2]
                maps[stride] = self.top[p](below if p == "p6" else F.relu(below))
        return [maps[stride] for stride in self.strides]
