"""CondInst's masks: mask branch, the dynamic layers each instance brings along, targets and resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cassl_lib.config import ModelConfig
from cassl_lib.models.backbone import group_norm

HIDDEN = 8  # channels between the dynamic layers


def count_dynamic_parameters(mask_features: int) -> int:
    """Weights (features + 2) x 8, 8 x 8, 8 x 1, then biases 8, 8, 1: 169 for 8 features."""
    weights, biases = (mask_features + 2) * HIDDEN + HIDDEN * HIDDEN + HIDDEN, 2 * HIDDEN + 1
    return weights + biases


def split_dynamic_parameters(parameters: Tensor, mask_features: int) -> tuple[list[Tensor], list[Tensor]]:
    """(N, 169) -> weights [(N, 8, 2 + features), (N, 8, 8), (N, 1, 8)], biases [(N, 8, 1), (N, 8, 1), (N, 1, 1)]."""
    inputs, outputs = (mask_features + 2, HIDDEN, HIDDEN), (HIDDEN, HIDDEN, 1)
    sizes = [i * o for i, o in zip(inputs, outputs, strict=True)]
    *weights, b1, b2, b3 = parameters.split([*sizes, *outputs], 1)
    weights = [w.unflatten(1, (o, i)) for w, o, i in zip(weights, outputs, inputs, strict=True)]
    return weights, [b.unsqueeze(-1) for b in (b1, b2, b3)]


class MaskBranch(nn.Module):
    """First levels of the pyramid (at most three) -> mask features (B, features, H, W) at the first level's stride."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.mask_channels
        levels = min(3, len(config.strides))
        self.refine = nn.ModuleList(conv_block(config.channels, width, config.mask_norm) for _ in range(levels))
        self.tower = nn.Sequential(*[conv_block(width, width, config.mask_norm) for _ in range(config.mask_convs)])
        self.features = nn.Conv2d(width, config.mask_features, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.features.bias)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        merged = self.refine[0](pyramid[0])
        for level, refine in enumerate(self.refine[1:], start=1):
            merged = merged + aligned_bilinear(refine(pyramid[level]), 2**level)
        return self.features(self.tower(merged))


def conv_block(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    norm_layer = nn.BatchNorm2d(outputs) if norm == "bn" else group_norm(outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm_layer, nn.ReLU(inplace=True))


def aligned_bilinear(maps: Tensor, factor: int) -> Tensor:
    """Enlarge (N, C, H, W) by an integer so that sample i lands exactly on pixel i * factor + factor // 2."""
    if factor == 1:
        return maps
    height, width = maps.shape[-2:]
    maps = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    maps = F.pad(maps, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return maps[..., : factor * height, : factor * width]


def enlarging_matrix(length: int, factor: int, device: torch.device) -> Tensor:
    """(factor * length, length): aligned_bilinear along one axis, as a matrix."""
    return aligned_bilinear(torch.eye(length, device=device)[None, None], factor)[0, 0, :, factor // 2 :: factor]


def dynamic_parameters(controller: nn.Conv2d, box_maps: list[Tensor], images: Tensor, positions: Tensor) -> Tensor:
    """The controller's output at N chosen locations only: (N, 169) float32.

    The 3x3 convolution needs 169 channels at a few hundred of many thousand locations, so their neighborhoods
    are gathered and multiplied instead.

    Args:
        controller: the 3x3 convolution.
        box_maps: the box tower's outputs, (B, C, H, W) per level.
        images, positions: (N,) index of the image and of the location.
    """
    device, start, corners, pitches = images.device, 0, [], []
    for _, _, height, width in (x.shape for x in box_maps):
        rows = torch.arange(height, device=device)[:, None] * (width + 2) + torch.arange(width, device=device)
        corners.append(rows.flatten() + start)
        pitches.append(torch.full((height * width,), width + 2, device=device))
        start += (height + 2) * (width + 2)
    cells = torch.cat([F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(1, 2) for x in box_maps], 1)
    row, column = torch.arange(9, device=device) // 3, torch.arange(9, device=device) % 3
    corner, pitch = torch.cat(corners)[positions, None], torch.cat(pitches)[positions, None]
    neighborhoods = cells[images[:, None], corner + row * pitch + column].flatten(1)
    weight = controller.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(neighborhoods, weight, controller.bias).float()


def mask_logits(
    features: Tensor, *, parameters: Tensor, images: Tensor, points: Tensor, sizes: Tensor, stride: int
) -> Tensor:
    """Logits of N instances by their own three 1x1 convolutions, at twice the resolution of the features.

    The input of the first layer is (instance location - pixel location) / size of interest, x then y, followed by the
    mask features. That layer is linear: its features part is one product per image, shared by the image's instances,
    its coordinates part the sum of a row and a column, so no instance carries a copy of the features.

    Args:
        features: (B, F, H, W) float32 mask features.
        parameters: (N, 169) float32.
        images: (N,) image of each instance, ascending.
        points: (N, 2) x, y of the instance's location, pixels.
        sizes: (N,) size of interest of its level, pixels.
        stride: of the features, pixels.
    Returns:
        (N, 2 H, 2 W)
    """
    (batch, channels, height, width), device = features.shape, features.device
    weights, biases = split_dynamic_parameters(parameters, channels)
    offset = stride // 2
    x = (points[:, :1] - (torch.arange(width, device=device) * stride + offset)) / sizes[:, None]
    y = (points[:, 1:] - (torch.arange(height, device=device) * stride + offset)) / sizes[:, None]
    by_column = (weights[0][:, :, :1] * x[:, None]).unsqueeze(2)
    by_row = (weights[0][:, :, 1:2] * y[:, None] + biases[0]).unsqueeze(3)

    per_image = weights[0][:, :, 2:].split(torch.bincount(images, minlength=batch).tolist())
    from_features = [w.flatten(0, 1) @ f.flatten(1) for w, f in zip(per_image, features, strict=True)]
    hidden = torch.cat(from_features).view(-1, HIDDEN, height, width) + by_column + by_row
    hidden = F.relu(hidden, inplace=True).flatten(2)
    hidden = F.relu(torch.baddbmm(biases[1], weights[1], hidden), inplace=True)
    logits = torch.baddbmm(biases[2], weights[2], hidden).view(-1, height, width)
    # aligned_bilinear(logits, 2); over hundreds of small maps two products are several times faster.
    return enlarging_matrix(height, 2, device) @ logits @ enlarging_matrix(width, 2, device).T


def pixel_matrix(cells: int, factor: int, *, image_side: int, side: int, device: torch.device) -> Tensor:
    """(side, cells): enlarge one axis by `factor`, crop it to the image, resize that to the original image."""
    matrix = enlarging_matrix(cells, factor, device)[:image_side]
    if side != image_side:
        matrix = F.interpolate(matrix[None, None], size=(side, cells), mode="bilinear", align_corners=False)[0, 0]
    return matrix


def enlarge_masks(
    probabilities: Tensor,
    by_row: Tensor,
    by_column: Tensor,
    masks: Tensor,
    *,
    certainty: Tensor | None = None,
    taken: Tensor | None = None,
) -> None:
    """Set masks (N, H, W) where by_row @ probabilities (N, h, w) @ by_column.T exceeds 0.5.

    Interpolation never exceeds what it interpolates, so pixels that see no cell above 0.5 are left alone.

    Args:
        certainty: (N,) set to the mean probability inside each mask, 0 for an empty one.
        taken: (H, W) bool, pixels that belong to an earlier mask; they are left out, and those of these masks added.
    """
    above = probabilities > 0.5
    axes = [(above.any(2), by_row), (above.any(1), by_column)]
    found = torch.stack([extent for occupied, matrix in axes for extent in pixel_extents(occupied, matrix)], 1)
    for i, (top, bottom, left, right) in enumerate(found.tolist()):
        if bottom > top and right > left:
            window = slice(top, bottom), slice(left, right)
            probability = by_row[window[0]] @ (probabilities[i] @ by_column[window[1]].T)
            mask = probability > 0.5
            if taken is not None:
                mask &= ~taken[window]
                taken[window] |= mask
            masks[i][window] = mask
            if certainty is not None:
                certainty[i] = (probability * mask).sum() / mask.sum().clamp(min=1)


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (N, 4) float32 xyxy of masks (N, H, W), pixels; zeros for an empty mask."""
    # DEVIATES: the right and lower edge lie behind the last pixel, as in COCO's boxes; public Entity code ends on it.
    (left, right), (top, bottom) = extents(masks.any(1)), extents(masks.any(2))
    return torch.stack([left, top, right, bottom], 1).float()


def pixel_extents(occupied: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the pixels (rows of `matrix`) that see an occupied cell: (N, cells) -> twice (N,)."""
    return extents((occupied.float() @ matrix.T) > 0)


def extents(flags: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the true places in each row of (N, length): twice (N,), zeros where there is none."""
    places = torch.arange(1, flags.shape[1] + 1, device=flags.device)
    last = (flags * places).amax(1)
    return torch.where(flags, places - 1, last[:, None]).amin(1), last


def mask_centers(masks: Tensor, boxes: Tensor) -> Tensor:
    """Centroids (N, 2) x, y of full-resolution masks (N, H, W), in pixels; of an empty mask, its box's center."""
    # Moments of a large mask exceed 2^24, what float32 counts exactly.
    columns, rows = (masks.sum(axis, dtype=torch.int32).double() for axis in (1, 2))
    moments = [values @ torch.arange(values.shape[1], device=masks.device).double() for values in (columns, rows)]
    area = rows.sum(1)[:, None]
    return torch.where(area > 0, (torch.stack(moments, 1) / area).float(), box_centers(boxes))


def box_centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def sample_masks(masks: Tensor, *, stride: int, size: tuple[int, int]) -> Tensor:
    """Mask targets (N, *size) bool: the masks at stride // 2 + k * stride, not averaged, padded with zeros."""
    sampled = masks[:, stride // 2 :: stride, stride // 2 :: stride].bool()
    return F.pad(sampled, (0, size[1] - sampled.shape[2], 0, size[0] - sampled.shape[1]))
