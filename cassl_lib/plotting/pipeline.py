"""The three stages of CA-SSL as a diagram."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from cassl_lib.plotting.style import COLORS, GRAY, TEXT, WIDTH, Figure

STAGES = (  # title, color, left edge and width
    ("1  pseudo labeler", COLORS[0], 1, 24),
    ("pseudo labels", GRAY, 26, 19),
    ("2  warm-up", COLORS[2], 46, 24),
    ("3  finetuning", COLORS[3], 75, 24),
)
DATA, MODEL = "white", "#F4F0DC"
BOXES = (  # left and bottom edge, width, text, color
    (3, 19, 20, "labeled images\nboxes, masks;\nno class names", DATA),
    (3, 5, 20, "pseudo labeler\n1 class", MODEL),
    (28, 19, 15, "unlabeled images\nboxes, masks;\nscore > threshold", DATA),
    (48, 19, 20, "unlabeled images\nwith pseudo boxes\nand masks", DATA),
    (48, 5, 20, "target detector\n1 class", MODEL),
    (77, 19, 20, "labeled images\nboxes, masks,\nclass names", DATA),
    (77, 5, 20, "target detector\nall classes", MODEL),
)


def pipeline_figure() -> Figure:
    """The three stages of CA-SSL (Sec. 3.1, Fig. 2): which data trains which model, and where class names are used."""
    figure = Figure(figsize=(WIDTH, 3.6))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 100), ylim=(0, 36))
    axis.set_axis_off()
    for title, color, left, width in STAGES:
        axis.add_patch(Rectangle((left, 1.5), width, 33, facecolor=color, alpha=0.10, edgecolor="none"))
        axis.text(left + width / 2, 32, title, ha="center", va="center", fontsize=12, weight="bold", color=color)
    for left, bottom, width, text, color in BOXES:
        shape = FancyBboxPatch((left, bottom), width, 9, boxstyle="round,pad=0,rounding_size=1", facecolor=color)
        axis.add_patch(shape)
        axis.text(left + width / 2, bottom + 4.5, text, ha="center", va="center", fontsize=TEXT, linespacing=1.3)
    for left in (13, 58, 87):
        arrow(axis, (left, 19), (left, 14))
        axis.text(left + 0.8, 16.5, "trains", fontsize=TEXT, style="italic", va="center")
    arrow(axis, (23, 9.5), (35.5, 19), "angle,angleA=0,angleB=90")
    axis.text(30, 10.1, "predicts", fontsize=TEXT, style="italic", ha="center", va="bottom")
    arrow(axis, (43, 23.5), (48, 23.5))
    arrow(axis, (68, 9.5), (77, 9.5))
    axis.text(72.5, 10.1, "initializes", fontsize=TEXT, style="italic", ha="center", va="bottom")
    return figure


def arrow(axis: Axes, start: tuple, end: tuple, shape: str = "arc3") -> None:
    style = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style | {"connectionstyle": shape})
