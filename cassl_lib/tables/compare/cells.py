"""The cells of a collected table: the seeds' numbers beside the paper's, all in percent."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from cassl_lib import paper

TITLES: dict[int | str, str] = {
    1: "Quality gap of pseudo labels",
    2: "Warm-up training data",
    3: "Warm-up epochs",
    4: "Warm-up and finetuning epochs",
    5: "Strength of the pseudo labeler",
    6: "Data augmentation",
    7: "Scale of the unlabeled data",
    8: "Comparison with other methods",
    9: "Initialized parts",
    10: "Transfer to other frameworks and tasks",
    "threshold": "Pseudo-label threshold",
    "shift": "Unlabeled images that look different",
}
"""The paper's tables, and "threshold" and "shift", which the paper does not have."""

DET, WARM = "finetuned det AP", "warm-up entity AP"  # columns of several tables


def heading(table: int | str) -> str:
    """`Table 3: Warm-up epochs`. A table that the paper does not have goes by its title alone."""
    return f"Table {table}: {TITLES[table]}" if isinstance(table, int) else TITLES[table]


def printed(table: int | str, row: str, column: str) -> float | None:
    """The paper's number, in percent; None where the paper has none."""
    by_row = {1: paper.TABLE1, 2: paper.TABLE2, 3: paper.TABLE3, 4: paper.TABLE4, 7: paper.TABLE7, 9: paper.TABLE9}
    if table == 5:
        return dict(zip("12345", paper.TABLE5.get(row, ()), strict=False)).get(column)
    if table == 6:
        warmup, _, metric = column.partition(", ")
        return paper.TABLE6.get(row, {}).get(warmup, {}).get(metric)
    return by_row.get(table, {}).get(row, {}).get(column)


def columns(table: int | str, rows: Mapping[str, Mapping]) -> list[str]:
    """The columns in which the paper or any row has a number, the paper's first."""
    paper_columns = {2: paper.TABLE2_COLUMNS, 3: paper.TABLE3["12 (1x)"], 4: paper.TABLE4["1x"], 5: "12345"}
    ours = (column for cells in rows.values() for column in cells)
    return list(dict.fromkeys([*paper_columns.get(table, ()), *ours]))


def values(cell: Mapping[str, float | None]) -> list[float]:
    """The numbers of the seeds that have one, in percent."""
    return [100 * value for value in cell.values() if value is not None]


def cell_text(cell: Mapping[str, float | None] | None) -> str:
    """`43.2 ± 0.4 (3)`: mean, standard deviation and number of seeds; empty without any number."""
    ours = values(cell or {})
    if not ours:
        return ""
    if len(ours) == 1:
        return f"{ours[0]:.1f}"
    return f"{statistics.mean(ours):.1f} ± {statistics.stdev(ours):.1f} ({len(ours)})"


def lines(collected: Mapping) -> list[list[str]]:
    """The table in long form: row, column, the paper's number, ours, our mean minus the paper's number.

    Unknown numbers are empty; a line without any number is left out.
    """
    table, rows = collected["table"], collected["rows"]
    body = []
    for row, cells in rows.items():
        for column in columns(table, rows):
            theirs, ours = printed(table, row, column), values(cells.get(column, {}))
            gap = f"{statistics.mean(ours) - theirs:+.1f}" if ours and theirs is not None else ""
            if theirs is not None or ours:
                shown = "" if theirs is None else f"{theirs:.1f}"
                body.append([row, column, shown, cell_text(cells.get(column)), gap])
    return body


def runs_of(collected: Mapping) -> dict[str, dict]:
    """The facts of each run of a table, by its name, for all seeds."""
    return {name: run for runs in collected["runs"].values() for name, run in runs.items()}


def text(collected: Mapping) -> str:
    """The table in long form as aligned text, for a shell."""
    head = ["row", "column", "paper", "ours", "gap"]
    body = lines(collected)
    widths = [max(map(len, each)) for each in zip(head, *body, strict=True)]
    form = "  ".join(f"{{:{'<' if place < 2 else '>'}{width}}}" for place, width in enumerate(widths))
    runs = runs_of(collected)
    hours = sum(run["seconds"] for run in runs.values()) / 3600
    title = f"{heading(collected['table'])}, profile {collected['profile']}: {len(runs)} runs, {hours:.2f} h in all"
    return "\n".join(line.rstrip() for line in (title, form.format(*head), *(form.format(*line) for line in body)))
