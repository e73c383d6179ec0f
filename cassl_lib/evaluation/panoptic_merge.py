"""Panoptic merging: non-overlapping segments from the overlapping masks of a detector that detects things and stuff."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cassl_lib.config import PanopticConfig
from cassl_lib.data.panoptic import Panoptic


def merge_panoptic(
    detections: dict[str, torch.Tensor],
    *,
    size: tuple[int, int],
    categories: Sequence[dict],
    settings: PanopticConfig,
) -> Panoptic:
    """Merge the detections of one image: paint the masks on free pixels, highest score first.

    A detection is skipped if its score is too low, or if too much of its mask is taken. All stuff of one class is a
    single segment, so stuff of the same class does not count as taken. Stuff segments that end up too small become
    void.

    Args:
        detections: `scores` (N,), `labels` (N,) int64, `masks` (N, H, W) bool in the original size.
        size: (height, width) of the original image.
        categories: dicts with COCO's `id` and `isthing`, `categories[label]`.

    Returns:
        (H, W) int32 segment ids, 0 for void, and `segments_info`: one dict with `id` and `category_id` per segment.

    Raises:
        ValueError: there are no masks, they have another size, or a label has no category.
    """
    masks, labels = _by_score(detections, size, categories, settings.score_threshold)
    ids, segments, stuff = np.zeros(size, np.int32), [], {}
    for mask, label in zip(masks, labels, strict=True):
        # Skip what is mostly taken; the stuff segment of the same class does not count.
        own = stuff.get(label, 0)
        under_mask = ids[mask]
        free = np.count_nonzero(under_mask == 0)
        taken = np.count_nonzero((under_mask != 0) & (under_mask != own))
        if not free or taken > settings.overlap_threshold * len(under_mask):
            continue
        # Start a segment, or extend the one of this stuff class.
        if not own:
            own = len(segments) + 1
            segments.append({"id": own, "category_id": categories[label]["id"]})
            if not categories[label]["isthing"]:
                stuff[label] = own
        ids[mask & (ids == 0)] = own
    # Make small stuff void.
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1)
    small = [own for own in stuff.values() if areas[own] < settings.min_stuff_area]
    ids[np.isin(ids, small)] = 0
    return ids, [segment for segment in segments if segment["id"] not in small]


def _by_score(
    detections: dict[str, torch.Tensor], size: tuple[int, int], categories: Sequence[dict], threshold: float
) -> tuple[np.ndarray, list[int]]:
    """Masks and labels of the detections with at least this score, highest score first."""
    if "masks" not in detections:
        raise ValueError("detections without masks cannot be merged. Use a detector with masks.")
    scores, labels, masks = detections["scores"], detections["labels"], detections["masks"]
    if tuple(masks.shape[1:]) != tuple(size):
        raise ValueError(f"masks of {tuple(masks.shape[1:])} pixels for an image of {tuple(size)}. Paste them first.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(categories):
        raise ValueError(f"labels {int(labels.min())} to {int(labels.max())} for {len(categories)} categories.")
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    return masks[order].bool().cpu().numpy(), labels[order].tolist()
