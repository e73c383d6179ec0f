"""Charts of training histories and of pseudo labels: losses, scores, thresholds, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from cassl_lib.plotting.style import COLORS, TEXT, WIDTH, Figure, as_array, legend_above, tidy

MANY = 40  # classes up to which each is named


def loss_curves(histories: Mapping[str, Sequence[Mapping]]) -> Figure:
    """One panel per logged loss over training steps, one line per run; `histories` as `Run.history`, by name."""
    keys = list(dict.fromkeys(k for history in histories.values() for r in history for k in r if k.startswith("loss_")))
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, max(1, len(keys)), squeeze=False, sharex=True)[0]
    for axis, key in zip(axes, keys or [""], strict=True):
        _draw_curves(axis, histories, key)
        axis.set_title(key.removeprefix("loss_"), fontsize=TEXT)
        axis.set_ylabel("loss" if axis is axes[0] else "")
    if histories:
        legend_above(figure, [line for line in axes[0].lines if not line.get_label().startswith("_")])
    return figure


def curves(histories: Mapping[str, Sequence[Mapping]], key: str) -> Figure:
    """`record[key]` over `record["step"]`, one line per run: raw values faint, a running mean over 2 % of them bold."""
    figure = Figure(figsize=(WIDTH * 0.7, 3.2), layout="constrained")
    axis = figure.subplots()
    _draw_curves(axis, histories, key)
    if histories:
        axis.legend(frameon=False, fontsize=TEXT)
    return figure


def _draw_curves(axis: Axes, histories: Mapping[str, Sequence[Mapping]], key: str) -> None:
    for index, (name, history) in enumerate(histories.items()):
        points = [(record.get("step", n), record[key]) for n, record in enumerate(history) if key in record]
        steps, values = np.array(points, dtype=float).reshape(-1, 2).T
        window, color = max(1, len(values) // 50), COLORS[index % len(COLORS)]
        if window > 1:
            axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid") if len(values) else values
        center = steps[window // 2 : window // 2 + len(smooth)]
        axis.plot(center, smooth, color=color, linewidth=1.6, label=name)
    tidy(axis, "step", key)


def score_histogram(scores, threshold: float | None = None, *, edges=None) -> Figure:
    """Histogram of pseudo-label scores; with a `threshold`, how many labels it keeps.

    Args:
        scores: the scores; or with `edges` the counts between them, as `PseudoLabelStore.statistics` returns. The share
            is then of whole bins, so it is exact only if the threshold is an edge.
    """
    scores = as_array(scores)
    binned = edges is not None
    counts, edges = (scores, np.asarray(edges)) if binned else np.histogram(scores, np.linspace(0, 1, 51))
    figure = Figure(figsize=(WIDTH * 0.7, 2.8), layout="constrained")
    axis = figure.subplots()
    kept = edges[:-1] >= (edges[0] if threshold is None else threshold) - 1e-6
    for chosen, color in ((kept, COLORS[0]), (~kept, "#C8C8C8")):
        axis.bar(edges[:-1][chosen], counts[chosen], width=np.diff(edges)[chosen], align="edge", color=color)
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1)
        above, total = counts[kept].sum() if binned else (scores > threshold).sum(), counts.sum()
        share = f"{above:,} of {total:,} labels ({100 * above / max(total, 1):.0f}%)"
        axis.set_title(f"score > {threshold:g}: {share}", fontsize=TEXT, loc="right")
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)
    tidy(axis, "score", "labels")
    return figure


def threshold_curves(thresholds, precision, recall, labels_per_image, *, chosen: float | None = None) -> Figure:
    """Precision and recall (left) and labels per image (right) over the score threshold; `chosen` marks one."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for name, values, color, dash in (("precision", precision, COLORS[0], "-"), ("recall", recall, COLORS[3], "--")):
        left.plot(thresholds, values, dash, color=color, linewidth=1.8, marker="o", markersize=3.5, label=name)
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, fontsize=TEXT)
    right.plot(thresholds, labels_per_image, color=COLORS[2], linewidth=1.8, marker="o", markersize=3.5)
    right.set_ylim(bottom=0)
    for axis, name in ((left, "precision, recall"), (right, "labels per image")):
        tidy(axis, "score threshold", name)
        if chosen is not None:
            axis.axvline(chosen, color="black", linewidth=1, linestyle=":")
    return figure


def class_tail(rows: Sequence[Mapping], threshold: float) -> Figure:
    """Objects per class, most frequent class first, and below how one constant threshold suits each class.

    Args:
        rows: of `thresholds.by_class`, to show the threshold with the best F1 of each class; or of
            `thresholds.recall_by_class`, to show each class's recall at `threshold`.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    counts, values = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    places = np.arange(len(rows))
    counts.bar(places, [row["objects"] for row in rows], color=COLORS[0])
    tidy(counts, "", "objects")
    specific = bool(rows) and "best_threshold" in rows[0]
    if specific:
        shown = [np.nan if row["best_threshold"] is None else row["best_threshold"] for row in rows]
        values.axhline(threshold, color="black", linewidth=1, linestyle=":", label=f"constant threshold {threshold:g}")
        values.legend(frameon=False, fontsize=TEXT, loc="best")
    else:
        shown = [np.nan if row["recall"] is None else row["recall"] for row in rows]
    values.plot(places, shown, "o", color=COLORS[3], markersize=4)
    values.set_ylim(0, 1.02)
    named = len(rows) <= MANY
    values.set_xticks(places if named else [])
    values.set_xticklabels([row["name"] for row in rows] if named else [], rotation=60, ha="right")
    tidy(values, "class", "best threshold" if specific else f"recall at score > {threshold:g}")
    return figure
