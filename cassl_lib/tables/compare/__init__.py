"""Collected tables beside the paper's: as a table in the paper's layout, as claims, and as the data of charts.

    layout, markdown, html, text     the table; html and layout are for notebooks and the report
    lengths                          the cells that several lengths of training compete for
    claims, chain_claims, verdict    the paper's claims, and whether our numbers support them
    chart_data, curves               what `plotting` draws

A collected table is what `runner.collect` returns and `results.recorded` reads: `table`, `profile`, `seeds`, `rows` (by
row, column and seed a number between 0 and 1, or None), `lengths` (see `compare/lengths.py`), `runs` (by seed and run,
its facts).
"""

from __future__ import annotations

from collections.abc import Mapping

from cassl_lib.tables.compare import cells, render
from cassl_lib.tables.compare.cells import (
    DET,
    TITLES,
    WARM,
    cell_text,
    columns,
    heading,
    lines,
    printed,
    runs_of,
    values,
)
from cassl_lib.tables.compare.charts import chart_data, curves
from cassl_lib.tables.compare.claims import (
    CLAIM_COLUMNS,
    CLAIMS,
    Claim,
    chain_claims,
    claims,
    interval,
    paired,
    verdict,
)
from cassl_lib.tables.compare.layouts import LAYOUTS, Cell, Layout, Number, layout, plain
from cassl_lib.tables.compare.lengths import curve_layout, lengths
from cassl_lib.tables.compare.lengths import text as lengths_text

__all__ = [
    "CLAIMS",
    "CLAIM_COLUMNS",
    "DET",
    "LAYOUTS",
    "TITLES",
    "WARM",
    "Cell",
    "Claim",
    "Layout",
    "Number",
    "cell_text",
    "chain_claims",
    "chart_data",
    "claims",
    "columns",
    "curve_layout",
    "curves",
    "heading",
    "html",
    "interval",
    "layout",
    "lengths",
    "lines",
    "markdown",
    "paired",
    "plain",
    "printed",
    "runs_of",
    "text",
    "values",
    "verdict",
]


def html(collected: Mapping) -> str:
    """The table as a `<table>` with inline style and everything escaped: what a notebook's `_repr_html_` returns."""
    return "\n".join(map(render.html, (layout(collected), *lengths(collected))))


def markdown(collected: Mapping) -> str:
    """The table as a Markdown table with its caption."""
    return "\n\n".join(map(render.markdown, (layout(collected), *lengths(collected))))


def text(collected: Mapping) -> str:
    """The table in long form as aligned text, for a shell."""
    return "\n".join(filter(None, (cells.text(collected), lengths_text(collected))))
