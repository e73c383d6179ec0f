"""What a generated section is made of, and its Markdown and HTML: sentences, lists, tables, figures.

    Words      a sentence, and the result file that it comes from
    Items      a list below a sentence
    Layout     a table, `compare.Layout`
    Picture    an image file with alt text and caption

Everything is escaped, so that no name, setting or hardware string can become markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from cassl_lib.tables.compare import Layout, render

escape_html, escape_markdown = render.escape_html, render.escape_markdown


@dataclass(frozen=True)
class Words:
    """A paragraph; with a file, a sentence without its full stop."""

    text: str
    file: str = ""  # shown as code, in parentheses, at the end of the sentence


@dataclass(frozen=True)
class Picture:
    """A figure."""

    file: str  # relative to the file that shows it
    alt: str
    caption: str


@dataclass(frozen=True)
class Items:
    """A list with a sentence above it."""

    lead: str
    lines: tuple[str, ...]


Block = Words | Items | Layout | Picture
NOTHING = (Words("Nothing has been recorded yet."),)


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, separated by empty lines; captions of figures are set in italics."""
    return "\n\n".join(map(_markdown, blocks))


def html(blocks: Sequence[Block]) -> str:
    """The blocks as HTML with the classes of `page.STYLE`. Tables are not explained again: the report does it once."""
    return "\n".join(map(_html, blocks))


def _markdown(block: Block) -> str:
    if isinstance(block, Layout):
        return render.markdown(block)
    if isinstance(block, Picture):
        caption = f"\n\n*{escape_markdown(block.caption)}*" if block.caption else ""
        return f"![{escape_markdown(block.alt)}]({quote(block.file)}){caption}"
    if isinstance(block, Items):
        lines = "\n".join(f"- {escape_markdown(line)}" for line in block.lines)
        return f"{escape_markdown(block.lead)}\n\n{lines}"
    text = escape_markdown(block.text)
    return f"{text} ({render.code_markdown(block.file)})." if block.file else text


def _html(block: Block) -> str:
    if isinstance(block, Layout):
        return render.html(replace(block, legend=""), inline=False)
    if isinstance(block, Picture):
        file, alt = escape_html(quote(block.file)), escape_html(block.alt)
        image = f'<a href="{file}"><img src="{file}" alt="{alt}"></a>'  # small on a phone: a tap opens it
        return f"<figure>{image}<figcaption>{escape_html(block.caption)}</figcaption></figure>"
    if isinstance(block, Items):
        lines = "".join(f"<li>{escape_html(line)}</li>" for line in block.lines)
        return f"<p>{escape_html(block.lead)}</p><ul>{lines}</ul>"
    file = f" (<code>{escape_html(block.file)}</code>)." if block.file else ""
    return f"<p>{escape_html(block.text)}{file}</p>"
