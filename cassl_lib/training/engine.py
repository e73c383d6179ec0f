"""The one training loop, and the one test loop. A stage differs from another by its arguments, never by its loop."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cassl_lib.config import TrainConfig
from cassl_lib.errors import NonFiniteLoss
from cassl_lib.files import write_atomically
from cassl_lib.runs import Run


def device_of_process() -> torch.device:
    """CUDA where there is one (the local rank's under torchrun), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def rank_and_world() -> tuple[int, int]:
    """This process's place among the processes of the stage; (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def seed_everything(seed: int) -> None:
    """Seed the generators that weights and sampling draw from, and ask for repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False


def number_of_steps(config: TrainConfig, images: int) -> int:
    """Steps of a stage over `images` images: `steps`, or `epochs` rounded up to whole batches."""
    return config.steps or max(1, math.ceil(config.epochs * images / config.batch_size))


def scaled_rate(config: TrainConfig) -> float:
    """The learning rate for this batch size; the setting is for 16."""
    return config.learning_rate * config.batch_size / 16


def learning_rate(step: int, *, config: TrainConfig, steps: int) -> float:
    """The rate at a step: linear warm-up from 1/1000, then a tenth after each milestone.

    A run shorter than ten warm-ups warms up over a tenth of its steps, so that a short run still trains at its rate.
    """
    warmup = min(config.warmup_steps, max(1, steps // 10))
    factor = 1.0 if step >= warmup else 0.001 + 0.999 * step / warmup
    passed = sum(step >= round(share * steps) for share in config.milestones)
    return scaled_rate(config) * factor * 0.1**passed


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD, with no decay on norms, biases, per-level scales and position tables."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            table = any(word in name for word in ("relative_position", "absolute_pos", "pos_embed"))
            (free if parameter.ndim <= 1 or table else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    rate = scaled_rate(config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=True)
    raise ValueError(f"optimizer={config.optimizer!r} is not allowed; use adamw or sgd")


def precision_of(config: TrainConfig, device: torch.device) -> str:
    """float32 or bf16: what `auto` means on this device."""
    if config.precision == "auto":
        return "bf16" if device.type == "cuda" else "float32"
    return config.precision


def autocast(config: TrainConfig, device: torch.device):
    """The autocast context of a forward pass; losses are float32 inside the detector either way."""
    enabled = precision_of(config, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def train(model, loader_from, *, config: TrainConfig, steps: int, run: Run, title: str) -> dict:
    """Train `model` in place for `steps` steps, going on from the run's checkpoint if there is one.

    Args:
        loader_from: function of the first step that returns an iterable of (images, targets, ids, unreadable).
        title: what the progress bar calls the stage.

    Returns:
        seconds (of all parts of an interrupted run) and unreadable, the names of the images that were skipped.

    Raises:
        NonFiniteLoss: the checkpoint before it stays.
    """
    device = next(model.parameters()).device
    rank, world = rank_and_world()
    optimizer = build_optimizer(model, config)
    state = _resume(run, model, optimizer)
    replica = _parallel(model, device) if world > 1 else model
    replica.train()
    started, before = time.monotonic(), state["seconds"]
    bar = tqdm(total=steps, initial=state["step"], desc=title, unit="step", disable=quiet(rank), mininterval=1)
    for images, targets, ids, unreadable in loader_from(state["step"]):
        step = state["step"]
        state["unreadable"] |= set(unreadable)
        losses = _step(replica, optimizer, images, targets, ids, step=step, steps=steps, config=config, device=device)
        state["step"] = step + 1
        state["seconds"] = before + time.monotonic() - started
        bar.update()
        if state["step"] % config.log_every == 0 or state["step"] == steps:
            _log(run, losses, optimizer, state, bar, rank)
        if state["step"] % config.checkpoint_every == 0 or state["step"] == steps:
            _save(run, model, optimizer, state, rank, world)
    bar.close()
    return {"seconds": state["seconds"], "unreadable": sorted(state["unreadable"])}


def _step(model, optimizer, images, targets, ids, *, step: int, steps: int, config: TrainConfig, device) -> dict:
    """One update; returns the detached losses."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config=config, steps=steps)
    images = [image.to(device, non_blocking=True) for image in images]
    targets = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
    with autocast(config, device):
        losses = model(images, targets)
    total = sum(losses.values())
    if not torch.isfinite(total):
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        raise NonFiniteLoss(f"step {step}: losses {values} on images {ids}; lower the learning rate or look at them")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def _parallel(model, device):
    """The model as one of several processes; each keeps statistics of what it saw until `_share` averages them."""
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _log(run: Run, losses: dict, optimizer, state: dict, bar, rank: int) -> None:
    """One line in the run's log: losses averaged over the processes, rate, seconds."""
    values = torch.stack([loss.float() for loss in losses.values()])
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    if rank:
        return
    named = dict(zip(losses, (round(value, 6) for value in values.tolist()), strict=True))
    bar.set_postfix_str(" ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in named.items()))
    rate = optimizer.param_groups[0]["lr"]
    run.log({"step": state["step"], **named, "learning_rate": rate, "seconds": round(state["seconds"], 2)})


def _share(model, state: dict) -> None:
    """Make BatchNorm's statistics and the names of unreadable images those of all processes together."""
    world = rank_and_world()[1]
    if world == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world
    state["unreadable"] = set().union(*of_all_processes(state["unreadable"], world))


def of_all_processes(value, world: int) -> list:
    """The value of every process, in the order of their ranks."""
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values


def _save(run: Run, model, optimizer, state: dict, rank: int, world: int) -> None:
    """Replace the checkpoint atomically. It holds every process's random state, sent to the first process."""
    _share(model, state)
    random_states = of_all_processes(_random_state(), world)
    if rank:
        return
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_states, **state}
    temporary = run.checkpoint.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(whole, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run.checkpoint)


def _resume(run: Run, model, optimizer) -> dict:
    """Load the run's checkpoint into model, optimizer and generators; a fresh state where there is none."""
    rank, world = rank_and_world()
    if not run.checkpoint.exists():
        if rank == 0:
            run.forget_log_after(-1)
        return {"step": 0, "seconds": 0.0, "unreadable": set()}
    saved = torch.load(run.checkpoint, map_location="cpu", weights_only=False)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if len(saved["random"]) == world:  # with another number of processes the run goes on, but not bit for bit
        _set_random_state(saved["random"][rank])
    if rank == 0:
        run.forget_log_after(saved["step"])
        print(f"{run.id}: continues at step {saved['step']}", file=sys.stderr, flush=True)
    return {key: saved[key] for key in ("step", "seconds", "unreadable")}


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


@torch.inference_mode()
def predict(model, loader, *, sizes, config: TrainConfig, title: str):
    """Yield (image id, detections, names of images that could not be read) for every image of the loader.

    Detections are on the CPU, except their masks, which stay where they are: most callers need their run lengths only.
    Image id and detections are None where a batch had nothing but unreadable images.

    Args:
        sizes: function of an image id that returns (height, width) of the original image, the frame of the detections.
        title: what the progress bar calls it; None for no bar.
    """
    device = next(model.parameters()).device
    model.eval()
    rank, _ = rank_and_world()
    hidden = quiet(rank) if title else True
    for images, _, ids, unreadable in tqdm(loader, desc=title, unit="batch", disable=hidden, mininterval=1):
        if not images:
            yield None, None, unreadable
            continue
        with autocast(config, device):
            found = model.predict([image.to(device) for image in images], sizes=[sizes(at) for at in ids])
        for image_id, detections in zip(ids, found, strict=True):
            on_cpu = {key: value.cpu() for key, value in detections.items() if key != "masks"}
            yield image_id, detections | on_cpu, unreadable
            unreadable = []


def quiet(rank: int) -> bool | None:
    """No bar on other processes, nor where nobody looks (tqdm's own None: off when the stream is no terminal)."""
    if rank:
        return True
    return None if "ipykernel" not in sys.modules else False


def save_weights(model, path: Path, *, metadata: dict) -> None:
    """The weights as safetensors, atomically, with `metadata` (JSON data) as its metadata entry `cassl`."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # One entry: safetensors writes several in no fixed order, and equal runs are to leave equal bytes.
    write_atomically(path, save(tensors, metadata={"cassl": json.dumps(metadata)}))


@contextlib.contextmanager
def processes():
    """Join the other processes of a torchrun launch, if there is one; alone otherwise."""
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if launched and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device_of_process())
        # The first process evaluates alone, and shards take unequal times to label: the others must not give up.
        wait = datetime.timedelta(hours=24)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=wait)
    try:
        yield
    finally:
        if launched:
            dist.destroy_process_group()
