"""The stages of CA-SSL on real images, and an image with its entities (Figs. 2 and 3 of the paper, our drawing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from cassl_lib.plotting.canvas import masks_of, room_inside
from cassl_lib.plotting.overlays import (
    OBJECT_COLORS,
    Places,
    boxes_of,
    corners_of,
    draw_shape,
    extent,
    show_enlarged,
    write_name,
)
from cassl_lib.plotting.pipeline import MODEL, arrow
from cassl_lib.plotting.style import BLACK, COLORS, GRAY, PICTURE, TEXT, WIDTH, YELLOW, Figure, as_array

HEIGHT = 4.05  # inches of the figure of the stages; its axes have ten units per inch
SIDE, BOTTOM = 17.0, 17.8  # of the images
MODEL_WIDTH = 13.5
ENTITY_COLORS = (*OBJECT_COLORS[:3], YELLOW, *OBJECT_COLORS[3:5])  # grass is green, water blue
BANDS = (  # title, color, left edge and width
    ("1  pseudo labeler", COLORS[0], 0.5, 19),
    ("pseudo labels", GRAY, 20.3, 19),
    ("2  warm-up", COLORS[2], 40.1, 19),
    ("3  finetuning", COLORS[3], 59.9, 19),
    ("result", BLACK, 80.2, 19.3),
)


class Example(NamedTuple):
    """An image with instances: (3, H, W) uint8, and a dict of `boxes` and optionally `masks`, `labels`, `scores`."""

    image: np.ndarray
    instances: Mapping


def stages_figure(*, labeled: Example, pseudo_labeled: Example, result: Example, names: Sequence[str]) -> Figure:
    """What each stage of CA-SSL is trained on and what it gives, with images (Sec. 3.1, Fig. 2).

    Args:
        labeled: a labeled image. Stage 1 sees its objects without their classes, stage 3 with them.
        pseudo_labeled: an unlabeled image with its pseudo labels.
        result: an image with what the finetuned detector detects.
        names: the name of each label.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), **PICTURE)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10 * WIDTH), ylim=(0, 10 * HEIGHT))
    axis.set_axis_off()
    for title, color, left, width in BANDS:
        axis.add_patch(Rectangle((left, 0.6), width, 39.2, facecolor=color, alpha=0.10, edgecolor="none"))
        axis.text(left + width / 2, 37.7, title, ha="center", va="center", fontsize=12, weight="bold", color=color)
    centers = [left + width / 2 for _, _, left, width in BANDS]
    texts = (
        "labeled images,\nobjects without classes",
        "unlabeled images",
        "unlabeled images, labels\nwith score > threshold",
        "labeled images,\nobjects with classes",
        "detections\nwith classes",
    )
    bare = Example(pseudo_labeled.image, {})
    examples = (labeled, bare, pseudo_labeled, labeled, result)
    colors = (COLORS[0], None, COLORS[2], None, None)  # one color: class-agnostic
    for center, text, example, color in zip(centers, texts, examples, colors, strict=True):
        _draw_example(figure, example, (center - SIDE / 2, BOTTOM), color=color, names=names)
        axis.text(center, BOTTOM - 0.7, text, ha="center", va="top", fontsize=TEXT, linespacing=1.25)
    models = (
        "pseudo labeler\n1 class",
        None,
        "target detector\n1 class",
        f"target detector\n{len(names)} classes",
        None,
    )
    for center, model in zip(centers, models, strict=True):
        if model:
            shape = FancyBboxPatch(
                (center - MODEL_WIDTH / 2, 2.2), MODEL_WIDTH, 6, boxstyle="round,pad=0,rounding_size=1", facecolor=MODEL
            )
            axis.add_patch(shape)
            axis.text(center, 5.2, model, ha="center", va="center", fontsize=TEXT, linespacing=1.3)
            arrow(axis, (center, 12.6), (center, 8.2))
            _note(axis, center + 0.8, 10.4, "trains")
    _connect(axis, centers)
    return figure


def _connect(axis: Axes, centers: Sequence[float]) -> None:
    """Arrows between the stages: the labeler's labels, the warm-up's weights, the detector's detections."""
    arrow(axis, (centers[0] + MODEL_WIDTH / 2, 5.2), (centers[1], 13.9), "angle,angleA=0,angleB=90")
    _note(axis, centers[1] - 0.8, 9.5, "labels", ha="right")
    middle = BOTTOM + SIDE / 2
    arrow(axis, (centers[1] + SIDE / 2, middle), (centers[2] - SIDE / 2, middle))
    arrow(axis, (centers[2] + MODEL_WIDTH / 2, 5.2), (centers[3] - MODEL_WIDTH / 2, 5.2))
    _note(axis, (centers[2] + centers[3]) / 2, 6.0, "starts", ha="center", va="bottom")
    arrow(axis, (centers[3] + MODEL_WIDTH / 2, 5.2), (centers[4], 12.6), "angle,angleA=0,angleB=90")
    _note(axis, centers[4] - 0.8, 9.5, "detects", ha="right")


def _note(axis: Axes, x: float, y: float, text: str, *, ha: str = "left", va: str = "center") -> None:
    axis.text(x, y, text, fontsize=TEXT, style="italic", ha=ha, va=va)


def _draw_example(figure: Figure, example: Example, corner: tuple, *, color: str | None, names: Sequence[str]) -> None:
    """An image in axes of its own; instances in one color and without names, or colored by class and named."""
    image, (left, bottom) = as_array(example.image), corner
    place = (left / 10 / WIDTH, bottom / 10 / HEIGHT, SIDE / 10 / WIDTH, SIDE / 10 / HEIGHT)
    axis = figure.add_axes(place)
    show_enlarged(axis, image)
    boxes, masks = boxes_of(example.instances), masks_of(example.instances, image)
    labels = as_array(example.instances.get("labels"))
    if color is None and labels is not None:
        order = list(dict.fromkeys(labels.tolist()))
        colors = [OBJECT_COLORS[order.index(label) % len(OBJECT_COLORS)] for label in labels.tolist()]
    else:
        colors, labels = [color] * len(boxes), None
    for n in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable"):
        draw_shape(axis, boxes[n], masks[n : n + 1], colors[n], opacity=0.5)
    places = Places(image, inches=SIDE / 10 * min(1, image.shape[2] / image.shape[1]), avoid=boxes)
    for n in range(len(boxes)) if labels is not None else ():
        if spot := places.name(corners_of(boxes[n], *masks[n : n + 1]), names[int(labels[n])]):
            write_name(axis, spot, names[int(labels[n])], colors[n], unit=places.unit)


def entities_figure(image: np.ndarray, objects: Mapping, entities: Mapping, *, names: Sequence[str]) -> Figure:
    """One image twice: with its annotated objects, and with all its entities, things and stuff (Sec. 3.2, Fig. 3).

    Args:
        image: (3, H, W) uint8.
        objects: `masks` (N, H, W) bool and `labels` of the annotated objects.
        entities: the same of the entities, the objects first. Labels only name the masks in the figure.
        names: the name of each label.
    """
    image, width = as_array(image), 0.75 * WIDTH
    wide, title = (width - 0.1) / 2, 0.34
    high = wide * image.shape[1] / image.shape[2]
    figure = Figure(figsize=(width, high + title), **PICTURE)
    count = len(objects["masks"])
    titles = (
        f"objects: {count} annotation{'s' * (count != 1)}, with a class",
        f"entities: {len(entities['masks'])} masks, things and stuff, class-agnostic",
    )
    for left, text, instances in zip((0, wide + 0.1), titles, (objects, entities), strict=True):
        axis = figure.add_axes((left / width, 0, wide / width, high / (high + title)))
        figure.text(
            (left + wide / 2) / width, 1 - title / 2 / (high + title), text, ha="center", va="center", fontsize=10
        )
        show_enlarged(axis, image)
        _draw_masks(axis, image, instances, names=names, inches=wide)
    return figure


def _draw_masks(axis: Axes, image: np.ndarray, instances: Mapping, *, names: Sequence[str], inches: float) -> None:
    """Masks with their names, inside where there is room."""
    masks, places = masks_of(instances, image), Places(image, inches=inches)
    for n in np.argsort(-masks.sum((1, 2)), kind="stable"):
        color, name = ENTITY_COLORS[n % len(ENTITY_COLORS)], names[int(instances["labels"][n])]
        draw_shape(axis, (0, 0, 0, 0), masks[n : n + 1], color, opacity=0.55)
        wide, high = (places.unit * points for points in extent(name))
        if center := room_inside(masks[n], 1.3 * wide, 1.6 * high):
            spot = (center[0] - wide / 2, center[1] - high / 2)
        else:
            spot = places.name(corners_of((0, 0, 0, 0), masks[n]), name)
        if spot:
            write_name(axis, spot, name, color, unit=places.unit)
