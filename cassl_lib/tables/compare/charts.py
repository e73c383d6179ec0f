"""What the charts of collected tables show: AP along what four tables vary, and the cells of one table."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping

from cassl_lib import paper
from cassl_lib.tables.compare.cells import DET, WARM, columns, printed, values

# title, x axis, and lines: table, row or None for all rows, column or None for all columns, name
CURVES = (
    ("warm-up length (Table 3)", "epochs of warm-up; the profile's own length counts as 60", (3, None, "AP", WARM)),
    (
        "unlabeled images (Table 7)",
        "size of the pool relative to tiny",
        (7, None, WARM, WARM),
        (7, None, DET, DET),
    ),
    (
        "strength of the pseudo labeler (Table 5)",
        "entity AP of the pseudo labeler",
        (5, "warmed-up target detector", None, WARM),
    ),
    (
        "pseudo-label threshold (not in the paper)",
        "score threshold",
        ("threshold", None, WARM, WARM),
        ("threshold", None, DET, DET),
    ),
)

# The names in the charts of tables whose rows and columns are mere numbers: a column is "condition, metric".
COLUMNS = {4: "warm-up {}, finetuned det AP", 5: "pseudo labeler {}, entity AP", 6: "warm-up {}"}
ROWS = {4: "finetuning {}", 6: "finetuning {}"}


def curves(tables: Mapping[int | str, Mapping]) -> list[dict]:
    """AP along what Tables 3, 7, 5 and "threshold" vary.

    Args:
        tables: the collected tables, by number.
    Returns:
        For each panel `title`, `along` (label of the x axis) and `lines`: by name, points (x, AP) in percent, ours as
        `here` and the paper's as `paper`.
    """
    return [{"title": title, "along": along, "lines": _lines(tables, lines)} for title, along, *lines in CURVES]


def _lines(tables: Mapping, lines: list[tuple]) -> dict[str, dict]:
    drawn = {}
    for table, row, column, name in lines:
        rows = tables.get(table, {}).get("rows", {})
        cells = [(each, column) for each in rows] if row is None else [(row, each) for each in columns(table, rows)]
        here, theirs = [], []
        for cell in cells:
            our_x, paper_x = _place(table, cell, rows)
            ours, number = values(rows.get(cell[0], {}).get(cell[1], {})), printed(table, *cell)
            here += [(our_x, statistics.mean(ours))] if ours and our_x is not None else []
            theirs += [(paper_x, number)] if paper_x is not None and number is not None else []
        drawn[name] = {"here": here, "paper": theirs}
    return drawn


def _place(table: int | str, cell: tuple[str, str], rows: Mapping) -> tuple[float | None, float | None]:
    """x of a cell, in our curve and in the paper's; None for a row that is no point of the curve."""
    row, column = cell
    if table == 3:
        epochs = _number(row.split()[0])
        return epochs, epochs
    if table == 5:
        strength = values(rows.get("pseudo labeler", {}).get(column, {}))
        return statistics.mean(strength) if strength else None, printed(table, "pseudo labeler", column)
    if table == 7:  # the pools of scenes keep the paper's ratios up to 7%: 1 : 5.6 : 15 : 31
        size = paper.TABLE7[row]["images"] / paper.TABLE7["Tiny"]["images"] if row in paper.TABLE7 else None
        return size, size
    return _number(row), None


def _number(text: str) -> float | None:
    """The number that a row is named by, if it is."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def chart_data(collected: Mapping) -> tuple[dict, dict]:
    """The two arguments of `plotting.table_chart`: by row and column our numbers, and the paper's, in percent."""
    table, rows = collected["table"], collected["rows"]
    ours, theirs = {}, {}
    for row, cells in rows.items():
        names = {name: written_out(table, row, name) for name in columns(table, rows)}
        shown = ROWS.get(table, "{}").format(row)
        ours[shown] = {title: values(cells.get(name, {})) for name, (_, title) in names.items()}
        theirs[shown] = {title: printed(table, row, name) for name, (_, title) in names.items()}
    return ours, theirs


def written_out(table: int | str, row: str, column: str) -> tuple[str, str]:
    """Row and column as charts and claims name them, where the table's own names are mere numbers."""
    return ROWS.get(table, "{}").format(row), COLUMNS.get(table, "{}").format(column)
