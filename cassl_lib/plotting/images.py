"""Figures for notebooks and the report; only this module and `charts` draw. Each function takes data, returns a Figure.

Images are (3, H, W) uint8 tensors or arrays, boxes (N, 4) xyxy pixels, masks (N, H, W) bool.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib import figure
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke

WIDTH = 10.0  # inches, about a notebook's
TEXT = 9  # points
# Okabe and Ito's colors, told apart with any color vision; black and yellow are left to text and background
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
TEXT_ON = dict(zip(COLORS, ("white", "black", "white", "white", "black", "black"), strict=True))
GRAY = "#6B6B6B"
SMALL = 6.5  # points, of text in images
TRUE = "#202020"
TEXT_ON[TRUE] = "white"
# color, line style and width of what `look.mark_errors` says of a box, in the order of `look.MARKS`
MARK_LINES = {
    "found": (COLORS[2], "-", 1.1),
    "wrong class": (COLORS[0], "-", 1.6),
    "poorly placed": (COLORS[1], "-", 1.6),
    "spurious": (COLORS[3], "-", 1.6),
    "missed": (TRUE, (0, (2.5, 1.5)), 1.6),
}
MISSED = list(MARK_LINES).index("missed")
SHADES = (0.0, 0.45, -0.3, 0.2)  # of one class's things, toward white (above 0) or black


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
        names: name of each label; instances are then colored by label, otherwise one by one.
    """
    if not len(images):
        return _no_image()
    columns = min(columns, len(images))
    panel, axes = _grid(images, columns, titled=bool(titles))
    for index, (axis, image) in enumerate(zip(axes, images, strict=False)):
        own = [None if part is None else as_array(part[index]) for part in (boxes, masks, labels, scores)]
        _draw_instances(axis, as_array(image), own, names, inches=WIDTH / columns)
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


def show_entities(
    images: Sequence,
    found: Mapping[str, Sequence[Mapping]],
    *,
    names: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """For each name of `found`, such as truth and a run, a row of the images with masks alone, each in its color.

    Things and stuff fill an image, so that their boxes would hide it. The class (with `names`) and the score are
    written in masks with room for them, where instances have `labels` and `scores`.
    """
    panel, cells = _rows(images, found, columns)
    for axis, _, image, instances, inches in cells:
        masks = _masks(instances, image)
        top, colors = _topmost(masks), [_distinct(n) for n in range(len(masks))]
        _show(axis, _painted(image, top, colors))
        _draw_borders(axis, top)
        _write_inside(axis, top, _words(instances, names, len(masks)), inches)
    return panel


def show_panoptic(
    images: Sequence, maps: Mapping[str, Sequence[tuple]], *, categories: Sequence[Mapping], columns: int = 4
) -> Figure:
    """For each name of `maps`, such as truth and found, a row of panoptic maps over the faded images.

    A class has one color in the whole figure, its things have shades of it; void is hatched in gray. The class is
    written in segments with room for it.

    Args:
        maps: pairs of (H, W) segment ids, 0 for void, and `segments_info`, as `PanopticFiles.read` gives them.
        categories: dicts `id`, `name`, `isthing`, of all classes.
    """
    panel, cells = _rows(images, maps, columns)
    by_id = {category["id"]: category for category in categories}
    present = dict.fromkeys(s["category_id"] for row in maps.values() for _, segments in row for s in segments)
    places = {category_id: place for place, category_id in enumerate(present)}  # those of one image differ most
    for axis, _, image, (ids, segments), inches in cells:
        ids = as_array(ids)
        if ids.shape != image.shape[1:]:
            raise ValueError(f"a panoptic map of {ids.shape} pixels for an image of {image.shape[1:]}")
        top, segments = _segments(ids, segments)
        classes = [by_id[segment["category_id"]] for segment in segments]
        colors = _class_colors([places[each["id"]] for each in classes], [each["isthing"] for each in classes])
        faded = np.repeat(0.7 * image.mean(0, keepdims=True) + 0.3 * 255, 3, axis=0)
        painted = _painted(faded, top, colors, opacity=0.55)
        _show(axis, np.where((top < 0)[..., None], _hatch(top.shape, inches), painted))
        _draw_borders(axis, top)
        _write_inside(axis, top, [each["name"].removesuffix("-merged") for each in classes], inches)
    return panel


def show_errors(
    images: Sequence,
    marked: Mapping[str, Sequence[Mapping]] | Sequence[Mapping],
    truth: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """A row of the images with the true boxes, and below it those of `look.mark_errors` in the colors of their marks.

    Args:
        marked: dicts `boxes`, `labels` for each image; or such lists for each of several runs, by name.
        truth: dicts with `boxes`, and with `labels` where `names` of the classes are given, to be written at them.
    """
    runs = marked if isinstance(marked, Mapping) else {"errors": marked}
    panel, cells = _rows(images, {"truth": truth} | runs, columns, below=0.3)
    for axis, name, image, instances, inches in cells:
        _show(axis, (0.6 * image + 0.4 * 255).transpose(1, 2, 0))
        boxes, labels = (as_array(instances.get(part)) for part in ("boxes", "labels"))
        if name == "truth":
            texts = _words({"labels": labels}, names, len(boxes))
            _draw_boxes(axis, boxes, [(TRUE, "-", 1.1)] * len(boxes), texts, inches)
        else:
            lines = [list(MARK_LINES.values())[label] for label in labels]
            over = np.where(labels == MISSED, 1, -labels)  # what is found lies over spurious boxes of the same object
            _draw_boxes(axis, boxes, lines, [""] * len(boxes), inches, order=over.argsort(kind="stable"))
    if cells:
        handles = [
            Line2D([], [], color=color, linestyle=line, linewidth=width, label=mark)
            for mark, (color, line, width) in MARK_LINES.items()
        ]
        panel.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=TEXT)
    return panel


def show_positives(image, boxes, *, points, matched, strides) -> Figure:
    """Which locations learn which box, a panel for each level: dots in the color of the box that they answer for.

    Args:
        image: (3, H, W); boxes (N, 4).
        points: (P, 2) x, y of the locations in pixels; matched (P,) their box, -1 for background; strides (P,).
    """
    points, matched, strides = (as_array(values) for values in (points, matched, strides))
    levels = np.unique(strides)
    titles, count = [f"stride {int(stride)}" for stride in levels], len(levels)
    panel = show_images([image] * count, boxes=[boxes] * count, titles=titles, columns=count)
    for axis, stride in zip(panel.axes, levels, strict=True):
        answers = np.flatnonzero((strides == stride) & (matched >= 0))
        colors = [COLORS[box % len(COLORS)] for box in matched[answers]]
        axis.scatter(*points[answers].T, s=14, c=colors, edgecolors="white", linewidths=0.5)
    return panel


def pipeline_figure() -> Figure:
    """The three stages of CA-SSL (Sec. 3.1): who trains on what, and where class names are used."""
    panel = Figure(figsize=(WIDTH, 3.6))
    axis = panel.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 100), ylim=(0, 36))
    axis.set_axis_off()
    stages = (("1  pseudo labeler", COLORS[0]), ("2  warm-up", COLORS[2]), ("3  finetuning", COLORS[3]))
    for index, (name, color) in enumerate(stages):
        left = 2 + 33 * index
        axis.add_patch(Rectangle((left, 1.5), 30, 33, facecolor=color, alpha=0.10, edgecolor="none"))
        axis.text(left + 15, 32, name, ha="center", va="center", fontsize=12, weight="bold", color=color)
    data, model = "white", "#F4F0DC"
    boxes = (
        (4, 19, "labeled images\nboxes, masks;\nno class names", data),
        (4, 5, "pseudo labeler\n1 class", model),
        (37, 19, "unlabeled images\npseudo boxes, masks;\nscore > threshold", data),
        (37, 5, "target detector\n1 class", model),
        (70, 19, "labeled images\nboxes, masks,\nclass names", data),
        (70, 5, "target detector\nall classes", model),
    )
    for left, bottom, text, color in boxes:
        shape = FancyBboxPatch((left + 3, bottom), 20, 9, boxstyle="round,pad=0,rounding_size=1", facecolor=color)
        axis.add_patch(shape)
        axis.text(left + 13, bottom + 4.5, text, ha="center", va="center", fontsize=TEXT + 0.5, linespacing=1.3)
    for left in (17, 50, 83):
        _arrow(axis, (left, 19), (left, 14), "trains")
    _arrow(axis, (27, 11), (40, 21), "labels")
    _arrow(axis, (60, 9.5), (73, 9.5), "initializes")
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


def _no_image() -> Figure:
    panel = Figure(figsize=(WIDTH, 0.3))
    panel.text(0, 0.5, "no image to show", va="center", fontsize=TEXT, color=GRAY, style="italic")
    return panel


def _grid(images: Sequence, columns: int, *, titled: bool, below: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A figure as wide as a notebook with axes, row by row, for images that may be None, and inches `below` them."""
    shapes = [0.0 if image is None else image.shape[1] / image.shape[2] for image in images]  # height for a width of 1
    tallest = [max(shapes[start : start + columns]) for start in range(0, len(shapes), columns)]
    heights = [WIDTH / columns * shape + (0.25 if titled else 0.05) for shape in tallest]
    panel = Figure(figsize=(WIDTH, sum(heights) + below), layout="constrained")
    panel.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = panel.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")  # images of one row end at different heights, but start at one
    return panel, axes


def _rows(
    images: Sequence, rows: Mapping[str, Sequence], columns: int, *, below: float = 0.0
) -> tuple[Figure, list[tuple]]:
    """A figure with the images once for each name of `rows`, and what is to be drawn where.

    What belongs to one image is in one column, or side by side where all fits in a row.

    Returns:
        Axes, name, (3, H, W) image, `rows[name]` of that image, and the inches that the axes are wide.
    """
    if wrong := [name for name, row in rows.items() if len(row) != len(images)]:
        raise ValueError(f"{wrong[0]} has {len(rows[wrong[0]])} entries for {len(images)} images")
    if not len(images) or not rows:
        return _no_image(), []
    if len(images) * len(rows) <= columns:
        places = [(name, index) for index in range(len(images)) for name in rows]
        columns = len(places)
    else:
        columns = min(columns, len(images))
        starts = range(0, len(images), columns)
        places = [(name, index) for start in starts for name in rows for index in range(start, start + columns)]
    panel, axes = _grid([images[n] if n < len(images) else None for _, n in places], columns, titled=True, below=below)
    cells, last = [], None
    for axis, (name, index) in zip(axes, places, strict=True):
        if name != last:
            axis.set_title(name, fontsize=TEXT, pad=3)
        last = name
        if index < len(images):
            cells.append((axis, name, as_array(images[index]), rows[name][index], WIDTH / columns))
    return panel, cells


def _show(axis: Axes, pixels: np.ndarray) -> None:
    """The (H, W, 3) pixels, smoothed where the page has fewer."""
    height, width = pixels.shape[:2]
    axis.imshow(pixels.astype(np.uint8), interpolation="antialiased")
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_instances(
    axis: Axes, image: np.ndarray, instances: Sequence, names: Sequence[str] | None, *, inches: float
) -> None:
    """Draw one image; `inches`, the width of its axes, is what makes texts find room beside each other."""
    boxes, masks, labels, scores = instances
    count = next((len(part) for part in instances if part is not None), 0)
    by_label = names is not None and labels is not None
    colors = [COLORS[int(labels[n] if by_label else n) % len(COLORS)] for n in range(count)]
    top = _topmost(_masks({"masks": masks}, image))
    _show(axis, _painted(image, top, colors))
    _draw_borders(axis, top)
    if boxes is not None:
        texts = _words({"labels": labels, "scores": scores}, names, count)
        order = range(count) if scores is None else np.argsort(-scores, kind="stable")
        _draw_boxes(axis, boxes, [(color, "-", 1.1) for color in colors], texts, inches, order=order)


def _words(instances: Mapping, names: Sequence[str] | None, count: int) -> list[str]:
    """What is written at each of `count` instances: its class, where `names` are given, and its score."""
    labels, scores = (as_array(instances.get(part)) for part in ("labels", "scores"))
    classes = [""] * count if names is None or labels is None else [names[int(label)] for label in labels]
    numbers = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    return [f"{word} {number}".strip() for word, number in zip(classes, numbers, strict=True)]


def _draw_boxes(
    axis: Axes,
    boxes: Sequence,
    lines: Sequence[tuple],
    texts: Sequence[str],
    inches: float,
    order: Sequence | None = None,
) -> None:
    """Boxes with `lines`, their color, style and width; those first in `order` are first to get a spot for a text."""
    width, height = axis.get_xlim()[1] + 0.5, axis.get_ylim()[0] + 0.5
    units = width / (inches * 72)  # pixels of the image in a point of print
    placed: list[tuple] = []
    for n in range(len(boxes)) if order is None else order:
        (left, top, right, bottom), (color, line, thick) = boxes[n], lines[n]
        outline = {"fill": False, "edgecolor": color, "linestyle": line, "linewidth": thick}
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, **outline))
        spot = _free_spot(boxes[n], ((len(texts[n]) * 4.2 + 2) * units, 8.5 * units), (width, height), placed)
        if texts[n] and spot:
            placed.append(spot)
            style = {"fontsize": SMALL, "color": TEXT_ON[color], "va": "top", "ha": "left"}
            background = {"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
            axis.text(*spot[:2], texts[n], **style, bbox=background)


def _free_spot(box: Sequence[float], size: tuple, limits: tuple, placed: Sequence[tuple]) -> tuple | None:
    """Where a text of this size hides no other: above the box, in its corners, below it; else nowhere."""
    (left, top, right, bottom), (wide, high) = box, size
    corners = ((left, top - high), (left, top), (right - wide, top), (left, bottom - high), (left, bottom))
    for x, y in corners:
        x, y = min(max(x, 0), limits[0] - wide), min(max(y, 0), limits[1] - high)
        if all(x + wide < other[0] or other[2] < x or y + high < other[1] or other[3] < y for other in placed):
            return (x, y, x + wide, y + high)
    return None


def _masks(instances: Mapping, image: np.ndarray) -> np.ndarray:
    """(N, H, W) bool, N = 0 where there are none."""
    masks = as_array(instances.get("masks"))
    return np.zeros((0, *image.shape[1:]), bool) if masks is None or not len(masks) else masks.astype(bool)


def _topmost(masks: np.ndarray) -> np.ndarray:
    """(H, W) index of the mask that shows, -1 for none: smaller ones lie over larger, so that they stay visible."""
    top = np.full(masks.shape[1:], -1)
    for n in np.argsort(-masks.sum((1, 2)), kind="stable"):
        top[masks[n]] = n
    return top


def _segments(ids: np.ndarray, segments: Sequence[Mapping]) -> tuple[np.ndarray, list[Mapping]]:
    """(H, W) index of the segment that a pixel is of, -1 for void, and the segments, from left to right.

    In that order the things of a class have the same shades in truth and prediction where most of them are found.
    """
    middles = [np.nonzero(ids == segment["id"])[1].mean() for segment in segments]
    segments = [segments[n] for n in np.argsort(middles, kind="stable")]
    top = np.full(ids.shape, -1)
    for n, segment in enumerate(segments):
        top[ids == segment["id"]] = n
    return top, segments


def _painted(image: np.ndarray, top: np.ndarray, colors: Sequence[str], *, opacity: float = 0.5) -> np.ndarray:
    """(H, W, 3) pixels of a (3, H, W) image with a color where `top` is not -1."""
    pixels = image.transpose(1, 2, 0).astype(float)
    over = np.array([to_rgb(color) for color in colors]).reshape(-1, 3) * 255
    covered = top >= 0
    pixels[covered] = (1 - opacity) * pixels[covered] + opacity * over[top[covered]]
    return pixels


def _distinct(n: int, *, saturation: float = 0.75) -> np.ndarray:
    """The n-th of many colors that differ from those before, (3,) from 0 to 1."""
    hue = (0.58 + n * 0.618034) % 1  # steps of the golden ratio keep away from each other
    return np.array(colorsys.hls_to_rgb(hue, (0.5, 0.65, 0.42)[n % 3], saturation))


def _class_colors(classes: Sequence[int], isthing: Sequence[bool]) -> list[np.ndarray]:
    """A dull color for each class of stuff; a bright one for each class of things, whose segments shade it in turn."""
    seen: Counter = Counter()
    colors = []
    for place, thing in zip(classes, isthing, strict=True):
        shade = SHADES[seen[place] % len(SHADES)] if thing else 0.0
        color = _distinct(place, saturation=0.8 if thing else 0.45)
        colors.append(color + shade * ((1 - color) if shade > 0 else color))
        seen[place] += 1
    return colors


def _hatch(shape: tuple, inches: float) -> np.ndarray:
    """(H, W, 1) gray with diagonal stripes of two points for axes that are `inches` wide."""
    period = max(4, 4 * shape[1] / (inches * 72))
    stripes = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % period < period / 2
    return np.where(stripes, 175.0, 205.0)[..., None]


def _draw_borders(axis: Axes, top: np.ndarray) -> None:
    """Thin lines between pixels of different index, the same on the page whatever the size of the image."""
    if (top < 0).all():
        return
    sides = []
    for index, differ in ((0, top[1:] != top[:-1]), (1, (top[:, 1:] != top[:, :-1]).T)):
        across, start, end = _runs(differ)
        ends = np.stack([np.stack([start - 0.5, across + 0.5], 1), np.stack([end - 0.5, across + 0.5], 1)], 1)
        sides.append(ends[..., ::-1] if index else ends)
    axis.add_collection(LineCollection(np.concatenate(sides), colors="white", linewidths=0.5), autolim=False)


def _runs(flags: np.ndarray) -> np.ndarray:
    """Of the runs of True in each row of (R, C) bool: rows, first columns, columns after the last, (3, K)."""
    change = np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(change == 1)
    return np.stack([rows, first, np.nonzero(change == -1)[1]])


def _write_inside(axis: Axes, top: np.ndarray, texts: Sequence[str], inches: float) -> None:
    """Write each text in the part of an image whose index in `top` it has, where there is room for it."""
    units = top.shape[1] / (inches * 72)  # pixels of the image in a point of print
    for n, text in enumerate(texts):
        wide, high = (len(text) * 4.2 + 2) * units, 8.5 * units
        margins = (20, 8, 3, 0)  # points; as far from the border as there is room for
        spots = (_room(top == n, wide + 2 * margin * units, high + 2 * margin * units) for margin in margins)
        if text and (spot := next((spot for spot in spots if spot), None)):
            outline = [withStroke(linewidth=1.8, foreground="white")]
            axis.text(*spot, text, fontsize=SMALL, va="center", ha="center", path_effects=outline)


def _room(inside: np.ndarray, wide: float, high: float) -> tuple[float, float] | None:
    """x, y of the middle of a window of that many pixels that is inside: the one nearest the center, None for none."""
    wide, high = int(np.ceil(wide)), int(np.ceil(high))
    if wide > inside.shape[1] or high > inside.shape[0]:
        return None
    sums = np.pad(inside, ((1, 0), (1, 0))).cumsum(0, dtype=np.int32).cumsum(1)
    counts = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    rows, columns = np.nonzero(counts == wide * high)
    if not len(rows):
        return None
    x, y = columns + (wide - 1) / 2, rows + (high - 1) / 2
    center_y, center_x = (places.mean() for places in np.nonzero(inside))
    nearest = ((x - center_x) ** 2 + (y - center_y) ** 2).argmin()
    return float(x[nearest]), float(y[nearest])


def tidy(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=TEXT)
    axis.set_ylabel(y, fontsize=TEXT)
    axis.tick_params(labelsize=TEXT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)


def as_array(data) -> np.ndarray | None:
    """Tensors of any device, arrays and lists as an array."""
    if data is None:
        return None
    return np.asarray(data.detach().cpu().numpy() if hasattr(data, "detach") else data)
