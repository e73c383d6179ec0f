"""Precision, recall and scores of detections, counted against the truth of many images and drawn.

`found` is a dict for each image with boxes (N, 4) xyxy pixels and scores (N,), as `look.detections` gives them;
`truth` one with boxes (M, 4). Classes do not matter: a detection is right if it takes a true box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cassl_lib.evaluation.matching import match
from cassl_lib.plots import COLOURS, TEXT, WIDTH, Figure, as_array, tidy

FEW = 30  # points, up to which each is marked


def match_curve(
    found: Sequence[Mapping], truth: Sequence[Mapping], iou: float = 0.5, *, envelope: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the surest detection of all images, of the two surest, and so on.

    Args:
        iou: that a detection and its true box have at least; each true box is taken once, by falling score.
        envelope: each precision is the best at its recall or a higher one, as COCO has it before it averages.
    Returns:
        Recall and precision (R,), 0 to 1, R the number of detections. Without any true box recall is 0.
    """
    scores, right, total = _judged(found, truth, iou)
    hits = right[np.argsort(-scores, kind="stable")].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    if envelope:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return hits / max(total, 1), precision


def precision_recall(curves: Mapping[str, tuple]) -> Figure:
    """One line for each name of `curves`: recall and precision, (R,) from 0 to 1, as `match_curve` gives them."""
    panel = Figure(figsize=(WIDTH * 0.6, 3.6), layout="constrained")
    axis = panel.subplots()
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        recall, precision = as_array(recall), as_array(precision)
        marker = "o" if len(recall) <= FEW else ""
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", "-.", ":")[index % 4]}
        axis.plot(recall, precision, label=name, linewidth=1.8, marker=marker, markersize=3.5, **style)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    if curves:
        axis.legend(frameon=False, fontsize=TEXT, loc="best")
    tidy(axis, "recall", "precision")
    return panel


def scores_by_match(
    found: Sequence[Mapping], truth: Sequence[Mapping], iou: float = 0.5, *, threshold: float | None = None
) -> Figure:
    """How many right and how many wrong detections have which score: what a threshold parts, and what it does not."""
    scores, right, _ = _judged(found, truth, iou)
    panel = Figure(figsize=(WIDTH * 0.7, 2.8), layout="constrained")
    axis = panel.subplots()
    edges = np.linspace(0, 1, 51)
    for name, chosen, colour in (("right", right, COLOURS[0]), ("wrong", ~right, COLOURS[3])):
        counts, _ = np.histogram(scores[chosen], edges)
        label = f"{name}: {chosen.sum():,}"
        axis.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
        axis.stairs(counts, edges, color=colour, linewidth=1.5, label=label)
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1)
        above = scores > threshold
        text = f"above {threshold:g}: {right[above].sum():,} right, {(~right)[above].sum():,} wrong"
        axis.set_title(text, fontsize=TEXT, loc="right")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=TEXT)
    tidy(axis, "score", "detections")
    return panel


def _judged(found: Sequence[Mapping], truth: Sequence[Mapping], iou: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores (N,) and rights (N,) bool of the detections of all images, and the number of true boxes."""
    scores, right, total = [np.zeros(0)], [np.zeros(0, bool)], 0
    for detected, true in zip(found, truth, strict=True):
        boxes, truths = (np.asarray(as_array(each["boxes"]), float).reshape(-1, 4) for each in (detected, true))
        scores.append(np.asarray(as_array(detected["scores"]), float))
        right.append(match(boxes, scores[-1], truths, iou) >= 0)
        total += len(truths)
    return np.concatenate(scores), np.concatenate(right), total
