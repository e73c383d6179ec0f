"""The runs of the paper's tables: which are there, making those that are missing, collecting their numbers.

A run that fails takes no other with it: those that start from it are left out, all others go on. Stopped at any moment,
the same command goes on where it was. Several processes, on one machine or many, share the work by the run store alone:
each begins what no other works on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import TRAINED_BY, Config
from cassl_lib.data.processes import cores
from cassl_lib.errors import DataError, MissingRun, PseudoLabelError
from cassl_lib.files import locked, write_atomically
from cassl_lib.resolve import to_json
from cassl_lib.runs import Run, environment
from cassl_lib.stages.launch import VERBS, arguments
from cassl_lib.tables.definitions import ROWS, Row, Want, variation, wants
from cassl_lib.training import engine

NO_SOURCE = "the run that it starts from could not be made"


@dataclass
class Found:
    """The finished runs among those that rows want, by the wants' keys."""

    runs: dict[tuple, Run | None]

    def __getitem__(self, want: Want) -> Run | None:
        return self.runs[want.key]

    def source(self, want: Want) -> Run | None:
        """The run that a want starts from; None where it starts from none, or that is missing."""
        return self[want.source] if want.source else None


def find(all_wants: Sequence[Want]) -> Found:
    """Look for every want's run; a want whose source is missing is missing too. Wants come after their sources."""
    found = Found({})
    for want in all_wants:
        source = found.source(want)
        lacking = want.source is not None and source is None
        found.runs[want.key] = None if lacking else _existing(want, source)
    return found


def _existing(want: Want, source: Run | None) -> Run | None:
    run = _look(want, source)
    return run if run and run.finished else None


def _begun(want: Want, source: Run | None) -> Run | None:
    run = _look(want, source)
    return None if run is None or run.finished else run


def _look(want: Want, source: Run | None) -> Run | None:
    """The run of a want, finished or not; None where that cannot be said: the attempt to make it will say why."""
    try:
        return stage(want, source, existing=True)
    except MissingRun as missing:
        return missing.run
    except (DataError, OSError, PseudoLabelError):
        return None


def stage(want: Want, source: Run | None, *, existing: bool) -> Run:
    """The stage of a want, from the run of its source."""
    options = arguments(want.verb, start=want.start, source=source, parts=want.parts)
    return VERBS[want.verb](want.config, existing=existing, **options)


def command(want: Want, source: Run | None, file: Path, *, devices: int) -> list[str]:
    """The shell's words for it; the configuration is in `file`."""
    words = [sys.executable, "-m", "cassl_lib", "run", want.verb, "--config", str(file), "--devices", str(devices)]
    if source:
        words += ["--input", str(source.folder)]
    if want.verb == "finetune":
        words += ["--start", want.start, "--parts", *want.parts]
    return words


@dataclass
class Failure:
    """A run that could not be made, with the end of what its process said."""

    want: Want
    reason: str


def make(all_wants: Sequence[Want], *, jobs: int = 1, devices: int = 1, apart: bool = True) -> list[Failure]:
    """Make every run that is missing, each as soon as its source is there, at most `jobs` at a time.

    Args:
        apart: each run in a process of its own, whose messages go to `runs/tables/log.txt`. False, for one job on one
            device, makes them in this process, with their bars: a notebook's way, and faster for short runs.
    """
    found = find(all_wants)
    todo = [want for want in all_wants if found[want] is None]
    print(f"{len(all_wants)} runs are wanted, {len(all_wants) - len(todo)} are there", file=sys.stderr, flush=True)
    if apart or jobs > 1 or devices > 1:
        return _make_apart(todo, found, jobs, devices)
    failures: list[Failure] = []
    while picked := _pick(todo, found, wait=True):
        want, claim = picked
        with claim:
            _take(_make_here(want, found.source(want)), want, found, failures)
    return failures + [Failure(want, NO_SOURCE) for want in todo]


def _make_apart(todo: list[Want], found: Found, jobs: int, devices: int) -> list[Failure]:
    failures, running, started = [], {}, time.monotonic()
    with ThreadPoolExecutor(jobs) as threads:
        while todo or running:
            while len(running) < jobs and (picked := _pick(todo, found, wait=not running)):
                want, claim = picked
                future = threads.submit(_make, want, found.source(want), jobs, devices)
                running[future] = want, claim
            if not running:  # what is left starts from a run that failed
                failures += [Failure(want, NO_SOURCE) for want in todo]
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                want, claim = running.pop(future)
                with claim:
                    _take(future.result(), want, found, failures)
                left = len(todo) + len(running)
                print(f"  {left} left, {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr, flush=True)
    return failures


def _pick(todo: list[Want], found: Found, *, wait: bool) -> tuple[Want, contextlib.ExitStack] | None:
    """Take the next want whose source is there out of `todo`, with the claim on it, to be closed when it is made.

    Those that another process makes are passed over. None where none is ready, or without `wait` none is free.
    """
    ready = [want for want in todo if want.source is None or found.source(want)]
    attempts = [(want, False) for want in ready] + [(want, True) for want in ready[:1] if wait]
    for want, waiting in attempts:
        claim = contextlib.ExitStack()
        if claim.enter_context(_claimed(want, found.source(want), wait=waiting)):
            todo.remove(want)
            return want, claim
        claim.close()
    return None


@contextlib.contextmanager
def _claimed(want: Want, source: Run | None, *, wait: bool):
    """Hold a want against other processes that make tables; yields whether it is held. All may label at once."""
    run = None if want.verb == "label" else _begun(want, source)
    if run is None:
        yield True
        return
    with locked(_folder() / f"{run.id}.claim", wait=wait) as held:
        yield held


def _folder() -> Path:
    folder = paths.runs() / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _take(outcome: tuple[int, str], want: Want, found: Found, failures: list[Failure]) -> None:
    """Note the run that a process has made, or why it has not."""
    code, tail = outcome
    found.runs[want.key] = _existing(want, found.source(want)) if code == 0 else None
    if found[want] is None:
        failures.append(Failure(want, tail or f"its process ended with {code}"))
    run = found[want].id if found[want] else f"FAILED: {failures[-1].reason.splitlines()[-1]}"
    print(f"{want.verb}: {variation(want)}\n  {run}", file=sys.stderr, flush=True)


def _make(want: Want, source: Run | None, jobs: int, devices: int) -> tuple[int, str]:
    """Run the process of a want; returns its exit status and the end of what it said."""
    if _existing(want, source):  # another process has made it in the meantime
        return 0, ""
    file = _folder() / f"{hashlib.sha256(repr(want.key).encode()).hexdigest()[:12]}.json"
    write_atomically(file, json.dumps(to_json(want.config)).encode())
    words = command(want, source, file, devices=devices)
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))} if jobs > 1 else {}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | threads)
    with (_folder() / "log.txt").open("a") as log:
        log.write(f"$ {shlex.join(words)}\n{done.stdout}{done.stderr}\n")
    return done.returncode, "\n".join(done.stderr.splitlines()[-3:])


def _make_here(want: Want, source: Run | None) -> tuple[int, str]:
    """The same in this process: any error is the run's alone."""
    try:
        stage(want, source, existing=False)
    except Exception as error:
        return 1, "".join(traceback.format_exception_only(error)).strip()
    return 0, ""


def collect(table: int, config: Config, seeds: Sequence[int]) -> dict:
    """The numbers of a table as they are: None where a run is missing or has no such number.

    Returns:
        `table`, `profile`, `rows`: by row, column and seed a number between 0 and 1 or None; `runs`: by seed what was
        used, with seconds, hardware, date and commit; `config`; `environment`.
    """
    whole: dict = {"table": table, "profile": config.profile, "seeds": list(seeds), "rows": {}, "runs": {}}
    for seed in seeds:
        rows = ROWS[table](replace(config, seed=seed))
        needed = wants(rows)
        found = find(needed)
        for row in rows:
            cells = whole["rows"].setdefault(row.name, {})
            for column, cell in row.cells.items():
                cells.setdefault(column, {})[str(seed)] = number(found[cell.want], cell.kind, cell.number)
        whole["runs"][str(seed)] = {found[want].id: _facts(want, found[want]) for want in needed if found[want]}
    return whole | {"config": to_json(config), "environment": environment()}


def number(run: Run | None, kind: str, name: str) -> float | None:
    """A metric of a run, None where there is none; COCO's -1 is none."""
    value = run.result["metrics"].get(kind, {}).get(name) if run else None
    return None if value is None or value < 0 else value


def _facts(want: Want, run: Run) -> dict:
    """What a run is, and what it took; of labels also how good they are, where their images have a hidden truth."""
    result = run.result
    kept = {name: result["environment"][name] for name in ("device", "threads", "torch", "date", "commit")}
    facts = {"stage": result["stage"], "what": variation(want), "steps": result.get("steps")}
    if want.verb == "label":
        numbers = {name: value for name, value in result["metrics"].items() if isinstance(value, (int, float))}
        facts["labels"] = numbers | {"images": result["images"]}
    return facts | {"seconds": round(result["seconds"], 1), **kept}


def work_of(want: Want, images: Mapping[str, int]) -> int:
    """Training steps of a want, or the images it labels.

    Args:
        images: numbers of labeled, pool and warmup, as `plan.look` counts them.
    """
    if want.verb == "label":
        return images["pool"]
    config = want.config
    over = {"labeler": images["labeled"], "warmup": images["warmup"], "finetune": images["labeled"]}
    own = TRAINED_BY[want.verb]
    stages = (own, "warmup") if want.verb == "finetune" and want.start == "scratch" else (own,)
    return sum(engine.number_of_steps(getattr(config, name), over[name]) for name in stages)


def rows_of(table: int, config: Config, seeds: Sequence[int]) -> list[Row]:
    """The rows of all seeds, one after the other."""
    return [row for seed in seeds for row in ROWS[table](replace(config, seed=seed))]
