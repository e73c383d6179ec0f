"""The run store: identity, the lock, what survives a crash, and how a run is found."""

import fcntl
import json
import multiprocessing
import os
import signal
import sys

import pytest

from cassl_lib import paths, runs
from cassl_lib.errors import MissingRun
from cassl_lib.files import file_fingerprint
from cassl_lib.runs import Request, Run, find_run, finished_runs, open_run

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 60  # seconds until a process that does not answer is a failure


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def finished_run(stage: str, **settings) -> Run:
    run = open_run(Request(stage, settings))
    run.finish({"metrics": {}})
    return run


# ---- identity ----


def test_the_same_request_has_the_same_name_whatever_the_order_of_its_settings():
    first = Request("warmup", {"a": 1, "b": [1, 2]}, inputs={"labels": "x", "other": "y"})
    second = Request("warmup", {"b": [1, 2], "a": 1}, inputs={"other": "y", "labels": "x"})
    assert first.id == second.id and first.id.startswith("warmup-") and len(first.id) == len("warmup-") + 12


def test_whatever_decides_the_result_changes_the_name():
    request = Request("warmup", {"model": {"channels": 1}, "seed": 0}, inputs={"labels": "x"}, data={"val": "v"})
    others = [
        Request("finetune", request.settings, request.inputs, request.data),
        Request("warmup", {"model": {"channels": 2}, "seed": 0}, request.inputs, request.data),
        Request("warmup", {"model": {"channels": 1}, "seed": 1}, request.inputs, request.data),
        Request("warmup", {"model": {"channels": 1}}, request.inputs, request.data),
        Request("warmup", request.settings, {"labels": "y"}, request.data),
        Request("warmup", request.settings, {"labeler": "x"}, request.data),
        Request("warmup", request.settings, request.inputs, {"val": "w"}),
        Request("warmup", request.settings, request.data, request.inputs),
    ]
    assert len({request.id, *(other.id for other in others)}) == len(others) + 1


def test_a_file_is_known_by_its_bytes(tmp_path):
    for name, content in {"a": b"x", "b": b"x", "c": b"y"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c


# ---- one at a time ----


def hold(folder, held, release):
    with Run(folder).lock():
        held.set()
        release.wait()


class Notice:
    """A stderr that sets an event when something is written, and keeps what it was."""

    def __init__(self, event, told):
        self.event, self.told = event, told

    def write(self, text):
        if text.strip():
            self.told.put(text)
            self.event.set()

    def flush(self):
        pass


def wait_for_lock(folder, waiting, told, released, order):
    """Take the lock; `waiting` is set when it has been said, and then the system asked, to wait for it."""
    said, ask = SPAWN.Event(), fcntl.flock

    def flock(file, operation):
        if operation == fcntl.LOCK_EX and said.is_set():
            waiting.set()
        return ask(file, operation)

    sys.stderr, fcntl.flock = Notice(said, told), flock
    with Run(folder).lock():
        order.put("before the release" if not released.is_set() else "after the release")


def test_a_second_process_says_who_works_and_waits(store):
    run = open_run(Request("labeler", {}))
    waiting, released, told, order = SPAWN.Event(), SPAWN.Event(), SPAWN.Queue(), SPAWN.Queue()
    second = SPAWN.Process(target=wait_for_lock, args=(run.folder, waiting, told, released, order))
    with run.lock():
        second.start()
        assert waiting.wait(PATIENCE)
        assert second.is_alive() and order.empty()
        released.set()
    assert order.get(timeout=PATIENCE) == "after the release"
    assert f"process {os.getpid()} on" in (message := told.get(timeout=PATIENCE)) and run.id in message
    second.join(PATIENCE)
    assert second.exitcode == 0


def test_a_killed_process_frees_its_run(store):
    run = open_run(Request("labeler", {}))
    held, never = SPAWN.Event(), SPAWN.Event()
    first = SPAWN.Process(target=hold, args=(run.folder, held, never))
    first.start()
    assert held.wait(PATIENCE)
    os.kill(first.pid, signal.SIGKILL)
    first.join(PATIENCE)
    assert first.exitcode == -signal.SIGKILL
    waiting, told, released, order = SPAWN.Event(), SPAWN.Queue(), SPAWN.Event(), SPAWN.Queue()
    released.set()
    second = SPAWN.Process(target=wait_for_lock, args=(run.folder, waiting, told, released, order))
    second.start()
    assert order.get(timeout=PATIENCE) == "after the release"
    assert not waiting.is_set()  # it did not have to wait
    second.join(PATIENCE)


def test_the_lock_is_free_after_an_error(store):
    run = open_run(Request("labeler", {}))
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        assert (run.folder / "lock").read_text().startswith(f"process {os.getpid()} on ")


# ---- what a crash leaves ----


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    runs.write_atomically(path, b"old")

    def crash(*_):
        assert path.read_bytes() == b"old"  # nothing is in place before the last moment
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "replace", crash)
        with pytest.raises(OSError, match="disk full"):
            runs.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    runs.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_the_log_forgets_what_came_after_the_checkpoint_and_a_line_cut_short(store):
    run = open_run(Request("labeler", {}))
    run.forget_log_after(3)  # no log yet
    for step in (2, 4, 6):
        run.log({"step": step, "loss": 0.5})
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run.forget_log_after(4)
    assert [entry["step"] for entry in run.history] == [2, 4]
    run.log({"step": 6, "loss": 0.1})
    assert run.history[-1] == {"step": 6, "loss": 0.1}
    run.forget_log_after(-1)
    assert run.history == []


def test_a_run_is_finished_by_its_result_and_keeps_no_checkpoint(store):
    request = Request("labeler", {"seed": 3}, inputs={"x": "y"}, data={"val": "v"})
    run = open_run(request)
    run.checkpoint.write_bytes(b"state")
    assert not run.finished and finished_runs() == []
    run.finish({"metrics": {"AP": 0.5}})
    assert run.finished and not run.checkpoint.exists() and finished_runs() == [run.id]
    assert run.result["metrics"] == {"AP": 0.5} and run.result["settings"] == {"seed": 3}
    assert run.result["run"] == run.id and run.result["inputs"] == {"x": "y"} and run.result["data"] == {"val": "v"}
    assert {"torch", "device", "commit", "date"} <= run.result["environment"].keys()
    assert json.loads((run.folder / "request.json").read_text()) == request.as_json()
    assert open_run(request) == run


# ---- finding ----


def test_a_run_is_found_by_folder_name_or_the_beginning_of_it(store, monkeypatch):
    run = finished_run("warmup", seed=1)
    finished_run("finetune", seed=1)
    assert find_run(run.id) == find_run("warm") == find_run(str(run.folder)) == Run(paths.runs() / run.id)
    monkeypatch.chdir(store)
    assert find_run(f"./{run.id}").folder == run.folder


def test_a_name_that_fits_no_run_or_several_is_refused_with_those_there_are(store):
    with pytest.raises(MissingRun, match="'warmup' is no run; finished in .*: none"):
        find_run("warmup")
    one, two = finished_run("warmup", seed=1), finished_run("warmup", seed=2)
    with pytest.raises(MissingRun, match="'warmup' names 2 runs") as caught:
        find_run("warmup")
    assert one.id in str(caught.value) and two.id in str(caught.value)
    for name in ("", "nothing/like/that"):
        with pytest.raises(MissingRun, match="is no run"):
            find_run(name)


def test_an_unfinished_run_is_not_found(store):
    run = open_run(Request("warmup", {}))
    with pytest.raises(MissingRun, match="is no run"):
        find_run(run.id)
    with pytest.raises(MissingRun, match="is not finished"):
        find_run(str(run.folder))
