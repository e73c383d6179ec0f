"""The run store: what a run is called, who works on it, what it leaves behind, and how it goes on after a crash.

A run is a folder `<stage>-<identity>`; the identity is a hash of everything that decides the result: settings, the
identities of the runs it starts from, the fingerprints of its data. So the same request finds the same folder.

    request.json        what was asked for
    log.jsonl           one line per logged step
    checkpoint.pt       the newest training state, replaced atomically
    model.safetensors   the weights, with the settings as metadata
    result.json         written last: the run is finished when it exists
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cassl_lib import paths
from cassl_lib.errors import MissingRun
from cassl_lib.files import WITHOUT_LOCKS, write_atomically


@dataclass(frozen=True)
class Request:
    """All that decides a run's result. `settings` is JSON data; `inputs` and `data` map names to identities."""

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict:
        return {"stage": self.stage, "settings": self.settings, "inputs": self.inputs, "data": self.data}

    @property
    def id(self) -> str:
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return f"{self.stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Run:
    """A folder of the run store; cheap to make, reads from disk when asked."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def result(self) -> dict:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def history(self) -> list[dict]:
        """The logged steps, oldest first, without lines that a crash or a full disk has cut short."""
        log, found = self.folder / "log.jsonl", []
        for line in log.read_text().splitlines() if log.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def log(self, entry: dict) -> None:
        with (self.folder / "log.jsonl").open("ab+") as file:
            whole = not file.tell() or (file.seek(-1, os.SEEK_END) and file.read(1) == b"\n")
            file.write((b"" if whole else b"\n") + json.dumps(entry).encode() + b"\n")

    def forget_log_after(self, step: int) -> None:
        """Drop what was logged after the checkpoint of `step`, and a line that a crash cut short."""
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

        On a file system without locks everybody holds it.
        """
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                print(f"{self.id}: {holder} works on this run; waiting for it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def finish(self, result: dict) -> None:
        """Write the result, which makes the run finished, and drop the training state that nobody needs any more."""
        request = json.loads((self.folder / "request.json").read_text())
        whole = {"run": self.id, **request, **result, "environment": environment()}
        write_atomically(self.folder / "result.json", json.dumps(whole, indent=1).encode())
        self.checkpoint.unlink(missing_ok=True)


def open_run(request: Request) -> Run:
    """The run of this request: finished, begun, or new."""
    run = Run(paths.runs() / request.id)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not (run.folder / "request.json").exists():
        write_atomically(run.folder / "request.json", json.dumps(request.as_json(), indent=1).encode())
    return run


def find_run(name: str) -> Run:
    """A finished run by its folder, its name in the run store, or the beginning of that name."""
    folder = Path(name).expanduser()
    if not (folder / "request.json").exists():
        matches = sorted(paths.runs().glob(f"{name}*/result.json")) if name and "/" not in name else []
        if len(matches) != 1:
            what = "is no run" if not matches else f"names {len(matches)} runs"
            raise MissingRun(f"{name!r} {what}; finished in {paths.runs()}: {', '.join(finished_runs()) or 'none'}")
        folder = matches[0].parent
    run = Run(folder.resolve())
    if not run.finished:
        raise MissingRun(f"{folder} is not finished; run the same command again to continue it")
    if run.folder.parent != paths.runs():  # brought from elsewhere: what is made from it names it by its folder
        asked = json.loads((run.folder / "request.json").read_text())
        if (identity := Request(**asked).id) != run.id:
            raise MissingRun(f"{run.folder} was renamed; its run is {identity}: give the folder this name again")
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
