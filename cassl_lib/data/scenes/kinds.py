"""What the embedded scenes show: five stuff classes, twelve named kinds of things, and eight unnamed kinds.

Unnamed kinds are never annotated in labeled images. The named kinds are six pairs, such as person and cyclist: both
members have the same body and differ in one part or pattern. Each kind is a few polygons in its own frame: x to the
right, y down, about [-1, 1], feet at y = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image, ImageDraw

BODY, SHADE, THIN, CORE, DETAIL, DARK = 1, 2, 3, 4, 5, 6  # roles of the pixels of a drawn thing; 0 is background
REACH = 1.7  # half the side of the drawing area in radii; appendages reach beyond 1
_TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)


class Pen:
    """Draws one thing, supersampled, as a map of roles (BODY ... DARK) in a square of 2 * `half` pixels per side."""

    def __init__(self, radius: float, *, angle: float = 0.0, mirror: bool = False):
        self.half = max(4, ceil(REACH * radius))
        self.fine = 4 if radius < 8 else 3 if radius < 16 else 2  # subpixels per pixel along each axis
        self.scale = radius * self.fine
        cos, sin = np.cos(angle) * self.scale, np.sin(angle) * self.scale
        self.matrix = np.array([[cos, sin], [-sin, cos]]) * ([[-1], [1]] if mirror else 1)
        self.image = Image.new("L", (2 * self.half * self.fine,) * 2)
        self.draw = ImageDraw.Draw(self.image)

    def place(self, points) -> list[float]:
        """Flat list of subpixel coordinates of points (N, 2) in the thing's frame."""
        return (np.asarray(points, float) @ self.matrix + self.half * self.fine).ravel().tolist()

    def polygon(self, role: int, *points) -> None:
        self.draw.polygon(self.place(points), fill=role)

    def disc(self, role: int, x: float, y: float, rx: float, ry: float | None = None) -> None:
        self.draw.polygon(self.place(_CIRCLE * (rx, ry or rx) + (x, y)), fill=role)

    def line(self, role: int, width: float, *points) -> None:
        # at least 1.2 pixels: thinner lines never cover half of a pixel and would drop out of the mask
        self.draw.line(self.place(points), fill=role, width=max(ceil(1.2 * self.fine), round(width * self.scale)))

    def ring(self, role: int, width: float, x: float, y: float, r: float) -> None:
        self.line(role, width, *(_CIRCLE * r + (x, y)), (x + r, y))


def person(pen: Pen, cyclist: bool) -> None:
    up = -0.18 if cyclist else 0.0
    if cyclist:
        for x in (-0.55, 0.55):
            pen.ring(DARK, 0.09, x, 0.6, 0.36)
        pen.line(DETAIL, 0.09, (-0.55, 0.6), (-0.1, 0.12), (0.42, 0.05), (0.55, 0.6))
        pen.line(BODY, 0.17, (-0.05, 0.2), (0.2, 0.45), (0.0, 0.75))
    else:
        pen.line(BODY, 0.2, (-0.05, 0.2), (-0.24, 0.97))
        pen.line(BODY, 0.2, (0.05, 0.2), (0.26, 0.97))
    pen.line(BODY, 0.13, (-0.22, -0.38 + up), (-0.5, 0.1 + up))
    pen.line(BODY, 0.13, (0.22, -0.38 + up), (0.56, 0.0 + up))
    pen.polygon(CORE, (-0.3, -0.44 + up), (0.3, -0.44 + up), (0.2, 0.3 + up), (-0.2, 0.3 + up))
    pen.disc(BODY, 0.0, -0.7 + up, 0.21, 0.24)
    pen.polygon(DARK, (-0.21, -0.74 + up), (-0.1, -0.95 + up), (0.14, -0.94 + up), (0.21, -0.78 + up))


def pony(pen: Pen, deer: bool) -> None:
    for x, foot, role in ((-0.36, -0.3, SHADE), (0.3, 0.36, SHADE), (-0.48, -0.54, BODY), (0.42, 0.46, BODY)):
        pen.line(role, 0.13, (x, 0.2), (foot, 0.97))
    pen.disc(BODY, 0.0, 0.05, 0.62, 0.3)
    pen.polygon(BODY, (0.28, -0.08), (0.6, 0.05), (0.9, -0.55), (0.64, -0.68))
    pen.disc(BODY, 0.84, -0.58, 0.25, 0.13)
    pen.line(THIN, 0.08, (-0.58, -0.05), (-0.78, 0.1), (-0.8, 0.42))
    pen.polygon(CORE, (-0.27, -0.27), (0.18, -0.27), (0.24, 0.24), (-0.3, 0.24))
    if deer:
        pen.line(DETAIL, 0.08, (0.7, -0.66), (0.56, -0.95), (0.68, -1.2))
        pen.line(DETAIL, 0.08, (0.57, -0.94), (0.34, -1.1))
        pen.line(DETAIL, 0.08, (0.76, -0.68), (0.86, -0.98), (1.02, -1.14))
    else:
        pen.polygon(DARK, (0.26, -0.1), (0.3, -0.3), (0.58, -0.76), (0.68, -0.7), (0.42, -0.12))


def car(pen: Pen, taxi: bool) -> None:
    roof = (-0.6, -0.05), (-0.36, -0.48), (0.3, -0.48), (0.58, -0.04)
    pen.polygon(BODY, (-0.97, 0.42), (-0.95, 0.05), *roof, (0.95, 0.08), (0.97, 0.42))
    pen.polygon(DARK, (-0.47, -0.06), (-0.3, -0.38), (-0.05, -0.38), (-0.05, -0.06))
    pen.polygon(DARK, (0.03, -0.06), (0.03, -0.38), (0.25, -0.38), (0.45, -0.06))
    pen.polygon(CORE, (-0.62, 0.02), (0.66, 0.02), (0.72, 0.3), (-0.66, 0.3))
    for x in (-0.56, 0.56):
        pen.disc(DARK, x, 0.42, 0.22)
        pen.disc(SHADE, x, 0.42, 0.1)
    if taxi:
        pen.polygon(DETAIL, (-0.2, -0.46), (-0.16, -0.68), (0.14, -0.68), (0.18, -0.46))
        for x in (-0.5, -0.2, 0.1, 0.4):
            pen.polygon(DETAIL, (x, 0.08), (x + 0.15, 0.08), (x + 0.15, 0.2), (x, 0.2))


def bird(pen: Pen, heron: bool) -> None:
    pen.line(SHADE, 0.07, (-0.1, 0.25), (-0.14, 0.95), (0.06, 0.97))
    pen.line(BODY, 0.07, (0.1, 0.25), (0.12, 0.95), (0.3, 0.97))
    pen.polygon(BODY, (-0.35, -0.06), (-1.0, 0.0), (-0.96, 0.22), (-0.35, 0.26))
    pen.disc(BODY, 0.0, 0.05, 0.52, 0.32)
    x, y = (0.56, -0.86) if heron else (0.46, -0.3)
    if heron:
        pen.line(BODY, 0.15, (0.36, -0.02), (0.56, -0.3), (0.36, -0.56), (0.52, -0.84))
    pen.disc(BODY, x, y, 0.17 if heron else 0.23)
    pen.polygon(DETAIL, (x + 0.12, y - 0.1), (x + 0.5, y + 0.02), (x + 0.12, y + 0.1))
    pen.disc(DARK, x + 0.06, y - 0.04, 0.05)
    pen.polygon(CORE, (0.3, -0.12), (0.24, 0.18), (-0.1, 0.28), (-0.62, 0.16), (-0.2, -0.14))


def beetle(pen: Pen, ladybird: bool) -> None:
    for y, reach in ((-0.3, -0.62), (0.1, 0.12), (0.45, 0.85)):
        pen.line(THIN, 0.08, (-0.3, y), (-0.72, (y + reach) / 2), (-0.9, reach))
        pen.line(THIN, 0.08, (0.3, y), (0.72, (y + reach) / 2), (0.9, reach))
    pen.disc(BODY, 0.0, 0.08, 0.56, 0.74)
    pen.disc(SHADE, 0.0, -0.66, 0.3, 0.24)
    pen.disc(CORE, 0.0, 0.14, 0.46, 0.6)
    pen.line(DARK, 0.06, (0.0, -0.45), (0.0, 0.74))
    if ladybird:
        for x, y in ((-0.24, -0.1), (0.24, -0.1), (-0.24, 0.36), (0.24, 0.36)):
            pen.disc(DETAIL, x, y, 0.13)
    else:
        for y in (-0.08, 0.34):
            pen.line(DETAIL, 0.12, (-0.34, y), (0.34, y))


def mushroom(pen: Pen, toadstool: bool) -> None:
    pen.polygon(BODY, (-0.17, -0.1), (0.17, -0.1), (0.24, 0.8), (0.34, 0.97), (-0.34, 0.97), (-0.24, 0.8))
    pen.polygon(SHADE, (-0.84, -0.02), (0.84, -0.02), (0.5, 0.2), (-0.5, 0.2))
    pen.polygon(BODY, (-0.9, 0.0), (-0.76, -0.42), (-0.4, -0.74), (0.0, -0.84), (0.4, -0.74), (0.76, -0.42), (0.9, 0.0))
    pen.polygon(CORE, (-0.66, -0.12), (-0.52, -0.42), (0.0, -0.72), (0.52, -0.42), (0.66, -0.12))
    if toadstool:
        for x, y in ((-0.36, -0.28), (0.02, -0.5), (0.36, -0.26)):
            pen.disc(DETAIL, x, y, 0.13)
    else:
        pen.polygon(BODY, (-0.3, 0.3), (0.3, 0.3), (0.2, 0.42), (-0.2, 0.42))


def cactus(pen: Pen) -> None:
    pen.line(BODY, 0.36, (0.0, 0.97), (0.0, -0.8))
    pen.line(BODY, 0.24, (0.0, 0.3), (-0.55, 0.3), (-0.55, -0.3))
    pen.line(BODY, 0.24, (0.0, 0.0), (0.52, 0.0), (0.52, -0.55))
    for x, y in ((0.0, -0.9), (0.52, -0.65), (-0.55, -0.38)):
        pen.disc(CORE, x, y, 0.17)


def sailboat(pen: Pen) -> None:
    pen.polygon(BODY, (-0.85, 0.45), (0.9, 0.45), (0.55, 0.95), (-0.55, 0.95))
    pen.line(SHADE, 0.08, (0.0, 0.5), (0.0, -1.0))
    pen.polygon(CORE, (0.08, -0.9), (0.75, 0.3), (0.08, 0.3))
    pen.polygon(DETAIL, (-0.08, -0.6), (-0.5, 0.3), (-0.08, 0.3))


def snail(pen: Pen) -> None:
    pen.polygon(BODY, (-0.95, 0.95), (-0.5, 0.6), (0.4, 0.6), (0.6, 0.05), (0.9, 0.05), (0.95, 0.5), (0.8, 0.95))
    pen.line(THIN, 0.07, (0.7, 0.1), (0.62, -0.4))
    pen.line(THIN, 0.07, (0.82, 0.1), (1.02, -0.35))
    for role, r in ((BODY, 0.6), (CORE, 0.48), (DARK, 0.34), (CORE, 0.22)):
        pen.disc(role, -0.12, 0.16, r)


def fish(pen: Pen) -> None:
    pen.polygon(BODY, (-0.5, 0.1), (-1.0, -0.4), (-0.85, 0.1), (-1.0, 0.6))
    pen.polygon(SHADE, (-0.2, -0.3), (0.1, -0.75), (0.35, -0.3))
    pen.disc(BODY, 0.1, 0.1, 0.8, 0.46)
    for x in (-0.35, 0.0, 0.35):
        pen.line(CORE, 0.15, (x, -0.22), (x - 0.06, 0.42))
    pen.disc(DARK, 0.65, 0.0, 0.08)


def kite(pen: Pen) -> None:
    pen.line(THIN, 0.06, (0.0, 0.5), (-0.25, 0.8), (0.1, 1.1), (-0.2, 1.5))
    pen.polygon(BODY, (0.0, -1.0), (0.65, -0.25), (0.0, 0.6), (-0.65, -0.25))
    pen.polygon(CORE, (0.0, -0.8), (0.0, -0.25), (-0.5, -0.25))
    pen.polygon(CORE, (0.0, 0.4), (0.0, -0.25), (0.5, -0.25))


def kettle(pen: Pen) -> None:
    pen.ring(SHADE, 0.1, 0.0, -0.35, 0.5)
    pen.polygon(BODY, (0.4, 0.3), (0.95, -0.3), (1.05, -0.15), (0.55, 0.7))
    pen.polygon(BODY, (-0.35, -0.35), (0.35, -0.35), (0.7, 0.9), (-0.7, 0.9))
    pen.polygon(CORE, (-0.5, 0.25), (0.5, 0.25), (0.6, 0.6), (-0.6, 0.6))


def rocket(pen: Pen) -> None:
    pen.polygon(DETAIL, (-0.2, 0.6), (0.0, 1.1), (0.2, 0.6))
    pen.polygon(SHADE, (-0.25, 0.1), (-0.7, 0.75), (0.7, 0.75), (0.25, 0.1))
    pen.polygon(BODY, (0.0, -1.1), (0.32, -0.5), (0.32, 0.7), (-0.32, 0.7), (-0.32, -0.5))
    pen.disc(CORE, 0.0, -0.3, 0.22)
    pen.polygon(CORE, (-0.32, 0.3), (0.32, 0.3), (0.32, 0.55), (-0.32, 0.55))


def umbrella(pen: Pen) -> None:
    pen.line(SHADE, 0.09, (0.0, -0.5), (0.0, 0.8), (0.15, 0.95), (0.3, 0.8))
    top, rim = ((-0.75, -0.5), (0.0, -0.9), (0.75, -0.5)), ((0.5, -0.08), (0.0, 0.1), (-0.5, -0.08))
    pen.polygon(BODY, (-1.0, 0.1), *top, (1.0, 0.1), *rim)
    pen.polygon(CORE, (-0.5, -0.08), (0.0, -0.88), (0.0, 0.1))
    pen.polygon(CORE, (0.5, -0.08), (0.0, -0.88), (0.85, -0.3), (1.0, 0.1))


@dataclass(frozen=True)
class Kind:
    """A kind of thing. `hue` in turns; appendages grow from `anchor` in direction `aim` (degrees, 0 right, 90 up)."""

    id: int  # COCO category id, with gaps as in COCO
    name: str
    supercategory: str
    paint: Callable[[Pen], None]
    hue: float
    anchor: tuple[float, float]
    aim: float
    stands: bool = True  # upright with a shadow at its feet; otherwise rotated by any angle
    second: bool = False  # the second of a pair, whose hue is shifted by SceneSpec.pair_hue

    @property
    def named(self) -> bool:
        return self.supercategory != "unnamed"


def _pair(ids, names, supercategory, paint, hue, anchor, aim, stands=True) -> list[Kind]:
    """The two kinds of a pair; `paint` takes whether to draw the second."""
    return [
        Kind(i, name, supercategory, lambda pen, s=s: paint(pen, s), hue, anchor, aim, stands, s)
        for i, name, s in zip(ids, names, (False, True), strict=True)
    ]


NAMED: tuple[Kind, ...] = (
    *_pair((1, 2), ("person", "cyclist"), "person", person, 0.00, (0.56, -0.02), 70),
    *_pair((4, 5), ("car", "taxi"), "vehicle", car, 1 / 6, (-0.3, -0.45), 115),
    *_pair((8, 9), ("bird", "heron"), "animal", bird, 2 / 6, (-0.9, 0.1), 170),
    *_pair((13, 15), ("pony", "deer"), "animal", pony, 3 / 6, (-0.55, -0.1), 190),
    *_pair((21, 24), ("beetle", "ladybird"), "animal", beetle, 4 / 6, (0.0, -0.8), 90, False),
    *_pair((31, 38), ("mushroom", "toadstool"), "plant", mushroom, 5 / 6, (0.25, 0.9), 30),
)
UNNAMED: tuple[Kind, ...] = (
    Kind(301, "cactus", "unnamed", cactus, 0.92, (0.1, -0.2), 20),
    Kind(302, "sailboat", "unnamed", sailboat, 0.58, (0.7, 0.5), 30),
    Kind(303, "snail", "unnamed", snail, 0.10, (-0.8, 0.9), 175),
    Kind(304, "fish", "unnamed", fish, 0.42, (0.85, 0.2), -20, False),
    Kind(305, "kite", "unnamed", kite, 0.75, (0.6, -0.25), 0, False),
    Kind(306, "kettle", "unnamed", kettle, 0.25, (0.0, -0.8), 90),
    Kind(307, "rocket", "unnamed", rocket, 0.98, (0.6, 0.7), -30, False),
    Kind(308, "umbrella", "unnamed", umbrella, 0.66, (0.0, -0.85), 90),
)
STUFF: tuple[tuple[int, str], ...] = ((101, "sky"), (104, "mountain"), (110, "ground"), (117, "water"), (125, "wall"))
