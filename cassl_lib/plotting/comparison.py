"""The same images with ground truth, pseudo labels and two detectors, and what the second changed over the first.

An object has one color in all rows. Vermilion is for errors: outlines of false positives, names of wrong classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cassl_lib.plotting.canvas import masks_of, no_image
from cassl_lib.plotting.changes import Judged, judge
from cassl_lib.plotting.overlays import (
    ERROR,
    FALSE,
    GAINED,
    LOST,
    OBJECT_COLORS,
    Places,
    boxes_of,
    corners_of,
    draw_mark,
    draw_shape,
    mark_lines,
    show_enlarged,
    write_name,
)
from cassl_lib.plotting.style import BLACK, COLORS, GRAY, PICTURE, TEXT, WIDTH, Figure, as_array

LEFT, GAP = 0.3, 0.05  # inches: for the names of the rows, between images
LEGEND = 0.34  # inches below the images
WRONG = " ✗"  # after the name of a wrong class
DASHED = (0, (2.2, 1.3))


@dataclass(frozen=True)
class Tile:
    """What is drawn on one image of one row."""

    instances: Mapping
    ground_truth: Mapping
    judged: Judged | None = None  # None for the ground truth itself
    gained: Sequence[int] = ()  # objects that only this row detects
    lost: Sequence[int] = ()  # objects that only the other detector detects


def compare_detections(
    images: Sequence, rows: Mapping[str, Sequence[Mapping]], *, names: Sequence[str], below: float = 0.0
) -> Figure:
    """The images once per row, the first row with the ground truth, the last two with the detectors to compare.

    Detections are matched to the ground truth at IoU 0.5. In the last row, marks show which objects only this detector
    detects, which only the one above does, and false positives. Names that have no room are left out, those of changed
    objects last.

    Args:
        rows: by name, one dict per image: `boxes`, optionally `masks`, `labels`, `scores`. Labels of the ground truth
            are -1 for objects without a class.
        names: the name of each label.
        below: inches to leave under the legend.
    """
    if not len(images) or len(rows) < 2:
        return no_image()
    images = [as_array(image) for image in images]
    figure, axes, (wide, high) = _tiles(images, len(rows), below)
    for row, (name, tiles) in enumerate(_judged(rows).items()):
        _name_row(figure, axes[row][0], name)
        for axis, image, tile in zip(axes[row], images, tiles, strict=True):
            inches = min(wide, high * image.shape[2] / image.shape[1])
            draw_tile(axis, image, tile, names=names, inches=inches)
    _add_legend(figure, list(rows)[-2:], below)
    return figure


def _tiles(images: Sequence[np.ndarray], rows: int, below: float) -> tuple[Figure, list[list[Axes]], tuple]:
    """A figure, its axes row by row, and their width and height in inches, in the shape of most of the images."""
    wide = (WIDTH - LEFT - GAP * (len(images) - 1)) / len(images)
    high = wide * float(np.median([image.shape[1] / image.shape[2] for image in images]))
    height = rows * (high + GAP) + LEGEND + below
    figure = Figure(figsize=(WIDTH, height), **PICTURE)
    axes = []
    for row in range(rows):
        bottom = height - (row + 1) * high - row * GAP
        lefts = [LEFT + column * (wide + GAP) for column in range(len(images))]
        axes.append([figure.add_axes((x / WIDTH, bottom / height, wide / WIDTH, high / height)) for x in lefts])
    return figure, axes, (wide, high)


def _name_row(figure: Figure, axis: Axes, name: str) -> None:
    place = axis.get_position()
    y = (place.y0 + place.y1) / 2
    figure.text(LEFT / 2 / WIDTH, y, name, rotation=90, ha="center", va="center", fontsize=TEXT + 1, weight="bold")


def _judged(rows: Mapping[str, Sequence[Mapping]]) -> dict[str, list[Tile]]:
    """Every image of every row with its matches; the last two rows are compared."""
    first, *others = rows
    tiles = {first: [Tile(ground_truth, ground_truth) for ground_truth in rows[first]]}
    for name in others:
        pairs = zip(rows[name], rows[first], strict=True)
        tiles[name] = [Tile(own, ground_truth, judge(own, ground_truth)) for own, ground_truth in pairs]
    if len(others) > 1:
        before, after = others[-2:]
        tiles[after] = [_changed(*pair) for pair in zip(tiles[before], tiles[after], strict=True)]
    return tiles


def _changed(before: Tile, after: Tile) -> Tile:
    then, now = before.judged.detected, after.judged.detected
    gained, lost = np.flatnonzero(now & ~then).tolist(), np.flatnonzero(then & ~now).tolist()
    return Tile(after.instances, after.ground_truth, after.judged, gained, lost)


def draw_tile(axis: Axes, image: np.ndarray, tile: Tile, *, names: Sequence[str], inches: float) -> None:
    """An image with masks, or boxes where there are no masks, marks and names; `inches` wide."""
    show_enlarged(axis, image)
    boxes, masks = boxes_of(tile.instances), masks_of(tile.instances, image)
    true_boxes, true_masks = boxes_of(tile.ground_truth), masks_of(tile.ground_truth, image)
    objects = np.arange(len(boxes)) if tile.judged is None else tile.judged.object_of
    missed = [number for number in tile.lost if number not in objects]
    # 1. shapes, the large ones first, and the outlines of objects that are lost and not detected at all
    for n in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable"):
        color, style = _line(objects[n])
        draw_shape(axis, boxes[n], masks[n : n + 1], color, style=style, opacity=0.0 if objects[n] < 0 else 0.45)
    for number in missed:
        draw_shape(axis, true_boxes[number], true_masks[number : number + 1], BLACK, style=DASHED, opacity=0.0)
    # 2. marks: gained and lost objects before false positives
    corners = [corners_of(box, *masks[n : n + 1]) for n, box in enumerate(boxes)]
    places = Places(image, inches=inches, avoid=[*boxes, *true_boxes[missed]])
    changed = [n for n in range(len(boxes)) if objects[n] in (*tile.gained, *tile.lost)]
    marked = [(corners[n], GAINED if objects[n] in tile.gained else LOST) for n in changed]
    marked += [(corners_of(true_boxes[number], *true_masks[number : number + 1]), LOST) for number in missed]
    marked += [(corners[n], FALSE) for n in np.flatnonzero(objects < 0)]
    for where, mark in marked:
        if spot := places.mark(where):
            draw_mark(axis, *spot, mark)
    # 3. names, those of changed objects first and of false positives last
    for n in sorted(range(len(boxes)), key=lambda n: (n not in changed, objects[n] < 0)):
        text, color = _name(tile, n, objects[n], names)
        if text and (spot := places.name(corners[n], text)):
            write_name(axis, spot, text, color, unit=places.unit)


def _line(number: int) -> tuple:
    """Color and line style of an instance on an object; -1 is a false positive."""
    return (ERROR, DASHED) if number < 0 else (OBJECT_COLORS[number % len(OBJECT_COLORS)], "-")


def _name(tile: Tile, n: int, number: int, names: Sequence[str]) -> tuple[str, str]:
    """Text and color of the label of an instance; no text without a class."""
    labels = as_array(tile.instances.get("labels"))
    if labels is None:
        return "", ""
    name = names[int(labels[n])] if labels[n] >= 0 else "unnamed"
    if tile.judged is not None and not tile.judged.correct[n]:
        return (name if number < 0 else name + WRONG), ERROR
    return name, _line(number)[0]


def _add_legend(figure: Figure, compared: Sequence[str], below: float) -> None:
    before, after = compared
    words = {GAINED: f"correct only in {after}", LOST: f"correct only in {before}", FALSE: "false positive"}
    handles = [tuple(Line2D([], [], **line) for line in mark_lines(mark)) for mark in words]
    handles += [Patch(facecolor=ERROR), tuple(Patch(facecolor=color) for color in (COLORS[0], COLORS[1], COLORS[4]))]
    texts = [*words.values(), f"name{WRONG}: wrong class", "same color in all rows: same object"]
    handlers = {tuple: _Beside()}
    figure.legend(
        handles, texts, handler_map=handlers, loc="lower center", ncols=len(texts), frameon=False, fontsize=TEXT,
        bbox_to_anchor=(0.5, below / figure.get_figheight()), handletextpad=0.5, columnspacing=1.6, borderpad=0.1,
        labelcolor=BLACK,
    )  # fmt: skip


class _Beside(HandlerTuple):
    """Symbols over their discs, patches side by side."""

    def create_artists(self, legend, orig_handle, *args):
        self._ndivide = 1 if isinstance(orig_handle[0], Line2D) else None
        self._pad = 0
        return super().create_artists(legend, orig_handle, *args)


def demo_picture(
    images: Sequence,
    rows: Mapping[str, Sequence[Mapping]],
    *,
    names: Sequence[str],
    aps: Mapping[str, float],
    title: str,
) -> Figure:
    """`compare_detections` above bars of the APs of the detectors.

    Args:
        aps: by name, in percent, from top to bottom; those of the names of the last two rows are in color.
        title: what the bars show.
    """
    below = 0.5 + 0.24 * len(aps)
    figure = compare_detections(images, rows, names=names, below=below)
    height = figure.get_figheight()
    axis = figure.add_axes((0.22, 0.1 / height, 0.7, (below - 0.45) / height))
    before, after = list(rows)[-2:]
    draw_bars(axis, aps, {after: COLORS[2], before: GRAY})
    figure.text(0.2, (below - 0.25) / height, title, ha="left", va="center", fontsize=TEXT + 1, weight="bold")
    return figure


def draw_bars(axis: Axes, numbers: Mapping[str, float], colors: Mapping[str, str]) -> None:
    """Horizontal bars with their values, from top to bottom; a bar has the color whose name its name starts with."""
    for place, (name, value) in enumerate(numbers.items()):
        color = next((color for start, color in colors.items() if name.startswith(start)), COLORS[5])
        axis.barh(place, value, height=0.7, color=color)
        axis.text(value, place, f" {value:.1f}", va="center", fontsize=TEXT, color=BLACK)
    axis.set_yticks(range(len(numbers)), list(numbers))
    axis.set(ylim=(len(numbers) - 0.5, -0.5), xlim=(0, 1.1 * max([*numbers.values(), 1e-9])))
    axis.tick_params(labelsize=TEXT, length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(GRAY)
    axis.set_xticks([])
