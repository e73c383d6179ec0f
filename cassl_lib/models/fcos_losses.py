"""The losses of FCOS over a batch (Eq. 6 without masks)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cassl_lib.models import losses
from cassl_lib.models.fcos_head import Predictions
from cassl_lib.models.fcos_targets import Locations, Targets, box_distances

SURE_BACKGROUND = -1e4  # logit


def fcos_losses(
    predictions: Predictions,
    *,
    locations: Locations,
    matched: Tensor,
    targets: Targets,
    class_count: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """loss_cls, loss_box and loss_centerness of a batch (Eq. 6).

    Every location takes part; background has weight 0 in the box and centerness losses. Unlike a selection of
    positives this needs no synchronization with the device, and images without instances need no special case.

    Args:
        matched: (B, P) index of each location's box, -1 for background.
        targets: ground truth; background locations in `targets.ignored` do not contribute to the class loss.
        class_count: divisor of the class loss from (positives, matched); by default the number of positives.
    """
    # Box, distance and centerness targets of every location.
    positive, index = matched >= 0, matched.clamp(min=0)
    boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    distances = torch.where(positive[..., None], box_distances(locations, boxes), 1.0)
    center_target = losses.centerness(distances) * positive
    # Divisors, averaged over processes.
    counts = losses.mean_over_processes(torch.stack([positive.sum().float(), center_target.sum()]))
    positives, weight = counts[0].clamp(min=1), counts[1].clamp(min=1e-6)

    # The three terms.
    classes = torch.arange(predictions.class_logits.shape[-1], device=matched.device)
    present = (targets.labels.gather(1, index)[..., None] == classes) & positive[..., None]
    giou = losses.giou_loss(predictions.distances, distances)
    center = F.binary_cross_entropy_with_logits(predictions.centerness, center_target, reduction="none")
    divisor = class_count(positives, matched) if class_count else positives
    logits = predictions.class_logits
    if targets.ignored is not None:  # a logit so low that loss and gradient are exactly 0
        logits = logits.masked_fill((targets.ignored & ~positive)[..., None], SURE_BACKGROUND)
    return {
        "loss_cls": losses.focal_loss(logits, present) / divisor,
        "loss_box": (giou * center_target).sum() / weight,
        "loss_centerness": (center * positive).sum() / positives,
    }
