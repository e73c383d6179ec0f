"""Draw one embedded scene: stuff, clutter, things that cast shadows and occlude one another, and camera noise.

A scene depends on (spec, unit, index) only, not on which other scenes are drawn or in what order. Things are painted
from far to near; the last thing that covers at least half of a pixel owns it.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np

from cassl_lib.data.scenes.backdrop import SKY, Backdrop, draw_backdrop, noise
from cassl_lib.data.scenes.kinds import BODY, CORE, DARK, DETAIL, NAMED, SHADE, THIN, UNNAMED, Kind, Pen
from cassl_lib.data.scenes.layers import Layer, Ownership, make_layer, stamp, window

POOLS = 4  # units of unlabeled scenes that look like the labeled ones
UNITS = ("train", "val", "tune", *(f"pool_{part}" for part in range(POOLS)), "places", "openimages")
LABELED = UNITS[:3]


@dataclass(frozen=True)
class SceneSpec:
    """Number and difficulty of the scenes."""

    size: int = 128  # long side, pixels
    train: int = 500  # labeled scenes, of which a run uses `Config.labeled_images`, drawn by its seed
    val: int = 1000
    tune: int = 300  # for choosing learning rates, lengths, thresholds and the fields below; never reported on
    pool: tuple[int, ...] = (100, 460, 940, 1600)  # unlabeled, drawn like train; the pools add up to 100, 560, ...
    places: int = 1500  # unlabeled: other grounds and walls, a yellow cast, fewer things
    openimages: int = 1500  # unlabeled: night or evening, more clutter, most unnamed things
    seed: int = 0
    odd_shapes: float = 0.06  # fraction of scenes that are not square
    objects: tuple[int, int] = (2, 8)  # minimum and maximum number of things per labeled image
    radius: tuple[float, float] = (0.06, 0.3)  # of a thing (half its height), as fractions of the long side
    overlap: float = 0.6  # maximum fraction of a thing that nearer things hide
    camouflage: float = 0.6  # 0: own colors; 1: body and appendages take the colors behind them
    appendages: float = 0.5  # fraction of things with one or two thin appendages, which extend the box
    clutter: float = 8.0  # mean number of stones, twigs, tufts and loose cores
    texture: float = 1.0  # contrast of the ground's texture
    saturation: float = 0.75  # of the core, whose hue identifies the pair (person and cyclist, car and taxi, ...)
    hue_spread: float = 0.03  # standard deviation of the core's hue, turns; pairs are 1/6 turn apart
    pair_hue: float = 0.0  # hue difference within a pair, turns; at 0 only shape and pattern differ
    detail: float = 0.8  # contrast of the part or pattern that distinguishes the members of a pair
    noise: float = 0.015  # standard deviation of the camera noise; white is 1
    shift: float = 1.0  # strength of the light and color shift of places and openimages
    unnamed: tuple[float, float, float, float] = (0.02, 0.1, 0.45, 0.55)  # shares in labeled, pool, places, openimages


@dataclass(frozen=True)
class Thing:
    """A visible thing; `mask` (H, W) bool marks the pixels that it owns."""

    kind: Kind
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """`image` (H, W, 3) uint8 RGB; `stuff` (H, W) uint8, the index in STUFF of what is behind the things."""

    image: np.ndarray
    things: list[Thing]
    stuff: np.ndarray


@dataclass(frozen=True)
class _Domain:
    style: str  # of the backdrop and the light: home, places or openimages
    unnamed: float  # fraction of things of unnamed kinds
    crowd: float  # factor on the number of things
    clutter: float  # factor on the amount of clutter


def _domain(spec: SceneSpec, unit: str) -> _Domain:
    labeled, pool, places, openimages = spec.unnamed
    if unit == "places":
        return _Domain("places", places, 0.75, 1.0)
    if unit == "openimages":
        return _Domain("openimages", openimages, 1.0, 1.5)
    return _Domain("home", labeled if unit in LABELED else pool, 1.0, 1.0)


def _palette(rng: np.random.Generator, spec: SceneSpec, kind: Kind | None) -> np.ndarray:
    """(7, 3) float32 color of each role; kind None is clutter, which has any hue."""
    coat = np.array(colorsys.hsv_to_rgb(rng.uniform(0.03, 0.16), rng.uniform(0.1, 0.55), rng.uniform(0.3, 0.85)))
    hue = rng.random() if kind is None else kind.hue + spec.pair_hue * kind.second + spec.hue_spread * rng.normal()
    core = np.array(colorsys.hsv_to_rgb(hue % 1, spec.saturation * rng.uniform(0.8, 1.1), rng.uniform(0.6, 0.95)))
    bright = np.full(3, 0.97) if rng.random() < 0.7 else np.array((0.98, 0.9, 0.55))
    palette = np.zeros((7, 3), np.float32)
    palette[BODY], palette[SHADE], palette[THIN] = coat, 0.62 * coat, 0.8 * coat
    palette[CORE], palette[DARK] = core, 0.16
    # blend from the core, so that a faint detail fades into what surrounds it
    palette[DETAIL] = core + spec.detail * (bright - core)
    return palette


def _grow_appendages(rng: np.random.Generator, pen: Pen, anchor: tuple[float, float], aim: float) -> None:
    for _ in range(rng.integers(1, 3)):
        angle, length, bow = radians(aim + rng.normal() * 25), rng.uniform(0.5, 0.95), rng.normal() * 0.25
        along, across = np.array((cos(angle), -sin(angle))), np.array((sin(angle), cos(angle)))
        t = np.linspace(0, 1, 7)[:, None]
        pen.line(THIN, 0.08, *(np.array(anchor) + t * length * along + 4 * t * (1 - t) * bow * across))


def _draw_clutter(rng: np.random.Generator, pen: Pen, on_ground: bool) -> None:
    """Draw clutter: a stone, a stump with twigs (a body without a core), a loose core, a tuft, or a bent twig."""
    choice = rng.choice(5, p=(0.25, 0.25, 0.2, 0.2, 0.1) if on_ground else (0, 0, 0.7, 0, 0.3))
    turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
    ring = np.stack([np.cos(turn), 0.7 * np.sin(turn)], 1) * rng.uniform(0.55, 0.95, (9, 1))
    if choice in (0, 1):
        pen.polygon(BODY, *ring)
        pen.polygon(SHADE, *(0.5 * ring + (0.1, 0.15)))
    if choice == 1:
        for aim in rng.uniform(10, 170, 2):
            _grow_appendages(rng, pen, (0.0, -0.3), aim)
    if choice == 2:
        pen.polygon(CORE, *(0.5 * ring))
    if choice == 3:
        for x in rng.uniform(-0.8, 0.8, 6):
            pen.line(THIN, 0.08, (0.3 * x, 0.9), (0.6 * x, 0.1), (x, -rng.uniform(0.0, 0.7)))
    if choice == 4:
        pen.line(SHADE, 0.11, *np.column_stack([np.linspace(-0.9, 0.9, 4), rng.normal(0, 0.3, 4)]))


def _choose(rng: np.random.Generator, spec: SceneSpec, domain: _Domain) -> list[Kind | None]:
    """Draw the kinds of one scene at random; None is a piece of clutter."""
    low, high = spec.objects
    count = max(low, round(int(rng.integers(low, high + 1)) * domain.crowd))
    unnamed = rng.random(count) < domain.unnamed
    things = [UNNAMED[rng.integers(len(UNNAMED))] if u else NAMED[rng.integers(len(NAMED))] for u in unnamed]
    return things + [None] * int(rng.poisson(spec.clutter * domain.clutter))


def _draw_item(rng: np.random.Generator, spec: SceneSpec, kind: Kind | None, near: float, on_ground: bool) -> Layer:
    """One thing or piece of clutter; `near` in [0, 1] scales it up."""
    low, high = (np.log(bound * spec.size) for bound in spec.radius)
    radius = float(np.exp(rng.uniform(low, high))) * (0.6 + 0.7 * near) * (1.0 if kind else 0.6)
    upright = kind is None or kind.stands
    pen = Pen(radius, angle=rng.normal() * 0.1 if upright else rng.uniform(-np.pi, np.pi), mirror=rng.random() < 0.5)
    if kind is None:
        _draw_clutter(rng, pen, on_ground)
    else:
        if rng.random() < spec.appendages:
            _grow_appendages(rng, pen, kind.anchor, kind.aim)
        kind.paint(pen)
    return make_layer(pen, _palette(rng, spec, kind), radius)


def _find_place(rng, backdrop: Backdrop, ownership: Ownership, layer: Layer, foot: float | None, is_thing: bool):
    """Claim a window for `layer` where it hides no thing too much; None after six tries. `foot` None: in mid-air."""
    height, width = backdrop.stuff.shape
    for _ in range(6):
        x = rng.uniform(-0.02, 1.02) * width
        y = rng.uniform(0.05, 0.8) * height if foot is None else min(foot - 0.95 * layer.radius, height - 1)
        at = window(round(x), round(y), layer.half, height, width)
        if ownership.claim(layer, at, is_thing=is_thing):
            in_sky = backdrop.stuff[min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)] == SKY
            return at, "none" if in_sky else "behind"
    return None


def _populate(rng: np.random.Generator, spec: SceneSpec, domain: _Domain, backdrop: Backdrop) -> list[Thing]:
    """Put things and clutter on the canvas, far ones first; those without a valid position are left out."""
    height, width = backdrop.stuff.shape
    ownership, kinds = Ownership(height, width, spec.overlap), []
    chosen = _choose(rng, spec, domain)
    depths = rng.beta(1.1, 1.0, len(chosen))
    for number in np.argsort(depths, kind="stable"):
        kind, near = chosen[number], float(depths[number])
        stands = kind is None or kind.stands
        on_ground = bool(rng.random() < (0.85 if kind is None else 1.0 if stands else 0.5))
        layer = _draw_item(rng, spec, kind, near, on_ground)
        foot = backdrop.horizon + (0.06 + near) * (height - backdrop.horizon) if on_ground else None
        place = _find_place(rng, backdrop, ownership, layer, foot, kind is not None)
        if place is None:
            continue
        at, shadow = place
        camouflage = min(1.0, spec.camouflage * rng.uniform(0.7, 1.3))
        shadow = "feet" if on_ground and stands else shadow
        stamp(backdrop.canvas, layer, at, camouflage=camouflage, light=backdrop.light, shadow=shadow)
        if kind is not None:
            kinds.append(kind)
    return [Thing(kind, ownership.owner == number) for number, kind in enumerate(kinds)]


def _photograph(rng: np.random.Generator, spec: SceneSpec, domain: _Domain, canvas: np.ndarray) -> np.ndarray:
    """Apply light and camera noise: (H, W, 3) float canvas to uint8 image."""
    gain = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0, 0.1)).astype(np.float32)
    if domain.style == "places":
        gain *= np.array((1.05, 1.0, 0.9), np.float32) ** spec.shift
    if domain.style == "openimages":
        night = rng.random() < 0.5
        gain *= np.array((0.62, 0.68, 0.9) if night else (1.18, 0.95, 0.72), np.float32) ** spec.shift
    grain = noise(rng, "grain", *canvas.shape[:2])[..., None] * np.float32(spec.noise)
    return (np.clip(canvas * gain + grain, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw_scene(spec: SceneSpec, unit: str, index: int) -> Scene:
    """Draw scene `index` of `unit`, one of UNITS."""
    rng = np.random.default_rng([spec.seed, UNITS.index(unit), index])
    domain, height, width = _domain(spec, unit), spec.size, spec.size
    if rng.random() < spec.odd_shapes:
        height, width = (7 * height // 8, width) if rng.random() < 0.7 else (height, 7 * width // 8)
    backdrop = draw_backdrop(rng, height, width, style=domain.style, texture=spec.texture)
    things = _populate(rng, spec, domain, backdrop)
    return Scene(_photograph(rng, spec, domain, backdrop.canvas), things, backdrop.stuff)
