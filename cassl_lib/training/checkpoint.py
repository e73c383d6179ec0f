"""Checkpoints: everything a run needs to resume, saved so that a killed run ends with the same bits as another.

`checkpoint.pt` holds model, optimizer and progress, and the random state and the procedure's state of every process.
`checkpoint.previous.pt` is the one before it, used when the newest is damaged. `best-STEP.pt` holds the weights of the
best evaluation so far. Each carries a checksum, see `sealed.py`.
"""

from __future__ import annotations

import io
import logging
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cassl_lib.errors import CheckpointError
from cassl_lib.runs import Run
from cassl_lib.training import distributed, sealed
from cassl_lib.training.procedure import Procedure

NEEDED = {"model", "optimizer", "random", "step"}  # of a checkpoint of any version

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # finished steps
    seconds: float = 0.0  # over all parts of an interrupted run
    unreadable: set[str] = field(default_factory=set)  # names of the images that were skipped
    evaluated: int = 0  # the last step after which the model was evaluated
    best_step: int | None = None  # the one with the highest value, which is
    best_value: float | None = None
    saved_best_step: int | None = None  # best_step of the newest checkpoint


def save(run: Run, procedure: Procedure, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint and keep the one before it. Every process calls this; the first one writes.

    Raises:
        DiskFull: the checkpoints are as before.
    """
    rank, world = distributed.rank_and_world()
    # Collect what differs between the processes
    progress.unreadable = set().union(*distributed.of_all_processes(progress.unreadable, world))
    random_states = distributed.of_all_processes(random_state(), world)
    procedure_states = _in_first_process(_packed(procedure.state_dict()), rank, world)
    if rank:
        return
    # Write a new file; then the newest becomes the previous one, and this the newest
    before, progress.saved_best_step = progress.saved_best_step, progress.best_step
    whole = {"model": procedure.model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_states}
    whole |= {"procedure": procedure_states, **asdict(progress), "unreadable": sorted(progress.unreadable)}
    sealed.write(run.checkpoint, whole, keeping=run.previous_checkpoint)
    # Until now an older checkpoint could have needed them
    needed = {_best_file(run, progress.best_step), _best_file(run, before)}
    for outdated in set(run.folder.glob("best-*.pt")) - needed:
        outdated.unlink()


def resume(run: Run, procedure: Procedure, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore the run's newest intact checkpoint in place, random states included; without one, start at step 0.

    Log lines after the checkpoint are dropped. A run that resumes on another number of processes is not bit for bit
    the same: it keeps its present random states.

    Raises:
        CheckpointError: all checkpoints are damaged, or they do not fit the model.
    """
    rank, world = distributed.rank_and_world()
    file, saved = _newest_intact(run, rank)
    if file is None:
        if rank == 0:
            run.forget_log_after(-1)
        return Progress()
    saved = saved or sealed.read(file)
    try:
        procedure.model.load_state_dict(saved["model"])
        _load_optimizer(optimizer, saved["optimizer"])
        if states := saved.get("procedure"):  # checkpoints of version 0.1.0 have none
            procedure.load_state_dict(_unpacked(states[rank if len(states) == world else 0]))
        if len(saved["random"]) == world:
            set_random_state(saved["random"][rank])
        known = {
            each.name: saved[each.name] for each in fields(Progress) if each.name in saved
        }  # older ones have fewer
        progress = Progress(**known | {"unreadable": set(saved.get("unreadable", ()))})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not fit this run: {sealed.first_line(error)} {_start_over(run)}") from error
    if rank == 0:
        run.forget_log_after(progress.step)
        logger.info("%s: resuming at step %d", run.id, progress.step)
    return progress


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restore an optimizer; settings of its groups that an earlier version did not save stay as they are."""
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, before, strict=True):
        for name, value in own.items():
            group.setdefault(name, value)


def keep_best(run: Run, model: nn.Module, step: int) -> None:
    """Write the weights of the best step so far. Those before it are deleted by later checkpoints, which know it."""
    sealed.write(_best_file(run, step), model.state_dict())


def best_weights(run: Run, step: int) -> dict:
    """The state dict of the best step, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = _best_file(run, step)
    try:
        return sealed.read(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing. {_start_over(run)}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_start_over(run)}") from error


def _newest_intact(run: Run, rank: int) -> tuple[Path | None, dict | None]:
    """The checkpoint to resume from, None to start; its content too in the first process, which decides for all.

    Raises:
        CheckpointError: in all processes, if there are checkpoints and none is intact.
    """
    chosen, saved, problem = None, None, None
    for file in (run.checkpoint, run.previous_checkpoint) if rank == 0 else ():
        try:
            chosen, saved = file, _read_whole(file)
            break
        except FileNotFoundError:
            chosen = None
        except CheckpointError as error:
            chosen, problem = None, problem or str(error)
    if problem and chosen:
        logger.warning("%s; resuming from the one before it, %s", problem, chosen)
        run.checkpoint.unlink()  # or the next checkpoint would make it the previous one
    if problem and not chosen:
        problem += f". {_start_over(run)}"
    chosen, problem = distributed.of_first_process((chosen, problem))
    if problem and not chosen:
        raise CheckpointError(problem)
    return chosen, saved


def _read_whole(file: Path) -> dict:
    saved = sealed.read(file)
    if lacking := NEEDED - saved.keys():
        raise CheckpointError(f"{file} is damaged: it lacks {', '.join(sorted(lacking))}")
    return saved


def _start_over(run: Run) -> str:
    """The remedy if nothing can be resumed from."""
    return f"Delete {run.checkpoint} and {run.previous_checkpoint.name} to start this run over."


def _best_file(run: Run, step: int | None) -> Path:
    return run.folder / f"best-{step}.pt"


def _in_first_process(value: torch.Tensor, rank: int, world: int) -> list[torch.Tensor] | None:
    """The values of all processes by rank, in the first process only: a teacher is large."""
    if world == 1:
        return [value]
    values = [None] * world if rank == 0 else None
    dist.gather_object(value, values)
    return values


def _packed(state: dict) -> torch.Tensor:
    """As bytes, since a CUDA tensor would arrive in the first process on the GPU that it left: (B,) uint8."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _unpacked(state: torch.Tensor | bytes) -> dict:
    """What was packed; checkpoints of version 0.1.0 have bytes."""
    data = state if isinstance(state, bytes) else state.numpy().tobytes()
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def random_state() -> dict:
    """The states of this process's global generators, as tensors and plain types."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Restore what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
