"""Images with their instances, alone, in rows for comparison, or with the locations that learn them.

Images are (3, H, W) uint8 tensors or arrays, boxes (N, 4) xyxy pixels, masks (N, H, W) bool. Instances are dicts with
any of `boxes`, `masks`, `labels`, `scores`. With class `names`, labeled instances are colored by class, otherwise one
by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from cassl_lib.plotting.canvas import (
    blend,
    draw_borders,
    draw_boxes,
    image_grid,
    instance_texts,
    masks_of,
    no_image,
    show_pixels,
    topmost,
)
from cassl_lib.plotting.colors import PARTS, own_colors, shared_colors
from cassl_lib.plotting.style import COLORS, TEXT, WIDTH, Figure, as_array


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
        boxes, masks, labels, scores: one array per image; each may be None.
        names: the name of each label.
    """
    given = dict(zip(PARTS, (boxes, masks, labels, scores), strict=True))
    given = {part: values for part, values in given.items() if values is not None}
    instances = [{part: values[index] for part, values in given.items()} for index in range(len(images))]
    return show_instances(images, instances, names=names, titles=titles, columns=columns)


def show_instances(
    images: Sequence,
    instances: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """A grid of images with `instances[i]` on image i."""
    colors = [own_colors(each, names) for each in instances]
    return _show(images, instances, colors, names=names, titles=titles, columns=columns)


def label_panel(
    images: Sequence,
    ground_truth: Sequence[Mapping],
    predictions: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] = ("ground truth", "prediction"),
) -> Figure:
    """Each image twice, side by side: with its ground truth and with its predictions."""
    pairs = [instances for pair in zip(ground_truth, predictions, strict=True) for instances in pair]
    doubled = [image for image in images for _ in range(2)]
    colors = [each for pair in zip(ground_truth, predictions, strict=True) for each in shared_colors(pair, names)]
    return _show(doubled, pairs, colors, names=names, titles=list(titles) * len(images), columns=4)


def side_by_side(
    images: Sequence, rows: Mapping[str, Sequence[Mapping]], *, names: Sequence[str] | None = None
) -> Figure:
    """The images once per row with `rows[name][i]` on image i; a single image is shown in one row.

    An instance that is colored one by one has the color of the instance in the rows above that it overlaps
    (IoU >= 0.5).

    Args:
        rows: by name, e.g. of the ground truth and two runs, the instances of each image.
    """
    instances = [each for row in rows.values() for each in row]
    titles = [name if column == 0 else "" for name in rows for column in range(len(images))]
    columns = len(images) if len(images) > 1 else len(rows)
    by_image = [shared_colors(column, names) for column in zip(*rows.values(), strict=True)]
    colors = [each for row in zip(*by_image, strict=True) for each in row]
    return _show(list(images) * len(rows), instances, colors, names=names, titles=titles, columns=columns)


def show_positives(image, boxes, *, points, matched, strides) -> Figure:
    """The positive locations of each pyramid level as dots in the color of the box that they learn.

    Args:
        image: (3, H, W).
        boxes: (N, 4) xyxy pixels.
        points: (P, 2) x, y of the locations in pixels.
        matched: (P,) index of the box each location learns, -1 for background.
        strides: (P,) stride of the level of each location.
    """
    points, matched, strides = (as_array(values) for values in (points, matched, strides))
    levels = np.unique(strides)
    titles, count = [f"stride {int(stride)}" for stride in levels], len(levels)
    figure = show_images([image] * count, boxes=[boxes] * count, titles=titles, columns=count)
    for axis, stride in zip(figure.axes, levels, strict=True):
        positives = np.flatnonzero((strides == stride) & (matched >= 0))
        colors = [COLORS[box % len(COLORS)] for box in matched[positives]]
        axis.scatter(*points[positives].T, s=14, c=colors, edgecolors="white", linewidths=0.5)
    return figure


def _show(
    images: Sequence,
    instances: Sequence[Mapping],
    colors: Sequence[Sequence[str]],
    *,
    names: Sequence[str] | None,
    titles: Sequence[str] | None,
    columns: int,
) -> Figure:
    if not len(images):
        return no_image()
    columns = min(columns, len(images))
    figure, axes = image_grid(images, columns, titled=bool(titles))
    for index, image in enumerate(images):
        _draw_instances(axes[index], as_array(image), instances[index], colors[index], names, WIDTH / columns)
        if titles:
            axes[index].set_title(titles[index], fontsize=TEXT, pad=3)
    return figure


def _draw_instances(
    axis: Axes, image: np.ndarray, instances: Mapping, colors: Sequence[str], names: Sequence[str] | None, inches: float
) -> None:
    """Masks first, then boxes; of overlapping texts the one with the highest score is drawn."""
    top = topmost(masks_of(instances, image))
    show_pixels(axis, blend(image, top, colors), inches)
    draw_borders(axis, top)
    boxes, scores = as_array(instances.get("boxes")), as_array(instances.get("scores"))
    if boxes is not None:
        order = range(len(boxes)) if scores is None else np.argsort(-scores, kind="stable")
        texts = instance_texts(instances, names, len(boxes))
        draw_boxes(axis, boxes, [(color, "-", 1.1) for color in colors], texts, inches=inches, order=order)
