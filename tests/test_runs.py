"""The run store: names, the lock, what survives a crash, and how a run is looked up."""

import fcntl
import json
import logging
import multiprocessing
import os
import signal

import pytest

from cassl_lib import files, paths
from cassl_lib.errors import DataError, MissingRun
from cassl_lib.files import file_fingerprint
from cassl_lib.runs import Run, find_run, finished_runs, open_run, run_id, run_of

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 60  # seconds until a process that does not answer counts as a failure


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def identity(stage: str, settings=None, inputs=None, data=None) -> dict:
    return {"stage": stage, "version": 1, "settings": settings or {}, "inputs": inputs or {}, "data": data or {}}


def finished_run(stage: str, **settings) -> Run:
    run = open_run(identity(stage, settings))
    run.finish({"metrics": {}, "images": 3, "seconds": 1.0})
    return run


# ---- names ----


def test_equal_identities_have_one_name_whatever_the_order_of_their_entries():
    first = run_id(identity("warmup", {"a": 1, "b": [1, 2]}, inputs={"pseudo_labels": "x", "other": "y"}))
    second = run_id(identity("warmup", {"b": [1, 2], "a": 1}, inputs={"other": "y", "pseudo_labels": "x"}))
    assert first == second and first.startswith("warmup-") and len(first) == len("warmup-") + 12


def test_every_part_of_the_identity_changes_the_name():
    settings, inputs, data = {"model": {"channels": 1}, "seed": 0}, {"pseudo_labels": "x"}, {"val": "v"}
    identities = [
        identity("warmup", settings, inputs, data),
        identity("finetune", settings, inputs, data),
        identity("warmup", {"model": {"channels": 2}, "seed": 0}, inputs, data),
        identity("warmup", {"model": {"channels": 1}, "seed": 1}, inputs, data),
        identity("warmup", {"model": {"channels": 1}}, inputs, data),
        identity("warmup", settings, {"pseudo_labels": "y"}, data),
        identity("warmup", settings, {"pseudo_labeler": "x"}, data),
        identity("warmup", settings, inputs, {"val": "w"}),
        identity("warmup", settings, data, inputs),
        identity("warmup", settings, inputs, data) | {"version": 2},
    ]
    assert len(set(map(run_id, identities))) == len(identities)


def test_a_run_knows_its_stage_and_its_folder(store):
    run = run_of(identity("pseudo_labels"))
    assert run.stage == "pseudo_labels" and run.folder == store / run.id
    assert not store.exists()  # nothing was written
    assert open_run(identity("pseudo_labels")) == run and run.folder.is_dir()


def test_a_fingerprint_is_of_the_files_bytes(tmp_path):
    for name, content in {"a": b"x", "b": b"x", "c": b"y"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c


# ---- one at a time ----


def hold(folder, held, release):
    with Run(folder).lock():
        held.set()
        release.wait()


class Notice(logging.Handler):
    """Sets an event when a message is logged, and keeps the message."""

    def __init__(self, event, messages):
        super().__init__(logging.INFO)
        self.event, self.messages = event, messages

    def emit(self, record):
        self.messages.put(record.getMessage())
        self.event.set()


def wait_for_lock(folder, waiting, messages, released, order):
    """Take the lock; `waiting` is set when it has been logged, and then the system asked, to wait for it."""
    logged, ask = SPAWN.Event(), fcntl.flock

    def flock(file, operation):
        if operation == fcntl.LOCK_EX and logged.is_set():
            waiting.set()
        return ask(file, operation)

    logger = logging.getLogger("cassl_lib.runs")
    logger.setLevel(logging.INFO)
    logger.addHandler(Notice(logged, messages))
    fcntl.flock = flock
    with Run(folder).lock():
        order.put("before the release" if not released.is_set() else "after the release")


def test_a_second_process_logs_who_holds_the_run_and_waits(store):
    run = open_run(identity("pseudo_labeler"))
    waiting, released, messages, order = SPAWN.Event(), SPAWN.Event(), SPAWN.Queue(), SPAWN.Queue()
    second = SPAWN.Process(target=wait_for_lock, args=(run.folder, waiting, messages, released, order))
    with run.lock():
        second.start()
        assert waiting.wait(PATIENCE)
        assert second.is_alive() and order.empty()
        released.set()
    assert order.get(timeout=PATIENCE) == "after the release"
    assert f"process {os.getpid()} on" in (message := messages.get(timeout=PATIENCE)) and run.id in message
    second.join(PATIENCE)
    assert second.exitcode == 0


def test_a_killed_process_releases_its_run(store):
    run = open_run(identity("pseudo_labeler"))
    held, never = SPAWN.Event(), SPAWN.Event()
    first = SPAWN.Process(target=hold, args=(run.folder, held, never))
    first.start()
    assert held.wait(PATIENCE)
    os.kill(first.pid, signal.SIGKILL)
    first.join(PATIENCE)
    assert first.exitcode == -signal.SIGKILL
    waiting, messages, released, order = SPAWN.Event(), SPAWN.Queue(), SPAWN.Event(), SPAWN.Queue()
    released.set()
    second = SPAWN.Process(target=wait_for_lock, args=(run.folder, waiting, messages, released, order))
    second.start()
    assert order.get(timeout=PATIENCE) == "after the release"
    assert not waiting.is_set()  # it did not have to wait
    second.join(PATIENCE)


def test_the_lock_is_released_after_an_error(store):
    run = open_run(identity("pseudo_labeler"))
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        assert (run.folder / "lock").read_text().startswith(f"process {os.getpid()} on ")


# ---- what survives a crash ----


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_atomically(path, b"old")

    def crash(*_):
        assert path.read_bytes() == b"old"  # the file is replaced at the very end
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", crash)
        with pytest.raises(OSError, match="disk full"):
            files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_log_lines_after_the_checkpoint_and_truncated_lines_are_dropped(store):
    run = open_run(identity("pseudo_labeler"))
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


def test_finishing_writes_the_result_and_deletes_the_checkpoint(store):
    request = identity("pseudo_labeler", {"seed": 3}, inputs={"x": "y"}, data={"val": "v"})
    run = open_run(request)
    run.checkpoint.write_bytes(b"state")
    assert not run.finished and finished_runs() == []
    run.finish({"metrics": {"AP": 0.5}, "images": 3, "seconds": 1.0})
    assert run.finished and not run.checkpoint.exists() and finished_runs() == [run.id]
    assert run.result["metrics"] == {"AP": 0.5} and run.result["settings"] == {"seed": 3}
    assert run.result["run"] == run.id and run.result["inputs"] == {"x": "y"} and run.result["data"] == {"val": "v"}
    assert {"torch", "device", "commit", "date"} <= run.result["environment"].keys()
    assert json.loads((run.folder / "request.json").read_text()) == request
    assert open_run(request) == run


# ---- looking up ----


def test_a_run_is_looked_up_by_folder_name_or_unique_prefix(store, monkeypatch):
    run = finished_run("warmup", seed=1)
    finished_run("finetune", seed=1)
    assert find_run(run.id) == find_run("warm") == find_run(str(run.folder)) == Run(paths.runs() / run.id)
    monkeypatch.chdir(store)
    assert find_run(f"./{run.id}").folder == run.folder


def test_an_unknown_or_ambiguous_name_raises_with_the_finished_runs(store):
    with pytest.raises(MissingRun, match=r"'warmup' is not a run\. Finished runs in .*: none"):
        find_run("warmup")
    one, two = finished_run("warmup", seed=1), finished_run("warmup", seed=2)
    with pytest.raises(MissingRun, match="'warmup' is ambiguous, it matches 2 runs") as caught:
        find_run("warmup")
    assert one.id in str(caught.value) and two.id in str(caught.value)
    for name in ("", "nothing/like/that"):
        with pytest.raises(MissingRun, match="is not a run"):
            find_run(name)


def test_an_unfinished_run_raises(store):
    run = open_run(identity("warmup"))
    with pytest.raises(MissingRun, match="is not a run"):
        find_run(run.id)
    with pytest.raises(MissingRun, match="is not finished"):
        find_run(str(run.folder))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("result.json", "", "is not JSON"),
        ("result.json", "[]", "expected an object, got a list; delete it and run the same command again"),
        ("result.json", '{"run": "a"}', "lacks "),
        ("result.json", '"seconds": "1"', "seconds: expected a number, got a string"),
        ("result.json", '"metrics": {"box": {"AP": 0.5, "AP50": "high"}}', "metrics.box.AP50: expected an integer or"),
        ("request.json", '{"stage": "warmup", "inputs": ["a"]}', "inputs: expected an object, got a list"),
        ("request.json", None, "cannot be read"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line_with_its_name_and_the_remedy(store, name, text, words):
    run = open_run(identity("pseudo_labeler", {"seed": 3}))
    run.finish({"metrics": {}, "images": 3, "seconds": 1.0})
    file = run.folder / name
    if text and text.startswith('"'):
        text = json.dumps(json.loads(file.read_text()) | json.loads(f"{{{text}}}"))
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DataError) as caught:
        _ = run.result if name == "result.json" else run.inputs
    assert str(caught.value).startswith(str(file)) and words in str(caught.value) and "\n" not in str(caught.value)
