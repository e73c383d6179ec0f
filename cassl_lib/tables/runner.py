"""The runs of the paper's tables: which are finished, making the missing ones, collecting their numbers.

If a run fails, only the runs that start from it are skipped. The same command resumes at any time. Several processes,
on one machine or many, coordinate through the run store alone: each starts a run that no other is working on.

With a deadline (`deadline.py`) no run is begun after it, and those in progress stop at a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from cassl_lib import deadline
from cassl_lib.config import Config
from cassl_lib.errors import CasslError, Stopped
from cassl_lib.files import locked
from cassl_lib.resolve import to_json
from cassl_lib.runs import Run, environment
from cassl_lib.stages import choice, graph
from cassl_lib.stages.requests import Request, describe, length
from cassl_lib.tables import archive
from cassl_lib.tables.archive import KeptRun
from cassl_lib.tables.child import folder, make_in_process
from cassl_lib.tables.definitions import ROWS, Cell, Row, requests_of
from cassl_lib.tables.progress import EVERY, StepBar

logger = logging.getLogger(__name__)

NO_INPUT = "the run that it starts from could not be made"
NOT_BEGUN = "not begun before the deadline; rerun the same command"
SECONDS_BETWEEN_TRIES = 1.0  # to claim a run that another process is making, where there is a deadline
FinishedRuns = dict[Request, Run | KeptRun | None]  # the finished run of each request


@dataclass(frozen=True)
class Failure:
    """A run that was not made, with the end of its process's messages."""

    request: Request
    reason: str
    left: bool = False  # it did not fail: the deadline came first


def make(
    requests: Sequence[Request],
    *,
    jobs: int = 1,
    devices: int = 1,
    separate_processes: bool = True,
    minutes: float | None = None,
) -> list[Failure]:
    """Make every run that is missing, each as soon as its input is finished, at most `jobs` at a time.

    Returns:
        The runs that failed, and those that are left because the deadline came first.

    Args:
        requests: those that others start from come first, as of `requests.with_inputs`.
        separate_processes: each run in a process of its own, whose messages go to `runs/tables/log.txt`. False, for one
            job on one device, makes them in this process with their progress bars, as notebooks do; faster for short
            runs.
        minutes: after which work stops at a checkpoint; None for no limit, unless a deadline is in force already.
    """
    with deadline.within(minutes):
        return _make(requests, jobs, devices, separate_processes)


def _make(requests: Sequence[Request], jobs: int, devices: int, separate_processes: bool) -> list[Failure]:
    found = graph.find_all(requests)
    todo = [request for request in requests if found[request] is None]
    logger.info("%d runs are needed, %d are finished", len(requests), len(requests) - len(todo))
    if separate_processes or jobs > 1 or devices > 1:
        return _make_in_processes(todo, found, jobs, devices)
    failures: list[Failure] = []
    while not deadline.passed() and (picked := _pick(todo, found, wait=True)):
        request, claim = picked
        with claim:
            _take(_make_here(request.with_runs(found.get)), request, found, failures)
    return failures + _not_made(todo, failures)


def _make_in_processes(todo: list[Request], found: FinishedRuns, jobs: int, devices: int) -> list[Failure]:
    failures, running, started = [], {}, time.monotonic()
    bar = StepBar(todo, jobs)
    with ThreadPoolExecutor(jobs) as threads, contextlib.closing(bar):
        while todo or running:
            free = jobs - len(running) if not deadline.passed() else 0
            while free and (picked := _pick(todo, found, wait=not running)):
                request, claim = picked
                ready = request.with_runs(found.get)
                running[threads.submit(make_in_process, ready, jobs, devices)] = request, claim, _unfinished(ready)
                free -= 1
            if not running:
                failures += _not_made(todo, failures)
                break
            for future in wait(running, timeout=EVERY, return_when=FIRST_COMPLETED).done:
                request, claim, _ = running.pop(future)
                bar.end(request)
                with claim, bar.above():
                    _take(future.result(), request, found, failures)
                    logger.info("  %d left, %.1f min", len(todo) + len(running), (time.monotonic() - started) / 60)
            bar.show((request, run) for request, _, run in running.values())
    return failures


def _not_made(todo: list[Request], failures: list[Failure]) -> list[Failure]:
    """The runs that were not begun: what they start from failed, or the deadline came first."""
    lost = {failure.request for failure in failures if not failure.left}
    not_made = []
    for request in todo:  # each after those that it starts from
        if any(each in lost for each in request.inputs):
            lost.add(request)
            not_made.append(Failure(request, NO_INPUT))
        else:
            not_made.append(Failure(request, NOT_BEGUN, left=True))
    return not_made


def _pick(todo: list[Request], found: FinishedRuns, *, wait: bool) -> tuple[Request, contextlib.ExitStack] | None:
    """Take the next request whose inputs are finished out of `todo`, with a claim on it, to be closed when it is made.

    Those that another process is making are passed over. None if none can start or, without `wait`, none is free.
    """
    ready = [request for request in todo if request.with_runs(found.get)]
    while True:
        blocking = wait and not deadline.in_force()
        attempts = [(request, False) for request in ready] + [(request, True) for request in ready[:1] if blocking]
        for request, waiting in attempts:
            claim = contextlib.ExitStack()
            if claim.enter_context(_claimed(request.with_runs(found.get), wait=waiting)):
                todo.remove(request)
                return request, claim
            claim.close()
        if not (ready and wait) or deadline.passed():
            return None
        time.sleep(SECONDS_BETWEEN_TRIES)


@contextlib.contextmanager
def _claimed(request: Request, *, wait: bool):
    """Hold a request against other processes that make tables; yields whether it is held. Labeling is shared."""
    run = None if request.stage == "pseudo_labels" else _unfinished(request)
    if run is None:
        yield True
        return
    with locked(folder() / f"{run.id}.claim", wait=wait) as held:
        yield held


def _unfinished(request: Request) -> Run | None:
    """Where the run of a request will be; None if it is finished, or if its data cannot be read."""
    try:
        run = graph.located(request)
    except (CasslError, OSError):  # the attempt to make it will say why
        return None
    return None if run.finished else run


def _take(outcome: tuple[int, str], request: Request, found: FinishedRuns, failures: list[Failure]) -> None:
    """Note the run that was made, or why it was not."""
    code, tail = outcome
    found[request] = run = graph.find_quietly(request.with_runs(found.get)) if code == 0 else None
    left = code == deadline.STATUS
    if run is None:
        failures.append(Failure(request, tail or f"its process exited with status {code}", left=left))
    state = run.id if run else f"{'left' if left else 'FAILED'}: {failures[-1].reason.splitlines()[-1]}"
    logger.info("%s: %s\n  %s", request.title, describe(request), state)


def _make_here(request: Request) -> tuple[int, str]:
    """The same in this process; an error is this run's alone."""
    try:
        graph.make(request)
    except Stopped as stopped:
        return deadline.STATUS, str(stopped)
    except Exception as error:
        return 1, "".join(traceback.format_exception_only(error)).strip()
    return 0, ""


def collect(table: int | str, config: Config, seeds: Sequence[int], *, kept: bool = False) -> dict:
    """The numbers of a table: None where a run is missing or has no such number.

    Args:
        kept: take numbers of missing runs from `reports/results/`, where they were kept, see `archive.py`.

    Returns:
        `table`, `profile`, `seeds`, `rows`: by row, column and seed a number between 0 and 1 or None; `lengths`: of
        cells that several lengths compete for, by steps and seed the number on the reported images, and the steps
        `chosen` on held-out images; `runs`: by seed the runs used, with seconds, hardware, date and commit; `config`;
        `environment`.
    """
    whole: dict = {"table": table, "profile": config.profile, "seeds": list(seeds)}
    whole |= {"rows": {}, "lengths": {}, "runs": {}}
    for seed in seeds:
        rows = ROWS[table](replace(config, seed=seed))
        found = find_all(requests_of(rows), config.profile, kept=kept)
        for row in rows:
            cells = whole["rows"].setdefault(row.name, {})
            for column, cell in row.cells.items():
                best = _best(cell, found)
                cells.setdefault(column, {})[str(seed)] = number(best, cell.kind, cell.number)
                if cell.longer and cell.number in ("AP", "PQ"):
                    _add_lengths(whole["lengths"], cell, found, best, name=f"{row.name}, {column}", seed=str(seed))
        whole["runs"][str(seed)] = {run.id: _facts(request, run) for request, run in found.items() if run}
    return whole | {"config": to_json(config), "environment": environment()}


def find_all(requests: Sequence[Request], profile: str, *, kept: bool) -> FinishedRuns:
    """The finished run of each request; with `kept`, a run that was kept stands in for one that is missing."""
    return archive.find_all(requests, profile) if kept else graph.find_all(requests)


def _best(cell: Cell, found: FinishedRuns) -> Run | KeptRun | None:
    """The run that counts for a cell; None if runs are missing, or if the deadline came before it was chosen."""
    try:
        return choice.best_of([found[each] for each in cell.candidates], cell.request.config)
    except Stopped:
        return None


def undecided(collected: dict) -> bool:
    """Whether the deadline came before the best of several finished lengths was chosen."""
    curves = collected["lengths"].values()
    return any(
        chosen is None and all(numbers.get(seed) is not None for numbers in curve["steps"].values())
        for curve in curves
        for seed, chosen in curve["chosen"].items()
    )


def _add_lengths(
    lengths: dict, cell: Cell, found: FinishedRuns, best: Run | KeptRun | None, *, name: str, seed: str
) -> None:
    """The curve of a cell over the lengths that compete for it."""
    curve = lengths.setdefault(name, {"steps": {}, "chosen": {}})
    for request in cell.candidates:
        run = found[request]
        steps = str(run.result["steps"]) if run else length(request.config.finetune)
        curve["steps"].setdefault(steps, {})[seed] = number(run, cell.kind, cell.number)
    curve["chosen"][seed] = str(best.result["steps"]) if best else None


def number(run: Run | KeptRun | None, kind: str, name: str) -> float | None:
    """A metric of a run; None where there is none, or COCO's -1."""
    value = run.result["metrics"].get(kind, {}).get(name) if run else None
    return None if value is None or value < 0 else value


def _facts(request: Request, run: Run | KeptRun) -> dict:
    """What a run is and what it took; of pseudo labels also their quality, where the pool has hidden ground truth."""
    result = run.result
    facts = {"stage": result["stage"], "what": describe(request), "steps": result.get("steps")}
    if request.stage == "pseudo_labels":
        numbers = {name: value for name, value in result["metrics"].items() if isinstance(value, (int, float))}
        facts["labels"] = numbers | {"images": result["images"]}
    where = {name: result["environment"][name] for name in ("device", "threads", "torch", "date", "commit")}
    return facts | {"seconds": round(result["seconds"], 1), **where}


def rows_of(table: int | str, config: Config, seeds: Sequence[int]) -> list[Row]:
    """The rows of all seeds, one seed after the other."""
    return [row for seed in seeds for row in ROWS[table](replace(config, seed=seed))]
