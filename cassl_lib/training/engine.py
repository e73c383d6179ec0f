"""The one training loop and the one test loop. Stages and methods differ by what they pass in, never by their loop."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cassl_lib import deadline
from cassl_lib.config import TrainConfig
from cassl_lib.errors import ConfigError, NonFiniteLoss, Stopped
from cassl_lib.files import write_atomically
from cassl_lib.runs import Run
from cassl_lib.training import checkpoint
from cassl_lib.training.checkpoint import Progress
from cassl_lib.training.distributed import average_buffers, parallel, past_deadline, quiet, rank_and_world
from cassl_lib.training.optimizer import autocast, build_optimizer, learning_rate
from cassl_lib.training.procedure import Batch, Procedure
from cassl_lib.training.validation import Validation

if TYPE_CHECKING:
    from cassl_lib.models.detector import Detector


def train(
    procedure: Procedure,
    loader_from: Callable,
    *,
    config: TrainConfig,
    steps: int,
    run: Run,
    title: str,
    evaluate: Callable[[int], float | None] | None = None,
    fresh: Collection[str] = (),
) -> dict:
    """Train `procedure.model` in place for `steps` steps, resuming from the run's checkpoint if there is one.

    Args:
        loader_from: function of the first step that returns one (images, targets, ids, unreadable) per step.
        title: label of the progress bar.
        evaluate: function of the number of finished steps that returns the model's AP on held-out images, called in
            all processes every `config.evaluate_every` steps and after the last one. The first process's value counts.
            It may leave the model in evaluation mode and draw random numbers; both are restored.
        fresh: names of parameters that learn at `config.fresh_rate` times the rate.

    Returns:
        seconds (over all parts of an interrupted run) and unreadable, the names of the images that were skipped; with
        `evaluate`, best_step and best_validation_ap. The model has the last weights or, with `config.keep`, the best.

    Raises:
        NonFiniteLoss: the last checkpoint is kept.
        Stopped: the deadline has passed; a checkpoint was saved.
        ConfigError: settings that contradict each other.
    """
    check_accumulation(config)
    device = next(procedure.model.parameters()).device
    optimizer = build_optimizer(procedure.model, config, fresh=fresh)
    progress = checkpoint.resume(run, procedure, optimizer)
    validation = Validation(evaluate, procedure.model, config, steps, run)
    losses_of = parallel(procedure, device).train()
    save = functools.partial(checkpoint.save, run, procedure, optimizer, progress)
    if validation.due(progress):  # the run was stopped between a step and its evaluation
        validation.update(progress)
    started, hidden = time.monotonic() - progress.seconds, quiet(rank_and_world()[0])
    with tqdm(total=steps, initial=progress.step, desc=title, unit="step", disable=hidden, mininterval=1) as bar:
        for loaded in loader_from(progress.step):
            # Update the model, then whatever follows it
            batch = Batch(*loaded).to(device)
            losses = train_step(losses_of, optimizer, batch, step=progress.step, steps=steps, config=config)
            average_buffers(procedure.model)
            procedure.after_step(progress.step)
            # Count and log
            progress.unreadable |= set(batch.unreadable)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            bar.update()
            if progress.step % config.log_every == 0 or progress.step == steps:
                _log(run, losses, optimizer, progress, bar)
            # Stop, or evaluate; then save
            if past_deadline(progress.step, device):
                save()
                raise Stopped(f"{run.id}: stopped at step {progress.step} of {steps}; rerun the same command to resume")
            if validation.due(progress):
                if deadline.in_force():  # which an evaluation in progress may pass
                    save()
                validation.update(progress)
            if progress.step % config.checkpoint_every == 0 or progress.step == steps:
                save()
    return {"seconds": progress.seconds, "unreadable": sorted(progress.unreadable), **validation.finish(progress)}


def check_accumulation(config: TrainConfig) -> None:
    """Raise ConfigError unless each process's batch can be split into `config.accumulate` equal parts."""
    world = rank_and_world()[1]
    if config.accumulate < 1 or config.batch_size // world % config.accumulate:
        raise ConfigError(
            f"accumulate={config.accumulate} does not divide the {config.batch_size // world} images of each process "
            f"(batch_size={config.batch_size}, {world} processes); use one of their divisors"
        )


def train_step(losses_of: nn.Module, optimizer, batch: Batch, *, step: int, steps: int, config: TrainConfig) -> dict:
    """One optimizer update; returns the detached losses, averaged over the parts of the batch.

    The gradient is that of the mean over `config.accumulate` parts of each part's loss. This is not the whole batch's:
    a part's losses are normalized by its own positives, and BatchNorm sees one part at a time and updates its running
    statistics as often. It is the gradient that `accumulate` times as many processes would average if each normalized
    its losses by its own positives.

    Raises:
        NonFiniteLoss: a loss or the gradient is not finite; the weights are as before the step. All processes see the
            same gradient, so all of them stop, each naming its own images.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * learning_rate(step, config=config, steps=steps)
    optimizer.zero_grad(set_to_none=True)
    parts, by_part = batch.parts(config.accumulate), []
    for number, part in enumerate(parts, 1):
        # The processes average their gradients in the last backward pass
        alone = number < len(parts) and isinstance(losses_of, DistributedDataParallel)
        with losses_of.no_sync() if alone else contextlib.nullcontext():
            losses = part_losses(losses_of, part, step=step, config=config)
            (sum(losses.values()) / len(parts)).backward()
        by_part.append({name: loss.detach() for name, loss in losses.items()})
    # Update, unless the gradient would poison the weights: a finite loss can have a gradient that is not
    norm = torch.nn.utils.clip_grad_norm_(losses_of.parameters(), config.clip_norm or math.inf)
    if not torch.isfinite(norm):
        remedy = "lower the learning rate or inspect these images"
        raise NonFiniteLoss(f"step {step}: the gradient's norm is {norm.item()} on images {batch.ids}; {remedy}")
    optimizer.step()
    return {name: sum(losses[name] for losses in by_part) / len(by_part) for name in by_part[0]}


def part_losses(losses_of: nn.Module, batch: Batch, *, step: int, config: TrainConfig) -> dict[str, Tensor]:
    """The losses of a part of a batch.

    Raises:
        NonFiniteLoss: their sum is not finite; the message names the part's images.
    """
    with autocast(config, batch.images[0].device):
        losses = losses_of(batch, step)
    if not torch.isfinite(sum(losses.values())):
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        remedy = "lower the learning rate or inspect these images"
        raise NonFiniteLoss(f"step {step}: losses {values} on images {batch.ids}; {remedy}")
    return losses


def _log(run: Run, losses: dict, optimizer, progress: Progress, bar) -> None:
    """Append a line to the run's log: step, losses averaged over the processes, learning rate, seconds."""
    values = torch.stack([loss.float() for loss in losses.values()])
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    if rank_and_world()[0]:
        return
    named = dict(zip(losses, (round(value, 6) for value in values.tolist()), strict=True))
    bar.set_postfix_str(" ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in named.items()))
    rate = optimizer.param_groups[0]["lr"]
    run.log({"step": progress.step, **named, "learning_rate": rate, "seconds": round(progress.seconds, 2)})


@torch.inference_mode()
def predict(model: Detector, loader: Iterable, *, sizes: Callable, config: TrainConfig, title: str | None):
    """Yield (image id, detections, names of unreadable images) for every image of the loader.

    Detections are on the CPU, except for the masks: they stay on the device, where most callers encode them as RLE.
    A batch of unreadable images only yields (None, None, names).

    Args:
        sizes: function of an image id that returns (height, width) of the original image, the frame of the detections.
        title: label of the progress bar; None for no bar.

    Raises:
        Stopped: the deadline had passed before the first batch, or passed `deadline.GRACE` seconds ago.
    """
    deadline.check(title or "labeling")
    device = next(model.parameters()).device
    model.eval()
    hidden = quiet(rank_and_world()[0]) if title else True
    for images, _, ids, unreadable in tqdm(loader, desc=title, unit="batch", disable=hidden, mininterval=1):
        deadline.check(title or "labeling", begun=True)
        if not images:
            yield None, None, unreadable
            continue
        # Detect
        with autocast(config, device):
            detected = model.predict([image.to(device) for image in images], sizes=[sizes(at) for at in ids])
        # Hand out image by image; the names come with the first one
        for image_id, detections in zip(ids, detected, strict=True):
            on_cpu = {key: value.cpu() for key, value in detections.items() if key != "masks"}
            yield image_id, detections | on_cpu, unreadable
            unreadable = []


def save_weights(model, path: Path, *, metadata: dict) -> None:
    """Write the weights as safetensors, atomically, with `metadata` (JSON data) as the metadata entry `cassl`."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # A single metadata entry: safetensors writes several in no fixed order, and equal runs must give equal bytes.
    write_atomically(path, save(tensors, metadata={"cassl": json.dumps(metadata)}))
