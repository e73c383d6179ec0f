"""The errors of a detector drawn as boxes, one color per kind of error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D

from cassl_lib.plotting.canvas import draw_boxes, image_rows, instance_texts, show_pixels
from cassl_lib.plotting.style import BLACK, COLORS, TEXT, Figure, as_array

# color, line style and line width of each of `inspection.MARKS`, in their order
MARK_LINES = {
    "correct": (COLORS[2], "-", 1.1),
    "wrong class": (COLORS[0], "-", 1.6),
    "poorly localized": (COLORS[1], "-", 1.6),
    "false positive": (COLORS[3], "-", 1.6),
    "missed": (BLACK, (0, (2.5, 1.5)), 1.6),
}
MISSED = list(MARK_LINES).index("missed")
GROUND_TRUTH = "ground truth"  # the name of the first row


def show_errors(
    images: Sequence,
    marked: Mapping[str, Sequence[Mapping]] | Sequence[Mapping],
    ground_truth: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    columns: int = 5,
) -> Figure:
    """The images with their ground-truth boxes, and below with the boxes of `inspection.mark_errors`, colored by mark.

    Args:
        marked: dicts `boxes`, `labels` (indices of marks), one per image; or such lists by run name.
        ground_truth: dicts with `boxes`; with class `names` also `labels`, which are then written at the boxes.
    """
    runs = marked if isinstance(marked, Mapping) else {"errors": marked}
    figure, cells = image_rows(images, {GROUND_TRUTH: ground_truth} | runs, columns, below=0.3)
    for axis, name, _, image, instances, inches in cells:
        show_pixels(axis, (0.6 * image + 0.4 * 255).transpose(1, 2, 0), inches)
        boxes, labels = (as_array(instances.get(part)) for part in ("boxes", "labels"))
        if name == GROUND_TRUTH:
            texts = instance_texts({"labels": labels}, names, len(boxes))
            draw_boxes(axis, boxes, [(BLACK, "-", 1.1)] * len(boxes), texts, inches=inches)
        else:
            lines = [list(MARK_LINES.values())[label] for label in labels]
            # false positives at the bottom, correct boxes over them, missed objects on top
            order = np.where(labels == MISSED, 1, -labels).argsort(kind="stable")
            draw_boxes(axis, boxes, lines, [""] * len(boxes), inches=inches, order=order)
    if cells:
        handles = [
            Line2D([], [], color=color, linestyle=style, linewidth=width, label=mark)
            for mark, (color, style, width) in MARK_LINES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=TEXT)
    return figure
