"""FCOS's locations and targets: which location is assigned to which ground-truth box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cassl_lib.config import INFINITE, ModelConfig

PAIRS_AT_ONCE = 2**23  # location-box pairs assigned at a time: 32 MB per float32 table


@dataclass(frozen=True)
class Locations:
    """The P locations of all levels, level by level, row by row."""

    points: Tensor  # (P, 2) x, y in pixels
    strides: Tensor  # (P,)
    lowest: Tensor  # (P,) range of interest of max(l, t, r, b), pixels: lower end, ...
    highest: Tensor  # (P,) ... upper end, both inclusive
    sizes: Tensor  # (P,) size of interest, which normalizes CondInst's relative coordinates, pixels
    counts: list[int]  # locations per level


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, zero-padded to M boxes per image, M >= 1."""

    boxes: Tensor  # (B, M, 4) xyxy, pixels
    labels: Tensor  # (B, M)
    centers: Tensor  # (B, M, 2) x, y of the center-sampling regions, pixels
    ignored: Tensor | None = None  # (B, P) bool, locations that are not trained as background


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


def assign_targets(locations: Locations, boxes: Tensor, centers: Tensor, *, radius: float) -> Tensor:
    """Assign each location to at most one box.

    A location is a candidate for a box if it lies strictly inside the square of half side `radius` strides around
    the box's center, clipped to the box, and its largest distance to a side of the box is in its level's range of
    interest (ends included). Of several candidate boxes the smallest wins; of equally small ones, the first.

    Args:
        locations: P locations.
        boxes: (B, M, 4) xyxy, pixels; rows of zeros are padding.
        centers: (B, M, 2) x, y of the center-sampling regions, pixels.
        radius: in strides.
    Returns:
        (B, P) int64, index of the box, -1 for background.
    """
    (batch, boxes_per_image, _), total = boxes.shape, len(locations.points)
    at_once = max(1, PAIRS_AT_ONCE // (total * boxes_per_image))
    if batch > at_once:
        parts = zip(boxes.split(at_once), centers.split(at_once), strict=True)
        return torch.cat([assign_targets(locations, b, c, radius=radius) for b, c in parts])
    # All pairs (B, P, M): inside the box and its center-sampling region?
    x, y = locations.points[:, :1], locations.points[:, 1:]
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)
    cx, cy = centers[:, None].unbind(-1)
    half = radius * locations.strides[:, None]
    inside = (x > torch.maximum(cx - half, x1)) & (x < torch.minimum(cx + half, x2))
    inside &= (y > torch.maximum(cy - half, y1)) & (y < torch.minimum(cy + half, y2))
    # Of the right size for the level?
    reach = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))
    inside &= (reach >= locations.lowest[:, None]) & (reach <= locations.highest[:, None])
    # The smallest box of those.
    area = torch.where(inside, (x2 - x1) * (y2 - y1), torch.inf)
    return torch.where(inside.any(-1), area.argmin(-1), -1)


def box_distances(locations: Locations, boxes: Tensor) -> Tensor:
    """Distances left, top, right, bottom from each location to its box (B, P, 4) xyxy in pixels, in strides."""
    from_location = torch.cat([locations.points - boxes[..., :2], boxes[..., 2:] - locations.points], -1)
    return from_location / locations.strides[:, None]


def mask_centers(masks: Tensor, boxes: Tensor) -> Tensor:
    """Centroids (N, 2) x, y of masks (N, H, W), in pixels; for an empty mask the center of its box (N, 4)."""
    # Moments of a large mask exceed 2^24, the largest exact integer range of float32.
    columns, rows = (masks.sum(axis, dtype=torch.int32).double() for axis in (1, 2))
    moments = [values @ torch.arange(values.shape[1], device=masks.device).double() for values in (columns, rows)]
    area = rows.sum(1)[:, None]
    return torch.where(area > 0, (torch.stack(moments, 1) / area).float(), box_centers(boxes))


def box_centers(boxes: Tensor) -> Tensor:
    """Centers (N, 2) x, y of boxes (N, 4) xyxy."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def pad_rows(values: list[Tensor]) -> Tensor:
    """[(N_i, ...)] -> (B, max(1, max N_i), ...), zero-padded."""
    spare = values[0].new_zeros((1, *values[0].shape[1:]))
    return nn.utils.rnn.pad_sequence([*values, spare], batch_first=True)[:-1]


def ignored_locations(ignored: Tensor | None, locations: Locations) -> Tensor:
    """(P,) bool, the locations on an ignored pixel of one image; `ignored` is (H, W), None for none."""
    x, y = locations.points.long().unbind(1)
    if ignored is None:
        return torch.zeros_like(x, dtype=torch.bool)
    height, width = ignored.shape[-2:]
    inside = (x < width) & (y < height)
    return inside & ignored.to(x.device).bool().view(height, width)[y.clamp(max=height - 1), x.clamp(max=width - 1)]
