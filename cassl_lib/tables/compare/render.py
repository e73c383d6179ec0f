"""A `Layout` as Markdown or as HTML. Every word in it is escaped; the only markup is ours."""

from __future__ import annotations

import html as _html
import re
import statistics
from urllib.parse import quote

from cassl_lib.tables.compare.layouts import MISSING, TICK, Cell, Layout, Number

STYLE = {
    "box": "margin:1.2em 0",
    "scroll": "overflow-x:auto;max-width:100%",
    "table": "width:max-content;border-collapse:collapse;border-top:2px solid;border-bottom:2px solid;"
    "font-variant-numeric:tabular-nums;overflow-wrap:normal",
    "caption": "margin:0 0 .5em;text-align:left",
    "group": "padding:.3em .6em 0;font-weight:600;text-align:center;vertical-align:bottom",
    "head": "border-bottom:1px solid;padding:.3em .6em;max-width:8em;font-weight:600;text-align:center;"
    "vertical-align:bottom",
    "name": "padding:.3em .6em;max-width:26em;font-weight:400;text-align:left;vertical-align:top",
    "cell": "padding:.3em .6em;text-align:center;vertical-align:top;white-space:nowrap",
    "word": "padding:.3em .6em;max-width:26em;text-align:left;vertical-align:top",
    "count": "padding:.3em .6em;text-align:right;vertical-align:top;white-space:nowrap",
    "std": "font-size:80%",
    "paper": "display:block;font-size:85%;opacity:.65",
}
"""CSS of each part of a table, by class. Colors are inherited, so that it fits a light and a dark page."""

RULE = {"name": "---", "cell": ":---:", "count": "---:", "word": "---"}  # of a Markdown table, by kind of column
COUNT = re.compile(r"[-+—±()\d.,% ]*( (min|h|s))?")


def markdown(layout: Layout) -> str:
    """A pipe table below its caption; the header rows are joined into one, our numbers stand above the paper's."""
    names = [_joined(layout, place) for place in range(layout.width)]
    rule = [RULE[_kind(layout, place)] for place in range(layout.width)]
    lines = [names, rule, *([_markdown_cell(cell, layout) for cell in row] for row in layout.body)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{escape_markdown(layout.caption)}\n\n{table}" if layout.caption else table


def html(layout: Layout, *, inline: bool = True) -> str:
    """A `<figure>`: the caption, and a `<table>` in a box that scrolls sideways.

    Args:
        inline: styles are written into the tags, for notebooks. False writes the classes of `STYLE` instead.
    """

    def tag(name: str, part: str, content: str, extra: str = "") -> str:
        look = f'style="{STYLE[part]}"' if inline else f'class="{part}"'
        return f"<{name}{extra} {look}>{content}</{name}>"

    def number(cell: Cell) -> str:
        ours, theirs = _shown(cell.numbers, lambda std: tag("small", "std", f" ± {std}"))
        return ours + (tag("span", "paper", theirs) if _two_lines(cell, layout) else "")

    def body_cell(cell: Cell, part: str) -> str:
        if part == "name":
            return tag("th", part, _html_words(cell), ' scope="row"')
        return tag("td", part, number(cell) if cell.numbers else _html_words(cell))

    def head_row(cells: tuple[Cell, ...], part: str) -> str:
        spans = [f' colspan="{cell.span}"' if cell.span > 1 else "" for cell in cells]
        return "".join(tag("th", part, _html_words(cell), span) for cell, span in zip(cells, spans, strict=True))

    *groups, names = layout.header
    heads = [*(head_row(cells, "group") for cells in groups), head_row(names, "head")]
    kinds = [_kind(layout, place) for place in range(layout.width)]
    rows = ["".join(map(body_cell, row, kinds)) for row in layout.body]
    lines = ["<thead>", *(f"<tr>{cells}</tr>" for cells in heads), "</thead>"]
    lines += ["<tbody>", *(f"<tr>{cells}</tr>" for cells in rows), "</tbody>"]
    words = " ".join(part for part in (layout.caption, layout.legend) if part)
    caption = tag("figcaption", "caption", escape_html(words)) if words else ""
    return tag("figure", "box", caption + tag("div", "scroll", tag("table", "table", "\n".join(lines))))


def escape_html(text: str) -> str:
    """Text for HTML content and attributes."""
    return _html.escape(str(text), quote=True)


def escape_markdown(text: str) -> str:
    """Text for one line or one table cell of Markdown: no HTML, emphasis, link, code, math or column."""
    text = " ".join(str(text).split())
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word an underscore is no emphasis
    return _html.escape(text, quote=False)


def code_markdown(text: str) -> str:
    """Text as a code span, also in a table cell. Text with `<` is no code, for it cannot be escaped there."""
    if "<" in str(text):
        return escape_markdown(text)
    text = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    gap = " " if "`" in text else ""
    return f"{fence}{gap}{text}{gap}{fence}"


def _joined(layout: Layout, place: int) -> str:
    """The headings above a column, from top to bottom."""
    words = []
    for row in layout.header:
        start = 0
        for cell in row:
            if start <= place < start + cell.span and cell.text:
                words.append(_markdown_words(cell))
            start += cell.span
    return "<br>".join(words)


def _kind(layout: Layout, place: int) -> str:
    """What a column of the body holds, as a key of `STYLE`: names of rows, our numbers and ticks, counts, or words."""
    if place < layout.named:
        return "name"
    cells = [row[place] for row in layout.body]
    if all(cell.numbers or cell.text in ("", TICK) for cell in cells):
        return "cell"
    return "count" if all(COUNT.fullmatch(cell.text) for cell in cells) else "word"


def _two_lines(cell: Cell, layout: Layout) -> bool:
    """Whether the paper's line is shown: not in a table without the paper's numbers, nor in a cell without any."""
    return layout.with_paper and any(number.ours or number.paper is not None for number in cell.numbers)


def _markdown_cell(cell: Cell, layout: Layout) -> str:
    if not cell.numbers:
        return _markdown_words(cell)
    ours, theirs = _shown(cell.numbers, " ± {}".format)
    return f"{ours}<br><sub>{theirs}</sub>" if _two_lines(cell, layout) else ours


def _markdown_words(cell: Cell) -> str:
    words = code_markdown(cell.text) if cell.code else escape_markdown(cell.text)
    return f"[{words}]({_address(cell.link)})" if cell.link else words


def _html_words(cell: Cell) -> str:
    words = f"<code>{escape_html(cell.text)}</code>" if cell.code else escape_html(cell.text)
    return f'<a href="{escape_html(_address(cell.link))}">{words}</a>' if cell.link else words


def _address(link: str) -> str:
    """A relative address: what would end a Markdown link, or name a scheme, is percent-encoded."""
    return quote(link, safe="/#.-_~")


def _shown(numbers: tuple[Number, ...], std_text) -> tuple[str, str]:
    """Our numbers and the paper's, several of them in brackets; missing ones as a dash."""
    ours = [_mean(number.ours, std_text) for number in numbers]
    theirs = [MISSING if number.paper is None else f"{number.paper:.1f}" for number in numbers]
    return tuple(each[0] if len(each) == 1 else f"({', '.join(each)})" for each in (ours, theirs))


def _mean(ours: tuple[float, ...], std_text) -> str:
    if not ours:
        return MISSING
    return f"{statistics.mean(ours):.1f}" + (std_text(f"{statistics.stdev(ours):.1f}") if len(ours) > 1 else "")
