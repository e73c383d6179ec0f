"""The stuff of a scene: sky, mountain, ground, water and wall, textured and lit. scene.py puts the things on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

SKY, MOUNTAIN, GROUND, WATER, WALL = range(5)  # indices in kinds.STUFF
_BANK = 512  # side of the stored noise fields, pixels

# Pairs of RGB colors: top and bottom of the sky, two tints of everything else. Each style has its own choices.
_SKIES = {
    "home": (((0.42, 0.62, 0.86), (0.82, 0.89, 0.93)), ((0.60, 0.70, 0.80), (0.90, 0.88, 0.82))),
    "places": (((0.62, 0.66, 0.70), (0.86, 0.86, 0.84)), ((0.40, 0.60, 0.72), (0.93, 0.86, 0.72))),
    "openimages": (((0.16, 0.18, 0.36), (0.72, 0.44, 0.38)), ((0.30, 0.28, 0.42), (0.90, 0.66, 0.42))),
}
_GROUNDS = {
    "home": (((0.43, 0.53, 0.28), (0.58, 0.60, 0.34)), ((0.62, 0.55, 0.36), (0.48, 0.46, 0.28))),
    "places": (((0.80, 0.72, 0.53), (0.68, 0.58, 0.42)), ((0.56, 0.56, 0.57), (0.46, 0.46, 0.49))),
    "openimages": (((0.62, 0.38, 0.28), (0.50, 0.34, 0.30)), ((0.86, 0.88, 0.92), (0.66, 0.72, 0.80))),
}
_WALLS = {
    "home": (((0.68, 0.44, 0.35), (0.55, 0.36, 0.31)), ((0.80, 0.76, 0.66), (0.70, 0.66, 0.57))),
    "places": (((0.66, 0.70, 0.68), (0.52, 0.58, 0.58)), ((0.72, 0.62, 0.44), (0.60, 0.50, 0.36))),
    "openimages": (((0.44, 0.40, 0.52), (0.36, 0.34, 0.44)), ((0.34, 0.46, 0.46), (0.28, 0.38, 0.40))),
}
_WATERS = (((0.30, 0.50, 0.60), (0.50, 0.68, 0.72)), ((0.34, 0.46, 0.44), (0.52, 0.62, 0.56)))
_MOUNTAINS = (((0.44, 0.50, 0.58), (0.60, 0.65, 0.70)), ((0.36, 0.44, 0.38), (0.52, 0.58, 0.50)))


@dataclass
class Backdrop:
    """`canvas` (H, W, 3) float32 in [0, 1]; `stuff` (H, W) uint8, SKY ... WALL; `light` (x, y) points to the light."""

    canvas: np.ndarray
    stuff: np.ndarray
    light: tuple[float, float]
    horizon: float  # row, pixels


@lru_cache(maxsize=1)
def _noise_bank() -> dict[str, np.ndarray]:
    """Noise fields with mean 0 and standard deviation 1, (512, 512) float32, from which scenes crop their textures."""
    rng = np.random.default_rng(2022)

    def octave(rows: int, columns: int) -> np.ndarray:
        image = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
        return np.asarray(image.resize((_BANK, _BANK), Image.Resampling.BICUBIC))

    bank = {
        "soft": octave(10, 10) + 0.5 * octave(22, 22),
        "blotch": octave(40, 40) + 0.8 * octave(84, 84) + 0.5 * octave(170, 170),
        "streak": octave(128, 22) + 0.6 * octave(200, 48),
        "rough": octave(64, 64) + 0.9 * octave(128, 160) + 0.7 * octave(300, 300),
        "grain": octave(_BANK, _BANK),
    }
    return {name: ((field - field.mean()) / field.std()).astype(np.float32) for name, field in bank.items()}


def noise(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """A random (height, width) crop, at most 512 x 512, of the field soft, blotch, streak, rough or grain."""
    y, x = rng.integers(0, _BANK - height + 1), rng.integers(0, _BANK - width + 1)
    return _noise_bank()[name][y : y + height, x : x + width]


def _tinted(pair, mix: np.ndarray) -> np.ndarray:
    """(H, W, 3) blend of the two colors of `pair` by `mix` (H, W) or (H, 1), clipped to [0, 1]."""
    one, other = np.asarray(pair, np.float32)
    return one + np.clip(mix, 0, 1)[..., None] * (other - one)


def _layout(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, float]:
    """(H, W) stuff classes and the row of the horizon."""
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    horizon = height * rng.uniform(0.26, 0.5)
    stuff = np.where(rows < horizon, SKY, GROUND).astype(np.uint8) + np.zeros((1, width), np.uint8)
    layout = rng.choice(5, p=(0.22, 0.22, 0.2, 0.2, 0.16))  # meadow, mountains, lake, street, room
    wave = noise(rng, "soft", 1, width)
    if layout in (1, 2):
        ridge = horizon - height * (0.11 + 0.06 * wave + 0.015 * noise(rng, "blotch", 1, width))
        stuff[(rows >= ridge) & (rows < horizon)] = MOUNTAIN
    if layout == 2:
        shore = horizon + height * (rng.uniform(0.18, 0.34) + 0.035 * wave)
        stuff[(rows >= horizon) & (rows < shore)] = WATER
    if layout == 0 and rng.random() < 0.6:
        x, y = rng.uniform(0.2, 0.8) * width, horizon + rng.uniform(0.2, 0.5) * height
        pond = ((columns - x) / (0.3 * width)) ** 2 + ((rows - y) / (0.12 * height)) ** 2
        stuff[(pond < 1 + 0.25 * noise(rng, "soft", height, width)) & (rows > horizon + 2)] = WATER
    if layout == 3:
        edge, top = rng.uniform(0.3, 0.75) * width, horizon * rng.uniform(0.1, 0.4)
        behind = columns < edge if rng.random() < 0.5 else columns > edge
        stuff[behind & (rows >= top) & (rows < horizon + 0.05 * height)] = WALL
    if layout == 4:
        stuff[rows[:, 0] < horizon] = WALL
    return stuff, horizon


def _bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) in {0, 1}: 1 on the joints between bricks or the seams between wide panels."""
    size = rng.uniform(0.05, 0.09) * height
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    if rng.random() < 0.4:
        return ((columns % (3 * size) < 1.2) & (rows >= 0)).astype(np.float32)
    course = (rows // size).astype(int)
    return ((rows % size < 1) | ((columns + (course % 2) * size) % (2 * size) < 1)).astype(np.float32)


def _paint(rng: np.random.Generator, stuff: np.ndarray, horizon: float, style: str, texture: float) -> np.ndarray:
    """Colors of the layout before lighting, (H, W, 3) float32."""
    height, width = stuff.shape
    rows = np.arange(height, dtype=np.float32)[:, None]
    canvas = np.empty((height, width, 3), np.float32)

    def fill(region: int, colors: np.ndarray) -> None:
        np.copyto(canvas, colors, where=(stuff == region)[..., None])

    sky = _SKIES[style][rng.integers(2)]
    cloud = np.clip(0.35 * noise(rng, "streak", height, width) + 0.25, 0, 1) * 0.5
    fill(SKY, _tinted(sky, rows / max(horizon, 1) + 0 * cloud) * (1 - cloud[..., None]) + 0.93 * cloud[..., None])
    near = np.clip((rows - horizon) / (height - horizon), 0, 1)
    rough = texture * (0.12 + 0.33 * near) * noise(rng, "rough", height, width)
    patches = 0.25 * texture * noise(rng, "blotch", height, width)
    ground = _tinted(_GROUNDS[style][rng.integers(2)], 0.5 + rough + patches)
    fill(GROUND, ground * (1 + 0.1 * texture * noise(rng, "grain", height, width) * near)[..., None])
    if (stuff == MOUNTAIN).any():
        slope = noise(rng, "rough", height, width)
        fill(MOUNTAIN, _tinted(_MOUNTAINS[rng.integers(2)], 0.5 + 0.3 * slope))
    if (stuff == WATER).any():
        waves = noise(rng, "streak", height, width)
        fill(WATER, _tinted(_WATERS[rng.integers(2)], 0.9 - near + 0.22 * (1 + texture) / 2 * waves))
    if (stuff == WALL).any():
        stain = 0.5 + 0.3 * texture * noise(rng, "blotch", height, width)
        wall = _tinted(_WALLS[style][rng.integers(2)], stain)
        relief = 1 - 0.22 * _bricks(rng, height, width) + 0.03 * noise(rng, "grain", height, width)
        fill(WALL, wall * relief[..., None])
    haze = np.exp(-np.abs(rows - horizon) / (0.14 * height)) * 0.35
    haze = haze[..., None] * (stuff != WALL)[..., None] * (stuff != SKY)[..., None]
    return canvas + haze * (np.asarray(sky[1], np.float32) - canvas)


def draw_backdrop(rng: np.random.Generator, height: int, width: int, *, style: str, texture: float) -> Backdrop:
    """Draw the stuff. `style` is home, places or openimages; `texture` scales the contrast of the ground's texture."""
    stuff, horizon = _layout(rng, height, width)
    canvas = _paint(rng, stuff, horizon, style, texture)
    edge = (stuff[1:] != stuff[:-1]) & (stuff[:-1] != SKY)
    canvas[1:][edge] *= 0.72  # a dark line where one surface ends above the next
    side = rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 0.9)
    light = (side, -np.sqrt(1 - side * side))
    across = np.linspace(-1, 1, width, dtype=np.float32) * light[0]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * light[1]
    canvas *= (1 + 0.1 * across + 0.06 * down)[..., None]
    return Backdrop(canvas, stuff, light, horizon)
