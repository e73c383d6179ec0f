"""Sections between markers: replaced, prose kept, an error if the markers are incomplete."""

import logging

import pytest

from cassl_lib.errors import DataError
from cassl_lib.report import blocks, markers


def test_only_what_stands_between_the_markers_changes():
    text = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n"
    assert markers.filled(text, {"a": "new"}) == "before\n<!-- a -->\nnew\n<!-- end of a -->\nafter\n"
    assert markers.between(text, "a") == "old"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- a -->\n",
        "<!-- end of a -->\n",
        "<!-- end of a -->\n<!-- a -->\n",
        "<!-- a -->\n<!-- a -->\n<!-- end of a -->\n",
    ],
)
def test_incomplete_markers_raise_and_change_nothing(text, tmp_path):
    file = tmp_path / "page.md"
    file.write_text(text)
    with pytest.raises(DataError, match=r"page.md: <!-- a --> and <!-- end of a --> must each appear once"):
        markers.renew(file, {"a": lambda: blocks.NOTHING})
    assert file.read_text() == text


def test_a_section_without_markers_is_left_out_with_a_warning(tmp_path, caplog):
    file = tmp_path / "page.md"
    file.write_text("mine\n<!-- b -->\n<!-- end of b -->\n")
    with caplog.at_level(logging.WARNING):
        markers.renew(file, {"a": lambda: blocks.NOTHING, "b": lambda: blocks.NOTHING})
    assert "no section 'a' is generated" in caplog.text and "Nothing has been recorded yet." in file.read_text()
