"""Making the runs of tables: order, processes that share the work, failures; and collecting their numbers."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from table_requests import finish, with_runs

from cassl_lib import deadline
from cassl_lib.data import datasets
from cassl_lib.errors import DataError, Stopped
from cassl_lib.resolve import resolve, to_json
from cassl_lib.stages import graph
from cassl_lib.stages.requests import pseudo_labeler, pseudo_labels, warmup, with_inputs
from cassl_lib.tables import child, compare, runner
from cassl_lib.tables.definitions import ROWS
from cassl_lib.training import engine

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
    assert log.count("-m cassl_lib.lifeline cassl_lib run") == 1 and f"{found[request].id}: warm-up, 2 steps" in log
    monkeypatch.setattr(runner, "make_in_process", None)  # nothing is made again
    assert runner.make(needed) == []


def test_a_process_gets_the_configuration_and_the_input_and_returns_the_end_of_its_messages(store, smoke, monkeypatch):
    commands = []

    def run(command, environment):
        commands.append(command)
        assert environment == os.environ | {"CASSL_LIFELINE": str(os.getpid())}
        return 1, "", "a\nb\nc\nd\n"

    monkeypatch.setattr(child, "_run", run)
    request = with_runs(pseudo_labels(smoke))
    assert child.make_in_process(request, 1, 2) == (1, "b\nc\nd")
    ((*words, file, devices, count, option, folder),) = commands
    assert words[1:] == ["-m", "cassl_lib.lifeline", "cassl_lib", "run", "pseudo_labels", "--config"]
    assert json.loads(open(file).read()) == json.loads(json.dumps(to_json(smoke)))
    assert (devices, count) == ("--devices", "2") and (option, folder) == ("--input", str(request.input.folder))
    assert (store / "tables" / "log.txt").read_text().endswith("\na\nb\nc\nd\n\n")


@pytest.mark.parametrize(
    ("jobs", "devices", "threads", "workers"),
    [(1, 1, None, 8), (1, 4, None, 8), (2, 1, "8", 7), (4, 2, "2", 1), (16, 1, "1", 0), (50, 1, "1", 0)],
)
def test_runs_side_by_side_share_16_cores(jobs, devices, threads, workers, smoke, store, monkeypatch):
    """Threads and loading processes of each; one thread and no loading process from 16 processes on."""
    monkeypatch.setattr(child, "cores", lambda: 16)
    config = replace(smoke, warmup=replace(smoke.warmup, workers=8), finetune=replace(smoke.finetune, workers=0))
    environment, own = child.share_of_cores(config, jobs, devices)
    assert environment.get("OMP_NUM_THREADS") == threads
    assert own.warmup.workers == workers and own.finetune.workers == 0
    assert graph.located(pseudo_labeler(own)) == graph.located(pseudo_labeler(config))  # the run's name is the same


def test_a_process_inherits_a_short_busy_wait_of_threads(store, smoke, monkeypatch):
    """Of OpenMP: set when the package is imported, before torch, unless the user has set another one."""
    seen = []
    monkeypatch.setattr(child, "_run", lambda words, environment: seen.append(environment) or (1, "", "failed"))
    child.make_in_process(pseudo_labeler(smoke), 2, 1)
    assert seen[0]["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]
    code = "import os, sys, cassl_lib.cli.main; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for given, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")):
        printed = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True).stdout
        assert printed.split() == ["False", expected]


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

    monkeypatch.setattr(runner, "make_in_process", make)
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

    monkeypatch.setattr(runner, "make_in_process", make)
    monkeypatch.setattr(runner, "_make_here", make)
    monkeypatch.setattr(graph, "INTACT", {})  # the labels have no store
    failures = runner.make([*good.with_inputs(), bad, after], separate_processes=separate_processes)
    assert [(failure.request, failure.reason) for failure in failures] == [
        (bad, "out of memory"),
        (after, "the run that it starts from could not be made"),
    ]
    assert sorted(made) == ["pseudo_labeler", "pseudo_labeler", "pseudo_labels", "warmup"]


# ---- the deadline ----


def weights(request) -> dict[str, torch.Tensor]:
    return load_file(graph.find(request).weights)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_slices_give_the_weights_of_an_undisturbed_run_bit_for_bit(store, smoke, monkeypatch, tmp_path):
    """In processes of their own, in slices that grow: the first ones end before the process has started.

    On 2 quiet cores starting takes 3 to 7 s, and training 8 to 25 s.
    """
    long = replace(smoke, pseudo_labeler=replace(smoke.pseudo_labeler, steps=200))
    needed = [pseudo_labeler(long), pseudo_labels(long)]
    stops, slices, started = [], 0, time.monotonic()
    while failures := runner.make(needed, minutes=(minutes := 0.05 * 1.5**slices)):
        assert time.monotonic() - started < minutes * 60 + 30 and slices < 20
        assert all(failure.left for failure in failures)
        checkpoint = graph.located(needed[0]).checkpoint
        stops += [torch.load(checkpoint, weights_only=False)["step"]] if checkpoint.exists() else []
        slices, started = slices + 1, time.monotonic()
    assert stops and 0 < stops[0] < 200 and stops == sorted(stops)
    in_slices, labels = weights(needed[0]), [path.read_bytes() for path in shards(graph.find(needed[1]))]
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "undisturbed"))
    assert runner.make(needed) == []
    assert same(in_slices, weights(needed[0]))
    assert labels == [path.read_bytes() for path in shards(graph.find(needed[1]))] and labels


def shards(run) -> list[Path]:
    return sorted(run.store.glob("shard-*.arrow"))


def test_a_run_in_this_process_stops_at_a_checkpoint_and_resumes(store, smoke, monkeypatch, tmp_path):
    request = pseudo_labeler(smoke)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "past_deadline", lambda step, device: step == 1)
        (failure,) = runner.make([request], separate_processes=False)
    assert failure.left and failure.reason.endswith("stopped at step 1 of 2; rerun the same command to resume")
    assert runner.make([request], separate_processes=False) == []
    resumed = weights(request)
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "undisturbed"))
    assert runner.make([request], separate_processes=False) == [] and same(resumed, weights(request))


def test_labeling_stops_between_shards_which_are_kept(store, smoke, monkeypatch):
    small_shards = replace(smoke, pseudo_labels=replace(smoke.pseudo_labels, shard_size=4))
    needed = with_inputs([pseudo_labels(small_shards)])
    assert runner.make(needed[:1], separate_processes=False) == []
    begun, check = [], deadline.check

    def third_is_late(what, *, begun_=begun, begun=False):
        if not begun and what == "labeling":
            begun_.append(what)
            if len(begun_) == 3:
                raise Stopped("labeling: stopped")
        return check(what, begun=begun)

    with monkeypatch.context() as patch:
        patch.setattr(deadline, "check", third_is_late)
        (failure,) = runner.make(needed, separate_processes=False)
    assert failure.left and failure.request == needed[1]
    labels = graph.located(needed[1].with_runs(graph.find))
    kept = {path: path.stat().st_mtime_ns for path in shards(labels)}
    assert len(kept) == 2 and runner.make(needed, separate_processes=False) == []
    assert len(shards(labels)) > 2 and all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize("separate_processes", [True, False])
def test_no_run_is_begun_after_the_deadline(separate_processes, store, smoke, monkeypatch):
    """What starts from a failed run fails all the same: it is not left."""
    good, bad, after = pseudo_labeler(smoke), pseudo_labeler(replace(smoke, seed=1)), warmup(smoke)
    blocked = pseudo_labels(replace(smoke, seed=1), bad)

    def make(request, *rest):
        if request == bad:
            return 1, "out of memory"
        os.environ[deadline.VARIABLE] = "0"  # restored by `make`
        return deadline.STATUS, "stopped at step 1 of 2"

    monkeypatch.setattr(runner, "make_in_process", make)
    monkeypatch.setattr(runner, "_make_here", make)
    labels = after.input
    failures = runner.make([bad, good, blocked, labels, after], separate_processes=separate_processes, minutes=5)
    assert [(failure.request, failure.reason, failure.left) for failure in failures] == [
        (bad, "out of memory", False),
        (good, "stopped at step 1 of 2", True),
        (blocked, runner.NO_INPUT, False),
        (labels, runner.NOT_BEGUN, True),
        (after, runner.NOT_BEGUN, True),
    ]
    assert not deadline.in_force()


def test_no_scenes_are_drawn_after_the_deadline(store, smoke, monkeypatch, tmp_path):
    """Looking for a run reads its data, and would draw a pool of thousands of scenes. The run counts as missing."""
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "datasets"))
    request = pseudo_labeler(smoke)
    with deadline.within(0):
        assert graph.find_all([request]) == {request: None}
    assert not list((tmp_path / "datasets").rglob("*.jpg"))


def test_a_claimed_run_is_not_waited_for_beyond_the_deadline(store, smoke):
    request = pseudo_labeler(smoke)
    found, started = graph.find_all([request]), time.monotonic()
    with runner._claimed(request, wait=False), deadline.within(0.02):
        assert runner._pick([request], found, wait=True) is None
    assert time.monotonic() - started < 5


def test_a_process_that_outlives_the_deadline_is_interrupted_and_then_killed(monkeypatch, tmp_path):
    """The second one ignores the interrupt; both resume from their last checkpoint."""
    monkeypatch.setattr(child, "INTERRUPTED_AFTER", 1.0)
    monkeypatch.setattr(child, "KILLED_AFTER", 1.5)
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    for before in ("", ignore):
        code, started = f"import time\n{before}print('begun', flush=True)\ntime.sleep(60)", time.monotonic()
        with deadline.within(0.01):
            status, out, err = child._run([sys.executable, "-c", code], dict(os.environ))
        assert time.monotonic() - started < 10 and (status, out) == (deadline.STATUS, "begun\n")
        assert err.endswith("ended after the deadline; the run resumes from its last checkpoint")
        assert ("KeyboardInterrupt" in err) == (not before)


def test_the_choice_of_a_length_may_be_left(store, smoke, monkeypatch):
    """Its numbers are there, but no number is reported before the choice."""
    config = replace(smoke, baseline_lengths=(1, 2))
    name, cell = next(
        (f"{row.name}, {column}", cell) for row in ROWS[9](config) for column, cell in row.cells.items() if cell.longer
    )
    for request in cell.candidates:
        finish(
            request, metrics={cell.kind: {cell.number: 0.5}}, steps=request.config.finetune.steps, classes=["a", "b"]
        )
    with deadline.within(0):
        collected = runner.collect(9, config, [0])
    assert collected["lengths"][name] == {"steps": {"2": {"0": 0.5}, "4": {"0": 0.5}}, "chosen": {"0": None}}
    assert runner.undecided(collected) and not runner.undecided(runner.collect(9, config, [1]))


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


@pytest.mark.parametrize(("numbers", "left"), [({}, False), ({"0": None}, False), ({"0": 0.3}, True)])
def test_a_best_length_is_undecided_only_if_all_lengths_are_finished(numbers, left):
    curve = {"steps": {"800": {"0": 0.2}, "3200": numbers}, "chosen": {"0": None}}
    assert runner.undecided({"lengths": {"baseline": curve}}) is left
