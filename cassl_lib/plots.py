"""Figures for notebooks and the report; the only module that draws. Every function takes data and returns a Figure.

Images are (3, H, W) uint8 tensors or arrays, boxes (N, 4) xyxy pixels, masks (N, H, W) bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib import figure
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

WIDTH = 10.0  # inches, about a notebook's
TEXT = 9  # points
# Okabe and Ito's colours, told apart with any colour vision; black and yellow are left to text and background
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
TEXT_ON = dict(zip(COLOURS, ("white", "black", "white", "white", "black", "black"), strict=True))
GREY = "#6B6B6B"


class Figure(figure.Figure):
    """A matplotlib figure that a notebook shows although pyplot, and with it all global state, was never loaded."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def show_images(
    images: Sequence,
    *,
    boxes: Sequence | None = None,
    masks: Sequence | None = None,
    labels: Sequence | None = None,
    scores: Sequence | None = None,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """A grid of images with their instances.

    Args:
        boxes, masks, labels, scores: one array an image; any may be None.
        names: name of each label; instances are then coloured by label, otherwise one by one.
    """
    if not len(images):
        panel = Figure(figsize=(WIDTH, 0.3))
        panel.text(0, 0.5, "no image to show", va="center", fontsize=TEXT, color=GREY, style="italic")
        return panel
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shapes = [image.shape[1] / image.shape[2] for image in images]  # height for a width of 1
    tallest = [max(shapes[row * columns : (row + 1) * columns], default=1.0) for row in range(rows)]
    heights = [WIDTH / columns * shape + (0.25 if titles else 0.05) for shape in tallest]
    panel = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    panel.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = panel.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")  # images of one row end at different heights, but start at one
    for index, (axis, image) in enumerate(zip(axes, images, strict=False)):
        own = [None if part is None else _array(part[index]) for part in (boxes, masks, labels, scores)]
        _draw_instances(axis, _array(image), own, names, inches=WIDTH / columns)
        if titles:
            axis.set_title(titles[index], fontsize=TEXT, pad=3)
    return panel


def show_instances(
    images: Sequence,
    instances: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """`show_images` of instances as dicts of `boxes`, `masks`, `labels`, `scores`, any of which may be absent."""
    parts = {}
    for part in ("boxes", "masks", "labels", "scores"):
        parts[part] = [found.get(part) for found in instances]
    return show_images(images, **parts, names=names, titles=titles, columns=columns)


def label_panel(
    images: Sequence,
    truth: Sequence[Mapping],
    prediction: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] = ("truth", "prediction"),
) -> Figure:
    """Each image twice: with `truth[i]` and `prediction[i]`, dicts `boxes`, `masks`, `labels`, `scores`."""
    pairs = [found for pair in zip(truth, prediction, strict=True) for found in pair]
    doubled = [image for image in images for _ in range(2)]
    return show_instances(doubled, pairs, names=names, titles=list(titles) * len(images), columns=4)


def side_by_side(
    images: Sequence, found: Mapping[str, Sequence[Mapping]], *, names: Sequence[str] | None = None
) -> Figure:
    """One row for each name of `found`, such as truth and two runs: the images with `found[name][i]`."""
    rows = [instances for row in found.values() for instances in row]
    titles = [name if column == 0 else "" for name in found for column in range(len(images))]
    columns = len(images) if len(images) > 1 else len(found)  # a single image is shown in one row
    return show_instances(list(images) * len(found), rows, names=names, titles=titles, columns=columns)


def show_positives(image, boxes, *, points, matched, strides) -> Figure:
    """Which locations learn which box, a panel for each level: dots in the colour of the box that they answer for.

    Args:
        image: (3, H, W); boxes (N, 4).
        points: (P, 2) x, y of the locations in pixels; matched (P,) their box, -1 for background; strides (P,).
    """
    points, matched, strides = (_array(values) for values in (points, matched, strides))
    levels = np.unique(strides)
    titles, count = [f"stride {int(stride)}" for stride in levels], len(levels)
    panel = show_images([image] * count, boxes=[boxes] * count, titles=titles, columns=count)
    for axis, stride in zip(panel.axes, levels, strict=True):
        answers = np.flatnonzero((strides == stride) & (matched >= 0))
        colours = [COLOURS[box % len(COLOURS)] for box in matched[answers]]
        axis.scatter(*points[answers].T, s=14, c=colours, edgecolors="white", linewidths=0.5)
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
        window, colour = max(1, len(values) // 50), COLOURS[index % len(COLOURS)]
        if window > 1:
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid") if len(values) else values
        centre = steps[window // 2 : window // 2 + len(smooth)]
        axis.plot(centre, smooth, color=colour, linewidth=1.6, label=name)
    _tidy(axis, "step", key)


def score_histogram(scores, threshold: float | None = None, *, edges=None) -> Figure:
    """How many labels have which score, and what a threshold keeps.

    Args:
        scores: the scores themselves or, with `edges`, counts between edges, as `PseudoLabels.statistics` gives them;
            the share is then of whole bins, so exact where the threshold is an edge.
    """
    scores = _array(scores)
    binned = edges is not None
    counts, edges = (scores, np.asarray(edges)) if binned else np.histogram(scores, np.linspace(0, 1, 51))
    panel = Figure(figsize=(WIDTH * 0.7, 2.8), layout="constrained")
    axis = panel.subplots()
    kept = edges[:-1] >= (edges[0] if threshold is None else threshold) - 1e-6
    for chosen, colour in ((kept, COLOURS[0]), (~kept, "#C8C8C8")):
        axis.bar(edges[:-1][chosen], counts[chosen], width=np.diff(edges)[chosen], align="edge", color=colour)
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1)
        above, total = counts[kept].sum() if binned else (scores > threshold).sum(), counts.sum()
        text = f"above {threshold:g}: {above:,} of {total:,} labels ({100 * above / max(total, 1):.0f} %)"
        axis.set_title(text, fontsize=TEXT, loc="right")
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)
    _tidy(axis, "score", "labels")
    return panel


def threshold_curves(thresholds, precision, recall, labels_per_image, *, chosen: float | None = None) -> Figure:
    """What each threshold costs: precision and recall on the left, how many labels an image keeps on the right."""
    panel = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    left, right = panel.subplots(1, 2)
    for name, values, colour, dash in (("precision", precision, COLOURS[0], "-"), ("recall", recall, COLOURS[3], "--")):
        left.plot(thresholds, values, dash, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, fontsize=TEXT)
    right.plot(thresholds, labels_per_image, color=COLOURS[2], linewidth=1.8, marker="o", markersize=3.5)
    right.set_ylim(bottom=0)
    for axis, name in ((left, "precision, recall"), (right, "labels per image")):
        _tidy(axis, "threshold on the score", name)
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
            axis.text(longest * 0.01, index, "not measured", va="center", fontsize=TEXT - 1, color=GREY, style="italic")
        else:
            axis.barh(index, row["measured"], height=0.6, color=COLOURS[5], xerr=row.get("spread"), ecolor=GREY)
            axis.text(longest * 0.01, index, f"{row['measured']:.1f}", va="center", fontsize=TEXT)
        if row["paper"] is not None:
            axis.plot(row["paper"], index, marker="D", markersize=6, color=COLOURS[3], markeredgecolor="white")
            axis.text(
                longest * 1.06, index, f"{row['paper']:.1f}", va="center", ha="left", fontsize=TEXT, color=COLOURS[3]
            )
    axis.text(longest * 1.06, -0.75, "paper", va="center", ha="left", fontsize=TEXT, color=COLOURS[3])
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.set(xlim=(0, longest * 1.16), ylim=(len(rows) - 0.4, -1.1))
    _tidy(axis, unit, "")
    axis.set_title(title, fontsize=TEXT + 1, loc="left")
    return panel


def pipeline_figure() -> Figure:
    """The three stages of CA-SSL (Sec. 3.1): who trains on what, and where class names are used."""
    panel = Figure(figsize=(WIDTH, 3.6))
    axis = panel.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 100), ylim=(0, 36))
    axis.set_axis_off()
    stages = (("1  pseudo labeler", COLOURS[0]), ("2  warm-up", COLOURS[2]), ("3  finetuning", COLOURS[3]))
    for index, (name, colour) in enumerate(stages):
        left = 2 + 33 * index
        axis.add_patch(Rectangle((left, 1.5), 30, 33, facecolor=colour, alpha=0.10, edgecolor="none"))
        axis.text(left + 15, 32, name, ha="center", va="center", fontsize=12, weight="bold", color=colour)
    data, model = "white", "#F4F0DC"
    boxes = (
        (4, 19, "labelled images\nboxes, masks;\nno class names", data),
        (4, 5, "pseudo labeler\n1 class", model),
        (37, 19, "unlabelled images\npseudo boxes, masks;\nscore > threshold", data),
        (37, 5, "target detector\n1 class", model),
        (70, 19, "labelled images\nboxes, masks,\nclass names", data),
        (70, 5, "target detector\nall classes", model),
    )
    for left, bottom, text, colour in boxes:
        shape = FancyBboxPatch((left + 3, bottom), 20, 9, boxstyle="round,pad=0,rounding_size=1", facecolor=colour)
        axis.add_patch(shape)
        axis.text(left + 13, bottom + 4.5, text, ha="center", va="center", fontsize=TEXT + 0.5, linespacing=1.3)
    for left in (17, 50, 83):
        _arrow(axis, (left, 19), (left, 14), "trains")
    _arrow(axis, (27, 11), (40, 21), "labels")
    _arrow(axis, (60, 9.5), (73, 9.5), "initialises")
    return panel


def _arrow(axis: Axes, start: tuple, end: tuple, text: str) -> None:
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    )
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    vertical = start[0] == end[0]
    place = (
        {"ha": "left", "va": "center"}
        if vertical
        else {"ha": "right" if start[1] != end[1] else "center", "va": "bottom"}
    )
    axis.text(x + (0.8 if vertical else 0), y + (0 if vertical else 0.6), text, fontsize=TEXT, style="italic", **place)


def _draw_instances(
    axis: Axes, image: np.ndarray, instances: Sequence, names: Sequence[str] | None, *, inches: float
) -> None:
    """Draw one image; `inches`, the width of its axes, is what makes texts find room beside each other."""
    boxes, masks, labels, scores = instances
    count = next((len(part) for part in instances if part is not None), 0)
    by_label = names is not None and labels is not None
    colours = [COLOURS[int(labels[n] if by_label else n) % len(COLOURS)] for n in range(count)]
    height, width = image.shape[1:]
    axis.imshow(_overlay(image.transpose(1, 2, 0), masks, colours), interpolation="nearest")
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if boxes is None:
        return
    units = width / (inches * 72)  # pixels of the image in a point of print
    placed: list[tuple] = []
    for n in sorted(range(count), key=lambda n: 0 if scores is None else -scores[n]):
        left, top, right, bottom = boxes[n]
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colours[n], linewidth=1.1)
        )
        words = [names[int(labels[n])]] if by_label else []
        text = " ".join(words + ([f"{scores[n]:.2f}"] if scores is not None else []))
        spot = _free_spot(boxes[n], (len(text) * 4.2 * units, 8.5 * units), (width, height), placed)
        if text and spot:
            placed.append(spot)
            background = {"facecolor": colours[n], "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
            axis.text(*spot[:2], text, fontsize=6.5, color=TEXT_ON[colours[n]], va="top", ha="left", bbox=background)


def _free_spot(box: Sequence[float], size: tuple, limits: tuple, placed: Sequence[tuple]) -> tuple | None:
    """Where a text of this size hides no other: above the box, in its corners, below it; else nowhere."""
    (left, top, right, bottom), (wide, high) = box, size
    corners = ((left, top - high), (left, top), (right - wide, top), (left, bottom - high), (left, bottom))
    for x, y in corners:
        x, y = min(max(x, 0), limits[0] - wide), min(max(y, 0), limits[1] - high)
        if all(x + wide < other[0] or other[2] < x or y + high < other[1] or other[3] < y for other in placed):
            return (x, y, x + wide, y + high)
    return None


def _overlay(image: np.ndarray, masks: np.ndarray | None, colours: Sequence[str]) -> np.ndarray:
    """The (H, W, 3) image with masks half transparent, smaller ones last so that they stay visible."""
    if masks is None or len(masks) == 0:
        return image
    painted = image.astype(float)
    for n in sorted(range(len(masks)), key=lambda n: -int(masks[n].sum())):
        colour = np.array([int(colours[n][at : at + 2], 16) for at in (1, 3, 5)], dtype=float)
        painted[masks[n].astype(bool)] = 0.5 * image[masks[n].astype(bool)] + 0.5 * colour
    return painted.astype(np.uint8)


def _tidy(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=TEXT)
    axis.set_ylabel(y, fontsize=TEXT)
    axis.tick_params(labelsize=TEXT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)


def _array(data) -> np.ndarray | None:
    """Tensors of any device, arrays and lists as an array."""
    if data is None:
        return None
    return np.asarray(data.detach().cpu().numpy() if hasattr(data, "detach") else data)
