"""One segment a pixel from overlapping instances: the panoptic result of a detector that takes stuff for instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cassl_lib.config import PanopticConfig
from cassl_lib.data.panoptic import Panoptic


def merge_panoptic(
    found: dict[str, torch.Tensor],
    *,
    size: tuple[int, int],
    categories: Sequence[dict],
    settings: PanopticConfig,
) -> Panoptic:
    """Paint instances in falling score, each on the pixels that are still free.

    An instance is left out if its score is too low, or if others hold too much of it already. All stuff of one class is
    one segment, so stuff of its own class does not stand in its way; stuff that ends too small becomes void.

    Args:
        found: of one image, `scores` (N,), `labels` (N,) int64, `masks` (N, H, W) bool of the original size.
        size: of the original image, height and width.
        categories: COCO's `id` and `isthing`, `categories[label]`.
    Returns:
        (H, W) int32 segment ids, 0 for void, and `segments_info`: a dict with `id` and `category_id` each.
    """
    masks, labels = _by_score(found, size, categories, settings.score_threshold)
    ids, segments, stuff = np.zeros(size, np.int32), [], {}
    for mask, label in zip(masks, labels, strict=True):
        own = stuff.get(label, 0)
        holders = ids[mask]
        free = np.count_nonzero(holders == 0)
        taken = np.count_nonzero((holders != 0) & (holders != own))
        if not free or taken > settings.overlap_threshold * len(holders):
            continue
        if not own:
            own = len(segments) + 1
            segments.append({"id": own, "category_id": categories[label]["id"]})
            if not categories[label]["isthing"]:
                stuff[label] = own
        ids[mask & (ids == 0)] = own
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1)
    small = [own for own in stuff.values() if areas[own] < settings.min_stuff_area]
    ids[np.isin(ids, small)] = 0
    return ids, [segment for segment in segments if segment["id"] not in small]


def _by_score(
    found: dict[str, torch.Tensor], size: tuple[int, int], categories: Sequence[dict], threshold: float
) -> tuple[np.ndarray, list[int]]:
    """Masks and labels of the instances that score enough, best first."""
    if "masks" not in found:
        raise ValueError("instances without masks cannot be merged; use a detector with masks")
    scores, labels, masks = found["scores"], found["labels"], found["masks"]
    if tuple(masks.shape[1:]) != tuple(size):
        raise ValueError(f"masks of {tuple(masks.shape[1:])} pixels for an image of {tuple(size)}; paste them first")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(categories):
        raise ValueError(f"labels {int(labels.min())} to {int(labels.max())} for {len(categories)} categories")
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    return masks[order].bool().cpu().numpy(), labels[order].tolist()
