"""Checkpoints: everything a run needs to resume, saved so that a killed run ends with the same bits as another.

`checkpoint.pt` holds model, optimizer and progress, and the random state and the procedure's state of every process.
`best-STEP.pt`, beside it, holds the weights of the best evaluation so far.
"""

from __future__ import annotations

import io
import logging
import os
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cassl_lib.files import write_atomically
from cassl_lib.runs import Run
from cassl_lib.training import distributed
from cassl_lib.training.procedure import Procedure

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


def save(run: Run, procedure: Procedure, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Replace the run's checkpoint atomically. Every process calls this; the first one writes."""
    rank, world = distributed.rank_and_world()
    # Collect what differs between the processes
    progress.unreadable = set().union(*distributed.of_all_processes(progress.unreadable, world))
    random_states = distributed.of_all_processes(random_state(), world)
    procedure_states = _in_first_process(_packed(procedure.state_dict()), rank, world)
    if rank:
        return
    # Write a new file and move it into place
    whole = {"model": procedure.model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_states}
    whole |= {"procedure": procedure_states, **asdict(progress)}
    temporary = run.checkpoint.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(whole, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run.checkpoint)
    # Until now an older checkpoint could have needed them
    for outdated in set(run.folder.glob("best-*.pt")) - {_best_file(run, progress.best_step)}:
        outdated.unlink()


def resume(run: Run, procedure: Procedure, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore the run's checkpoint in place, random states included; without one, start at step 0.

    Log lines after the checkpoint are dropped. A run that resumes on another number of processes is not bit for bit
    the same: it keeps its present random states.
    """
    rank, world = distributed.rank_and_world()
    if not run.checkpoint.exists():
        if rank == 0:
            run.forget_log_after(-1)
        return Progress()
    saved = torch.load(run.checkpoint, map_location="cpu", weights_only=False)
    procedure.model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if states := saved.get("procedure"):  # checkpoints of version 0.1.0 have none
        procedure.load_state_dict(_unpacked(states[rank if len(states) == world else 0]))
    if len(saved["random"]) == world:
        set_random_state(saved["random"][rank])
    if rank == 0:
        run.forget_log_after(saved["step"])
        logger.info("%s: resuming at step %d", run.id, saved["step"])
    known = [each.name for each in fields(Progress) if each.name in saved]  # older checkpoints have fewer
    return Progress(**{name: saved[name] for name in known})


def keep_best(run: Run, model: nn.Module, step: int) -> None:
    """Write the weights of the best step so far. Those before it are deleted by the next checkpoint, which knows it."""
    write_atomically(_best_file(run, step), _packed(model.state_dict()))


def best_weights(run: Run, step: int) -> dict:
    """The state dict of the best step, on the CPU."""
    return torch.load(_best_file(run, step), map_location="cpu")


def _best_file(run: Run, step: int | None) -> Path:
    return run.folder / f"best-{step}.pt"


def _in_first_process(value: bytes, rank: int, world: int) -> list[bytes] | None:
    """The values of all processes by rank, in the first process only: a teacher is large."""
    if world == 1:
        return [value]
    values = [b""] * world if rank == 0 else None
    dist.gather_object(value, values)
    return values


def _packed(state: dict) -> bytes:
    """As bytes, since a CUDA tensor would arrive in the first process on the GPU that it left."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _unpacked(state: bytes) -> dict:
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=False)


def random_state() -> dict:
    """The states of this process's global generators."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
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
