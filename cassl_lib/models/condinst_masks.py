"""CondInst's masks: mask branch, generated mask heads, mask targets, resampling to pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cassl_lib.config import ModelConfig
from cassl_lib.errors import DataError
from cassl_lib.models.backbone import group_norm

HIDDEN = 8  # channels between the layers of a generated mask head


def count_dynamic_parameters(mask_features: int) -> int:
    """Size of a generated mask head: weights (features + 2) x 8, 8 x 8, 8 x 1, biases 8, 8, 1; 169 for 8 features."""
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
    """The finest levels of the pyramid, at most three -> mask features (B, features, H, W) at the finest stride."""

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
        # Sum the levels at the finest stride, then refine the sum.
        merged = self.refine[0](pyramid[0])
        for level, refine in enumerate(self.refine[1:], start=1):
            merged = merged + aligned_bilinear(refine(pyramid[level]), 2**level)
        return self.features(self.tower(merged))


def conv_block(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """3x3 convolution, norm (bn or gn) and ReLU."""
    norm_layer = nn.BatchNorm2d(outputs) if norm == "bn" else group_norm(outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm_layer, nn.ReLU(inplace=True))


def aligned_bilinear(maps: Tensor, factor: int) -> Tensor:
    """Enlarge (N, C, H, W) by an integer factor so that sample i lands on pixel i * factor + factor // 2."""
    if factor == 1:
        return maps
    height, width = maps.shape[-2:]
    maps = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    maps = F.pad(maps, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return maps[..., : factor * height, : factor * width]


def enlarging_matrix(length: int, factor: int, device: torch.device) -> Tensor:
    """`aligned_bilinear` along one axis as a matrix (factor * length, length)."""
    return aligned_bilinear(torch.eye(length, device=device)[None, None], factor)[0, 0, :, factor // 2 :: factor]


def dynamic_parameters(controller: nn.Conv2d, box_maps: list[Tensor], *, images: Tensor, positions: Tensor) -> Tensor:
    """The controller's output at N chosen locations: the parameters of N generated mask heads, (N, 169) float32.

    The 3x3 convolution has 169 output channels and is needed at a few hundred of many thousand locations, so we
    gather the 3x3 neighborhoods of these and multiply.

    Args:
        controller: the 3x3 convolution.
        box_maps: the box tower's outputs, (B, C, H, W) per level.
        images, positions: (N,) index of the image and of the location.
    """
    # Index of each location's upper left neighbor, and the row length, in the padded and flattened levels.
    device, start, corners, pitches = images.device, 0, [], []
    for _, _, height, width in (x.shape for x in box_maps):
        rows = torch.arange(height, device=device)[:, None] * (width + 2) + torch.arange(width, device=device)
        corners.append(rows.flatten() + start)
        pitches.append(torch.full((height * width,), width + 2, device=device))
        start += (height + 2) * (width + 2)
    # Gather the neighborhoods, (N, 9 * C), and apply the convolution as a matrix.
    cells = torch.cat([F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(1, 2) for x in box_maps], 1)
    row, column = torch.arange(9, device=device) // 3, torch.arange(9, device=device) % 3
    corner, pitch = torch.cat(corners)[positions, None], torch.cat(pitches)[positions, None]
    neighborhoods = cells[images[:, None], corner + row * pitch + column].flatten(1)
    weight = controller.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(neighborhoods, weight, controller.bias).float()


def mask_logits(
    features: Tensor,
    *,
    parameters: Tensor,
    images: Tensor,
    points: Tensor,
    sizes: Tensor,
    stride: int,
    factor: int = 2,
) -> Tensor:
    """Apply N generated mask heads, three 1x1 convolutions each, and enlarge their logits.

    The first layer's inputs are the relative coordinates (instance location - pixel location) / size of interest, x
    then y, followed by the mask features. As the layer is linear, we compute its feature part as one product per
    image and its coordinate part as the sum of a row and a column, without a copy of the features per instance.

    Args:
        features: (B, F, H, W) float32 mask features.
        parameters: (N, 169) float32.
        images: (N,) image index of each instance, ascending.
        points: (N, 2) x, y of the instances' locations, pixels.
        sizes: (N,) size of interest of their levels, pixels.
        stride: of the features, pixels.
        factor: of the enlargement, stride / `ModelConfig.mask_stride`.
    Returns:
        Logits (N, factor H, factor W).
    """
    # First layer: coordinates by row and column, ...
    (batch, channels, height, width), device = features.shape, features.device
    weights, biases = split_dynamic_parameters(parameters, channels)
    offset = stride // 2
    x = (points[:, :1] - (torch.arange(width, device=device) * stride + offset)) / sizes[:, None]
    y = (points[:, 1:] - (torch.arange(height, device=device) * stride + offset)) / sizes[:, None]
    by_column = (weights[0][:, :, :1] * x[:, None]).unsqueeze(2)
    by_row = (weights[0][:, :, 1:2] * y[:, None] + biases[0]).unsqueeze(3)

    # ... features by image.
    per_image = weights[0][:, :, 2:].split(torch.bincount(images, minlength=batch).tolist())
    from_features = [w.flatten(0, 1) @ f.flatten(1) for w, f in zip(per_image, features, strict=True)]
    hidden = torch.cat(from_features).view(-1, HIDDEN, height, width) + by_column + by_row
    hidden = F.relu(hidden, inplace=True).flatten(2)
    # Second and third layer.
    hidden = F.relu(torch.baddbmm(biases[1], weights[1], hidden), inplace=True)
    logits = torch.baddbmm(biases[2], weights[2], hidden).view(-1, height, width)
    # aligned_bilinear(logits, factor) as two products, several times faster for hundreds of small maps.
    return enlarging_matrix(height, factor, device) @ logits @ enlarging_matrix(width, factor, device).T


def pixel_matrix(cells: int, factor: int, *, image_side: int, side: int, device: torch.device) -> Tensor:
    """Resampling matrix of one axis, (side, cells): enlarge by `factor`, crop to `image_side`, resize to `side`."""
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
    """Set `masks` in place where by_row @ probabilities @ by_column.T exceeds 0.5.

    Interpolated values never exceed their inputs, so only the window of pixels with an input above 0.5 is computed.

    Args:
        probabilities: (N, h, w).
        by_row, by_column: resampling matrices (H, h) and (W, w), see `pixel_matrix`.
        masks: (N, H, W) bool, all False.
        certainty: (N,) set in place to the mean probability inside each mask; left as is for an empty window.
        taken: (H, W) bool, pixels of earlier masks. They are excluded, and the pixels of these masks are added.
    """
    # The window of pixels of each mask.
    above = probabilities > 0.5
    axes = [(above.any(2), by_row), (above.any(1), by_column)]
    windows = torch.stack([extent for occupied, matrix in axes for extent in pixel_extents(occupied, matrix)], 1)
    for i, (top, bottom, left, right) in enumerate(windows.tolist()):
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
    # DEVIATES: the right and lower edges lie past the last pixel, as in COCO's boxes; in public Entity code, on it.
    (left, right), (top, bottom) = extents(masks.any(1)), extents(masks.any(2))
    return torch.stack([left, top, right, bottom], 1).float()


def pixel_extents(occupied: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the pixels (rows of `matrix`) that depend on an occupied cell: (N, cells) -> 2 x (N,)."""
    return extents((occupied.float() @ matrix.T) > 0)


def extents(flags: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the True entries in each row of (N, length): 2 x (N,), zeros if there are none."""
    places = torch.arange(1, flags.shape[1] + 1, device=flags.device)
    last = (flags * places).amax(1)
    return torch.where(flags, places - 1, last[:, None]).amin(1), last


def sample_masks(masks: Tensor, *, stride: int, size: tuple[int, int]) -> Tensor:
    """Sample masks (N, H, W) at pixels stride // 2 + k * stride, without averaging, zero-padded: (N, *size) bool."""
    sampled = masks[:, stride // 2 :: stride, stride // 2 :: stride].bool()
    return F.pad(sampled, (0, size[1] - sampled.shape[2], 0, size[0] - sampled.shape[1]))


def gather_masks(targets: list[dict], *, stride: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Mask targets of all instances of a batch, image by image: (sum of N, *size) bool, see `sample_masks`."""
    sampled = [torch.zeros((0, *size), dtype=torch.bool, device=device)]
    for target in targets:
        if len(target["boxes"]) == 0:
            continue
        if target.get("masks") is None:
            raise DataError(
                "targets: an image has boxes but no masks. Add masks, or use ModelConfig(masks=False) for boxes only."
            )
        sampled.append(sample_masks(target["masks"].to(device), stride=stride, size=size))
    return torch.cat(sampled)
