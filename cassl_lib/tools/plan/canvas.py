"""Pixels of padded batches: how large the canvas is that the images of a batch share."""

from __future__ import annotations

import numpy as np

from cassl_lib.config import AugmentConfig
from cassl_lib.data.augment import test_shape
from cassl_lib.models.backbone import SIZE_DIVISOR


def canvas(shapes) -> int:
    """Pixels of the smallest canvas, sides multiples of 32, that holds images of these (height, width); 0 for none."""
    if not len(shapes):
        return 0
    height, width = np.ceil(np.max(np.asarray(shapes), axis=0) / SIZE_DIVISOR).astype(int) * SIZE_DIVISOR
    return int(height * width)


def training_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int) -> float:
    """Mean canvas pixels per image in training with `batch` images at a time.

    Args:
        sizes: (N, 2) height and width of images like those trained on.
    """
    if augment.crop:
        return canvas([(augment.crop, augment.crop)])
    if augment.kind == "strong":
        low, high = augment.strong_sizes
        return _mean_canvas(augment, sizes, batch, tuple(range(low, high + 1)))
    return _mean_canvas(augment, sizes, batch, augment.sizes)


def evaluation_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int) -> float:
    """The same in evaluation."""
    return _mean_canvas(augment, sizes, batch, (augment.test_size,))


def labeling_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int) -> float:
    """The same in labeling, where images of similar aspect ratio share a batch: over 50 batches of these sizes."""
    many = np.tile(sizes, (-(-50 * batch // len(sizes)), 1)).tolist()
    shapes = [test_shape(shape, augment) for shape in sorted(many, key=lambda size: size[1] / size[0])]
    parts = [shapes[at : at + batch] for at in range(0, len(shapes), batch)]
    return sum(len(part) * canvas(part) for part in parts) / len(shapes)


def _mean_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int, sides: tuple[int, ...]) -> float:
    """Over 200 random batches, the same ones every time."""
    draw = np.random.default_rng(0)
    chosen, side = sizes[draw.integers(len(sizes), size=(200, batch))], draw.choice(sides, (200, batch))
    scale = np.minimum(side / chosen.min(-1), augment.longest / chosen.max(-1))
    return float(np.mean([canvas(shapes) for shapes in chosen * scale[..., None]]))
