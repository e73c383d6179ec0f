"""The one place that chooses and builds a detector."""

from __future__ import annotations

from cassl_lib.config import ModelConfig
from cassl_lib.config_values import MODEL_CHOICES
from cassl_lib.errors import ConfigError
from cassl_lib.models.condinst import CondInst
from cassl_lib.models.detector import Detector
from cassl_lib.models.fcos import FCOS
from cassl_lib.models.memory import keep_freed_memory

STRIDES = (4, 8, 16, 32, 64, 128)


def build_detector(config: ModelConfig) -> Detector:
    """CondInst, or FCOS if `config.masks` is False, with random weights (or a pretrained backbone, see the config).

    Raises:
        ConfigError: a setting is not supported.
        WeightsError: the pretrained weights cannot be loaded.
    """
    check(config)
    keep_freed_memory()
    return CondInst(config) if config.masks else FCOS(config)


def check(config: ModelConfig) -> None:
    """Raise a ConfigError that names the first unsupported setting."""
    for name, allowed in MODEL_CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ConfigError(f"{name}={getattr(config, name)!r} is not supported. Choose one of {', '.join(allowed)}.")
    strides = tuple(config.strides)
    starts = [i for i, stride in enumerate(STRIDES[:4]) if strides and stride == strides[0]]
    if not starts or strides != STRIDES[starts[0] : starts[0] + len(strides)]:
        raise ConfigError(
            f"strides={strides} are not supported. Choose neighbors from {STRIDES}, the first at most 32."
        )
    if len(config.ranges) != len(strides) - 1:
        raise ConfigError(
            f"ranges={config.ranges} do not fit strides={strides}. Give {len(strides) - 1}, one fewer than strides."
        )
    if config.mask_stride < 1 or strides[0] % config.mask_stride:
        raise ConfigError(
            f"mask_stride={config.mask_stride} does not divide the finest stride, {strides[0]}. Choose a divisor, "
            "such as 4 (public code) or 2 (CondInst paper)."
        )
    if config.num_classes < 1:
        raise ConfigError(f"num_classes={config.num_classes} is too small. Use 1 (class-agnostic) or more.")
