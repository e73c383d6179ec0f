"""The verb `table`: its options, what it records, its exit status."""

import json
from dataclasses import replace

import pytest
from recorded import recorded_table

from cassl_lib import deadline
from cassl_lib.cli.main import main
from cassl_lib.resolve import resolve, to_json
from cassl_lib.stages.requests import pseudo_labeler
from cassl_lib.tables import results, runner, status


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty run store, and no run is made."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(runner, "make", None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["3", "--record", "--split", "large"], "leave out --record, or what sets split"),
        (["3", "--record", "--annotation", "objects"], "leave out --record, or what sets annotation"),
        (["7", "--record", "--unlabeled", "."], "leave out --record, or what sets unlabeled"),
        (["7", "--unlabeled", "."], "unlabeled='.': Table 7 compares the four splits; leave it out"),
        (["3", "--jobs", "0"], "--jobs 0 is out of range; use 1 to 1,024"),
        (["3", "--minutes", "0"], "--minutes 0 is out of range; use 0.001 to 1,000,000"),
        (["3", "--minutes", "nan"], "--minutes nan is out of range"),
        (["3", "--devices", "0"], "--devices 0 is out of range; use 1 to 1,024"),
        (["3", "--seeds", "-2"], "--seeds -2 is out of range"),
    ],
)
def test_options_that_contradict_the_table_are_errors(more, message, capsys):
    assert main(["table", *more, "--profile", "smoke"]) == 2
    assert message in capsys.readouterr().err


def test_tables_of_a_given_store_raise(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(replace(resolve(profile="smoke"), store="mine"))))
    assert main(["table", "3", "--config", str(tmp_path / "config.json")]) == 2
    message = "error: store='mine': a table's labels come from its own pseudo labelers; leave it out\n"
    assert capsys.readouterr().err == message


def test_fewer_numbers_do_not_replace_more(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "make", lambda *_, **__: [])
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "table3_smoke.json"
    file.write_text(json.dumps(recorded_table() | {"rows": {"12 (1x)": {"AP": {"0": 0.4}}}}))
    before = file.read_bytes()
    assert main(["table", "3", "--profile", "smoke", "--record"]) == 2
    assert "has 1 numbers, and there are 0 now" in capsys.readouterr().err and file.read_bytes() == before


def test_failed_runs_are_named_and_the_table_is_shown(monkeypatch, capsys):
    failure = runner.Failure(pseudo_labeler(resolve(profile="smoke")), "out of memory")
    monkeypatch.setattr(runner, "make", lambda *_, **__: [failure])
    assert main(["table", "3", "--profile", "smoke"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("Table 3: Warm-up epochs, profile smoke: 0 runs")
    assert err == "FAILED: pseudo labeler: out of memory\n"


@pytest.mark.parametrize(
    ("failures", "status"),
    [((), 0), ((False,), 1), ((True,), 3), ((True, False), 3)],
    ids=["done", "failed", "left", "both"],
)
def test_the_exit_status_says_whether_work_is_left(failures, status, monkeypatch, capsys):
    """Failed runs, which are named, count only once nothing else is left: a loop over slices may go on until then."""
    request = pseudo_labeler(resolve(profile="smoke"))

    def make(needed, *, jobs, devices):
        assert 530 < deadline.seconds_left() <= 540
        return [runner.Failure(request, "reason", left=left) for left in failures]

    monkeypatch.setattr(runner, "make", make)
    assert main(["table", "3", "--profile", "smoke", "--minutes", "9"]) == status
    out, err = capsys.readouterr()
    assert out.startswith("Table 3")
    assert ("FAILED: pseudo labeler: reason" in err) == (False in failures)
    assert ("work is left; rerun the same command to resume" in err) == (status == 3)
    assert not deadline.in_force()


def test_a_slice_leaves_a_recorded_table_with_more_numbers_alone(monkeypatch, capsys, tmp_path):
    left = runner.Failure(pseudo_labeler(resolve(profile="smoke")), "stopped", left=True)
    monkeypatch.setattr(runner, "make", lambda *_, **__: [left])
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "table3_smoke.json"
    file.write_text(json.dumps(recorded_table() | {"rows": {"12 (1x)": {"AP": {"0": 0.4}}}}))
    before = file.read_bytes()
    assert main(["table", "3", "4", "--profile", "smoke", "--record", "--minutes", "1"]) == 3
    assert "not recorded yet" in capsys.readouterr().err and file.read_bytes() == before
    assert (tmp_path / "results" / "table4_smoke.json").exists()


def test_help_explains_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["table", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "The exit status is 3 if work is left (the same command resumes it)" in words


@pytest.mark.parametrize("wrong", ["8", "x"])
def test_an_unknown_table_is_an_error(wrong, capsys):
    assert main(["table", wrong, "--profile", "smoke"]) == 2
    assert f"table {wrong!r} is not implemented; use all, or one of: 1, 2" in capsys.readouterr().err


def test_tables_are_of_entities_by_default(monkeypatch, capsys):
    """Tables 3 to 7 and 9 are of entities in the paper; of objects with --annotation objects."""
    monkeypatch.setattr(status, "cost_of", lambda missing, finished: dict.fromkeys(missing, 1.0))
    assert main(["table", "3", "--profile", "smoke", "--dry-run"]) == 0
    assert "objects" not in capsys.readouterr().out
    assert main(["table", "3", "--profile", "smoke", "--dry-run", "--annotation", "objects"]) == 0
    assert "entities" not in capsys.readouterr().out
