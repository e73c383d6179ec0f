"""Children of a process that dies, by whatever signal, die too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cassl_lib import lifeline, paths

PATIENCE = 60  # seconds until a process that does not answer counts as a failure

# Each starts the next one through the lifeline and writes its own process id
CHAIN = """
import os, pathlib, subprocess, sys, time
from cassl_lib import lifeline

folder, depth = pathlib.Path(sys.argv[1]), int(sys.argv[2])
(folder / f".{depth}").write_text(str(os.getpid()))
os.replace(folder / f".{depth}", folder / str(depth))
if depth:
    words = [sys.executable, "-m", "cassl_lib.lifeline", "chain", sys.argv[1], str(depth - 1)]
    subprocess.Popen(words, env=lifeline.environment(), start_new_session=True)
time.sleep(600)
"""


def wait_until(happened) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGTERM])
def test_the_children_of_a_dead_process_end_and_theirs_too(killed_by, tmp_path):
    (tmp_path / "chain.py").write_text(CHAIN)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{paths.REPOSITORY}"}
    first = subprocess.Popen([sys.executable, str(tmp_path / "chain.py"), str(tmp_path), "2"], env=env)
    wait_until(lambda: all((tmp_path / name).exists() for name in "210"))
    children = [int((tmp_path / name).read_text()) for name in "10"]
    assert all(map(running, children))
    first.send_signal(killed_by)
    assert first.wait(PATIENCE) == -killed_by
    wait_until(lambda: not any(map(running, children)))


def test_a_child_whose_parent_died_before_it_began_ends(tmp_path):
    (tmp_path / "chain.py").write_text(CHAIN)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{paths.REPOSITORY}", lifeline.VARIABLE: "999999999"}
    words = [sys.executable, "-m", "cassl_lib.lifeline", "chain", str(tmp_path), "0"]
    assert subprocess.Popen(words, env=env).wait(PATIENCE) == -signal.SIGTERM


def test_the_module_gets_its_arguments_and_gives_its_status(tmp_path):
    (tmp_path / "module.py").write_text("import sys; print(__name__, sys.argv[1:]); sys.exit(7)")
    words = [sys.executable, "-m", "cassl_lib.lifeline", "module", "--a", "b"]
    env = lifeline.environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{paths.REPOSITORY}"}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "__main__ ['--a', 'b']\n")
