"""Checkpoints: everything a run needs to resume, saved so that a killed run ends with the same bits as another.

`checkpoint.pt` holds model, optimizer and progress, and the random state and the procedure's state of every process.
"""

from __future__ import annotations

import io
import logging
import os
import random
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.distributed as dist

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


def save(run: Run, procedure: Procedure, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Replace the run's checkpoint atomically. Every process calls this; the first one writes."""
    rank, world = distributed.rank_and_world()
    # Collect what differs between the processes
    progress.unreadable = set().union(*distributed.of_all_processes(progress.unreadable, world))
    random_states = distributed.of_all_processes(_random_state(), world)
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
        _set_random_state(saved["random"][rank])
    if rank == 0:
        run.forget_log_after(saved["step"])
        logger.info("%s: resuming at step %d", run.id, saved["step"])
    return Progress(step=saved["step"], seconds=saved["seconds"], unreadable=saved["unreadable"])


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


def _random_state() -> dict:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
