"""No name, setting or hardware string becomes markup, in Markdown, in HTML or in the page."""

import re
from html.parser import HTMLParser

import mistune
import pytest

from cassl_lib.report import blocks
from cassl_lib.report.page import page
from cassl_lib.tables import compare
from cassl_lib.tables.compare import render

SCRIPT = "<script>alert(1)</script>"
PIPE = "2 | cores <b>"
RUN = {"seconds": 1.0, "device": PIPE, "date": "2026-01-02"}
HOSTILE = [SCRIPT, PIPE, '" onload="x', "a\nb", "*a* _b_ [c](d) `e` ~f~ $g$ \\", "<!-- end of claims -->", "&lt;"]


def collected(row=SCRIPT):
    rows = {row: {"AP": {"0": 0.4}}, "12 (1x)": {"AP": {"0": 0.5}}}
    return {"table": 3, "profile": PIPE, "seeds": [0], "rows": rows, "runs": {"0": {"a": RUN}}}


class Reader(HTMLParser):
    """Tags and text of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.attributes = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, data):
        self.words.append(data)


def test_a_script_in_a_row_name_is_shown_as_text():
    html, markdown = compare.html(collected()), compare.markdown(collected())
    assert "script" not in Reader(html).tags and SCRIPT in Reader(html).words
    assert "<script" not in markdown and "&lt;script&gt;alert(1)&lt;/script&gt;" in markdown


def test_a_pipe_does_not_add_a_column():
    table = compare.plain(PIPE, ["a", PIPE], [[PIPE, "1"], ["b", PIPE]])
    lines = render.markdown(table).splitlines()
    assert lines[0] == "2 \\| cores &lt;b&gt;"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:]} == {3}
    caption, *_ = compare.markdown(collected()).splitlines()
    assert caption == (
        "Table 3: Warm-up epochs. Profile 2 \\| cores &lt;b&gt;, seed 0, on 2 \\| cores &lt;b&gt;, 2026-01-02."
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_text_survives_markdown_as_it_is(text):
    """What a Markdown reader shows is the text, with line breaks as spaces, whether in prose, a cell or code."""
    plain = " ".join(text.split())
    read = mistune.create_markdown(escape=False, plugins=["table", "strikethrough"])
    assert "".join(Reader(read(blocks.markdown([blocks.Words(text)]))).words).strip() == plain
    table = Reader(read(render.markdown(compare.plain("", ["x"], [[text]]))))
    assert " ".join("".join(table.words).split()) == f"x {plain}"
    assert set(table.tags) == {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("text", HOSTILE)
def test_text_survives_html_as_it_is(text):
    table = compare.plain(text, [text], [[text]])
    picture = blocks.Picture(text, text, text)
    reader = Reader(blocks.html([blocks.Words(text, text), table, picture]))
    assert set(reader.tags) <= {
        "p",
        "code",
        "figure",
        "figcaption",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "a",
        "img",
    }
    assert set(reader.attributes) <= {"class", "href", "src", "alt", "scope"}
    assert "".join(reader.words).count(text) == 6  # words, file, caption, head, name, caption of the picture


@pytest.mark.parametrize("text", HOSTILE)
def test_lists_survive_markdown_and_html_as_they_are(text):
    items = blocks.Items(text, (text, text))
    read = mistune.create_markdown(escape=False, plugins=["table", "strikethrough"])
    for html in (read(blocks.markdown([items])), blocks.html([items])):
        reader = Reader(html)
        assert reader.tags == ["p", "ul", "li", "li"]
        assert " ".join("".join(reader.words).split()).count(" ".join(text.split())) == 3


def test_code_spans_may_hold_backticks_and_pipes():
    assert render.code_markdown("a`b|c") == "`` a`b\\|c ``"
    assert render.code_markdown("plain_name.json") == "`plain_name.json`"


def test_links_cannot_name_a_scheme_or_end_early():
    cell = compare.Cell("x", link="javascript:a(1) b")
    table = compare.Layout("", ((compare.Cell("h"),),), ((cell,),))
    assert "[x](javascript%3Aa%281%29%20b)" in render.markdown(table)
    assert 'href="javascript%3Aa%281%29%20b"' in render.html(table)


def test_raw_html_in_the_prose_of_the_report_is_shown_as_text():
    text = f"# Title\n\nA {SCRIPT} and <img src=x onerror=y>.\n\n{SCRIPT}\n\n[x](javascript:y)\n"
    html = page(text, {})
    reader = Reader(html)
    assert "script" not in reader.tags and "img" not in reader.tags and "javascript:" not in html


def test_only_generated_sections_pass_as_html():
    text = "# Title\n\n## Part\n\n<!-- claims -->\nold\n<!-- end of claims -->\n\nWords.\n"
    html = page(text, {"claims": "<table><tr><td>new</td></tr></table>"})
    assert "<table><tr><td>new</td></tr></table>" in html and "old" not in html and "<!--" not in html


def test_a_notebooks_table_is_self_contained():
    html = compare.html(collected("24 (2x)"))
    assert "class=" not in html and "<style" not in html and 'style="overflow-x:auto' in html
    reader = Reader(html)
    assert reader.tags[:4] == ["figure", "figcaption", "div", "table"]
    assert "Upper numbers: ours" in reader.words[0]
