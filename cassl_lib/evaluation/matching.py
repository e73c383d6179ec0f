"""Quality of pseudo labels as boxes: greedy class-agnostic matching, precision and recall, bias of the edges.

Predictions are `{image id: {"boxes": (N, 4), "scores": (N,)}}`, ground truth `{image id: (M, 4)}`; boxes are xyxy in
pixels. An image missing from the predictions has none; one missing from the ground truth is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

EDGES = ("left", "top", "right", "bottom")


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairwise IoU of xyxy boxes `(N, 4)` and `(M, 4)` -> `(N, M)`; 0 where the union is empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def match(boxes: np.ndarray, scores: np.ndarray, ground_truth: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Greedily match the boxes of one image, highest score first, to the free ground-truth box of highest IoU.

    Returns:
        `(N,)` int64: index of the ground-truth box of each box, -1 where no free one has at least `iou`.
    """
    matches = np.full(len(boxes), -1, dtype=np.int64)
    if len(ground_truth) == 0:
        return matches
    overlaps = box_iou(boxes, ground_truth)
    for index in np.argsort(-scores, kind="stable"):
        best = int(np.argmax(overlaps[index]))
        if overlaps[index, best] >= iou:
            matches[index] = best
            overlaps[:, best] = -1.0
    return matches


def label_quality(
    predictions_by_image: Mapping,
    ground_truth_by_image: Mapping,
    iou: float = 0.5,
    subset_by_image: Mapping | None = None,
) -> dict[str, float]:
    """Class-agnostic precision and recall of boxes over all images.

    Args:
        subset_by_image: `{image id: (M,) bool}` marks ground-truth boxes, such as those of unnamed kinds, whose recall
            is also returned separately. All ground-truth boxes take part in the matching; an image that is missing
            here has no marked boxes.

    Returns:
        `precision` and `recall` in [0, 1] (0 where there is nothing to count), `matched`, `predictions`,
        `ground_truths`; with a subset also `subset_recall`, `subset_matched`, `subset_ground_truths`.

    Raises:
        ValueError: an image has predictions but no ground truth.
    """
    counts = {"matched": 0, "predictions": 0, "ground_truths": 0}
    subset = {"matched": 0, "ground_truths": 0}
    for image_id, boxes, ground_truth, matches in _matches(predictions_by_image, ground_truth_by_image, iou):
        matched = matches[matches >= 0]
        counts["matched"] += len(matched)
        counts["predictions"] += len(boxes)
        counts["ground_truths"] += len(ground_truth)
        if subset_by_image is not None and image_id in subset_by_image:
            marked = np.asarray(subset_by_image[image_id], dtype=bool)
            subset["matched"] += int(marked[matched].sum())
            subset["ground_truths"] += int(marked.sum())
    quality = {
        "precision": counts["matched"] / max(counts["predictions"], 1),
        "recall": counts["matched"] / max(counts["ground_truths"], 1),
        **counts,
    }
    if subset_by_image is not None:
        quality["subset_recall"] = subset["matched"] / max(subset["ground_truths"], 1)
        quality |= {f"subset_{name}": count for name, count in subset.items()}
    return quality


def edge_errors(predictions_by_image: Mapping, ground_truth_by_image: Mapping, iou: float = 0.5) -> dict[str, float]:
    """Mean signed error (prediction minus ground truth) of each edge over the matched pairs: the bias of the boxes.

    Returns:
        `pairs`; `left`, `top`, `right`, `bottom` in pixels (a box that is too wide has left < 0 and right > 0);
        `left_relative` etc.: the same relative to the ground-truth box's width (left, right) or height (top, bottom).
        All 0 without pairs.

    Raises:
        ValueError: an image has predictions but no ground truth.
    """
    errors, sizes = [np.zeros((0, 4))], [np.zeros((0, 4))]
    for _, boxes, ground_truth, matches in _matches(predictions_by_image, ground_truth_by_image, iou):
        matched = ground_truth[matches[matches >= 0]]
        errors.append(boxes[matches >= 0] - matched)
        sizes.append(np.tile(matched[:, 2:] - matched[:, :2], 2))
    errors, sizes = np.concatenate(errors), np.concatenate(sizes)
    pairs = len(errors)
    pixels = errors.sum(axis=0) / max(pairs, 1)
    relative = (errors / sizes).sum(axis=0) / max(pairs, 1)  # no size is 0: a matched box overlaps
    named = {edge: float(error) for edge, error in zip(EDGES, pixels, strict=True)}
    return {"pairs": pairs, **named, **{f"{edge}_relative": float(e) for edge, e in zip(EDGES, relative, strict=True)}}


def _matches(predictions_by_image: Mapping, ground_truth_by_image: Mapping, iou: float) -> Iterator[tuple]:
    """Yield image id, boxes, ground-truth boxes and, for each box, the index of its ground-truth box or -1."""
    unknown = set(predictions_by_image) - set(ground_truth_by_image)
    if unknown:
        raise ValueError(f"{len(unknown)} images have predictions but no ground truth, such as {min(unknown)!r}")
    for image_id, ground_truth in ground_truth_by_image.items():
        labels = predictions_by_image.get(image_id, {"boxes": (), "scores": ()})
        boxes, ground_truth = (
            np.asarray(array, dtype=np.float64).reshape(-1, 4) for array in (labels["boxes"], ground_truth)
        )
        matches = match(boxes, np.asarray(labels["scores"], dtype=np.float64), ground_truth, iou)
        yield image_id, boxes, ground_truth, matches
