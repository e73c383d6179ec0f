"""FCOS: the head shared by all levels, which location answers for which box, the losses, the choice of detections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from cassl_lib.config import INFINITE, ModelConfig
from cassl_lib.models import losses
from cassl_lib.models.backbone import group_norm
from cassl_lib.models.condinst_masks import MaskBranch, count_dynamic_parameters

PRIOR = 0.01  # probability of every class that the fresh classifier gives
SURE_BACKGROUND = -1e4  # logit
PAIRS_AT_ONCE = 2**23  # location-box pairs whose targets are computed together: 32 MB per float32 table


class Tower(nn.Module):
    """3x3 convolution, norm, ReLU, a few times, over a list of levels.

    The convolutions and GroupNorms are shared by the levels. BatchNorms are one per level: their statistics differ
    so much that a shared running mean fits none, and the model would compute something else in evaluation.
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
    """Towers and predictions of FCOS; with `config.masks` also the controller and mask branch of CondInst."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        channels, levels = config.channels, len(config.strides)
        self.class_tower = Tower(channels, convs=config.tower_convs, norm=config.head_norm, levels=levels)
        self.box_tower = Tower(channels, convs=config.tower_convs, norm=config.head_norm, levels=levels)
        self.class_logits = nn.Conv2d(channels, config.num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        if config.masks:
            self.controller = nn.Conv2d(channels, count_dynamic_parameters(config.mask_features), 3, padding=1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=0.01)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        nn.init.constant_(self.class_logits.bias, -log((1 - PRIOR) / PRIOR))
        if config.masks:
            self.mask_branch = MaskBranch(config)

    def forward(self, pyramid: list[Tensor]) -> Predictions:
        class_maps, box_maps = self.class_tower(pyramid), self.box_tower(pyramid)
        # Both look at the box tower: one convolution of five channels instead of one of four and one of one.
        weight = torch.cat([self.bbox_pred.weight, self.centerness.weight])
        bias = torch.cat([self.bbox_pred.bias, self.centerness.bias])
        boxes = [F.conv2d(x, weight, bias, padding=1).float() for x in box_maps]
        return Predictions(
            class_logits=flatten_levels([self.class_logits(x) for x in class_maps]),
            distances=flatten_levels([F.relu(s * x[:, :4]) for s, x in zip(self.scales, boxes, strict=True)]),
            centerness=flatten_levels([x[:, 4:] for x in boxes]).squeeze(-1),
            box_maps=box_maps,
        )


@dataclass
class Predictions:
    """What the head says at each of P locations, in the order of `Locations`; float32."""

    class_logits: Tensor  # (B, P, classes)
    distances: Tensor  # (B, P, 4) left, top, right, bottom in units of the stride, at least 0
    centerness: Tensor  # (B, P) logits
    box_maps: list[Tensor]  # the box tower's outputs, (B, channels, H, W) per level


def flatten_levels(maps: list[Tensor]) -> Tensor:
    """[(B, C, H, W)] of all levels -> (B, P, C) float32, level by level, row by row."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2).float() for x in maps], 1)


@dataclass(frozen=True)
class Locations:
    """The P locations of all levels; `counts` of them per level."""

    points: Tensor  # (P, 2) x, y in pixels
    strides: Tensor  # (P,)
    lowest: Tensor  # (P,) range of interest: the smallest and ...
    highest: Tensor  # (P,) ... the largest of l, t, r, b in pixels, both inclusive
    sizes: Tensor  # (P,) size of interest by which relative coordinates are divided, pixels
    counts: list[int]


def make_locations(shapes: list[tuple[int, int]], config: ModelConfig, device: torch.device) -> Locations:
    """Locations of levels of the given (height, width): pixel (j * stride + stride // 2, i * stride + stride // 2)."""
    points = []
    for (height, width), stride in zip(shapes, config.strides, strict=True):
        y = torch.arange(height, device=device, dtype=torch.float32) * stride + stride // 2
        x = torch.arange(width, device=device, dtype=torch.float32) * stride + stride // 2
        points.append(torch.cartesian_prod(y, x).flip(1))
    counts = [len(p) for p in points]
    per_level = [
        config.strides,
        (-1, *config.ranges),
        (*config.ranges, INFINITE),
        (*config.ranges, 2 * config.ranges[-1]),
    ]
    table = torch.tensor(per_level, dtype=torch.float32, device=device)
    columns = torch.repeat_interleave(table, torch.tensor(counts, device=device), dim=1, output_size=sum(counts))
    return Locations(torch.cat(points), *columns.unbind(0), counts)


def assign_targets(locations: Locations, boxes: Tensor, centers: Tensor, radius: float) -> Tensor:
    """Which box each location answers for.

    A location is eligible for a box when it lies strictly inside the square of half side `radius` strides around the
    box's center, clipped to the box, and the largest of its distances to the sides is within its level's range,
    ends included. Of several boxes the one of the smallest area wins, of equal ones the first.

    Args:
        locations: P locations.
        boxes: (B, M, 4) xyxy, pixels; rows of zeros are padding.
        centers: (B, M, 2) x, y of the sample regions, pixels.
        radius: in strides.
    Returns:
        (B, P) int64, index of the box, -1 for background.
    """
    (batch, boxes_per_image, _), total = boxes.shape, len(locations.points)
    at_once = max(1, PAIRS_AT_ONCE // (total * boxes_per_image))
    if batch > at_once:
        parts = zip(boxes.split(at_once), centers.split(at_once), strict=True)
        return torch.cat([assign_targets(locations, b, c, radius) for b, c in parts])
    x, y = locations.points[:, :1], locations.points[:, 1:]
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)
    cx, cy = centers[:, None].unbind(-1)
    half = radius * locations.strides[:, None]
    inside = (x > torch.maximum(cx - half, x1)) & (x < torch.minimum(cx + half, x2))
    inside &= (y > torch.maximum(cy - half, y1)) & (y < torch.minimum(cy + half, y2))
    reach = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))
    inside &= (reach >= locations.lowest[:, None]) & (reach <= locations.highest[:, None])
    area = torch.where(inside, (x2 - x1) * (y2 - y1), torch.inf)
    return torch.where(inside.any(-1), area.argmin(-1), -1)


def box_distances(locations: Locations, boxes: Tensor) -> Tensor:
    """(B, P, 4) boxes xyxy in pixels -> left, top, right, bottom from each location, in units of its stride."""
    from_location = torch.cat([locations.points - boxes[..., :2], boxes[..., 2:] - locations.points], -1)
    return from_location / locations.strides[:, None]


def fcos_losses(
    predictions: Predictions,
    *,
    locations: Locations,
    matched: Tensor,
    targets: Targets,
    class_count: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict:
    """loss_cls, loss_box and loss_centerness of a batch.

    Computed over all locations with weight 0 on the background instead of on a selection: no wait for the device to
    count, and an image without instances is nothing special. The class loss is divided by the positives, or by
    class_count(positives, matched). Where `targets.ignored`, no location counts as background.
    """
    positive, index = matched >= 0, matched.clamp(min=0)
    boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    distances = torch.where(positive[..., None], box_distances(locations, boxes), 1.0)
    center_target = losses.centerness(distances) * positive
    counts = losses.mean_over_processes(torch.stack([positive.sum().float(), center_target.sum()]))
    positives, weight = counts[0].clamp(min=1), counts[1].clamp(min=1e-6)

    classes = torch.arange(predictions.class_logits.shape[-1], device=matched.device)
    present = (targets.labels.gather(1, index)[..., None] == classes) & positive[..., None]
    giou = losses.giou_loss(predictions.distances, distances)
    center = F.binary_cross_entropy_with_logits(predictions.centerness, center_target, reduction="none")
    divisor = class_count(positives, matched) if class_count else positives
    logits = predictions.class_logits
    if targets.ignored is not None:  # so sure to be background that neither loss nor gradient is left
        logits = logits.masked_fill((targets.ignored & ~positive)[..., None], SURE_BACKGROUND)
    return {
        "loss_cls": losses.focal_loss(logits, present) / divisor,
        "loss_box": (giou * center_target).sum() / weight,
        "loss_centerness": (center * positive).sum() / positives,
    }


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, padded with zeros to M boxes per image, M at least 1."""

    boxes: Tensor  # (B, M, 4) xyxy, pixels
    labels: Tensor  # (B, M)
    centers: Tensor  # (B, M, 2) x, y of the sample regions, pixels
    ignored: Tensor | None = None  # (B, P) bool, locations that are no background


def select_detections(predictions: Predictions, locations: Locations, config: ModelConfig) -> list[dict[str, Tensor]]:
    """Threshold, best candidates of every level, class-wise NMS over all levels, best of the image.

    Returns:
        Per image a dict of boxes (N, 4) xyxy in pixels, not clipped; scores (N,) = sqrt(cls * ctr), descending;
        labels (N,); positions (N,) indices into `locations`.
    """
    classes = predictions.class_logits.sigmoid()
    joint = classes * predictions.centerness.sigmoid()[..., None]
    tested = joint if config.threshold_on == "cls*ctr" else classes
    candidates = torch.where(tested > config.score_threshold, joint, -1.0)
    scores, positions, labels, start = [], [], [], 0
    for level in candidates.split(locations.counts, 1):
        best, flat = level.flatten(1).topk(min(config.candidates_per_level, level[0].numel()))
        scores.append(best)
        positions.append(flat // level.shape[-1] + start)
        labels.append(flat % level.shape[-1])
        start += level.shape[1]
    per_image = zip(torch.cat(scores, 1), torch.cat(positions, 1), torch.cat(labels, 1), strict=True)

    detections = []
    for (score, position, label), distances in zip(per_image, predictions.distances, strict=True):
        passed = score >= 0
        score, position, label = score[passed].sqrt(), position[passed], label[passed]
        points, reach = locations.points[position], distances[position] * locations.strides[position, None]
        boxes = torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1)
        kept = batched_nms(boxes, score, label, config.nms_threshold)[: config.detections_per_image]
        detections.append(
            {"boxes": boxes[kept], "scores": score[kept], "labels": label[kept], "positions": position[kept]}
        )
    return detections
