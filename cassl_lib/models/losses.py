"""The terms of the detector's loss (Eq. 6): classification, box, centerness and mask. All in float32.

The functions return a value per element, or a sum. Division by counts happens in `fcos_losses` and
`CondInst.mask_loss`, with counts averaged over processes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def mean_over_processes(values: Tensor) -> Tensor:
    """Average over the processes of a distributed run; without one, the values unchanged."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), summed over all entries.

    Args:
        logits: (..., classes), any shape.
        targets: bool, same shape, True where the class is present.
    """
    toward_target = torch.where(targets, logits, -logits)
    weight = torch.where(targets, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return (weight * torch.sigmoid(-toward_target) ** FOCAL_GAMMA * -F.logsigmoid(toward_target)).sum()


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of two boxes around one location, each (..., 4) distances left, top, right, bottom in strides.

    Numerator and denominator of the IoU are smoothed by 1 (a square stride); the penalty for the enclosing box
    is not.
    """
    predicted_area = (predicted[..., 0] + predicted[..., 2]) * (predicted[..., 1] + predicted[..., 3])
    target_area = (target[..., 0] + target[..., 2]) * (target[..., 1] + target[..., 3])
    smaller, larger = torch.minimum(predicted, target), torch.maximum(predicted, target)
    intersection = (smaller[..., 0] + smaller[..., 2]) * (smaller[..., 1] + smaller[..., 3])
    enclosing = (larger[..., 0] + larger[..., 2]) * (larger[..., 1] + larger[..., 3])
    union = predicted_area + target_area - intersection
    return 1 - (intersection + 1) / (union + 1) + (enclosing - union) / enclosing


def centerness(distances: Tensor) -> Tensor:
    """FCOS's centerness, sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), of (..., 4) distances l, t, r, b > 0."""
    left, top, right, bottom = distances.unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Dice loss, 1 - 2 sum(xy) / (sum(x^2) + sum(y^2) + 1e-5) over the pixels of two (N, H, W): (N,)."""
    x, y = probabilities.flatten(1), targets.flatten(1)
    return 1 - 2 * (x * y).sum(1) / ((x * x).sum(1) + (y * y).sum(1) + 1e-5)
