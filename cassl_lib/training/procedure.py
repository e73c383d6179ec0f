"""What the training loop trains: a procedure turns batches into losses. A plain detector is the default procedure."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """One process's share of a batch, as `data.loader.batches` yields it, or a part of it."""

    images: list[Tensor]  # (3, H, W) RGB, uint8 or float in [0, 1]; sizes may differ
    targets: list[dict[str, Tensor]]  # per image: boxes (N, 4) xyxy pixels, labels (N,), optional masks (N, H, W)
    ids: list[int]  # image ids
    unreadable: list[str]  # names of the images that could not be read and were replaced by others

    def to(self, device: torch.device) -> Batch:
        """The same batch with its images and targets on `device`."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        targets = [
            {key: value.to(device, non_blocking=True) for key, value in target.items()} for target in self.targets
        ]
        return self._replace(images=images, targets=targets)

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` parts: every count-th image, which `count` times as many processes would get."""
        return [
            Batch(self.images[at::count], self.targets[at::count], self.ids[at::count], self.unreadable)
            for at in range(count)
        ]


@runtime_checkable
class Procedure(Protocol):
    """A way to train `model`. `engine.train` calls `losses` and `after_step` at every step of every process.

    The loop optimizes the trainable parameters of `model`, checkpoints it, and restores it. Everything else that
    changes during training (a teacher, a queue) belongs to the procedure and enters its state dict. Such modules are
    not submodules of `model`.

    A killed run resumes bit for bit, on the same number of processes, if the procedure follows two rules:
    - Random numbers come from torch's global generators, which are checkpointed, or are a function of (seed, step).
    - A second loader is a function of the step. Create it at the first call of `losses`, from the step given there
      (`data.loader.Order` takes start, stop, rank and world), and move its batches to the device with `Batch.to`.
    """

    model: nn.Module

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named scalar losses of this process's batch; the loop minimizes their sum.

        Called with `model` in training mode and under autocast. Gradients and logged losses are averaged over the
        processes. So all processes return the same names in the same order, a loss that is divided by a count divides
        by `losses.mean_over_processes(count)`, and every trainable parameter takes part at every step.

        Args:
            batch: images and targets are on the device of `model`. With `TrainConfig.accumulate`, one of the parts of
                the step's batch: there are as many calls per step, and a second loader must yield as many batches.
            step: from 0; the first call after a restart has the step of the checkpoint.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called after the optimizer update of `step`, before its checkpoint. An EMA teacher is updated here.

        Parameters and buffers of `model` are then equal in all processes: BatchNorm's statistics have been averaged.
        """
        ...

    def state_dict(self) -> dict:
        """What this process must keep besides `model`. Called at checkpoints; each process's state is kept apart."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """Restore the state of a checkpoint, before the first call of `losses`.

        A run that resumes on another number of processes gets the first process's state in all of them.

        Args:
            state: as returned by `state_dict`, with all tensors on the CPU.
        """
        ...


class Supervised:
    """The default procedure: the detector's losses on labeled images, and no state besides the model."""

    def __init__(self, model: nn.Module):
        self.model = model

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.model(batch.images, batch.targets)

    def after_step(self, step: int) -> None:
        pass

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass
