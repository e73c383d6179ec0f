"""A small table that shows itself: as HTML in a notebook, as aligned text in print."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Rows of words and numbers under a heading; the first column is left-aligned."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [list(self.head), *map(list, self.body)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        form = "  ".join(f"{{:{'<' if place == 0 else '>'}{width}}}" for place, width in enumerate(widths))
        return "\n".join(form.format(*line).rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head)
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for name, *cells in self.body
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def as_rows(records: Sequence[Mapping], **columns: str) -> Rows:
    """Dicts as a table.

    Args:
        columns: key of the dicts -> heading; shares between 0 and 1 are floats and shown with three digits.
    """
    return Rows(list(columns.values()), [[_cell(record[key]) for key in columns] for record in records])


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
