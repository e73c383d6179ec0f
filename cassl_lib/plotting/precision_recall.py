"""Detections matched with the ground truth: precision-recall curves and score histograms.

`detections` is a dict per image with boxes (N, 4) xyxy pixels and scores (N,), as `inspection.detections` returns them;
`ground_truth` one with boxes (M, 4). Matching is class-agnostic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cassl_lib.evaluation.matching import match
from cassl_lib.plotting.style import COLORS, TEXT, WIDTH, Figure, as_array, legend_above, tidy

FEW = 30  # curves with at most this many points have markers


def match_curve(
    detections: Sequence[Mapping], ground_truth: Sequence[Mapping], iou: float = 0.5, *, envelope: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the n detections with the highest scores of all images, for n = 1 to R.

    Args:
        iou: minimum IoU of a match; each ground-truth box is matched once, by descending score.
        envelope: replace each precision by the highest at its recall or above, as COCO does before averaging.

    Returns:
        Recall and precision (R,) in [0, 1], R the number of detections. Recall is 0 without ground-truth boxes.
    """
    scores, correct, total = _matched(detections, ground_truth, iou)
    hits = correct[np.argsort(-scores, kind="stable")].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    if envelope:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return hits / max(total, 1), precision


def precision_recall(curves: Mapping[str, tuple]) -> Figure:
    """Precision over recall, one line per entry of `curves`: recall and precision (R,), as `match_curve` returns."""
    figure = Figure(figsize=(WIDTH * 0.6, 3.6), layout="constrained")
    axis = figure.subplots()
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        recall, precision = as_array(recall), as_array(precision)
        (line,) = axis.plot(recall, precision, label=name, linewidth=1.8, color=COLORS[index % len(COLORS)])
        line.set(linestyle=("-", "--", "-.", ":")[index % 4], marker="o" if len(recall) <= FEW else "", markersize=3.5)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    if curves:
        axis.legend(frameon=False, fontsize=TEXT, loc="best")
    tidy(axis, "recall", "precision")
    return figure


def scores_by_match(
    detections: Sequence[Mapping], ground_truth: Sequence[Mapping], iou: float = 0.5, *, threshold: float | None = None
) -> Figure:
    """Score histograms of true and false positives; with a `threshold`, how many of each lie above it."""
    scores, correct, _ = _matched(detections, ground_truth, iou)
    figure = Figure(figsize=(WIDTH * 0.7, 3.0), layout="constrained")
    axis = figure.subplots()
    edges = np.linspace(0, 1, 51)
    for name, chosen, color in (("true positives", correct, COLORS[0]), ("false positives", ~correct, COLORS[3])):
        counts, _ = np.histogram(scores[chosen], edges)
        axis.stairs(counts, edges, fill=True, color=color, alpha=0.3)
        axis.stairs(counts, edges, color=color, linewidth=1.5, label=f"{name}: {chosen.sum():,}")
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1)
        above = scores > threshold
        kept = f"{correct[above].sum():,} true and {(~correct)[above].sum():,} false positives"
        axis.set_title(f"score > {threshold:g}: {kept}", fontsize=TEXT, loc="right")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    tidy(axis, "score", "detections")
    legend_above(figure, axis.patches[1::2])
    return figure


def _matched(
    detections: Sequence[Mapping], ground_truth: Sequence[Mapping], iou: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores (N,) and correctness (N,) bool of the detections of all images, and the number of ground-truth boxes."""
    scores, correct, total = [np.zeros(0)], [np.zeros(0, bool)], 0
    for detected, annotated in zip(detections, ground_truth, strict=True):
        boxes, objects = (np.asarray(as_array(each["boxes"]), float).reshape(-1, 4) for each in (detected, annotated))
        scores.append(np.asarray(as_array(detected["scores"]), float))
        correct.append(match(boxes, scores[-1], objects, iou) >= 0)
        total += len(objects)
    return np.concatenate(scores), np.concatenate(correct), total
