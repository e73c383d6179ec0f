"""Masks that fill the image: entity masks and panoptic maps, with classes written inside the segments.

Images are (3, H, W) uint8 tensors or arrays, masks (N, H, W) bool, panoptic maps (H, W) segment ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cassl_lib.plotting.canvas import (
    blend,
    draw_borders,
    image_rows,
    instance_texts,
    masks_of,
    show_pixels,
    topmost,
    write_inside,
)
from cassl_lib.plotting.colors import distinct, mask_iou, object_numbers, segment_colors
from cassl_lib.plotting.style import Figure, as_array


def show_entities(
    images: Sequence,
    rows: Mapping[str, Sequence[Mapping]],
    *,
    names: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """The images once per row with masks only, one color per mask; a mask has the color of the one it overlaps above.

    Things and stuff fill an image, so boxes would hide it. Class (with `names`) and score are written inside masks that
    have room for them.

    Args:
        rows: by name, e.g. of the ground truth and a run, one dict per image: `masks`, optionally `labels`, `scores`.
    """
    figure, cells = image_rows(images, rows, columns)
    masks = {(cell.row, cell.index): masks_of(cell.entry, cell.image) for cell in cells}
    numbers = {}
    for index in range(len(images)):
        numbered = object_numbers([masks[name, index] for name in rows], mask_iou)
        numbers |= {(name, index): own for name, own in zip(rows, numbered, strict=True)}
    for cell in cells:
        own = masks[cell.row, cell.index]
        top, colors = topmost(own), [distinct(n) for n in numbers[cell.row, cell.index]]
        show_pixels(cell.axis, blend(cell.image, top, colors), cell.inches)
        draw_borders(cell.axis, top)
        write_inside(cell.axis, top, instance_texts(cell.entry, names, len(own)), cell.inches)
    return figure


def show_panoptic(
    images: Sequence, rows: Mapping[str, Sequence[tuple]], *, categories: Sequence[Mapping], columns: int = 4
) -> Figure:
    """The images, faded, once per row under panoptic maps.

    A class has one color in the whole figure and its things have shades of it; void is hatched in gray. The class is
    written inside segments that have room for it.

    Args:
        rows: by name, e.g. of the ground truth and a run, one pair per image: (H, W) segment ids, 0 for void, and
            `segments_info`, as `PanopticFiles.read` returns them.
        categories: dicts `id`, `name`, `isthing` of all classes.

    Raises:
        ValueError: a map does not have the size of its image.
    """
    figure, cells = image_rows(images, rows, columns)
    by_id = {category["id"]: category for category in categories}
    present = dict.fromkeys(s["category_id"] for row in rows.values() for _, segments in row for s in segments)
    color_of = {category_id: n for n, category_id in enumerate(present)}  # the first colors differ most
    for axis, _, _, image, (ids, segments_info), inches in cells:
        ids = as_array(ids)
        if ids.shape != image.shape[1:]:
            raise ValueError(f"panoptic map of shape {ids.shape} does not match its image of shape {image.shape[1:]}")
        top, segments = _segments(ids, segments_info)
        classes = [by_id[segment["category_id"]] for segment in segments]
        colors = segment_colors([color_of[each["id"]] for each in classes], [each["isthing"] for each in classes])
        faded = np.repeat(0.7 * image.mean(0, keepdims=True) + 0.3 * 255, 3, axis=0)
        painted = blend(faded, top, colors, opacity=0.55)
        show_pixels(axis, np.where((top < 0)[..., None], _hatch(top.shape, inches), painted), inches)
        draw_borders(axis, top)
        write_inside(axis, top, [each["name"].removesuffix("-merged") for each in classes], inches)
    return figure


def _segments(ids: np.ndarray, segments: Sequence[Mapping]) -> tuple[np.ndarray, list[Mapping]]:
    """(H, W) segment index per pixel, -1 for void, and the segments from left to right.

    In this order the things of a class get the same shades in ground truth and prediction if most are detected.
    """
    centers = [np.nonzero(ids == segment["id"])[1].mean() for segment in segments]
    segments = [segments[n] for n in np.argsort(centers, kind="stable")]
    top = np.full(ids.shape, -1)
    for n, segment in enumerate(segments):
        top[ids == segment["id"]] = n
    return top, segments


def _hatch(shape: tuple, inches: float) -> np.ndarray:
    """(H, W, 1) gray with diagonal stripes two points wide."""
    period = max(4, 4 * shape[1] / (inches * 72))
    stripes = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % period < period / 2
    return np.where(stripes, 175.0, 205.0)[..., None]
