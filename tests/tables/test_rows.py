"""Small tables that show themselves: as aligned text, and as HTML with everything escaped."""

from cassl_lib.tables.rows import Rows, as_rows


def test_numbers_are_right_aligned_and_words_left_aligned():
    rows = Rows(["name", "count", "what"], [["a", "1,234", "x"], ["long name", "", "7 y"], ["b", "-0.5", "z"]])
    assert str(rows).splitlines() == [
        "name       count  what",
        "a          1,234  x",
        "long name         7 y",
        "b           -0.5  z",
    ]
    assert repr(rows) == str(rows)


def test_html_is_escaped_and_long_columns_wrap():
    shown = Rows(["<a>", "n"], [["b & c", "1"], ["word " * 10, "2"]])._repr_html_()
    assert '<th style="text-align:left;white-space:normal">&lt;a&gt;</th>' in shown and "b &amp; c" in shown
    assert '<td style="text-align:right;white-space:nowrap">2</td>' in shown
    assert shown.count("<tr>") == 3 and shown.startswith("<table>")


def test_an_empty_table_says_so():
    assert str(Rows(["a"], [])) == "No rows."
    assert Rows(["a"], [], empty="None < 1")._repr_html_() == "<p>None &lt; 1</p>"


def test_records_become_rows():
    records = [{"name": "a", "share": 0.12345, "count": 1234, "skipped": 1}, {"name": "b", "share": None, "count": 0}]
    rows = as_rows(records, name="what", share="F1", count="images")
    assert rows.head == ["what", "F1", "images"]
    assert rows.body == [["a", "0.123", "1,234"], ["b", "", "0"]]
