"""Drawing on images: grids of axes, pixels, boxes, masks, and text that does not overlap.

Images are (3, H, W) uint8, boxes (N, 4) xyxy pixels, masks (N, H, W) bool. `inches` is the width of an image's axes,
from which the size of text in image pixels follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from cassl_lib.plotting.style import DPI, GRAY, SMALL, TEXT, TEXT_ON, WIDTH, Figure, as_array

LETTER, LINE = 4.2, 8.5  # points: width of a letter and height of a line of SMALL text


class Cell(NamedTuple):
    """One image in one row of a figure."""

    axis: Axes
    row: str
    index: int  # of the image
    image: np.ndarray  # (3, H, W)
    entry: Any  # `rows[row][index]`
    inches: float  # width of the axes


def no_image() -> Figure:
    """A figure that says that there is nothing to show."""
    figure = Figure(figsize=(WIDTH, 0.3))
    figure.text(0, 0.5, "no image to show", va="center", fontsize=TEXT, color=GRAY, style="italic")
    return figure


def image_grid(images: Sequence, columns: int, *, titled: bool, below: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A figure of notebook width with axes for images, row by row.

    Args:
        images: (3, H, W) each; None leaves its axes empty.
        titled: leave room for titles.
        below: inches to leave under the images.
    """
    aspects = [0.0 if image is None else image.shape[1] / image.shape[2] for image in images]
    tallest = [max(aspects[start : start + columns]) for start in range(0, len(aspects), columns)]
    heights = [WIDTH / columns * aspect + (0.25 if titled else 0.05) for aspect in tallest]
    figure = Figure(figsize=(WIDTH, sum(heights) + below), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")  # align the images of a row at the top
    return figure, axes


def image_rows(
    images: Sequence, rows: Mapping[str, Sequence], columns: int, *, below: float = 0.0
) -> tuple[Figure, list[Cell]]:
    """A figure that shows the images once per row, with the row's name as title.

    Everything about one image is in one column, or side by side if it all fits in a single row.

    Args:
        rows: by name, one entry per image.
        below: inches to leave under the images.

    Returns:
        The figure and its cells, row by row.

    Raises:
        ValueError: a row has more or fewer entries than there are images.
    """
    if wrong := [name for name, row in rows.items() if len(row) != len(images)]:
        raise ValueError(f"row {wrong[0]!r} has {len(rows[wrong[0]])} entries for {len(images)} images")
    if not len(images) or not rows:
        return no_image(), []
    if len(images) * len(rows) <= columns:
        places = [(name, index) for index in range(len(images)) for name in rows]
        columns = len(places)
    else:
        columns = min(columns, len(images))
        starts = range(0, len(images), columns)
        places = [(name, index) for start in starts for name in rows for index in range(start, start + columns)]
    shown = [images[index] if index < len(images) else None for _, index in places]
    figure, axes = image_grid(shown, columns, titled=True, below=below)
    cells, last = [], None
    for axis, (name, index) in zip(axes, places, strict=True):
        if name != last:
            axis.set_title(name, fontsize=TEXT, pad=3)
        last = name
        if index < len(images):
            cells.append(Cell(axis, name, index, as_array(images[index]), rows[name][index], WIDTH / columns))
    return figure, cells


def show_pixels(axis: Axes, pixels: np.ndarray, inches: float) -> None:
    """Show (H, W, 3) pixels. Enlarged ones stay square: they are sharp, and a PNG of them takes half the bytes."""
    height, width = pixels.shape[:2]
    enlarged = inches * DPI >= 1.5 * width
    axis.imshow(pixels.astype(np.uint8), interpolation="nearest" if enlarged else "antialiased")
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def instance_texts(instances: Mapping, names: Sequence[str] | None, count: int) -> list[str]:
    """The text at each of `count` instances: class name, if `names` are given, and score."""
    labels, scores = (as_array(instances.get(part)) for part in ("labels", "scores"))
    classes = [""] * count if names is None or labels is None else [names[int(label)] for label in labels]
    numbers = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    return [f"{name} {number}".strip() for name, number in zip(classes, numbers, strict=True)]


def draw_boxes(
    axis: Axes,
    boxes: Sequence,
    lines: Sequence[tuple],
    texts: Sequence[str],
    *,
    inches: float,
    order: Sequence | None = None,
) -> None:
    """Draw boxes with their texts.

    Args:
        lines: color, line style and line width of each box.
        order: indices of the boxes in drawing order; the first ones are the first to get a place for their text.
    """
    width, height = axis.get_xlim()[1] + 0.5, axis.get_ylim()[0] + 0.5
    units = width / (inches * 72)  # image pixels per point
    placed: list[tuple] = []
    for n in range(len(boxes)) if order is None else order:
        (left, top, right, bottom), (color, style, thickness) = boxes[n], lines[n]
        outline = Rectangle((left, top), right - left, bottom - top, fill=False)
        outline.set(edgecolor=color, linestyle=style, linewidth=thickness)
        axis.add_patch(outline)
        size = (len(texts[n]) * LETTER + 2) * units, LINE * units
        spot = _free_spot(boxes[n], size, (width, height), placed)
        if texts[n] and spot:
            placed.append(spot)
            background = {"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
            text = axis.text(*spot[:2], texts[n], fontsize=SMALL, color=TEXT_ON[color], bbox=background)
            text.set(verticalalignment="top", horizontalalignment="left")


def _free_spot(box: Sequence[float], size: tuple, limits: tuple, placed: Sequence[tuple]) -> tuple | None:
    """A rectangle for a text that overlaps no other: above the box, in its corners or below; None if all are taken."""
    (left, top, right, bottom), (wide, high) = box, size
    corners = ((left, top - high), (left, top), (right - wide, top), (left, bottom - high), (left, bottom))
    for x, y in corners:
        x, y = min(max(x, 0), limits[0] - wide), min(max(y, 0), limits[1] - high)
        if all(x + wide < other[0] or other[2] < x or y + high < other[1] or other[3] < y for other in placed):
            return (x, y, x + wide, y + high)
    return None


def masks_of(instances: Mapping, image: np.ndarray) -> np.ndarray:
    """(N, H, W) bool masks of instances; N = 0 if there are none."""
    masks = as_array(instances.get("masks"))
    return np.zeros((0, *image.shape[1:]), bool) if masks is None or not len(masks) else masks.astype(bool)


def topmost(masks: np.ndarray) -> np.ndarray:
    """(H, W) index of the visible mask, -1 for none. Smaller masks lie over larger ones, so that they stay visible."""
    top = np.full(masks.shape[1:], -1)
    for n in np.argsort(-masks.sum((1, 2)), kind="stable"):
        top[masks[n]] = n
    return top


def blend(image: np.ndarray, top: np.ndarray, colors: Sequence, *, opacity: float = 0.5) -> np.ndarray:
    """(H, W, 3) pixels of a (3, H, W) image, blended with `colors[top]` wherever `top` is not -1."""
    pixels = image.transpose(1, 2, 0).astype(float)
    over = np.array([to_rgb(color) for color in colors]).reshape(-1, 3) * 255
    covered = top >= 0
    pixels[covered] = (1 - opacity) * pixels[covered] + opacity * over[top[covered]]
    return pixels


def draw_borders(axis: Axes, top: np.ndarray) -> None:
    """Thin lines between pixels of different index, equally thin on the page for every image size."""
    if (top < 0).all():
        return
    sides = []
    for vertical, differ in ((False, top[1:] != top[:-1]), (True, (top[:, 1:] != top[:, :-1]).T)):
        across, start, end = _runs(differ)
        ends = np.stack([np.stack([start - 0.5, across + 0.5], 1), np.stack([end - 0.5, across + 0.5], 1)], 1)
        sides.append(ends[..., ::-1] if vertical else ends)
    axis.add_collection(LineCollection(np.concatenate(sides), colors="white", linewidths=0.5), autolim=False)


def _runs(flags: np.ndarray) -> np.ndarray:
    """Runs of True in the rows of (R, C) bool, as (3, K): row, first column, one past the last column."""
    change = np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(change == 1)
    return np.stack([rows, first, np.nonzero(change == -1)[1]])


def write_inside(axis: Axes, top: np.ndarray, texts: Sequence[str], inches: float) -> None:
    """Write `texts[n]` inside the region where `top` is n; leave it out if the region has no room."""
    units = top.shape[1] / (inches * 72)  # image pixels per point
    for n, text in enumerate(texts):
        wide, high = (len(text) * LETTER + 2) * units, LINE * units
        margins = (20, 8, 3, 0)  # points; keep as far from the border as possible
        spots = (room_inside(top == n, wide + 2 * margin * units, high + 2 * margin * units) for margin in margins)
        if text and (spot := next((spot for spot in spots if spot), None)):
            outline = [withStroke(linewidth=1.8, foreground="white")]
            axis.text(*spot, text, fontsize=SMALL, va="center", ha="center", path_effects=outline)


def room_inside(inside: np.ndarray, wide: float, high: float) -> tuple[float, float] | None:
    """Center (x, y) of the window of this size that lies inside and nearest to the region's center; None if none."""
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
