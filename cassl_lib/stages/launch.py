"""Stages over several processes: torchrun as a child process, its lines in the cell or the shell that started it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cassl_lib.config import PARTS, Config
from cassl_lib.errors import ConfigError, LaunchError
from cassl_lib.resolve import to_json
from cassl_lib.runs import Run
from cassl_lib.stages import all_stages as stages

VERBS = {"train_labeler": stages.train_labeler, "label": stages.label, "warm_up": stages.warm_up}
VERBS["finetune"] = stages.finetune
SOURCES = {"label": "labeler", "warm_up": "labels", "finetune": "source"}  # verb: what it calls the run it starts from


def run_stage(
    verb: str,
    config: Config,
    *,
    devices: int = 1,
    start: str = "warmup",
    source: Run | None = None,
    parts: tuple[str, ...] = PARTS[:3],
) -> Run:
    """A stage's finished run, made by `devices` processes.

    With one process the stage is called here. With several it runs under torchrun: forked processes would fail in a
    notebook that has touched CUDA. An interrupt stops all of them; their failure raises.

    Args:
        verb: train_labeler, label, warm_up or finetune.
        start: of finetune: warmup, labeler or scratch.
        source: the finished run to start from, instead of the one that `config` means: a labeler for label, labels for
            warm_up, a warm-up or labeler for finetune.
        parts: of finetune, what is copied from the source.
    """
    if verb not in VERBS:
        raise ValueError(f"stage {verb!r} is not known; use one of: {', '.join(VERBS)}")
    options = arguments(verb, start=start, source=source, parts=parts)
    if devices > 1:
        _torchrun(verb, config, devices, start, source, parts)
    return VERBS[verb](config, existing=devices > 1, **options)


def arguments(verb: str, *, start: str, source: Run | None, parts: tuple[str, ...]) -> dict:
    """What the function of a stage, `VERBS[verb]`, is to be called with beside its configuration."""
    options = {"start": start, "parts": parts} if verb == "finetune" else {}
    if source is None:
        return options
    if verb not in SOURCES:
        raise ConfigError(f"input={source.id!r}: {verb} starts from no run; leave it out")
    return options | {SOURCES[verb]: source}


def _torchrun(verb: str, config: Config, devices: int, start: str, source: Run | None, parts: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(to_json(config)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={devices}"]
        # Without the "--" torchrun takes --start for the beginning of an option of its own.
        command += ["-m", "--", "cassl_lib", "run", verb, "--config", str(file), "--start", start]
        command += ["--input", str(source.folder)] if source else []
        command += ["--parts", *parts]
        _stream(command)


def _stream(command: list[str]) -> None:
    """Run a command and print its lines as they come; an interrupt here stops it and its children."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, start_new_session=True
    )
    tail: list[str] = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            tail = [*tail[-100:], line]  # torchrun itself says 40 lines about a failure
    except BaseException:
        process.send_signal(signal.SIGTERM)  # torchrun passes it on to every process
        try:
            process.wait(timeout=60)  # torchrun itself kills after 30 seconds
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.wait():
        raise LaunchError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(tail)}")
