"""Charts of the paper's tables: what this repository measured beside what the paper prints.

In every chart this repository is drawn in color with filled markers, the paper in gray with hollow diamonds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cassl_lib.plotting.style import COLORS, GRAY, TEXT, WIDTH, Figure, legend_above, tidy

PAPER = {"marker": "D", "color": GRAY, "markerfacecolor": "white", "markersize": 5.5}
OURS = {"marker": "o", "color": COLORS[0], "markersize": 5.5}
DODGE = 0.14  # half the distance between our marker and the paper's, rows
METRIC = re.compile(r"(mask )?(AP\w*|PQ)$")


def table_chart(
    rows: Mapping[str, Mapping[str, Sequence[float]]], printed: Mapping[str, Mapping[str, float | None]]
) -> Figure:
    """A table as one panel per column: mean over seeds with a bar for the standard deviation, and the paper's value.

    Panels of the same metric have the same x limits. A column is named by its metric, e.g. `finetuned box AP`, or by a
    condition and its metric, e.g. `weak, finetuned box AP`; the condition then becomes the title of its panel.

    Args:
        rows: by row and column, one value per seed in percent; empty if nothing was measured.
        printed: by row and column, the paper's value in percent; None if it prints none.
    """
    columns = list(dict.fromkeys(column for cells in printed.values() for column in cells))
    panels = [_panel_texts(column) for column in columns]
    wide = _panels_per_line(panels)
    high = max(1, -(-len(columns) // wide))
    titled = any(title for title, _ in panels)
    line = 0.55 + (0.2 if titled else 0) + 0.28 * len(rows)  # inches
    figure = Figure(figsize=(WIDTH, 0.35 + high * line), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False, sharey=True).reshape(-1)
    limits = _limits(rows, printed, dict(zip(columns, (metric for _, metric in panels), strict=True)))
    for axis, column, (title, label) in zip(axes, columns, panels, strict=False):
        for place, name in enumerate(rows):
            _draw_cell(axis, place, rows[name].get(column, ()), printed[name].get(column))
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlim=limits[column])
        axis.xaxis.set_major_locator(MaxNLocator(5 if wide < 4 else 4, steps=[1, 2, 5, 10]))
        axis.set_title(title, fontsize=TEXT)
        tidy(axis, label, "")
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    figure.align_xlabels()
    seeds = max((len(values) for cells in rows.values() for values in cells.values()), default=0)
    ours = "this repo (mean ± std over seeds)" if seeds > 1 else "this repo"
    handles = [Line2D([], [], linestyle="none", label=ours, **OURS)]
    if any(value is not None for cells in printed.values() for value in cells.values()):
        handles.append(Line2D([], [], linestyle="none", label="paper", **PAPER))
    legend_above(figure, handles)
    return figure


def _written_out(name: str) -> str:
    """The name of a column or curve without the paper's abbreviations."""
    return name.replace("det AP", "box AP").replace("cls-", "class-")


def _panel_texts(column: str) -> tuple[str, str]:
    """Title and axis label of the panel of a column."""
    condition, _, metric = _written_out(column).rpartition(", ")
    return (condition, metric) if METRIC.search(metric) else (column, "AP")


def _metric(label: str) -> str:
    """What panels must share to be compared: `AP` of boxes, `mask AP`, `AP50`, `PQ`."""
    return METRIC.search(label)[0]


def _panels_per_line(panels: Sequence[tuple[str, str]]) -> int:
    """All panels side by side if they are few or compared with each other, else lines of three or four."""
    count = len(panels)
    if count <= 3 or (count <= 5 and len({_metric(label) for _, label in panels}) == 1):
        return max(count, 1)
    return 4 if -(-count // 4) < -(-count // 3) else 3


def _limits(rows: Mapping, printed: Mapping, labels: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """x limits of each column: the range of all values of its metric, with a margin."""
    values: dict[str, list[float]] = {}
    for column, label in labels.items():
        shown = values.setdefault(_metric(label), [])
        for name, cells in rows.items():
            ours, theirs = np.asarray(cells.get(column, ()), float), printed[name].get(column)
            shown += [] if theirs is None else [theirs]
            shown += [ours.mean() - _std(ours), ours.mean() + _std(ours)] if len(ours) else []
    limits = {}
    for metric, numbers in values.items():
        low, high = (min(numbers), max(numbers)) if numbers else (0.0, 100.0)
        margin = max(0.08 * (high - low), 0.25)
        limits[metric] = (low - margin, high + margin)
    return {column: limits[_metric(label)] for column, label in labels.items()}


def _std(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw_cell(axis: Axes, place: int, ours: Sequence[float], theirs: float | None) -> None:
    dodge = DODGE if len(ours) and theirs is not None else 0.0
    if theirs is not None:
        axis.plot(theirs, place + dodge, linestyle="none", **PAPER)
    if len(ours):
        std = _std(ours) if len(ours) > 1 else None
        axis.errorbar(np.mean(ours), place - dodge, xerr=std, linestyle="none", capsize=3, elinewidth=1.5, **OURS)


def table_curves(panels: Sequence[Mapping]) -> Figure:
    """AP over what four tables vary, as `compare.curves` returns it: dicts `title`, `along` and `lines`.

    The panels have the same y limits. x is logarithmic if it spans more than a factor of ten.
    """
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    names = list(dict.fromkeys(name for panel in panels for name in panel["lines"]))
    colors = {name: COLORS[(0, 3, 2, 4, 1, 5)[n % len(COLORS)]] for n, name in enumerate(names)}
    for axis, panel in zip(figure.subplots(2, 2, sharey=True).reshape(-1), panels, strict=True):
        for name, points in panel["lines"].items():
            for key, style in (("paper", PAPER | {"linestyle": "--"}), ("here", OURS | {"linestyle": "-"})):
                if points[key]:
                    axis.plot(*np.transpose(points[key]), **style | {"color": colors[name]})
        places = sorted({x for points in panel["lines"].values() for key in ("paper", "here") for x, _ in points[key]})
        if places and places[0] > 0 and places[-1] / places[0] > 10:
            axis.set_xscale("log")
            axis.set_xticks(places, [f"{x:.0f}" for x in places])
            axis.minorticks_off()
        axis.set_title(panel["title"], fontsize=TEXT, loc="left")
        tidy(axis, panel["along"], "AP")
        axis.tick_params(labelleft=True)
    handles = [Line2D([], [], color=color, linewidth=3, label=_written_out(name)) for name, color in colors.items()]
    handles += [Line2D([], [], label="this repo", **OURS | {"color": GRAY}), Line2D([], [], label="paper", **PAPER)]
    handles[-1].set_linestyle("--")
    legend_above(figure, handles)
    return figure


def compare_rows(rows: Sequence[Mapping], *, unit: str = "AP", title: str = "") -> Figure:
    """Horizontal bars of what was measured, with the paper's values.

    Args:
        rows: dicts `name`, `measured`, `paper`, in percent, None if there is no number; optional `std`, drawn as a bar.
        unit: label of the x axis.
    """
    figure = Figure(figsize=(WIDTH * 0.8, 1.1 + 0.36 * max(len(rows), 1)), layout="constrained")
    axis = figure.subplots()
    longest = max([row[key] for row in rows for key in ("measured", "paper") if row[key] is not None], default=1.0)
    left, right = {"x": longest * 0.01, "va": "center"}, {"x": longest * 1.06, "va": "center", "color": GRAY}
    for index, row in enumerate(rows):
        if row["measured"] is None:
            axis.text(y=index, s="not measured", fontsize=TEXT - 1, color=GRAY, style="italic", **left)
        else:
            axis.barh(index, row["measured"], height=0.6, color=COLORS[5], xerr=row.get("std"), ecolor="black")
            axis.text(y=index, s=f"{row['measured']:.1f}", fontsize=TEXT, **left)
        if row["paper"] is not None:
            axis.plot(row["paper"], index, **PAPER)
            axis.text(y=index, s=f"{row['paper']:.1f}", fontsize=TEXT, **right)
    axis.text(y=-0.75, s="paper", fontsize=TEXT, **right)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.set(xlim=(0, longest * 1.16), ylim=(len(rows) - 0.4, -1.1))
    tidy(axis, unit, "")
    axis.set_title(title, fontsize=TEXT + 1, loc="left")
    handles = [Patch(color=COLORS[5], label="this repo"), Line2D([], [], linestyle="none", label="paper", **PAPER)]
    legend_above(figure, handles)
    return figure
