"""A small table that shows itself: as HTML in a notebook, as aligned text in print."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHORT = 30  # characters; columns up to this width are not wrapped
NUMBER = re.compile(r"[+\-]?[\d,]*\.?\d+( ?%)?")


@dataclass(frozen=True)
class Rows:
    """Rows of words and numbers under a heading. Columns of numbers are right-aligned, others left-aligned.

    Attributes:
        empty: what is shown if there are no rows.
    """

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    empty: str = "No rows."

    def __str__(self) -> str:
        if not self.body:
            return self.empty
        lines = [list(self.head), *map(list, self.body)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        columns = zip(self._alignments(), widths, strict=True)
        form = "  ".join(f"{{:{'>' if side == 'right' else '<'}{width}}}" for side, width in columns)
        return "\n".join(form.format(*line).rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.body:
            return f"<p>{html.escape(self.empty)}</p>"
        head, *body = ("".join(self._cells(line, tag)) for line, tag in self._lines())
        rows = "".join(f"<tr>{cells}</tr>" for cells in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _lines(self) -> list[tuple[Sequence[str], str]]:
        return [(self.head, "th"), *((line, "td") for line in self.body)]

    def _cells(self, line: Sequence[str], tag: str) -> list[str]:
        return [
            f'<{tag} style="text-align:{side};white-space:{wrap}">{html.escape(cell)}</{tag}>'
            for cell, side, wrap in zip(line, self._alignments(), self._wraps(), strict=True)
        ]

    def _alignments(self) -> list[str]:
        """`left` or `right` for each column; a column of numbers may have blanks."""
        columns = zip(*self.body, strict=True)
        return ["right" if all(not cell or NUMBER.fullmatch(cell) for cell in column) else "left" for column in columns]

    def _wraps(self) -> list[str]:
        """CSS `white-space` of each column."""
        columns = zip(*self.body, strict=True)
        return ["nowrap" if max(map(len, column)) <= SHORT else "normal" for column in columns]


def as_rows(records: Sequence[Mapping], **columns: str) -> Rows:
    """Dicts as a table; None stays blank, floats have three decimals.

    Args:
        columns: key of the dicts -> heading.
    """
    return Rows(list(columns.values()), [[_cell(record[key]) for key in columns] for record in records])


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
