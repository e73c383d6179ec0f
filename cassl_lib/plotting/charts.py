"""Curves, bars and histograms: losses, scores, thresholds, classes, rows of a table, precision and recall.

`found` is a dict for each image with boxes (N, 4) xyxy pixels and scores (N,), as `look.detections` gives them;
`truth` one with boxes (M, 4). Classes do not matter: a detection is right if it takes a true box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from cassl_lib.evaluation.matching import match
from cassl_lib.plotting.images import COLORS, GRAY, SMALL, TEXT, WIDTH, Figure, as_array, tidy

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
        style = {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--", "-.", ":")[index % 4]}
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
    for name, chosen, color in (("right", right, COLORS[0]), ("wrong", ~right, COLORS[3])):
        counts, _ = np.histogram(scores[chosen], edges)
        label = f"{name}: {chosen.sum():,}"
        axis.stairs(counts, edges, fill=True, color=color, alpha=0.3)
        axis.stairs(counts, edges, color=color, linewidth=1.5, label=label)
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


def table_chart(rows: Mapping[str, Mapping[str, Sequence[float]]], printed: Mapping[str, Mapping[str, float | None]]):
    """The numbers of a table, a panel a column: ours as points with the seeds' spread, the paper's as a ring.

    Args:
        rows: by row and column the seeds' numbers times 100, none where nothing was measured.
        printed: by row and column the paper's number.
    """
    columns = list(dict.fromkeys(column for cells in printed.values() for column in cells))
    wide = min(3, max(1, len(columns)))
    high = -(-len(columns) // wide)
    panel = Figure(figsize=(WIDTH, high * (0.9 + 0.28 * len(rows))), layout="constrained")
    axes = panel.subplots(high, wide, squeeze=False, sharey=True).reshape(-1)
    for axis, column in zip(axes, columns, strict=False):
        for place, name in enumerate(rows):
            found, theirs = rows[name].get(column, ()), printed[name].get(column)
            if theirs is not None:
                axis.plot(theirs, place, "o", markerfacecolor="none", color=GRAY, markersize=7)
            axis.plot(found, [place] * len(found), "|", color=COLORS[0], markersize=8)
            if found:
                axis.plot(np.mean(found), place, "o", color=COLORS[0], markersize=4)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        tidy(axis, f"{column}; ring: the paper", "")
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    return panel


def table_curves(panels: Sequence[Mapping]) -> Figure:
    """AP along what four tables vary, as `compare.curves` gives it: ours filled, the paper's as gray rings."""
    panel = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    for axis, found in zip(panel.subplots(2, 2).reshape(-1), panels, strict=True):
        for place, (name, points) in enumerate(found["lines"].items()):
            dash = ("-", "--")[place % 2]
            both = (("paper", GRAY, "none", f"{name}, the paper"), ("here", COLORS[3 * place], None, name))
            for key, color, fill, label in both:
                if points[key]:
                    axis.plot(*np.transpose(points[key]), dash, color=color, marker="o", mfc=fill, label=label)
        if axis.lines:
            axis.legend(frameon=False, fontsize=SMALL)
        if "pool" in found["title"]:
            places = [x for points in found["lines"].values() for x, _ in points["paper"]]
            axis.set_xscale("log")
            axis.set_xticks(places, [f"{x:.0f}" for x in places])
            axis.minorticks_off()
        axis.set_title(found["title"], fontsize=TEXT, loc="left")
        tidy(axis, found["along"], "AP")
    return panel


def class_tail(rows: Sequence[Mapping], threshold: float) -> Figure:
    """Objects of each class and, of rows of `thresholds.by_class`, the threshold that would be best for it alone.

    Rows of `thresholds.recall_by_class` show the share that one threshold finds instead.
    """
    panel = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    counts, values = panel.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    places = np.arange(len(rows))
    counts.bar(places, [row["objects"] for row in rows], color=COLORS[0])
    tidy(counts, "", "objects")
    specific = bool(rows) and "best" in rows[0]
    if specific:
        shown = [np.nan if row["best"] is None else row["best"] for row in rows]
        values.axhline(threshold, color="black", linewidth=1, linestyle=":")
    else:
        shown = [row["found"] / row["objects"] if row["objects"] else np.nan for row in rows]
    values.plot(places, shown, "o", color=COLORS[3], markersize=4)
    values.set_ylim(0, 1.02)
    values.set_xticks(places if len(rows) <= 40 else [])
    values.set_xticklabels([row["name"] for row in rows] if len(rows) <= 40 else [], rotation=60, ha="right")
    values.tick_params(labelsize=TEXT)
    tidy(values, "classes, most objects first", "best threshold" if specific else f"found above {threshold:g}")
    return panel


def loss_curves(histories: Mapping[str, Sequence[Mapping]]) -> Figure:
    """`curves` of every loss that the runs logged, side by side."""
    keys = list(dict.fromkeys(k for history in histories.values() for r in history for k in r if k.startswith("loss_")))
    panel = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    for axis, key in zip(panel.subplots(1, max(1, len(keys)), squeeze=False)[0], keys or [""], strict=True):
        _draw_curves(axis, histories, key)
        axis.set_title(key.removeprefix("loss_"), fontsize=TEXT)
        axis.set_ylabel("")
    if histories:
        panel.axes[0].legend(frameon=False, fontsize=TEXT)
    return panel


def curves(histories: Mapping[str, Sequence[Mapping]], key: str) -> Figure:
    """One line a run of `record[key]` over `record["step"]`: faint as logged, bold as a running mean of a fiftieth."""
    panel = Figure(figsize=(WIDTH * 0.7, 3.2), layout="constrained")
    axis = panel.subplots()
    _draw_curves(axis, histories, key)
    if histories:
        axis.legend(frameon=False, fontsize=TEXT)
    return panel


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
    """How many labels have which score, and what a threshold keeps.

    Args:
        scores: the scores themselves or, with `edges`, counts between edges, as `PseudoLabelStore.statistics` gives them;
            the share is then of whole bins, so exact where the threshold is an edge.
    """
    scores = as_array(scores)
    binned = edges is not None
    counts, edges = (scores, np.asarray(edges)) if binned else np.histogram(scores, np.linspace(0, 1, 51))
    panel = Figure(figsize=(WIDTH * 0.7, 2.8), layout="constrained")
    axis = panel.subplots()
    kept = edges[:-1] >= (edges[0] if threshold is None else threshold) - 1e-6
    for chosen, color in ((kept, COLORS[0]), (~kept, "#C8C8C8")):
        axis.bar(edges[:-1][chosen], counts[chosen], width=np.diff(edges)[chosen], align="edge", color=color)
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1)
        above, total = counts[kept].sum() if binned else (scores > threshold).sum(), counts.sum()
        text = f"above {threshold:g}: {above:,} of {total:,} labels ({100 * above / max(total, 1):.0f} %)"
        axis.set_title(text, fontsize=TEXT, loc="right")
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)
    tidy(axis, "score", "labels")
    return panel


def threshold_curves(thresholds, precision, recall, labels_per_image, *, chosen: float | None = None) -> Figure:
    """What each threshold costs: precision and recall on the left, how many labels an image keeps on the right."""
    panel = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    left, right = panel.subplots(1, 2)
    for name, values, color, dash in (("precision", precision, COLORS[0], "-"), ("recall", recall, COLORS[3], "--")):
        left.plot(thresholds, values, dash, color=color, linewidth=1.8, marker="o", markersize=3.5, label=name)
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, fontsize=TEXT)
    right.plot(thresholds, labels_per_image, color=COLORS[2], linewidth=1.8, marker="o", markersize=3.5)
    right.set_ylim(bottom=0)
    for axis, name in ((left, "precision, recall"), (right, "labels per image")):
        tidy(axis, "threshold on the score", name)
        if chosen is not None:
            axis.axvline(chosen, color="black", linewidth=1, linestyle=":")
    return panel


def compare_rows(rows: Sequence[Mapping], *, unit: str = "AP", title: str = "") -> Figure:
    """Bars of what was measured, a diamond where the paper is.

    Args:
        rows: dicts `name`, `measured`, `paper`, the numbers in percent, None where there is none; optional `spread`,
            half the length of an error bar.
    """
    panel = Figure(figsize=(WIDTH * 0.8, 0.8 + 0.36 * max(len(rows), 1)), layout="constrained")
    axis = panel.subplots()
    longest = max([row[key] for row in rows for key in ("measured", "paper") if row[key] is not None], default=1.0)
    for index, row in enumerate(rows):
        if row["measured"] is None:
            axis.text(longest * 0.01, index, "not measured", va="center", fontsize=TEXT - 1, color=GRAY, style="italic")
        else:
            axis.barh(index, row["measured"], height=0.6, color=COLORS[5], xerr=row.get("spread"), ecolor=GRAY)
            axis.text(longest * 0.01, index, f"{row['measured']:.1f}", va="center", fontsize=TEXT)
        if row["paper"] is not None:
            axis.plot(row["paper"], index, marker="D", markersize=6, color=COLORS[3], markeredgecolor="white")
            axis.text(
                longest * 1.06, index, f"{row['paper']:.1f}", va="center", ha="left", fontsize=TEXT, color=COLORS[3]
            )
    axis.text(longest * 1.06, -0.75, "paper", va="center", ha="left", fontsize=TEXT, color=COLORS[3])
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.set(xlim=(0, longest * 1.16), ylim=(len(rows) - 0.4, -1.1))
    tidy(axis, unit, "")
    axis.set_title(title, fontsize=TEXT + 1, loc="left")
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
