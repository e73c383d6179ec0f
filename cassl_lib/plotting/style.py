"""The style that all figures share: sizes, colors, axes, and the PNG writer."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib.figure
import matplotlib.text
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

WIDTH = 10.0  # inches, about a notebook's
DPI = 100
PICTURE = {"dpi": 160, "colors": 256}  # of figures with enlarged images
TEXT = 9  # points
SMALL = 6.5  # points, for text inside images
# Okabe and Ito's palette, readable with any color vision; its black is kept for text, and its yellow for pictures,
# as it is too faint for lines on white
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
YELLOW = "#F0E442"
BLACK = "#202020"
GRAY = "#6B6B6B"
TEXT_ON = dict(zip(COLORS, ("white", "black", "white", "white", "black", "black"), strict=True)) | {BLACK: "white"}


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure with a PNG repr, so notebooks display it without importing pyplot."""

    def __init__(self, *args, dpi: float = DPI, colors: int = 128, **kwargs):
        """As matplotlib's, but `dpi` is independent of a notebook's settings; `colors`: size of the PNG's palette."""
        super().__init__(*args, dpi=dpi, **kwargs)
        self.colors = colors

    def savefig(self, *args, **kwargs):
        """As matplotlib's, but names are drawn as they are: `$` and what follows it is no formula.

        Formulas of matplotlib's own tick labels, such as powers of ten, stay.
        """
        for text in self.findobj(matplotlib.text.Text):
            if "\\mathdefault" not in text.get_text():
                text.set_parse_math(False)
        return super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        return png_bytes(self)


def png_bytes(figure: matplotlib.figure.Figure, *, dpi: int | None = None, colors: int | None = None) -> bytes:
    """Render a figure as a palette PNG, about a quarter of the size of a true-color one.

    `dpi` and `colors` of None are the figure's own.
    """
    rendered, encoded = BytesIO(), BytesIO()
    figure.savefig(rendered, format="png", dpi=dpi or figure.dpi)
    colors = colors or getattr(figure, "colors", 128)
    _with_palette(Image.open(rendered).convert("RGB"), colors).save(encoded, format="PNG", optimize=True)
    return encoded.getvalue()


def _with_palette(image: Image.Image, colors: int) -> Image.Image:
    """Quantize an RGB image; the colors that carry meaning stay exact, however few pixels have them."""
    fixed = np.array([to_rgb(color) for color in ("white", BLACK, GRAY, YELLOW, *COLORS)]) * 255
    chosen = np.array(image.quantize(colors - len(fixed)).getpalette()).reshape(-1, 3)
    palette = np.concatenate([fixed.round(), chosen]).astype(np.float32)
    # map every color to the nearest one ourselves: Pillow's own mapping is inexact and tints the white background
    pixels = np.asarray(image).astype(np.int64) @ (65536, 256, 1)
    distinct, inverse = np.unique(pixels, return_inverse=True)
    nearest = np.empty(len(distinct), np.uint8)
    for start in range(0, len(distinct), 65536):
        part = np.stack([distinct[start : start + 65536] // scale % 256 for scale in (65536, 256, 1)], 1)
        distance = (palette**2).sum(1) - 2 * part.astype(np.float32) @ palette.T  # integers, so exact
        nearest[start : start + 65536] = distance.argmin(1)
    quantized = Image.fromarray(nearest[inverse].reshape(pixels.shape), "P")
    quantized.putpalette(palette.astype(np.uint8).tobytes())
    return quantized


def save_png(
    figure: matplotlib.figure.Figure, path: Path, *, dpi: int | None = None, colors: int | None = None
) -> None:
    """Write `png_bytes` to a file."""
    path.write_bytes(png_bytes(figure, dpi=dpi, colors=colors))


def tidy(axis: Axes, x: str, y: str) -> None:
    """Label the axes and draw a light grid without a frame."""
    axis.set_xlabel(x, fontsize=TEXT)
    axis.set_ylabel(y, fontsize=TEXT)
    axis.tick_params(labelsize=TEXT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)


def legend_above(figure: Figure, handles: list) -> None:
    """One legend for the whole figure, above its panels."""
    columns = min(len(handles), 5)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=TEXT)


def as_array(data) -> np.ndarray | None:
    """Convert a tensor on any device, an array or a list to a numpy array; None stays None."""
    if data is None:
        return None
    return np.asarray(data.detach().cpu().numpy() if hasattr(data, "detach") else data)
