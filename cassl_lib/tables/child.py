"""Making a run in a process of its own, which gets its share of the cores and ends soon after the deadline."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cassl_lib import deadline, lifeline, paths
from cassl_lib.config import TRAINING_SECTIONS, Config
from cassl_lib.data.processes import cores
from cassl_lib.files import explained, open_own, write_atomically
from cassl_lib.resolve import to_json
from cassl_lib.stages import graph, launch
from cassl_lib.stages.requests import Request

# Seconds after the deadline. A process stops by itself, within `deadline.GRACE` of it, except in what has no check:
# starting, reading data, computing COCO's numbers.
INTERRUPTED_AFTER = deadline.GRACE + 2
KILLED_AFTER = INTERRUPTED_AFTER + 3


def make_in_process(request: Request, jobs: int, devices: int) -> tuple[int, str]:
    """Make a run in a process of its own; returns its exit status and the end of its messages.

    Returns:
        0 if the run is finished, `deadline.STATUS` if the deadline stopped it, another status after an error.
    """
    if graph.find_quietly(request):  # another process has made it in the meantime
        return 0, ""
    file = folder() / f"{hashlib.sha256(request.key.encode()).hexdigest()[:12]}.json"
    threads, config = share_of_cores(request.config, jobs, devices)
    write_atomically(file, json.dumps(to_json(config)).encode())
    words = [sys.executable, "-m", "cassl_lib.lifeline", "cassl_lib", "run", request.stage, "--config", str(file)]
    words += ["--devices", str(devices), *launch.options(request)]
    status, out, err = _run(words, lifeline.environment() | threads)
    log = folder() / "log.txt"
    with explained(log), open_own(log, "ab") as file:
        file.write(f"$ {shlex.join(words)}\n{out}{err}\n".encode())
    return status, "\n".join(err.splitlines()[-3:])


def share_of_cores(config: Config, jobs: int, devices: int) -> tuple[dict[str, str], Config]:
    """Environment and configuration of one of several runs side by side: threads and loading processes.

    Each process of a run computes with its share of the cores, at least one, and loads with what is left of the share
    beside the process itself. So with as many processes as cores, or more, each is single-threaded and loads its own
    images: loading processes would only compete with the others' computation. Neither decides a run's name.
    """
    if jobs == 1:
        return {}, config
    share = max(1, cores() // (jobs * devices))
    sections = {name: getattr(config, name) for name in TRAINING_SECTIONS}
    fewer = {name: replace(own, workers=min(own.workers, share - 1)) for name, own in sections.items()}
    return {"OMP_NUM_THREADS": str(share)}, replace(config, **fewer)


def folder() -> Path:
    """Of what the makers of tables share: claims, configurations, the processes' messages."""
    folder = paths.runs() / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(words: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a command; returns exit status, output and messages. A command that outlives the deadline is ended."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        return _wait(process, INTERRUPTED_AFTER)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it takes its own children with it, torchrun's too
    try:
        _, out, err = _wait(process, KILLED_AFTER)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return deadline.STATUS, out, f"{err}\nended after the deadline; the run resumes from its last checkpoint"


def _wait(process: subprocess.Popen, after: float) -> tuple[int, str, str]:
    """Wait for a process until some seconds after the deadline, if there is one."""
    left = deadline.seconds_left() + after
    out, err = process.communicate(timeout=None if math.isinf(left) else max(0, left))
    return process.returncode, out, err
