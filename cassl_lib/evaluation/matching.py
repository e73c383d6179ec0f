"""How good pseudo labels are as boxes: greedy class-agnostic matching, recall on chosen boxes, bias of the edges.

Predictions are `{image id: {"boxes": (N, 4), "scores": (N,)}}`, truths `{image id: (M, 4)}`, boxes xyxy in pixels.
An image that the predictions lack has none; one that the truths lack is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

EDGES = ("left", "top", "right", "bottom")


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `(N, 4)` and `(M, 4)` xyxy -> `(N, M)`; 0 where a union is empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def match(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Greedy matching of one image: by falling score, each box takes the free truth it overlaps most, at least `iou`.

    Returns:
        `(N,)` int64: the index of the truth that each box took, -1 for none.
    """
    taken = np.full(len(boxes), -1, dtype=np.int64)
    if len(truth) == 0:
        return taken
    overlaps = box_iou(boxes, truth)
    for index in np.argsort(-scores, kind="stable"):
        best = int(np.argmax(overlaps[index]))
        if overlaps[index, best] >= iou:
            taken[index] = best
            overlaps[:, best] = -1.0
    return taken


def label_quality(
    predictions_by_image: Mapping,
    truth_by_image: Mapping,
    iou: float = 0.5,
    subset_by_image: Mapping | None = None,
) -> dict[str, float]:
    """Precision and recall of boxes over all images, whatever their class.

    Args:
        subset_by_image: `{image id: (M,) bool}` marks truth boxes, such as those of kinds without a name, whose
            recall is also given alone. All truths take part in the matching; an image left out has no marked boxes.
    Returns:
        `precision`, `recall` (0 to 1, 0 where there is nothing to count), `matched`, `predictions`, `truths`; with a
        subset also `subset_recall`, `subset_matched`, `subset_truths`.
    """
    counts = {"matched": 0, "predictions": 0, "truths": 0}
    subset = {"matched": 0, "truths": 0}
    for image_id, boxes, truth, taken in _matches(predictions_by_image, truth_by_image, iou):
        found = taken[taken >= 0]
        counts["matched"] += len(found)
        counts["predictions"] += len(boxes)
        counts["truths"] += len(truth)
        if subset_by_image is not None and image_id in subset_by_image:
            marked = np.asarray(subset_by_image[image_id], dtype=bool)
            subset["matched"] += int(marked[found].sum())
            subset["truths"] += int(marked.sum())
    quality = {
        "precision": counts["matched"] / max(counts["predictions"], 1),
        "recall": counts["matched"] / max(counts["truths"], 1),
        **counts,
    }
    if subset_by_image is not None:
        quality["subset_recall"] = subset["matched"] / max(subset["truths"], 1)
        quality |= {f"subset_{name}": count for name, count in subset.items()}
    return quality


def edge_errors(predictions_by_image: Mapping, truth_by_image: Mapping, iou: float = 0.5) -> dict[str, float]:
    """Mean signed error, prediction minus truth, of each edge over the matched pairs: is there a systematic bias?

    Returns:
        `pairs`; `left`, `top`, `right`, `bottom` in pixels (a box too wide has left < 0 and right > 0);
        `left_relative` and so on, the same as a share of the true box's width (left, right) or height (top, bottom).
        All 0 without pairs.
    """
    errors, sizes = [np.zeros((0, 4))], [np.zeros((0, 4))]
    for _, boxes, truth, taken in _matches(predictions_by_image, truth_by_image, iou):
        matched_truth = truth[taken[taken >= 0]]
        errors.append(boxes[taken >= 0] - matched_truth)
        sizes.append(np.tile(matched_truth[:, 2:] - matched_truth[:, :2], 2))
    errors, sizes = np.concatenate(errors), np.concatenate(sizes)
    pairs = len(errors)
    pixels = errors.sum(axis=0) / max(pairs, 1)
    relative = (errors / sizes).sum(axis=0) / max(pairs, 1)  # a matched truth overlaps, so its size is not 0
    named = {edge: float(error) for edge, error in zip(EDGES, pixels, strict=True)}
    return {"pairs": pairs, **named, **{f"{edge}_relative": float(e) for edge, e in zip(EDGES, relative, strict=True)}}


def _matches(predictions_by_image: Mapping, truth_by_image: Mapping, iou: float) -> Iterator[tuple]:
    """Yields image id, boxes, truth and, for each box, the index of its truth or -1."""
    unknown = set(predictions_by_image) - set(truth_by_image)
    if unknown:
        raise ValueError(f"predictions for {len(unknown)} images without truth, such as {min(unknown)!r}")
    for image_id, truth in truth_by_image.items():
        labels = predictions_by_image.get(image_id, {"boxes": (), "scores": ()})
        boxes, truth = (np.asarray(array, dtype=np.float64).reshape(-1, 4) for array in (labels["boxes"], truth))
        yield image_id, boxes, truth, match(boxes, np.asarray(labels["scores"], dtype=np.float64), truth, iou)
