"""The report as one HTML page that reads on a phone, on a desk, in the dark and on paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape

import mistune

from cassl_lib.report.blocks import escape_html
from cassl_lib.report.markers import filled
from cassl_lib.report.readme import anchor
from cassl_lib.tables.compare import render

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --page: #fff; --soft: #5f5f5f; --line: #d5d5d5; --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --page: #17181a; --soft: #a3a3a3; --line: #3b3d40; --link: #8ab8ee; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; color: var(--ink); background: var(--page);
  font: 1.0625rem/1.55 "Charter", "Georgia", "Liberation Serif", serif; overflow-wrap: break-word; }
h1, h2, h3, nav, table, figcaption, code { font-family: system-ui, "Helvetica Neue", "Arial", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin-top: 2.5rem; }
h3 { font-size: 1.08rem; margin-top: 2rem; } h1, h2, h3 { text-wrap: balance; scroll-margin-top: 1rem; }
a { color: var(--link); } code { font-size: .87em; overflow-wrap: anywhere; }
nav { border: solid var(--line); border-width: 1px 0; padding: .3rem 0; font-size: .93rem; }
nav ul { margin: .4rem 0; padding-left: 1.2rem; columns: 2 18rem; } nav ul ul { columns: auto; margin: 0; }
figure { margin: 1.5rem 0; } figcaption { color: var(--soft); font-size: .88rem; line-height: 1.4; margin: .4rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
table { font-size: .9rem; line-height: 1.35; }
@media (max-width: 30rem) { body { font-size: 1rem; padding: 1rem .8rem 3rem; } table { font-size: .82rem; }
  .table .name, .table .word { max-width: 11em; } }
@media print {
  :root { color-scheme: light; --ink: #000; --page: #fff; --soft: #444; --line: #bbb; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; } table { font-size: 8.5pt; } nav { display: none; }
  figure, table, tr, img { break-inside: avoid; page-break-inside: avoid; }
  h2, h3 { break-after: avoid; page-break-after: avoid; } .scroll { overflow: visible; }
  .table { width: auto; } .table th, .table td { padding: .2em .4em; }
}
""".strip()


class _Renderer(mistune.HTMLRenderer):
    """Escapes raw HTML, gives headings an anchor and remembers them for the table of contents."""

    def __init__(self):
        super().__init__(escape=True)
        self.headings: list[tuple[int, str]] = []

    def heading(self, text: str, level: int, **_) -> str:
        self.headings.append((level, text))
        return f'<h{level} id="{_anchor(text)}">{text}</h{level}>\n'


def page(text: str, sections: Mapping[str, str]) -> str:
    """The report as HTML.

    Args:
        text: the Markdown report. Raw HTML in it is shown as text.
        sections: by name of the markers, the HTML of each generated section.
    """
    places = {f"generated section {place}": html for place, html in enumerate(sections.values())}
    text = filled(text, dict(zip(sections, (f"\n{place}\n" for place in places), strict=True)))
    renderer = _Renderer()
    body = mistune.create_markdown(renderer=renderer, plugins=["table"])(re.sub(r"<!--.*?-->\n?", "\n", text))
    for place, html in places.items():
        body = body.replace(f"<p>{place}</p>", html)
    title, _, body = body.partition("</h1>\n")
    style = "\n".join([*(f".{part} {{ {look} }}" for part, look in render.STYLE.items()), STYLE])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        """<meta http-equiv="Content-Security-Policy" content="script-src 'none'">\n"""
        f"<title>{escape_html(_plain(title))}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n"
        f"{title}</h1>\n{_contents(renderer.headings)}\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _contents(headings: list[tuple[int, str]]) -> str:
    """Links to the headings of the second and third level."""
    lines = ['<nav aria-label="Contents">', "<ul>"]
    inside = False
    for level, text in headings:
        if level not in (2, 3):
            continue
        if (level == 3) != inside:
            lines.append("<ul>" if level == 3 else "</ul>")
            inside = level == 3
        lines.append(f'<li><a href="#{_anchor(text)}">{text}</a></li>')
    return "\n".join([*lines, *(["</ul>"] if inside else []), "</ul>", "</nav>"])


def _anchor(html: str) -> str:
    return escape_html(anchor(_plain(html)))


def _plain(html: str) -> str:
    """The text of HTML."""
    return unescape(re.sub("<[^>]+>", "", html)).strip()
