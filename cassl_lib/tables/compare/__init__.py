"""Collected tables beside the paper's: as a table in the paper's layout, as claims, and as the data of charts.

    layout, markdown, html, text     the table; html and layout are for notebooks and the report
    claims, claims_text, verdict     the paper's claims, and whether our numbers support them
    chart_data, curves               what `plotting` draws

A collected table is what `runner.collect` returns and `results.recorded` reads: `table`, `profile`, `seeds`, `rows` (by
row, column and seed a number between 0 and 1, or None), `runs` (by seed and run, its facts).
"""

from __future__ import annotations

from collections.abc import Mapping

from cassl_lib.tables.compare import render
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
    text,
    values,
)
from cassl_lib.tables.compare.charts import chart_data, curves
from cassl_lib.tables.compare.claims import CLAIMS, claims, claims_text, paired, verdict
from cassl_lib.tables.compare.layouts import LAYOUTS, Cell, Layout, Number, layout, plain

__all__ = [
    "CLAIMS",
    "DET",
    "LAYOUTS",
    "TITLES",
    "WARM",
    "Cell",
    "Layout",
    "Number",
    "cell_text",
    "chart_data",
    "claims",
    "claims_text",
    "columns",
    "curves",
    "heading",
    "html",
    "layout",
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
    return render.html(layout(collected))


def markdown(collected: Mapping) -> str:
    """The table as a Markdown table with its caption."""
    return render.markdown(layout(collected))
