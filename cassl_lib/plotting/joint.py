"""Joint semi-supervised training beside the three stages of CA-SSL, as a diagram (Fig. 1 of the paper, our drawing)."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from cassl_lib.plotting.pipeline import DATA, MODEL, arrow
from cassl_lib.plotting.style import BLACK, COLORS, GRAY, PICTURE, TEXT, WIDTH, Figure

HEIGHT = 4.3  # inches; the axes have ten units per inch
BLUE, GREEN, RED = COLORS[0], COLORS[2], COLORS[3]
PANELS = (  # left edge, width, title
    (0.5, 42, "Joint training: one stage, one mixed loss"),
    (45, 54.5, "CA-SSL: three stages, one kind of data each"),
)
STAGES = (  # left edge, color, title, labels on the images, text below them, model, loss
    (
        46,
        BLUE,
        "1  pseudo labeler",
        "class-agnostic",
        "labeled images,\nno classes",
        "pseudo labeler\n1 class",
        "labeled loss",
    ),
    (
        64.75,
        GREEN,
        "2  warm-up",
        "pseudo",
        "unlabeled images,\npseudo labels",
        "target detector\n1 class",
        "unlabeled loss",
    ),
    (83.5, RED, "3  finetuning", "classes", "labeled images,\nclasses", "target detector\nall classes", "labeled loss"),
)
STAGE_WIDTH = 15


def joint_training_figure() -> Figure:
    """Teacher and student trained on one mixed loss, as Soft Teacher does, and the stages of CA-SSL (Sec. 1)."""
    figure = Figure(figsize=(WIDTH, HEIGHT), **PICTURE)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10 * WIDTH), ylim=(0, 10 * HEIGHT))
    axis.set_axis_off()
    for left, width, title in PANELS:
        axis.add_patch(Rectangle((left, 0.5), width, 10 * HEIGHT - 1, facecolor="#F6F6F6", edgecolor="none"))
        axis.text(left + width / 2, 40, title, ha="center", va="center", fontsize=12, weight="bold", color=BLACK)
    _joint(axis)
    _stages(axis)
    return figure


def _joint(axis: Axes) -> None:
    """Labeled images go to the student, unlabeled ones through the teacher as well; the losses are added."""
    _words(axis, 21.5, 36, "teacher and student, e.g. Soft Teacher", color=GRAY)
    # 1. data
    draw_stack(axis, 5.5, 25, "classes")
    _words(axis, 10.5, 23.5, "labeled images,\nclasses", va="top")
    draw_stack(axis, 28, 25, "none")
    _words(axis, 33, 23.5, "unlabeled images", va="top")
    # 2. models
    _box(axis, 3, 13, 15, 5, "student", MODEL)
    _box(axis, 25.5, 13, 15, 5, "teacher", MODEL)
    arrow(axis, (10.5, 19.4), (10.5, 18))
    arrow(axis, (33, 21.3), (33, 18))
    arrow(axis, (28, 27), (16.5, 18), "arc3,rad=0.1")
    arrow(axis, (18, 15), (25.5, 15))
    _note(axis, 21.75, 14.5, "moving\naverage", ha="center", va="top")
    # 3. the loss, with both kinds of labels
    _box(axis, 3, 4, 37.5, 4, "labeled loss  +  weight × unlabeled loss", DATA)
    arrow(axis, (10.5, 13), (10.5, 8))
    _note(axis, 11.2, 10.5, "detections")
    arrow(axis, (33, 13), (33, 8))
    _note(axis, 33.7, 10.5, "labels with\nclasses")
    _words(axis, 21.5, 2.2, "all at every step; weight and thresholds to tune", color=GRAY)


def _stages(axis: Axes) -> None:
    """One data set, one loss and one model per stage, from left to right."""
    for left, color, title, labels, text, model, loss in STAGES:
        center = left + STAGE_WIDTH / 2
        axis.add_patch(Rectangle((left, 3.6), STAGE_WIDTH, 34, facecolor=color, alpha=0.12, edgecolor="none"))
        axis.text(center, 36, title, ha="center", va="center", fontsize=10, weight="bold", color=color)
        draw_stack(axis, center - 5, 25, labels)
        _words(axis, center, 23.5, text, va="top")
        arrow(axis, (center, 19.4), (center, 18))
        _box(axis, left + 1, 13, STAGE_WIDTH - 2, 5, model, MODEL)
        arrow(axis, (center, 13), (center, 8))
        _box(axis, left + 1, 4.4, STAGE_WIDTH - 2, 3.6, loss, DATA)
    first, second, third = (left for left, *_ in STAGES)
    gap = second - 1.1
    axis.plot(
        [first + STAGE_WIDTH - 1, gap, gap], [15.5, 15.5, 29], color="black", linewidth=1.3, solid_joinstyle="miter"
    )
    arrow(axis, (gap - 0.05, 29), (second + STAGE_WIDTH / 2 - 5, 29))
    _note(axis, gap - 0.5, 22.5, "labels, once", ha="right", rotation=90)
    arrow(axis, (second + STAGE_WIDTH - 1, 15.5), (third + 1, 15.5))
    _note(axis, third - (third - second - STAGE_WIDTH) / 2, 16, "starts", ha="center", va="bottom")
    _words(axis, 72.25, 2.2, "one after another: the two kinds of data need no common loss and no weight", color=GRAY)


def draw_stack(axis: Axes, left: float, bottom: float, labels: str) -> None:
    """A stack of images, 10 wide and 8 high, with two objects and what is known about them.

    Args:
        labels: "none", "class-agnostic" (boxes in one color), "pseudo" (the same, dashed) or "classes" (a color per
            class).
    """
    for shift in (1.4, 0.7, 0):
        axis.add_patch(Rectangle((left + shift, bottom + shift), 8.6, 6.6, facecolor="white", edgecolor=GRAY, lw=0.9))
    shapes = {"facecolor": "#BDBDBD", "edgecolor": "none"}
    axis.add_patch(Circle((left + 2.4, bottom + 2.6), 1.2, **shapes))
    triangle = [(left + 4.8, bottom + 1.5), (left + 7.6, bottom + 1.5), (left + 6.2, bottom + 4.6)]
    axis.add_patch(Polygon(triangle, **shapes))
    boxes = ((left + 0.9, bottom + 1.1, 3.0, 3.0), (left + 4.5, bottom + 1.1, 3.4, 3.9))
    colors = {"class-agnostic": (BLUE, BLUE), "pseudo": (GREEN, GREEN), "classes": (RED, COLORS[4])}.get(labels, ())
    for (x, y, wide, high), color in zip(boxes, colors, strict=False):
        style = (0, (2, 1.2)) if labels == "pseudo" else "-"
        axis.add_patch(Rectangle((x, y), wide, high, fill=False, edgecolor=color, linewidth=1.6, linestyle=style))
    for (x, y, wide, high), color, name in zip(boxes, colors, ("ball", "tent"), strict=False):
        if labels == "classes":
            axis.text(x + wide / 2, y + high + 0.1, name, fontsize=6.5, ha="center", va="bottom", color=color)


def _box(axis: Axes, left: float, bottom: float, width: float, height: float, text: str, color: str) -> None:
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.8", facecolor=color)
    axis.add_patch(shape)
    _words(axis, left + width / 2, bottom + height / 2, text)


def _words(axis: Axes, x: float, y: float, text: str, *, va: str = "center", color: str = BLACK) -> None:
    axis.text(x, y, text, fontsize=TEXT, ha="center", va=va, color=color, linespacing=1.25)


def _note(
    axis: Axes, x: float, y: float, text: str, *, ha: str = "left", va: str = "center", rotation: int = 0
) -> None:
    style = {"fontsize": TEXT - 0.5, "style": "italic", "linespacing": 1.15, "rotation": rotation}
    axis.text(x, y, text, ha=ha, va=va, **style)
