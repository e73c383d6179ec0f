"""The processes of one torchrun launch: device, rank, seed, and what they exchange."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cassl_lib import deadline, lifeline
from cassl_lib.training.procedure import Batch, Procedure

STEPS_BETWEEN = 8  # of asking for the deadline: a transfer, and on a GPU it waits for the step
PATIENCE = datetime.timedelta(hours=24)  # the first process evaluates alone, and some shards take longer to label


@contextlib.contextmanager
def processes():
    """Join the process group of a torchrun launch, and end when torchrun dies; does nothing in a single process."""
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if launched:
        lifeline.follow_parent()
    if launched and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device_of_process())
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        if launched:
            dist.destroy_process_group()


def device_of_process() -> torch.device:
    """The CUDA device of this process (its local rank under torchrun), or the CPU without CUDA."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) for a single process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def past_deadline(step: int, device: torch.device) -> bool:
    """Whether the deadline has passed, the same answer in all processes. They ask each other every few steps."""
    if not deadline.in_force():
        return False
    if rank_and_world()[1] == 1:
        return deadline.passed()
    if step % STEPS_BETWEEN:
        return False
    answer = torch.tensor(float(deadline.passed()), device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, and ask cuDNN for repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False


class Losses(nn.Module):
    """A procedure's losses as a module, because DistributedDataParallel synchronizes what happens in a forward pass.

    `procedure.model` is the only submodule: other modules of the procedure must not be trained or synchronized.
    """

    def __init__(self, procedure: Procedure):
        super().__init__()
        self.model = procedure.model
        self.losses = procedure.losses  # the method, since a procedure that is a module would become a submodule

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.losses(batch, step)


def parallel(procedure: Procedure, device: torch.device) -> nn.Module:
    """A procedure's losses, with gradients averaged over the processes where there are several."""
    losses = Losses(procedure)
    if rank_and_world()[1] == 1:
        return losses
    ids = [device.index] if device.type == "cuda" else None
    # Buffers are not broadcast, which would keep the first process's alone: the loop averages them after each step.
    return DistributedDataParallel(losses, device_ids=ids, broadcast_buffers=False)


def of_all_processes(value, world: int) -> list:
    """The values of all processes, by rank."""
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values


def of_first_process(value):
    """The value of the first process, in all of them."""
    values = [value]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(values)
    return values[0]


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Average the float buffers of a model over all processes, in place, so that they are equal in all of them.

    Gradients keep the parameters equal, but each process updates BatchNorm's running statistics from its own images.
    """
    world = rank_and_world()[1]
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if world == 1 or not buffers:
        return
    # One transfer for all of them. In float64, where a sum of equal float32 values is exact: constants stay constant.
    joined = torch.cat([buffer.double().flatten() for buffer in buffers])
    dist.all_reduce(joined)
    joined /= world
    for buffer, mean in zip(buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view(buffer.shape))


def quiet(rank: int) -> bool | None:
    """tqdm's `disable`: progress bars are shown only on rank 0, and only in a notebook or a terminal."""
    if rank:
        return True
    return False if "ipykernel" in sys.modules else None  # None: tqdm shows a bar if stderr is a terminal
