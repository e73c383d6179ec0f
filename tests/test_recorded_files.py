"""Recorded results: damage is one line with the file, the place and the remedy, in the library and in the shell."""

import copy
import json

import pytest
from recorded import PLAN_CHECK, recorded_chain, recorded_table

from cassl_lib import paths
from cassl_lib.cli.main import main
from cassl_lib.errors import DataError
from cassl_lib.recorded_files import read
from cassl_lib.tables import results

GATHERED = {
    "classes": ["cat"],
    "profile": "demo",
    "split": "large",
    "seed": 0,
    "pictures": {"stages": {"images": ["1.png"], "rows": {"CA-SSL": [{"boxes": [], "labels": []}]}, "scenes": None}},
}


def changed(document: dict, *place, value) -> dict:
    """A copy of a document with another value in one place."""
    whole = inner = copy.deepcopy(document)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return whole


AP = ("rows", "12 (1x)", "cls-agnostic AP")
WRONG = [
    ("table3_demo", recorded_table(), (*AP, "0"), "0.4", "rows.12 (1x).cls-agnostic AP.0: expected a number"),
    ("table3_demo", recorded_table(), (*AP, "0"), float("nan"), "is not JSON (NaN is not a number of JSON)"),
    ("table3_demo", recorded_table(), (*AP, "0"), 42, "expected a number <= 1"),
    ("table3_demo", recorded_table(), AP, [0.4], "rows.12 (1x).cls-agnostic AP: expected an object, got a list"),
    ("table3_demo", recorded_table(), ("table",), 4, "table=4 is not the one of its name"),
    ("chain_demo_large_seed0", recorded_chain(), ("seed",), "0", "seed: expected an integer, got a string"),
    ("plan_check_demo_tiny", PLAN_CHECK, ("rows", 0, "real"), None, "rows[0].real: expected a number, got null"),
    (
        "pictures_demo_large_seed0",
        GATHERED,
        ("pictures", "stages", "images"),
        [],
        "pictures.stages.rows.CA-SSL: 1 entries for 0 images",
    ),
]


@pytest.mark.parametrize(("name", "document", "place", "value", "words"), WRONG, ids=lambda part: str(part)[:40])
def test_a_damaged_result_is_one_line(tmp_path, name, document, place, value, words):
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(document))
    assert read(file) == document
    file.write_text(json.dumps(changed(document, *place, value=value)))
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).startswith(str(file)) and words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("; restore it, or delete it and record it again")


def test_the_tracked_results_fit():
    files = sorted(results.RESULTS.glob("*.json"))
    assert files and all(read(file) for file in files)


def test_the_report_of_a_damaged_result_names_it_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    (tmp_path / "results").mkdir(exist_ok=True)
    (tmp_path / "results/table3_demo.json").write_text("{}")
    assert main(["report"]) == 2
    error = capsys.readouterr().err
    assert "table3_demo.json: lacks " in error and error.count("\n") == 1
