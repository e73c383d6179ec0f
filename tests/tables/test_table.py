"""A table as an object: what it needs, what is finished, making it, its numbers, its claims, its chart."""

import pytest
from table_requests import finish, with_runs

from cassl_lib.errors import ConfigError
from cassl_lib.stages import graph
from cassl_lib.tables import runner
from cassl_lib.tables.table import Table


def test_a_table_has_the_rows_of_its_first_seed_and_the_runs_of_all(smoke):
    one, two = Table(3, smoke), Table("3", smoke, seeds=2)
    assert [row.name for row in one.rows] == [row.name for row in two.rows] and len(one.rows) == 5
    assert list(one.seeds) == [0] and list(two.seeds) == [0, 1]
    assert len(two.requests) == 2 * len(one.requests)


def test_unknown_tables_and_numbers_of_seeds_raise(smoke):
    with pytest.raises(ConfigError, match="table '8' is not implemented"):
        Table(8, smoke)
    with pytest.raises(ConfigError, match="seeds=0 is out of range"):
        Table(3, smoke, seeds=0)


def test_the_status_names_finished_and_missing_runs(store, smoke):
    table = Table(3, smoke)
    labeler = finish(table.requests[0])
    (first, *others) = table.status.body
    assert first == ["pseudo labeler", labeler.id, "objects, weak, 2 steps", "0"]
    assert {line[1] for line in others} == {"missing"} and len(others) == len(table.requests) - 1
    assert others[0][2] == "tiny by objects, weak, 2 steps"


def test_failures_are_listed_and_numbers_are_read_again_after_making(store, smoke, monkeypatch):
    table = Table(3, smoke)
    assert table.collected["rows"]["12 (1x)"]["AP"] == {"0": None}
    asked = []

    def make(requests, **options):
        asked.append(options)
        for request in requests:
            finish(with_runs(request), metrics={"box_agnostic": {"AP": 0.25}})
        return [runner.Failure(requests[-1], "no disk")]

    monkeypatch.setattr(runner, "make", make)
    monkeypatch.setattr(graph, "INTACT", {})  # these pseudo labels have no store
    failed = table.make(jobs=2, devices=4)
    assert asked == [{"jobs": 2, "devices": 4, "separate_processes": False}]
    assert failed.body == [["warm-up", failed.body[0][1], "no disk"]]
    assert table.collected["rows"]["12 (1x)"]["AP"] == {"0": 0.25}
    monkeypatch.setattr(runner, "make", lambda requests, **options: [])
    assert str(table.make()) == "All 4 runs are finished."


def test_a_table_shows_itself_its_claims_and_its_chart(store, smoke):
    table = Table(3, smoke)
    table.__dict__["collected"] = runner.collect(3, smoke, [0])
    for row, value in (("12 (1x)", 0.2), ("60 (5x)", 0.3)):
        table.collected["rows"][row]["AP"] = {"0": value}
    assert table._repr_html_().startswith("<figure") and "30.0" in table._repr_html_()
    assert repr(table).startswith("Table 3: Warm-up epochs, profile smoke")
    (claim,) = table.claims.body
    assert claim[1:] == ["60 (5x) minus 12 (1x), AP", "1", "+10.0", "", "", "+1.8", "undecided: one seed"]
    assert "60 (5x) minus 12 (1x), AP" in str(table.claims) and "95% interval" in str(table.claims)
    assert len(table.chart().axes) == 6
    for number in ("threshold", "shift"):
        assert Table(number, smoke).claims.body == []


def test_lengths_of_training_stand_below_the_table(store, smoke):
    """By hand: finetuning's own 2 steps stand for 36 epochs, so 4 steps for 72."""
    table = Table(9, smoke)
    collected = table.__dict__["collected"] = runner.collect(9, smoke, [0])
    assert table._repr_html_().count("<table") == 1  # no run is finished
    curve = {"steps": {"2": {"0": 0.2}, "4": {"0": 0.25}}, "chosen": {"0": "4"}}
    collected["lengths"] = {"nothing, AP": curve, "nothing, AP50": curve}
    shown = table._repr_html_()
    assert shown.count("<table") == 2 and "nothing, AP50" not in shown
    assert "  4 steps (72 epochs of the paper): box AP 25.0, chosen for 1 of 1 seed" in repr(table).splitlines()
