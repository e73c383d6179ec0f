"""AP over the length of training: a longer baseline beside detectors that were warmed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import NullLocator

from cassl_lib.plotting.style import BLACK, COLORS, GRAY, TEXT, WIDTH, Figure, tidy

SPACING = 0.055  # least distance of two texts at the right margin, fraction of the height of the axes


def length_chart(
    baseline: Mapping[int, Sequence[float]],
    others: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    before: Mapping[str, str] | None = None,
) -> Figure:
    """The baseline's AP over its training steps, and horizontal lines for other detectors at their best length.

    Args:
        baseline: by number of steps, one AP per seed in percent.
        others: the same by name, such as CA-SSL; steps of finetuning.
        before: by name, what was trained before the finetuning, in a few words.
    """
    figure = Figure(figsize=(WIDTH, 3.8))
    axis = figure.add_axes((0.06, 0.14, 0.62, 0.82))
    texts = []
    steps = sorted(baseline)
    for index, (name, curve) in enumerate({"baseline": baseline, **others}.items()):
        own, color = sorted(curve), GRAY if index == 0 else COLORS[(0, 2, 3, 4)[(index - 1) % 4]]
        means, stds = (np.array([of(curve[each]) for each in own]) for of in (np.mean, _std))
        style = {"color": color, "marker": "o" if index == 0 else "D", "capsize": 3, "linewidth": 1.8, "markersize": 6}
        axis.errorbar(own, means, yerr=stds if stds.any() else None, zorder=3, **style)
        best = int(np.argmax(means))
        if index:
            axis.axhline(means[best], color=color, linestyle=(0, (4, 2)), linewidth=1.2)
        spread = f" ± {stds[best]:.1f}" if len(curve[own[best]]) > 1 else ""
        words = f"{name}: {means[best]:.1f}{spread}\n{own[best]:,} steps" + (
            f", best of {len(own)}" if len(own) > 1 else ""
        )
        earlier = (before or {}).get(name)
        texts.append((means[best], words + (f" after {earlier}" if earlier else ""), color))
    every = sorted({*steps, *(each for curve in others.values() for each in curve)})
    if len(every) > 1:
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(every[0] / 1.15, every[-1] * 1.15)
    axis.set_xticks(every, [f"{each:,}" for each in every])
    tidy(axis, "steps of training with classes", "box AP")
    _write_beside(axis, texts)
    return figure


def _std(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _write_beside(axis, texts: Sequence[tuple]) -> None:
    """Texts right of the axes at their heights, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    wanted = sorted(((value - low) / (high - low), text, color) for value, text, color in texts)
    heights = np.array([height for height, _, _ in wanted])
    distance = 3 * SPACING
    for n in range(1, len(heights)):  # push up, then push what left the axes down again
        heights[n] = max(heights[n], heights[n - 1] + distance)
    heights[-1] = min(heights[-1], 1 - SPACING)
    for n in range(len(heights) - 2, -1, -1):
        heights[n] = min(heights[n], heights[n + 1] - distance)
    for height, (place, text, color) in zip(heights, wanted, strict=True):
        line = {"color": color, "linewidth": 0.8, "clip_on": False, "transform": axis.transAxes}
        axis.plot([1.0, 1.02, 1.035], [place, height, height], **line)
        title, _, details = text.partition("\n")
        style = {"transform": axis.transAxes, "fontsize": TEXT, "ha": "left"}
        axis.text(1.045, height, title, va="bottom", weight="bold", color=color, **style)
        axis.text(1.045, height - 0.005, details, va="top", color=BLACK, **style)
