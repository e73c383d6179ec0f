"""Which color an instance or a segment has.

By class where class names are given, else one by one, such that the same object keeps its color in every row of a
figure.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cassl_lib.evaluation.matching import box_iou
from cassl_lib.plotting.style import COLORS, as_array

PARTS = ("boxes", "masks", "labels", "scores")  # of instances
SHADES = (0.0, 0.45, -0.3, 0.2)  # for the things of one class, toward white (above 0) or black


def own_colors(instances: Mapping, names: Sequence[str] | None) -> list[str]:
    """A color per instance of one image, by class or one by one."""
    count = next((len(instances[part]) for part in PARTS if instances.get(part) is not None), 0)
    numbers = as_array(instances["labels"]) if _by_class(instances, names) else range(count)
    return [COLORS[int(number) % len(COLORS)] for number in numbers]


def shared_colors(rows: Sequence[Mapping], names: Sequence[str] | None) -> list[list[str]]:
    """Colors of the instances of one image in every row; instances without a class share them by `object_numbers`."""
    colors = [own_colors(instances, names) for instances in rows]
    places = [n for n, each in enumerate(rows) if not _by_class(each, names) and each.get("boxes") is not None]
    boxes = [np.asarray(as_array(rows[n]["boxes"]), float).reshape(-1, 4) for n in places]
    for place, numbers in zip(places, object_numbers(boxes, box_iou), strict=True):
        colors[place] = [COLORS[number % len(COLORS)] for number in numbers]
    return colors


def _by_class(instances: Mapping, names: Sequence[str] | None) -> bool:
    return names is not None and instances.get("labels") is not None


def object_numbers(rows: Sequence[np.ndarray], overlap: Callable) -> list[np.ndarray]:
    """Number the instances of one image in every row of a figure, the same object with the same number.

    Args:
        rows: per row the boxes (N, 4) or masks (N, H, W).
        overlap: returns the IoU (N, M) of two of them. An instance takes the number of the one in the rows above that
            it overlaps most, at least 0.5; each number is used once per row.
    """
    known, numbered = rows[0][:0] if rows else None, []
    for instances in rows:
        overlaps, numbers = overlap(instances, known), np.full(len(instances), -1)
        for _ in range(min(overlaps.shape)):
            n, number = np.unravel_index(overlaps.argmax(), overlaps.shape)
            if overlaps[n, number] < 0.5:
                break
            numbers[n] = number
            overlaps[n], overlaps[:, number] = -1, -1
        new = numbers < 0
        numbers[new] = len(known) + np.arange(new.sum())
        known = np.concatenate([known, instances[new]])
        numbered.append(numbers)
    return numbered


def mask_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (N, M) of masks (N, H, W) and (M, H, W) bool; 0 for two empty masks."""
    flat = [masks.reshape(len(masks), masks.shape[1] * masks.shape[2]).astype(np.float32) for masks in (first, second)]
    shared = flat[0] @ flat[1].T
    union = flat[0].sum(1)[:, None] + flat[1].sum(1) - shared
    return shared / np.maximum(union, 1)


def distinct(n: int, *, saturation: float = 0.75) -> np.ndarray:
    """The n-th of a sequence of distinct colors, (3,) in [0, 1]."""
    hue = (0.58 + n * 0.618034) % 1  # steps of the golden ratio keep hues apart
    return np.array(colorsys.hls_to_rgb(hue, (0.5, 0.65, 0.42)[n % 3], saturation))


def segment_colors(classes: Sequence[int], isthing: Sequence[bool]) -> list[np.ndarray]:
    """Color of each segment: dull for stuff classes, bright for thing classes, whose segments are shaded in turn."""
    seen: Counter = Counter()
    colors = []
    for number, thing in zip(classes, isthing, strict=True):
        shade = SHADES[seen[number] % len(SHADES)] if thing else 0.0
        color = distinct(number, saturation=0.8 if thing else 0.45)
        colors.append(color + shade * ((1 - color) if shade > 0 else color))
        seen[number] += 1
    return colors
