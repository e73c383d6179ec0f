"""The one place where a detector is made from its settings."""

from __future__ import annotations

from cassl_lib.config import ModelConfig
from cassl_lib.models.condinst import CondInst
from cassl_lib.models.memory import keep_freed_memory

STRIDES = (4, 8, 16, 32, 64, 128)
CHOICES = {
    "backbone_norm": ("default", "frozen_bn", "gn"),
    "head_norm": ("gn", "bn"),
    "mask_norm": ("bn", "gn"),
    "center": ("mask", "box"),
    "class_normalizer": ("positives", "moving", "locations"),
    "threshold_on": ("cls*ctr", "cls"),
}


def build_detector(config: ModelConfig) -> CondInst:
    """The detector of `config`, with fresh weights (or ImageNet's in the backbone, `config.pretrained`)."""
    check(config)
    keep_freed_memory()
    return CondInst(config)


def check(config: ModelConfig) -> None:
    """Raise a ValueError that names the setting which no detector can be built from."""
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r}, expected one of {', '.join(allowed)}")
    strides = tuple(config.strides)
    starts = [i for i, stride in enumerate(STRIDES[:4]) if strides and stride == strides[0]]
    if not starts or strides != STRIDES[starts[0] : starts[0] + len(strides)]:
        raise ValueError(f"strides={strides}, expected neighbors from {STRIDES} that start at 32 or below")
    if len(config.ranges) != len(strides) - 1:
        raise ValueError(f"{len(strides)} strides need {len(strides) - 1} ranges, not {len(config.ranges)}")
    if config.num_classes < 1:
        raise ValueError(f"num_classes={config.num_classes}, expected 1 (class-agnostic) or more")
