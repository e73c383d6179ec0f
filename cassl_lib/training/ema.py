"""An exponential moving average of a model, the teacher of many semi-supervised methods."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cassl_lib.errors import ConfigError


class ExponentialMovingAverage:
    """A frozen copy of a model, in evaluation mode, that follows it: t = m * t + (1 - m) * s.

    t is each parameter and float buffer of the copy (`self.model`), s its counterpart in the model, m the momentum.
    Integer buffers, such as BatchNorm's counters, are copied.

    Args:
        model: copied, on its device.
        momentum: m, between 0 (the copy equals the model) and 1 (the copy never changes).
    """

    def __init__(self, model: nn.Module, *, momentum: float):
        if not 0 <= momentum <= 1:
            raise ConfigError(f"momentum={momentum!r} is not allowed; use a number between 0 and 1")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.momentum = momentum

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the copy one step towards `model`."""
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                # As t + (1 - m) * (s - t): frozen parameters, and buffers that are not saved, stay exactly equal
                average.lerp_(value, 1 - self.momentum)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
