"""From training settings to numbers: steps, learning rate, optimizer, precision."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from cassl_lib.config import TrainConfig
from cassl_lib.errors import ConfigError

POSITION_TABLES = ("relative_position", "absolute_pos", "pos_embed")  # parameter names in Swin and ViT


def number_of_steps(config: TrainConfig, images: int) -> int:
    """Training steps over a set of `images` images: `config.steps`, or `config.epochs` rounded up to whole batches."""
    return config.steps or max(1, math.ceil(config.epochs * images / config.batch_size))


def scaled_rate(config: TrainConfig) -> float:
    """The base learning rate, scaled linearly from 16 images per batch to `config.batch_size`."""
    return config.learning_rate * config.batch_size / 16


def learning_rate(step: int, *, config: TrainConfig, steps: int) -> float:
    """Learning rate at a step: linear warm-up from 1/1000 of the base rate, then divided by 10 at each milestone.

    The warm-up takes at most a tenth of all steps, so that a short run still reaches its base rate.
    """
    warmup = min(config.warmup_steps, max(1, steps // 10))
    factor = 1.0 if step >= warmup else 0.001 + 0.999 * step / warmup
    passed = sum(step >= round(share * steps) for share in config.milestones)
    return scaled_rate(config) * factor * 0.1**passed


def build_optimizer(model: nn.Module, config: TrainConfig, *, fresh: Collection[str] = ()) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters. Norms, biases, per-level scales and position tables do not decay.

    Each group has a `factor`, by which its learning rate is multiplied.

    Args:
        fresh: names of parameters whose factor is `config.fresh_rate`.

    Raises:
        ConfigError: an unknown optimizer.
    """
    groups: dict[tuple[float, float], list] = {(config.weight_decay, 1.0): [], (0.0, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim <= 1 or any(word in name for word in POSITION_TABLES)
            settings = 0.0 if free else config.weight_decay, config.fresh_rate if name in fresh else 1.0
            groups.setdefault(settings, []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "factor": factor}
        for (decay, factor), parameters in groups.items()
    ]
    rate = scaled_rate(config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=True)
    raise ConfigError(f"optimizer={config.optimizer!r} is not allowed; use adamw or sgd")


def precision_of(config: TrainConfig, device: torch.device) -> str:
    """float32 or bf16; `auto` means bf16 on CUDA, float32 elsewhere."""
    if config.precision == "auto":
        return "bf16" if device.type == "cuda" else "float32"
    return config.precision


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Autocast context of a forward pass. The detector computes its losses in float32 either way."""
    enabled = precision_of(config, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
