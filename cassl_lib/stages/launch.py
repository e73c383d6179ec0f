"""Stages over several processes: torchrun as a child process, its lines shown in the cell or shell that started it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys

from cassl_lib import lifeline, paths
from cassl_lib.errors import LaunchError
from cassl_lib.files import write_atomically
from cassl_lib.resolve import to_json
from cassl_lib.stages.registry import SCRATCH
from cassl_lib.stages.requests import DEFAULT_PARTS, Request


def options(request: Request) -> list[str]:
    """The further arguments of `run STAGE --config FILE` for this request, whose inputs are runs."""
    if request.is_baseline:
        return ["--start", SCRATCH]
    words = ["--input", str(request.inputs[0].folder)] if request.inputs else []
    return words + (["--parts", *request.parts] if request.parts != DEFAULT_PARTS else [])


def torchrun(request: Request, devices: int) -> None:
    """Make the run of a request, whose inputs are runs, with `devices` processes.

    Under torchrun, because forked processes fail in a notebook that has touched CUDA. An interrupt stops all of them,
    and so does the death of this process.

    Raises:
        LaunchError: a process failed.
    """
    file = paths.runs() / "launches" / f"{hashlib.sha256(request.key.encode()).hexdigest()[:12]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(to_json(request.config)).encode())
    command = [sys.executable, "-m", "cassl_lib.lifeline", "torch.distributed.run", "--standalone"]
    # Without the "--" torchrun would take --start for an abbreviation of one of its own options.
    command += [f"--nproc_per_node={devices}", "-m", "--", "cassl_lib", "run", request.stage]
    _stream([*command, "--config", str(file), *options(request)])


def _stream(command: list[str]) -> None:
    """Run a command and print its lines as they come; an interrupt here stops it and its children."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        start_new_session=True,
        env=lifeline.environment(),
    )
    tail: list[str] = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            tail = [*tail[-100:], line]  # torchrun itself prints 40 lines about a failure
    except BaseException:
        process.send_signal(signal.SIGTERM)  # torchrun passes it on to every process
        try:
            process.wait(timeout=60)  # torchrun itself kills after 30 seconds
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.wait():
        raise LaunchError(f"{' '.join(command)} exited with status {process.returncode}:\n{''.join(tail)}")
