"""The HTML page: contents, phone, print, figures."""

import json
import re

import pytest

from cassl_lib import paths
from cassl_lib.report import blocks, report
from cassl_lib.report.page import page
from cassl_lib.tables import compare, results

TEXT = "# The title\n\nWords.\n\n## One & two\n\n### Table 1: A-b\n\n## Last\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_contents_link_to_every_heading():
    html = page(TEXT, {})
    links = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a>', html)
    assert links == [("one--two", "One &amp; two"), ("table-1-a-b", "Table 1: A-b"), ("last", "Last")]
    assert all(f'id="{anchor}"' in html for anchor, _ in links)
    assert html.index("<h1") < html.index("<nav") < html.index("<main>") < html.index("<p>Words.")
    assert html.count("<ul>") == html.count("</ul>") == 2


def test_the_page_is_made_for_phone_print_and_dark():
    html = page(TEXT, {})
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "@media print" in html and "page-break-inside: avoid" in html and "prefers-color-scheme: dark" in html
    assert "<title>The title</title>" in html and '<html lang="en">' in html


FIGURE = r'<figure><a href="[^"]+"><img src="([^"]+)" alt="([^"]+)"></a><figcaption>([^<]+)<'


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Every table is recorded, with one number."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    stages = {name: {"steps": 1000} for name in ("pseudo_labeler", "warmup", "finetune")}
    for table in compare.LAYOUTS:
        whole = {"table": table, "profile": "demo", "seeds": [0], "rows": {"a": {"AP": {"0": 0.5}}}, "runs": {}}
        whole["config"] = stages
        (tmp_path / f"{results.file_stem(table, 'demo')}.json").write_text(json.dumps(whole))


def test_every_table_of_the_report_scrolls_in_its_own_box(recorded):
    html = report.html_page()
    assert html.count("<table") == html.count('<div class="scroll"><table') > 10
    assert re.search(r"\.scroll \{ overflow-x:auto", html)


def test_every_figure_of_the_report_has_alt_text_and_caption(recorded):
    html = report.html_page()
    figures = re.findall(FIGURE, html)
    assert len(figures) == html.count("<img ") > 10


def test_every_figure_of_the_tracked_report_exists():
    html = report.html_page()
    figures = re.findall(FIGURE, html)
    assert len(figures) == html.count("<img ") and figures
    assert all((paths.REPOSITORY / "reports" / file).exists() for file, _, _ in figures)


def test_a_figure_has_its_caption_in_markdown():
    shown = blocks.markdown([blocks.Picture("../figures/a b.png", "What it shows.", "Figure of *x*.")])
    assert shown == "![What it shows.](../figures/a%20b.png)\n\n*Figure of \\*x\\*.*"
