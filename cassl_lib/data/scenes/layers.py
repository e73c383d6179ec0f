"""One drawn thing as a layer, compositing it onto the canvas, and which thing owns each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from cassl_lib.data.scenes.kinds import BODY, CORE, Pen

_COVER_VIVID = np.array([[role > 0, role >= CORE, 0] for role in range(7)], np.float32)  # encoded as colors


@dataclass(frozen=True)
class Layer:
    """A drawn thing in its own square of side S = 2 * half, float32 in [0, 1]."""

    color: np.ndarray  # (S, S, 3)
    cover: np.ndarray  # (S, S) covered fraction of each pixel
    vivid: np.ndarray  # (S, S) 1 on core and detail, which keep their own colors
    blurred: np.ndarray  # (S, S) blurred cover, for lighting and shadow
    half: int
    radius: float


def make_layer(pen: Pen, palette: np.ndarray, radius: float) -> Layer:
    """Downsample a drawn map of roles to a layer; `palette` (7, 3) is the color of each role."""

    def colored(table: np.ndarray) -> Image.Image:
        pen.image.putpalette((np.clip(table, 0, 1) * 255).astype(np.uint8).tobytes())
        return pen.image.convert("RGB").reduce(pen.fine)

    palette[0] = palette[BODY]  # blended into partly covered pixels
    shares = colored(_COVER_VIVID)
    blurred = shares.getchannel(0).filter(ImageFilter.BoxBlur(max(1.0, 0.18 * radius)))
    planes = (np.asarray(plane, np.float32) * np.float32(1 / 255) for plane in (colored(palette), shares, blurred))
    color, shares, blurred = planes
    return Layer(color, shares[..., 0], shares[..., 1], blurred, pen.half, radius)


@dataclass(frozen=True)
class Window:
    """The overlap of a layer and the canvas, as row and column slices of each."""

    canvas: tuple[slice, slice]
    layer: tuple[slice, slice]


def window(x: int, y: int, half: int, height: int, width: int) -> Window:
    top, bottom, left, right = max(0, y - half), min(height, y + half), max(0, x - half), min(width, x + half)
    inside = slice(top - y + half, bottom - y + half), slice(left - x + half, right - x + half)
    return Window((slice(top, bottom), slice(left, right)), inside)


def _shadow(layer: Layer, light: tuple[float, float], toward: tuple[int, int], shadow: str) -> np.ndarray:
    """(S, S) in [0, 1]: none, a flat ellipse at the feet, or the thing's outline cast on what is behind it."""
    if shadow == "none":
        return np.zeros_like(layer.cover)
    if shadow == "behind":
        return np.roll(layer.blurred, (-2 * toward[0], -2 * toward[1]), (0, 1))
    grid = np.arange(2 * layer.half, dtype=np.float32) - layer.half
    rows, columns = grid[:, None] / layer.radius - 0.95, grid[None] / layer.radius + 0.5 * light[0]
    return np.exp(-((columns / 0.75) ** 2)) * np.exp(-((rows / 0.16) ** 2))


def stamp(canvas: np.ndarray, layer: Layer, at: Window, *, camouflage: float, light, shadow: str) -> None:
    """Composite a layer onto `canvas` in place, with camouflage, shading and a shadow: feet, behind or none."""
    region = canvas[at.canvas]
    behind = region[:, ::-1].copy()  # mirrored: camouflage copies the texture, not the exact pixels
    step = max(1.0, 0.12 * layer.radius)
    down, right = toward = (round(step * light[1]), round(step * light[0]))
    lit = np.roll(layer.blurred, toward, (0, 1)) - np.roll(layer.blurred, (-down, -right), (0, 1))
    region *= 1 - 0.4 * _shadow(layer, light, toward, shadow)[at.layer][..., None]
    vivid, cover = layer.vivid[at.layer][..., None], layer.cover[at.layer][..., None]
    color = layer.color[at.layer]
    color = color + (camouflage * (1 - 0.75 * vivid)) * (behind - color)
    color *= 1 + (0.55 - 0.3 * camouflage) * lit[at.layer][..., None]
    region += cover * (color - region)


class Ownership:
    """The owner of each pixel: the number of a thing, or -1 for stuff.

    `overlap` is the maximum fraction of a thing that nearer ones may hide.
    """

    def __init__(self, height: int, width: int, overlap: float):
        self.owner = np.full((height, width), -1, np.int16)
        self.overlap = overlap
        self.whole: list[int] = []  # pixels of each thing, including hidden ones
        self.left: list[int] = []  # visible pixels of each thing

    def claim(self, layer: Layer, at: Window, *, is_thing: bool) -> bool:
        """Assign the covered pixels to a new thing, or to stuff (clutter).

        Returns:
            False, with nothing changed, if the new thing or an existing one would keep too few pixels.
        """
        full, mask = int((layer.cover >= 0.5).sum()), layer.cover[at.layer] >= 0.5
        inside = int(mask.sum())
        if is_thing and (inside < 12 or inside < 0.4 * full):
            return False
        region = self.owner[at.canvas]
        losses = np.bincount(region[mask] + 1, minlength=len(self.left) + 1)[1:]
        for loss, left, whole in zip(losses.tolist(), self.left, self.whole, strict=True):
            if loss and left - loss < max(12, (1 - self.overlap) * whole):
                return False
        self.left = [left - loss for left, loss in zip(self.left, losses.tolist(), strict=True)]
        region[mask] = len(self.left) if is_thing else -1
        if is_thing:
            self.whole.append(inside)
            self.left.append(inside)
        return True
