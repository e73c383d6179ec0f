"""Backbones by name: whether one of timm's fits the detector, and near names for one that does not exist."""

from __future__ import annotations

import difflib

import timm
import torch

from cassl_lib.config import ModelConfig
from cassl_lib.errors import ConfigError
from cassl_lib.models.backbone import STAGE_STRIDES, create_body


def check_backbone(name: str) -> None:
    """Raise ConfigError unless timm has this backbone, with stages at strides 4, 8, 16, 32. Downloads nothing."""
    known = timm.list_models()
    architecture, _, tag = name.partition(".") if isinstance(name, str) else ("", "", "")
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3) or ["resnet50", "swin_tiny_patch4_window7_224"]
        raise ConfigError(f"backbone={name!r} is not a timm model; near names: {', '.join(near)}")
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        near = ", ".join(difflib.get_close_matches(name, tagged, n=3)) or architecture
        raise ConfigError(f"backbone={name!r} names weights that timm does not have; near names: {near}")
    try:
        with torch.device("meta"):  # without memory
            strides = create_body(ModelConfig(backbone=name), {}).feature_info.reduction()
    except Exception as error:  # whatever a model raises that has no such stages
        raise ConfigError(
            f"backbone={name!r} gives no feature maps at strides 4, 8, 16, 32 ({str(error).splitlines()[0]}); use "
            "resnet50, a Swin, or another one with four stages"
        ) from error
    if strides != list(STAGE_STRIDES):
        raise ConfigError(
            f"backbone={name!r} has stages at strides {strides}; use one with strides 4, 8, 16, 32, such as resnet50"
        )


def trained_with_drop_path(name: str) -> bool:
    """Whether drop path applies: to models that take `drop_path_rate`, but not to ResNets, as in public detectors."""
    if "resn" in name:
        return False
    try:
        with torch.device("meta"):
            create_body(ModelConfig(backbone=name, drop_path=0.1), {})
    except TypeError:
        return False
    return True
