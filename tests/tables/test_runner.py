"""Making the runs of tables: order, processes that share the work, failures; and collecting their numbers."""

import json
import logging
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from table_requests import finish, with_runs

from cassl_lib.data import datasets
from cassl_lib.errors import DataError
from cassl_lib.resolve import resolve, to_json
from cassl_lib.stages import graph
from cassl_lib.stages.requests import pseudo_labeler, pseudo_labels, warmup, with_inputs
from cassl_lib.tables import compare, runner

# ---- making ----


def test_missing_runs_are_made_in_order_and_found_again(store, smoke, monkeypatch, caplog):
    """The last one in a process of its own."""
    caplog.set_level(logging.INFO, "cassl_lib")
    request = warmup(smoke)
    needed = with_inputs([request])
    assert [each.stage for each in needed] == ["pseudo_labeler", "pseudo_labels", "warmup"]
    assert all(run is None for run in graph.find_all(needed).values())
    assert runner.make(needed[:2], separate_processes=False) == []
    assert "2 runs are needed, 0 are finished" in caplog.messages
    assert runner.make(needed, jobs=2) == []
    found = graph.find_all(needed)
    assert found[request].result["inputs"] == {"pseudo_labels": found[needed[1]].id}
    assert "3 runs are needed, 2 are finished" in caplog.messages and found[request].id in caplog.text
    log = (store / "tables" / "log.txt").read_text()
    assert log.count("-m cassl_lib run") == 1 and f"{found[request].id}: warm-up, 2 steps" in log
    monkeypatch.setattr(runner, "_make_in_process", None)  # nothing is made again
    assert runner.make(needed) == []


def test_a_process_gets_the_configuration_and_the_input_and_returns_the_end_of_its_messages(store, smoke, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="a\nb\nc\nd\n")

    monkeypatch.setattr(runner.subprocess, "run", run)
    request = with_runs(pseudo_labels(smoke))
    assert runner._make_in_process(request, 1, 2) == (1, "b\nc\nd")
    ((*words, file, devices, count, option, folder),) = commands
    assert words[1:] == ["-m", "cassl_lib", "run", "pseudo_labels", "--config"]
    assert json.loads(open(file).read()) == json.loads(json.dumps(to_json(smoke)))
    assert (devices, count) == ("--devices", "2") and (option, folder) == ("--input", str(request.input.folder))
    assert (store / "tables" / "log.txt").read_text().endswith("\na\nb\nc\nd\n\n")


def test_processes_share_the_runs(store, smoke, monkeypatch):
    """Two makers at once: each starts a run that the other does not make, so that they meet at the barrier."""
    needed = [pseudo_labeler(replace(smoke, seed=seed)) for seed in range(4)]
    assert not any(graph.find_all(needed).values())
    meet, seeds = threading.Barrier(2, timeout=60), []

    def make(request, *rest):
        if not graph.find_quietly(request):
            finish(request)
            seeds.append(request.config.seed)
            meet.wait()
        return 0, ""

    monkeypatch.setattr(runner, "_make_in_process", make)
    with ThreadPoolExecutor(2) as threads:
        failures = list(threads.map(lambda _: runner.make(needed), range(2)))
    assert failures == [[], []] and sorted(seeds) == [0, 1, 2, 3]


def test_a_claimed_run_is_passed_over_and_waited_for_at_the_end(store, smoke):
    first, second = pseudo_labeler(smoke), pseudo_labeler(replace(smoke, seed=1))
    found = graph.find_all([first, second])
    with runner._claimed(first, wait=False) as held:
        assert held
        picked, claim = runner._pick([first, second], found, wait=False)
        assert picked == second
        claim.close()
        assert runner._pick([first], found, wait=False) is None
    picked, claim = runner._pick([first], found, wait=True)
    assert picked == first
    claim.close()


# ---- failures ----


def test_missing_data_of_one_run_fails_that_run_alone(store, smoke, monkeypatch):
    """Table 7 where the images of one split are missing: the others are made and found."""
    pool = datasets.pool

    def without_large(config):
        if config.split == "large":
            raise DataError("split='large' needs images that do not exist")
        return pool(config)

    monkeypatch.setattr(datasets, "pool", without_large)
    labeler = pseudo_labeler(smoke)
    needed = [labeler, *(pseudo_labels(replace(smoke, split=split), labeler) for split in ("tiny", "large"))]
    (failure,) = runner.make(needed, separate_processes=False)
    assert "split='large' needs images" in failure.reason
    assert [bool(run) for run in graph.find_all(needed).values()] == [True, True, False]


@pytest.mark.parametrize("separate_processes", [True, False])
def test_a_failed_run_takes_only_what_starts_from_it(separate_processes, store, smoke, monkeypatch):
    good, bad = warmup(smoke), pseudo_labeler(replace(smoke, seed=1))
    after = pseudo_labels(smoke, bad)
    made = []

    def make(request, *rest):
        made.append(request.stage)
        if request == bad:
            return 1, "out of memory"
        finish(request)
        return 0, ""

    monkeypatch.setattr(runner, "_make_in_process", make)
    monkeypatch.setattr(runner, "_make_here", make)
    monkeypatch.setattr(graph, "INTACT", {})  # the labels have no store
    failures = runner.make([*good.with_inputs(), bad, after], separate_processes=separate_processes)
    assert [(failure.request, failure.reason) for failure in failures] == [
        (bad, "out of memory"),
        (after, "the run that it starts from could not be made"),
    ]
    assert sorted(made) == ["pseudo_labeler", "pseudo_labeler", "pseudo_labels", "warmup"]


# ---- collecting ----


def test_missing_numbers_are_none(store):
    config = resolve(profile="smoke")
    collected = runner.collect(1, config, [0, 1])
    assert collected["rows"]["COCO unlabeled"] == {
        "class-specific AP": {"0": None, "1": None},
        "class-agnostic AP": {"0": None, "1": None},
    }
    assert collected["runs"] == {"0": {}, "1": {}} and collected["config"]["profile"] == "smoke"
    body = compare.lines(collected)
    assert body[0] == ["COCO train2017", "class-specific AP", "41.0", "", ""]


def test_numbers_and_facts_of_finished_runs_are_collected(store):
    """Both labelers of Table 1 are finished; COCO's -1 is no number."""
    for with_classes, metrics in ((True, {"box": {"AP": 0.41}}), (False, {"box_agnostic": {"AP": -1.0}})):
        request = pseudo_labeler(resolve(profile="smoke", class_specific=with_classes))
        finish(request, metrics=metrics, steps=6)
    collected = runner.collect(1, resolve(profile="smoke"), [0])
    assert collected["rows"]["COCO train2017"] == {"class-specific AP": {"0": 0.41}, "class-agnostic AP": {"0": None}}
    runs = collected["runs"]["0"]
    assert len(runs) == 2 and all(run["stage"] == "pseudo_labeler" and run["steps"] == 6 for run in runs.values())
    assert all({"seconds", "device", "torch", "date", "commit"} <= run.keys() for run in runs.values())
