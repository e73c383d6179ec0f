"""FCOS's head: two convolution towers and three predictions per location, shared by all levels of the pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cassl_lib.config import ModelConfig
from cassl_lib.models.backbone import group_norm

PRIOR = 0.01  # initial probability of every class at every location (RetinaNet's)


@dataclass
class Predictions:
    """Raw outputs of the head at P locations, in the order of `Locations`; float32."""

    class_logits: Tensor  # (B, P, classes)
    distances: Tensor  # (B, P, 4) left, top, right, bottom in strides, >= 0
    centerness: Tensor  # (B, P) logits
    box_maps: list[Tensor]  # the box tower's outputs, (B, channels, H, W) per level


class Tower(nn.Module):
    """A stack of 3x3 convolution, norm and ReLU, applied to each level.

    Convolutions and GroupNorms are shared by the levels. BatchNorms are not: the levels' statistics differ so much
    that a shared running mean fits none of them, and evaluation would not compute what training did.
    """

    def __init__(self, channels: int, *, convs: int, norm: str, levels: int):
        super().__init__()
        bias = norm == "gn"
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in range(convs))
        if norm == "gn":
            self.norms = nn.ModuleList(group_norm(channels) for _ in range(convs))
        else:
            self.norms = nn.ModuleList(
                nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels)) for _ in range(convs)
            )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            norms = norm if isinstance(norm, nn.ModuleList) else [norm] * len(maps)
            maps = [F.relu(norm(conv(x)), inplace=True) for norm, x in zip(norms, maps, strict=True)]
        return maps


class Head(nn.Module):
    """Class logits, box distances and centerness at every location, from a pyramid of (B, channels, H, W) maps."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.make_layers(config)
        self.initialize()

    def make_layers(self, config: ModelConfig) -> None:
        """Towers and prediction layers. A subclass adds its prediction layers here, to be initialized alike."""
        channels, levels = config.channels, len(config.strides)
        self.class_tower = Tower(channels, convs=config.tower_convs, norm=config.head_norm, levels=levels)
        self.box_tower = Tower(channels, convs=config.tower_convs, norm=config.head_norm, levels=levels)
        self.class_logits = nn.Conv2d(channels, config.num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))

    def initialize(self) -> None:
        """Normal weights of std 0.01, zero biases, and a classifier that starts at `PRIOR`."""
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=0.01)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        nn.init.constant_(self.class_logits.bias, -log((1 - PRIOR) / PRIOR))

    def forward(self, pyramid: list[Tensor]) -> Predictions:
        class_maps, box_maps = self.class_tower(pyramid), self.box_tower(pyramid)
        # Distances and centerness share the box tower: one convolution with 5 outputs is faster than two with 4 and 1.
        weight = torch.cat([self.bbox_pred.weight, self.centerness.weight])
        bias = torch.cat([self.bbox_pred.bias, self.centerness.bias])
        boxes = [F.conv2d(x, weight, bias, padding=1).float() for x in box_maps]
        return Predictions(
            class_logits=flatten_levels([self.class_logits(x) for x in class_maps]),
            distances=flatten_levels([F.relu(s * x[:, :4]) for s, x in zip(self.scales, boxes, strict=True)]),
            centerness=flatten_levels([x[:, 4:] for x in boxes]).squeeze(-1),
            box_maps=box_maps,
        )


def flatten_levels(maps: list[Tensor]) -> Tensor:
    """[(B, C, H, W)] of all levels -> (B, P, C) float32, level by level, row by row."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2).float() for x in maps], 1)
