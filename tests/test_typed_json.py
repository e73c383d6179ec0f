"""Typed reading of JSON: the place of a field is named with all of its keys."""

from typing import TypedDict

from cassl_lib import typed_json


class Row(TypedDict):
    cells: dict[str, list[int]]


def test_the_place_names_the_keys_of_dicts_and_the_rows_of_lists():
    content = {"a": {"cells": {"x": [1, 2]}}, "b": {"cells": {"x": [1], "y": [2, "3"]}}}
    assert typed_json.check(content, dict[str, Row]) == "b.cells.y[1]: expected an integer, got a string"
    assert content["a"]["cells"]["x"] == [1, 2]  # which the search leaves as it was
    assert typed_json.check({"a": {}}, dict[str, Row]) == "a: lacks cells"
    assert typed_json.check([], dict[str, Row]) == "expected an object, got a list"
    assert typed_json.check({"a": {"cells": {}}}, dict[str, Row]) is None


def test_half_of_a_pair_of_escapes_is_not_text():
    assert "is not text" in typed_json.check({"cells": {}, "\ud800": 1}, Row)
