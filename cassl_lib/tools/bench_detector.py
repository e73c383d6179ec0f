"""Speed and memory of the detector: `cassl bench`. Each case is measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from cassl_lib.config import ModelConfig, TrainConfig
from cassl_lib.models import CondInst, build_detector
from cassl_lib.training.optimizer import autocast, build_optimizer

# Seconds per step and peak GB of the public CondInst (R-50, 80 classes, batch 2) on 2 CPU threads, by task and image
# side. Memory was measured in training only.
PUBLIC = {("train", 320): (0.82, 1.26), ("train", 512): (2.06, 2.0), ("detect", 320): (0.40, None)}
PUBLIC |= {("detect", 512): (1.18, None)}
INSTANCES = 9  # per image
WARM_UP = 3  # steps that are not measured
# A score threshold of 0 gives every image as many detections as allowed.
DETECTORS = {
    "resnet50": ModelConfig(backbone="resnet50", backbone_norm="frozen_bn", frozen_stages=2, score_threshold=0.0),
    "swin_tiny": ModelConfig(backbone="swin_tiny_patch4_window7_224", score_threshold=0.0),
}


def bench(*, device: str, sizes: list[str], batch: int, threads: int, backbones: list[str], steps: int) -> list[dict]:
    """Measure every combination of backbone, size and task, and print a table row after each.

    Each case runs in a new process, so that its peak memory is its own.

    Args:
        device: cpu or cuda (bf16).
        sizes: of the images in pixels, SIDE or HEIGHTxWIDTH.
        batch: images per step.
        threads: CPU threads.
        backbones: names in `DETECTORS`.
        steps: measured steps per case.

    Returns:
        The cases as `measure` returns them.
    """
    titles = f"{'task':8}{'backbone':>12}{'size':>12}{'s/step':>9}{'images/s':>10}{'peak GB':>9}"
    print(f"{titles}  public s, GB  share of time")
    measured = []
    for backbone in backbones:
        for size in sizes:
            for task in ("train", "detect"):
                case = {"task": task, "backbone": backbone, "size": size, "batch": batch, "device": device}
                case |= {"threads": threads, "steps": steps}
                done = subprocess.run(
                    [sys.executable, "-m", "cassl_lib.tools.bench_detector", json.dumps(case)],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise RuntimeError(f"{case} failed:\n{done.stderr[-2000:]}")
                measured.append(json.loads(done.stdout.splitlines()[-1]))
                print(row(measured[-1]), flush=True)
    return measured


def row(case: dict) -> str:
    """A measured case as a line of the table, beside the public numbers where they apply."""
    public = PUBLIC.get((case["task"], side(case["size"])), ("", ""))
    applies = case["device"] == "cpu" and (case["backbone"], case["batch"], case["threads"]) == ("resnet50", 2, 2)
    beside = f"{public[0]!s:>6} {public[1] or ''!s:<7}" if applies else " " * 14
    parts = ", ".join(f"{name} {share:.0%}" for name, share in case["shares"].items())
    return (
        f"{case['task']:8}{case['backbone']:>12}{case['size']:>12}{case['seconds']:9.3f}"
        f"{case['batch'] / case['seconds']:10.1f}{case['peak_gb']:9.2f}  {beside} {parts}"
    )


def side(size: str) -> int:
    """The side of square images in pixels; 0 for other shapes, for which there are no public numbers."""
    return 0 if "x" in size else int(size)


def measure(case: dict) -> dict:
    """Measure one case in this process.

    Args:
        case: task (train or detect), backbone, size, batch, device, threads and steps, as `bench` gives them.

    Returns:
        `case` with `seconds` (median per step), `best_seconds`, `peak_gb`, `imports_gb` (memory before the detector
        was built), `shares` of the time by part of the detector, and torch's version.
    """
    torch.set_num_threads(case["threads"])
    imports = peak_gb("cpu")
    device = torch.device(case["device"])
    torch.manual_seed(0)
    height, _, width = case["size"].partition("x")
    model = build_detector(DETECTORS[case["backbone"]])
    model = model.to(device, memory_format=torch.channels_last)
    images, targets = make_batch(case["batch"], int(height), int(width or height), device)
    step = trainer(model, images, targets) if case["task"] == "train" else detector(model, images)
    seconds = [timed(step, device) for _ in range(WARM_UP + case["steps"])][WARM_UP:]
    case |= {"seconds": sorted(seconds)[len(seconds) // 2], "best_seconds": min(seconds)}
    case |= {"peak_gb": peak_gb(case["device"]), "imports_gb": imports}
    return case | {"shares": shares(model, step, device), "torch": torch.__version__}


def make_batch(batch: int, height: int, width: int, device: torch.device) -> tuple[list[Tensor], list[dict]]:
    """Random images with ellipses of up to half their side as instances: a batch of `Detector`'s images and targets."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    x, y, sides = torch.arange(width), torch.arange(height)[:, None], torch.tensor([width, height])
    targets = []
    for _ in range(batch):
        center = torch.rand(INSTANCES, 2, generator=generator) * sides
        reach = torch.rand(INSTANCES, 2, generator=generator) * sides * 0.2 + 8
        (cx, cy), (rx, ry) = center.T[..., None, None], reach.T[..., None, None]
        masks = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        boxes = torch.cat([(center - reach).clamp(min=0), torch.minimum(center + reach, sides)], 1)
        labels = torch.randint(0, 80, (INSTANCES,), generator=generator)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    return list(images.to(device)), targets


def trainer(model: CondInst, images: list[Tensor], targets: list[dict]) -> Callable[[], None]:
    """A training step on the same batch every time: forward, backward, update."""
    config = TrainConfig(optimizer="sgd", learning_rate=1e-4, batch_size=16)
    optimizer = build_optimizer(model.train(), config)

    def step() -> None:
        with autocast(config, images[0].device):
            losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def detector(model: CondInst, images: list[Tensor]) -> Callable[[], None]:
    """Detection with masks on the same images every time."""
    model.eval()

    def step() -> None:
        with autocast(TrainConfig(), images[0].device):
            model(images)

    return step


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one step."""
    started = now(device)
    step()
    return now(device) - started


def now(device: torch.device) -> float:
    """The clock in seconds, once the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def shares(model: CondInst, step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Share of one step's time in the forward pass of each part; `rest` is everything else, such as backward or NMS."""
    parts = {"backbone": model.backbone, "neck": model.neck, "head": model.head, "mask branch": model.head.mask_branch}
    clocks = {name: Clock(device) for name in parts}
    hooks = [part.register_forward_pre_hook(clocks[name].start) for name, part in parts.items()]
    hooks += [part.register_forward_hook(clocks[name].stop) for name, part in parts.items()]
    total = timed(step, device)
    for hook in hooks:
        hook.remove()
    forward = {name: clock.seconds / total for name, clock in clocks.items()}
    forward["head"] -= forward["mask branch"]  # it runs within the head
    return forward | {"rest": 1 - sum(forward.values())}


class Clock:
    """Hooks that measure the seconds of a module's forward pass."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self, *_) -> None:
        self.started = now(self.device)

    def stop(self, *_) -> None:
        self.seconds = now(self.device) - self.started


def peak_gb(device: str) -> float:
    """Peak memory in GB: of this process on a CPU (Linux reports KB), reserved by torch on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
