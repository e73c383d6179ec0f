"""Instances on an enlarged image: smooth masks, marks and names, for images too small to be shown pixel by pixel.

Coordinates are pixels of the original image; (0, 0) is the center of its first pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from PIL import Image, ImageFilter

from cassl_lib.plotting.style import BLACK, COLORS, TEXT_ON, YELLOW, as_array

FACTOR = 4  # to which images and masks are enlarged
NAME = 7.5  # points, size of the names
# of objects, in their order; vermilion is kept for errors, and yellow is readable on a filled label
OBJECT_COLORS = (COLORS[0], COLORS[1], COLORS[4], COLORS[2], COLORS[5], YELLOW)
ERROR = COLORS[3]
ON = TEXT_ON | {YELLOW: "black", "white": BLACK}  # color of a text on each color
GAINED, LOST, FALSE = "gained", "lost", "false positive"
MARKS = {GAINED: ("+", COLORS[2]), LOST: ("_", BLACK), FALSE: ("x", ERROR)}  # symbol and color
MARK = 9.5  # points, diameter of a mark


def show_enlarged(axis: Axes, image: np.ndarray, *, faded: float = 0.0) -> None:
    """Show a (3, H, W) image smoothly enlarged; `faded` in [0, 1] blends it with white."""
    height, width = image.shape[1:]
    pixels = Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))
    large = np.asarray(pixels.resize((FACTOR * width, FACTOR * height), Image.Resampling.BICUBIC), float)
    axis.imshow((large + faded * (255 - large)).astype(np.uint8), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.set_axis_off()


def draw_mask(axis: Axes, mask: np.ndarray, color, *, opacity: float = 0.45, line: float = 1.4, style="-") -> None:
    """Fill a (H, W) bool mask and draw its outline, both smooth; `opacity` 0 draws the outline only."""
    if not mask.any():
        return
    height, width = mask.shape
    soft = Image.fromarray(np.pad(mask, 2, mode="edge").astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(0.7))
    size = (FACTOR * (width + 4), FACTOR * (height + 4))
    values = np.asarray(soft.resize(size, Image.Resampling.BICUBIC), float) / 255
    x, y = ((np.arange(count) + 0.5) / FACTOR - 2.5 for count in size)
    if values.max() <= 0.5:  # a mask of a few scattered pixels
        return
    if opacity:
        axis.contourf(x, y, values, levels=[0.5, 2], colors=[color], alpha=opacity)
    if line:
        axis.contour(x, y, values, levels=[0.5], colors=["white"], linewidths=line + 1.2, alpha=0.8)
        axis.contour(x, y, values, levels=[0.5], colors=[color], linewidths=line, linestyles=[style])


def draw_shape(axis: Axes, box: Sequence[float], mask: np.ndarray, color, *, style="-", opacity: float = 0.45) -> None:
    """An instance as its mask, (1, H, W) bool, or as its xyxy box if `mask` is (0, H, W)."""
    if len(mask):
        draw_mask(axis, mask[0], color, style=style, opacity=opacity)
        return
    left, top, right, bottom = box
    outline = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False)
    axis.add_patch(outline)
    outline.set(
        edgecolor=color,
        linewidth=1.6,
        linestyle=style,
        path_effects=[withStroke(linewidth=2.8, foreground="white", alpha=0.8)],
    )


def boxes_of(instances: Mapping) -> np.ndarray:
    """(N, 4) xyxy boxes of instances; N = 0 if there are none."""
    boxes = instances.get("boxes")
    return np.zeros((0, 4)) if boxes is None else np.asarray(as_array(boxes), float).reshape(-1, 4)


def draw_mark(axis: Axes, x: float, y: float, mark: str) -> None:
    """One of MARKS: a disc with a symbol, centered on a point."""
    for handle in mark_lines(mark):
        handle = axis.plot([x], [y], clip_on=False, zorder=6, **handle)[0]
        handle.set_gid(mark)


def mark_lines(mark: str) -> list[dict]:
    """Line properties of the disc and the symbol of a mark."""
    symbol, color = MARKS[mark]
    shared = {"linestyle": "none"}
    disc = shared | {"marker": "o", "markersize": MARK, "markerfacecolor": color, "markeredgecolor": "white"}
    cross = {"marker": symbol, "markersize": MARK * 0.52, "markeredgecolor": "white", "markeredgewidth": 1.6}
    return [disc | {"markeredgewidth": 0.9}, shared | cross]


class Places:
    """Free places on an image for names and marks, given out greedily: what asks first is placed best."""

    def __init__(self, image: np.ndarray, *, inches: float, avoid: Iterable[Sequence[float]] = ()):
        """
        Args:
            image: (3, H, W).
            inches: width of the image in the figure.
            avoid: xyxy boxes that are better not covered.
        """
        height, width = image.shape[1:]
        self.unit = width / (inches * 72)  # pixels per point
        self.limits = (width - 0.5, height - 0.5)
        self.avoid, self.taken = [tuple(box) for box in avoid], []

    def mark(self, corners: np.ndarray) -> tuple[float, float] | None:
        """Center of a mark on one of the `corners_of` an instance; None if all are taken."""
        side = (MARK + 1.2) * self.unit
        for x, y in corners[[1, 0, 3, 2]]:
            x, y = self._inside(x - side / 2, y - side / 2, side, side)
            if self._take((x, y, x + side, y + side)):
                return x + side / 2, y + side / 2
        return None

    def name(self, corners: np.ndarray, text: str) -> tuple[float, float] | None:
        """Top left corner of a name beside an instance, where it covers the least of all others; None without room."""
        wide, high = (self.unit * points for points in extent(text))
        gap = self.unit
        spots = []
        for order, (x, y) in enumerate(corners):
            below, right = order >= 2, order % 2
            tops = (y + gap if below else y - high - gap, y - high / 2)
            beside = x + gap if right else x - wide - gap
            # above or below the corner and to its inside, its middle, its outside; then beside it
            lefts = (x - wide if right else x, x - wide / 2, beside)
            for rank, corner in enumerate([(left, tops[0]) for left in lefts] + [(beside, tops[1])]):
                left, top = self._inside(*corner, wide, high)
                spot = (left, top, left + wide, top + high)
                covered = sum(_shared(spot, other) for other in self.avoid) / (wide * high)
                spots.append((covered + 0.05 * rank + 0.02 * order, spot))
        return next((spot[:2] for _, spot in sorted(spots) if self._take(spot)), None)

    def _inside(self, x: float, y: float, wide: float, high: float) -> tuple[float, float]:
        return max(min(x, self.limits[0] - wide), -0.5), max(min(y, self.limits[1] - high), -0.5)

    def _take(self, spot: tuple) -> bool:
        free = all(_shared(spot, other) <= 0 for other in self.taken)
        self.taken += [spot] if free else []
        return free


def corners_of(box: Sequence[float], mask: np.ndarray | None = None) -> np.ndarray:
    """(4, 2) x, y of the top left, top right, bottom left, bottom right corner of a mask, or of a box without one."""
    if mask is None or not mask.any():
        left, top, right, bottom = np.asarray(box, float) - 0.5
        return np.array([(left, top), (right, top), (left, bottom), (right, bottom)])
    rows, columns = np.nonzero(mask)
    # the outermost pixels along the diagonals; steep ones, so that a name sits above or below the mask
    extremes = [(down * 2 * rows + right * columns).argmax() for down in (-1, 1) for right in (-1, 1)]
    return np.stack([columns[extremes], rows[extremes]], 1).astype(float)


def write_name(axis: Axes, spot: tuple[float, float], text: str, color: str, *, unit: float) -> None:
    """A name on a filled label with its top left corner at `spot`; `unit` is in pixels per point."""
    wide, high = (unit * points for points in extent(text))
    axis.add_patch(Rectangle(spot, wide, high, facecolor=color, edgecolor="white", linewidth=0.5, zorder=4))
    style = {"fontsize": NAME, "color": ON[color], "ha": "center", "va": "center_baseline", "zorder": 5}
    axis.text(spot[0] + wide / 2, spot[1] + high / 2, text, **style)


@lru_cache(maxsize=1024)
def extent(text: str) -> tuple[float, float]:
    """Width and height of a label with a name, points."""
    plain = text.replace("$", "S")  # `$` would begin a formula
    return TextPath((0, 0), plain, size=NAME).get_extents().width + 4, NAME + 2.5


def _shared(first: Sequence[float], second: Sequence[float]) -> float:
    """Area that two xyxy boxes share."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    return max(wide, 0) * max(high, 0)
