"""Numbers of finished runs that are kept under `reports/results/`: they outlive the run store."""

import json
import shutil

import pytest
from table_requests import cells_of, finish, with_runs

from cassl_lib import paths
from cassl_lib.errors import DataError, Stopped
from cassl_lib.resolve import resolve
from cassl_lib.runs import finished_runs
from cassl_lib.stages import choice, graph
from cassl_lib.tables import archive, results, runner
from cassl_lib.tables.definitions import ROWS, requests_of
from cassl_lib.tables.table import Table

APS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The smoke profile with empty run store and results, and held-out numbers that cost nothing."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(graph, "INTACT", {})  # the runs here have no store
    return resolve(profile="smoke", annotation="entities")


@pytest.fixture
def judged(monkeypatch):
    """Names of the runs that were judged on held-out images: 0.1 AP for each 1000 steps."""
    names = []

    def heldout_metrics(run, config):
        if (known := run.held_out_metrics("tuning")) is None:
            names.append(run.id)
            known = {"box": {"AP": run.result["steps"] / 10_000}}
            run.held_out_file("tuning").write_text(json.dumps(known))
        return known

    monkeypatch.setattr(choice, "heldout_metrics", heldout_metrics)
    return names


def finish_all(requests) -> None:
    """Each with an AP that tells it from the others."""
    for place, request in enumerate(requests):
        numbers = {name: (place + 1) / 100 for name in APS}
        finish(with_runs(request), metrics={"box": numbers, "box_agnostic": numbers}, steps=100 * (place + 1))


def lose_runs() -> None:
    """Delete every run; data sets that were converted in the store may be open in this process."""
    for name in finished_runs():
        shutil.rmtree(paths.runs() / name)


def test_a_table_is_the_same_after_its_runs_are_lost(config, judged):
    """With its chosen lengths and the facts of its runs."""
    rows = ROWS[9](config)
    finish_all(requests_of(rows))
    before = runner.collect(9, config, [0])
    assert before["lengths"]["nothing, AP"]["chosen"]["0"]
    archive.keep("smoke", archive.finished(rows))
    lose_runs()
    assert not any(runner.collect(9, config, [0])["rows"]["backbone"]["AP"].values())  # asked for without what is kept
    after = runner.collect(9, config, [0], kept=True)
    assert after["rows"] == before["rows"] and after["lengths"] == before["lengths"] and after["runs"] == before["runs"]
    assert archive.unfinished(rows, "smoke") == [] and not list(paths.runs().glob("finetune-*"))


def test_only_what_is_neither_finished_nor_kept_is_needed(config, judged):
    """With all that it starts from, which is not in the table itself."""
    rows, cells = ROWS[9](config), cells_of(9, config)
    finish_all(requests_of(rows))
    archive.keep("smoke", archive.finished(rows))
    missing = cells["backbone"]["AP"].request
    file = archive.archive_file("smoke")
    kept = [line for line in file.read_text().splitlines() if graph.located(with_runs(missing)).id not in line]
    file.write_text("".join(line + "\n" for line in kept))
    lose_runs()
    assert archive.unfinished(rows, "smoke") == [*missing.with_inputs()]


def test_runs_that_compete_are_kept_with_their_held_out_numbers(config, judged, monkeypatch):
    """Those that the deadline left unjudged are not kept yet."""
    rows = ROWS[9](config)
    finish_all(requests_of(rows))
    lengths = [graph.located(each) for each in cells_of(9, config)["nothing"]["AP"].candidates]
    assert archive.keep("smoke", archive.finished(rows)) == len(requests_of(rows))
    assert set(judged) == {run.id for run in lengths}
    for run in lengths:
        assert archive.kept("smoke")[run.id].held_out_metrics("tuning") == run.held_out_metrics("tuning")
    with pytest.raises(DataError, match="without numbers on these held-out images"):
        archive.kept("smoke")[lengths[0].id].held_out_metrics("another")
    assert archive.keep("smoke", archive.finished(rows)) == 0  # nothing new

    def late(run, config):
        raise Stopped("late")

    monkeypatch.setattr(choice, "heldout_metrics", late)
    assert not {run.id for run in lengths} & {run.id for run in archive.finished(rows)}


def test_a_recorded_table_is_shown_without_a_run(config, judged, monkeypatch):
    finish_all(requests_of(ROWS[3](config)))
    archive.keep("smoke", archive.finished(ROWS[3](config)))
    lose_runs()
    monkeypatch.setattr(runner, "make", None)
    plain, table = Table(3, config), Table(3, config, recorded=True)
    assert "no run is made" in str(table.make()) and table.collected["rows"]["12 (1x)"]["AP"]["0"] > 0
    assert all(line[1].endswith(", recorded") for line in table.status.body)
    assert plain.collected["rows"]["12 (1x)"]["AP"] == {"0": None}
    assert {line[1] for line in plain.status.body} == {"missing"}


def test_two_writers_lose_nothing(config):
    rows = ROWS[3](config)
    first, *others = requests_of(rows)
    finish_all([first])
    archive.keep("smoke", archive.finished(rows))
    lose_runs()
    finish_all(others[:1])
    archive.keep("smoke", [graph.located(with_runs(others[0]))])
    assert len(archive.kept("smoke")) == 2


def test_a_damaged_line_is_named(config):
    results.RESULTS.mkdir()
    archive.archive_file("smoke").write_text('{"id": "warmup-1", "result": {}, "held_out": {}}\n{"id": 3}\n')
    with pytest.raises(DataError, match=r"runs_smoke\.jsonl, line 2: not a kept run"):
        archive.kept("smoke")
