"""The run store: the name of a run, who works on it, what it leaves behind, and how it resumes after a crash.

A run is a folder `<stage>-<identity>`. The identity is a hash of everything that decides the result (see
`stages/identity.py`), so the same request always leads to the same folder.

    request.json        what decides the result, as it was hashed
    config.json         the whole configuration
    log.jsonl           one line per logged step
    checkpoint.pt       the newest training state, replaced atomically; checkpoint.previous.pt is the one before it
    best-STEP.pt        during training, the weights of the best evaluation so far, if those are asked for
    model.safetensors   the weights, with the model's settings as metadata
    result.json         written last: the run is finished when it exists
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import glob
import hashlib
import html
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.errors import MissingRun
from cassl_lib.files import WITHOUT_LOCKS, explained, open_own, say_without_locks, sha256, sweep, write_atomically
from cassl_lib.resolve import read_config, to_json
from cassl_lib.run_files import read_request, read_result

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A folder of the run store; cheap to create, reads from disk on demand."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def stage(self) -> str:
        """The name of the run's stage."""
        return self.id.rpartition("-")[0]

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def result(self) -> dict:
        """What `finish` wrote.

        Raises:
            DataError: result.json is damaged.
        """
        return read_result(self.folder / "result.json")

    @property
    def config(self) -> Config:
        """The configuration that the run was made with.

        Raises:
            ConfigError: config.json is missing or damaged.
        """
        return read_config(self.folder / "config.json", "restore it, or give another run")

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the runs it started from, by stage."""
        return read_request(self.folder / "request.json")["inputs"]

    def held_out_metrics(self, fingerprint: str) -> dict | None:
        """Its metrics on the held-out images of this fingerprint, once they were computed, see `stages/choice.py`."""
        file = self.held_out_file(fingerprint)
        return json.loads(file.read_text()) if file.exists() else None

    def held_out_file(self, fingerprint: str) -> Path:
        return self.folder / f"heldout-{fingerprint}.json"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def store(self) -> Path:
        """The pseudo-label store of a pseudo_labels run."""
        return self.folder / "store"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        return self.folder / "checkpoint.previous.pt"

    @property
    def history(self) -> list[dict]:
        """The logged steps, oldest first, without lines that a crash or a full disk cut short."""
        log, entries = self.folder / "log.jsonl", []
        for line in log.read_text().splitlines() if log.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return entries

    def log(self, entry: dict) -> None:
        """Append a line to the log.

        Raises:
            DiskFull: a line that was cut short is skipped by those who read the log.
        """
        path = self.folder / "log.jsonl"
        with explained(path), open_own(path, "ab+") as file:
            whole = not file.tell() or (file.seek(-1, os.SEEK_END) and file.read(1) == b"\n")
            file.write((b"" if whole else b"\n") + json.dumps(entry).encode() + b"\n")

    def forget_log_after(self, step: int) -> None:
        """Drop log lines after the checkpoint of `step`, and a line that a crash cut short."""
        log = self.folder / "log.jsonl"
        if not log.exists():
            return
        kept = []
        for line in log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        write_atomically(log, "".join(line + "\n" for line in kept).encode())

    @contextlib.contextmanager
    def lock(self):
        """Hold the run; a second process says so and waits. The system frees the lock when its holder dies.

        On a file system without locks nobody waits, which is logged.
        """
        with open_own(self.folder / "lock", "rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode().strip() or "another process"
                logger.info("%s: %s is working on this run; waiting", self.id, holder)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                say_without_locks(self.folder)
            with contextlib.suppress(OSError):  # on a full disk, work may go on without its name
                os.ftruncate(file.fileno(), 0)
                os.pwrite(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode(), 0)
            yield

    def keep_config(self, config: Config) -> None:
        write_atomically(self.folder / "config.json", json.dumps(to_json(config), indent=1).encode())

    def finish(self, result: dict) -> None:
        """Write the result, which marks the run as finished, and delete the training state.

        A detector's result holds the checksum of its weights.
        """
        request = read_request(self.folder / "request.json")
        checksum = {"weights_sha256": sha256(self.weights)} if self.weights.is_file() else {}
        whole = {"run": self.id, **request, **result, **checksum, "environment": environment()}
        write_atomically(self.folder / "result.json", json.dumps(whole, indent=1).encode())
        for state in (self.checkpoint, self.previous_checkpoint, *self.folder.glob("best-*.pt")):
            state.unlink(missing_ok=True)
        sweep(self.folder)

    def __str__(self) -> str:
        """One line: name, amount of work and time, and how many images could not be read."""
        if not self.finished:
            return f"{self.id}: not finished"
        return f"{self.id}: " + ", ".join(f"{value} {name}" for name, value in self.facts().items())

    def facts(self) -> dict[str, str]:
        """Amount of work and time of a finished run, by unit."""
        result = self.result
        facts = {"steps": f"{result['steps']:,}"} if "steps" in result else {}
        facts |= {"images": f"{result['images']:,}", "s": f"{result['seconds']:.0f}"}
        for name, what in (("unreadable", "unreadable images"), ("unreadable_validation", "unreadable val images")):
            if lost := result.get(name):
                facts[f"{what}, e.g. {lost[0]}"] = f"{len(lost)}"
        return facts

    def _repr_html_(self) -> str:
        """The run as a notebook shows it: name, facts, and its AP x 100."""
        line = html.escape(str(self))
        if not self.finished:
            return f"<p>{line}</p>"
        metrics = {kind: numbers for kind, numbers in self.result["metrics"].items() if isinstance(numbers, Mapping)}
        rows = [
            (kind.replace("_", " "), f"{100 * numbers['AP']:.1f}", f"{100 * numbers.get('AP75', -1):.1f}")
            for kind, numbers in metrics.items()
            if numbers.get("AP", -1) >= 0
        ]
        if "panoptic" in metrics:
            rows.append(("panoptic quality", f"PQ {100 * metrics['panoptic']['PQ']:.1f}", ""))
        body = "".join(f"<tr><th>{html.escape(kind)}</th><td>{ap}</td><td>{ap75}</td></tr>" for kind, ap, ap75 in rows)
        table = f"<table><tr><th></th><th>AP</th><th>AP75</th></tr>{body}</table>" if rows else ""
        return f"<p><code>{line}</code></p>{table}"


def run_id(identity: Mapping[str, Any]) -> str:
    """The name of the run with this identity: `<stage>-<hash>`.

    Args:
        identity: JSON data: stage, version, settings, inputs and data, see `stages/identity.py`.
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{identity['stage']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_of(identity: Mapping[str, Any]) -> Run:
    """The run with this identity, whether it exists or not; nothing is written."""
    return Run(paths.runs() / run_id(identity))


def open_run(identity: Mapping[str, Any]) -> Run:
    """The run with this identity, its folder created if needed."""
    run = run_of(identity)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not (run.folder / "request.json").exists():
        write_atomically(run.folder / "request.json", json.dumps(identity, indent=1).encode())
    return run


def find_run(name: str) -> Run:
    """A finished run by its folder, its name in the run store, or a unique prefix of that name.

    Raises:
        MissingRun: there is no such run, it is not finished, or its folder was renamed.
    """
    folder = Path(name).expanduser()
    if not (folder / "request.json").exists():
        matches = sorted(paths.runs().glob(f"{glob.escape(name)}*/result.json")) if name and "/" not in name else []
        if len(matches) != 1:
            problem = f"is ambiguous, it matches {len(matches)} runs" if matches else "is not a run"
            raise MissingRun(
                f"{name!r} {problem}. Finished runs in {paths.runs()}: {', '.join(finished_runs()) or 'none'}"
            )
        folder = matches[0].parent
    run = Run(folder.resolve())
    if not run.finished:
        raise MissingRun(f"{folder} is not finished; run the same command again to resume it")
    if run.folder.parent != paths.runs():  # from elsewhere: runs made from it refer to it by its folder's name
        identity = run_id(read_request(run.folder / "request.json"))
        if identity != run.id:
            raise MissingRun(f"{run.folder} was renamed, its run is {identity}: give the folder this name again")
    return run


def finished_runs() -> list[str]:
    """Names of the finished runs in the store."""
    return sorted(path.parent.name for path in paths.runs().glob("*/result.json"))


def environment() -> dict[str, str]:
    """Where a result was made: versions, hardware, commit, date."""
    import torch
    import torchvision

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    command = ["git", "-C", str(paths.REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
