"""Resizing and motion by nearest pixels: torchvision's numbers, bit for bit, at a fraction of its time.

Torchvision computes each pixel of each mask as a float. Here it is asked once where pixels come from; they are then
copied, and of masks only the extent of the object.
"""

from __future__ import annotations

import math

import numpy as np
import torch

MOST_INDICES = 2**24  # whole numbers that float32 represents


def extents(masks: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of each mask (N, H, W), with edges past the last pixel; zeros for an empty mask."""
    found = []
    for mask, rows in zip(masks, masks.max(axis=2) > 0, strict=True):
        top, bottom = _ends(rows)
        found.append((top, bottom, *_ends(mask[top:bottom].max(axis=0) > 0)) if bottom else (0, 0, 0, 0))
    return found


def _ends(occupied: np.ndarray) -> tuple[int, int]:
    """Where the first true value is, and one past the last; zeros if there is none."""
    first = int(occupied.argmax())
    return (first, len(occupied) - int(occupied[::-1].argmax())) if occupied[first] else (0, 0)


def resize_masks(masks: torch.Tensor, size: tuple[int, int], *, flip: bool) -> torch.Tensor:
    """Masks (N, H, W) uint8, flipped horizontally if `flip`, then resized to `size` (height, width), both above 0."""
    source = masks.numpy()
    rows, columns = (_origins(old, new) for old, new in zip(source.shape[1:], size, strict=True))
    resized = np.zeros((len(source), *size), np.uint8)
    places = extents(source)
    if flip:
        source, width = source[..., ::-1], source.shape[2]
        places = [(top, bottom, width - right, width - left) for top, bottom, left, right in places]
    for mask, target, (top, bottom, left, right) in zip(source, resized, places, strict=True):
        across = slice(*columns.searchsorted((left, right)))
        down = slice(*rows.searchsorted((top, bottom)))
        patch = mask[top:bottom].take(columns[across], axis=1)
        target[down, across] = patch.take(rows[down] - top, axis=0)
    return torch.from_numpy(resized)


def _origins(old: int, new: int) -> np.ndarray:
    """(new,) int64: which of `old` pixels each of `new` is a copy of, ascending."""
    positions = torch.arange(old, dtype=torch.float32).reshape(1, 1, old)  # for float64 torch rounds differently
    return torch.nn.functional.interpolate(positions, size=new, mode="nearest").long().numpy().reshape(new)


def shift(values: torch.Tensor, translate: list[int], fill: int) -> torch.Tensor:
    """Pixels (..., H, W) moved by whole pixels (x, y); those from outside are `fill`."""
    moved = torch.full_like(values, fill)
    (from_x, to_x), (from_y, to_y) = (_overlap(*pair) for pair in zip(translate, values.shape[:-3:-1], strict=True))
    moved[..., to_y, to_x] = values[..., from_y, from_x]
    return moved


def _overlap(step: int, side: int) -> tuple[slice, slice]:
    """What stays inside of a side that moves by `step`: where it was, and where it is then."""
    start, stop = min(max(0, -step), side), max(0, min(side, side - step))
    return slice(start, stop), slice(start + step, stop + step)


class Turn:
    """A rotation and shear of images and masks of one size around their center: torchvision's `affine`.

    Attributes:
        origins: (H, W) int64; 1 + the flat index of the pixel that each pixel is a copy of, 0 for one from outside.
    """

    def __init__(self, shape: tuple[int, int], angle: float, shear: list[float]):
        """Args: `shape` (height, width), of at most `MOST_INDICES` pixels; `angle` and `shear` (x, y) in degrees."""
        height, width = shape
        turn, shear_x, shear_y = math.radians(angle), math.radians(shear[0]), math.radians(shear[1])
        a = math.cos(turn - shear_y) / math.cos(shear_y)
        b = -(a * math.tan(shear_x) + math.sin(turn))
        c = math.sin(turn - shear_y) / math.cos(shear_y)
        d = math.cos(turn) - c * math.tan(shear_x)
        self._forward = np.array([[a, b], [c, d]])

        # Where each pixel comes from, from -1 to 1 along each side; rounded to float32 where torchvision rounds.
        x = torch.linspace((1.0 - width) * 0.5, (width - 1.0) * 0.5, steps=width)
        y = torch.linspace((1.0 - height) * 0.5, (height - 1.0) * 0.5, steps=height)
        backward = torch.tensor([[d, -b], [-c, a]]) / torch.tensor([[0.5 * width], [0.5 * height]])
        grid = torch.empty(1, height, width, 2)
        for axis, (along_x, along_y) in enumerate(backward):
            torch.add(x * along_x, (y * along_y)[:, None], out=grid[0, ..., axis])
        numbers = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(1, 1, height, width)
        origins = torch.nn.functional.grid_sample(numbers, grid, "nearest", "zeros", align_corners=False)
        self.origins = origins[0, 0].long().numpy()

    def image(self, image: torch.Tensor, fill: int) -> torch.Tensor:
        """An image (3, H, W) uint8; pixels from outside are `fill`."""
        moved = np.empty(image.shape, np.uint8)
        pixels = np.empty(self.origins.size + 1, np.uint8)
        pixels[0] = fill
        for channel, target in zip(image.numpy(), moved, strict=True):
            pixels[1:] = channel.reshape(-1)
            pixels.take(self.origins, out=target, mode="clip")  # all are inside; other modes copy `out`
        return torch.from_numpy(moved)

    def masks(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (N, H, W) uint8; pixels from outside are 0."""
        height, width = self.origins.shape
        source, moved = masks.numpy(), np.zeros(masks.shape, np.uint8)
        pixels = np.zeros(height * width + 1, np.uint8)
        plane = pixels[1:].reshape(height, width)
        for mask, target, extent in zip(source, moved, extents(source), strict=True):
            inside, window = (slice(*extent[:2]), slice(*extent[2:])), self._reach(*extent)
            plane[inside] = mask[inside]
            target[window] = pixels.take(self.origins[window])
            plane[inside] = 0
        return torch.from_numpy(moved)

    def _reach(self, top: int, bottom: int, left: int, right: int) -> tuple[slice, slice]:
        """Rows and columns that hold whatever was in the given ones, with two pixels to spare."""
        center = np.array(self.origins.shape[::-1])[:, None] / 2
        corners = self._forward @ (np.array([[left, right, left, right], [top, top, bottom, bottom]]) - center) + center
        low, high = corners.min(axis=1) - 2, corners.max(axis=1) + 3
        (left, top), (right, bottom) = (np.maximum(edges, 0).astype(int).tolist() for edges in (low, high))
        return slice(top, bottom), slice(left, right)
