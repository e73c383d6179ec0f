"""From requests to runs: the one place that finds a run, resumes it, or makes it and what it starts from."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch.distributed as dist

from cassl_lib.errors import CasslError, MissingRun
from cassl_lib.files import where_writable
from cassl_lib.runs import Run, open_run, run_of
from cassl_lib.stages import checks, launch
from cassl_lib.stages import pseudo_labels as labels_stage
from cassl_lib.stages.finetune import finetune
from cassl_lib.stages.identity import identity
from cassl_lib.stages.pseudo_labeler import pseudo_labeler
from cassl_lib.stages.pseudo_labels import pseudo_labels
from cassl_lib.stages.registry import STAGES
from cassl_lib.stages.requests import Request
from cassl_lib.stages.warmup import warmup
from cassl_lib.training.distributed import rank_and_world

logger = logging.getLogger(__name__)

FUNCTIONS: dict[str, Callable[[Request, Run], dict]] = {
    "pseudo_labeler": pseudo_labeler,
    "pseudo_labels": pseudo_labels,
    "warmup": warmup,
    "finetune": finetune,
}
SHARED = {"pseudo_labels": labels_stage.label}  # work that any number of processes share before the stage's function
INTACT = {"pseudo_labels": labels_stage.intact}  # whether the shared work of a finished run is still whole


def find(request: Request) -> Run | None:
    """The finished run of a request; None if it, or one that it starts from, is missing.

    Raises:
        DataError: data that decide the run's name cannot be read.
    """
    ready = request.with_runs(find)
    if ready is None:
        return None
    run = located(ready)
    return run if whole(run) else None


def find_all(requests: Iterable[Request]) -> dict[Request, Run | None]:
    """The finished runs of many requests, each looked up once; None if one is missing or its data cannot be read.

    Args:
        requests: each after those that it starts from, as `requests.with_inputs` orders them.
    """
    found: dict[Request, Run | None] = {}
    for request in requests:
        ready = request.with_runs(found.get)
        found[request] = find_quietly(ready) if ready else None
    return found


def find_quietly(request: Request) -> Run | None:
    """As `find`, but None too where the data that decide the run's name cannot be read: making it will say why."""
    try:
        return find(request)
    except (CasslError, OSError):
        return None


def require(request: Request) -> Run:
    """The finished run of a request.

    Raises:
        MissingRun: it, or one that it starts from, is missing; the message holds the command that makes it.
    """
    ready = request.with_runs(require)
    run = located(ready)
    if whole(run):
        return run
    raise _missing(ready, run)


def obtain(request: Request, *, devices: int = 1) -> Run:
    """The finished run of a request: found, resumed, or made, after the runs that it starts from.

    Args:
        devices: processes that make a missing run, under torchrun if more than one.

    Raises:
        MissingRun: an input is missing and the profile does not make inputs on the way (`config.make_inputs`); the
            message holds the command that makes it.
    """
    make_input = partial(obtain, devices=devices) if request.config.make_inputs else require
    return make(request.with_runs(make_input), devices=devices)


def make(request: Request, *, devices: int = 1) -> Run:
    """The finished run of a request whose inputs are finished runs: found, resumed, or made."""
    asked = identity(request)  # once: it reads data, and for a pool of folders lists every file
    run, (rank, world) = run_of(asked), rank_and_world()
    finished = whole(run)
    if finished and world == 1:  # several processes decide together whether there is work, see `_alone`
        return run
    if world == 1:
        checks.check_data(request)
    if devices > 1:
        launch.torchrun(request, devices)
        return require(request)
    open_run(asked)
    if not run.finished:
        run.keep_config(request.config)
    if request.stage in SHARED and not finished:
        SHARED[request.stage](request, run)
    with _alone(run) as unfinished:
        if unfinished:
            result = FUNCTIONS[request.stage](request, run)
            if rank == 0:
                run.finish(result)
                _name_unreadable(run, result)
        if dist.is_initialized():
            dist.barrier()
    return run


def _name_unreadable(run: Run, result: Mapping[str, Any]) -> None:
    """Log how many images of a finished run could not be used, and one of them."""
    lost = [*result.get("unreadable", ()), *result.get("unreadable_validation", ())]
    if lost:
        logger.warning("%s: images that could not be used: %s, e.g. %s", run.id, f"{len(lost):,}", lost[0])


def located(request: Request) -> Run:
    """The run of a request whose inputs are runs, finished or not; nothing is written."""
    return run_of(identity(request))


def whole(run: Run) -> bool:
    """Whether a run is finished and nothing of it was lost since."""
    return run.finished and INTACT.get(run.stage, lambda _: True)(run)


def _missing(request: Request, run: Run) -> MissingRun:
    """The error with the command that makes exactly this run, from inputs that are there."""
    if not run.finished or not (run.folder / "config.json").exists():
        with where_writable(run.folder):
            open_run(identity(request)).keep_config(request.config)
    words = ["run", request.stage, "--config", str(run.folder / "config.json"), *launch.options(request)]
    state = "damaged" if run.finished else "missing"
    command = f"python -m cassl_lib {shlex.join(words)}"
    title = STAGES[request.stage].title
    return MissingRun(
        f"the {title} run {run.id} is {state}; make it with\n    {command}\n(--devices N for N processes)"
    )


@contextlib.contextmanager
def _alone(run: Run):
    """Hold the run's lock in the first process; yields, in every process, whether the run still has to be made."""
    rank, world = rank_and_world()
    with run.lock() if rank == 0 else contextlib.nullcontext():
        unfinished = [not run.finished]
        if world > 1:
            dist.broadcast_object_list(unfinished)
        yield unfinished[0]
