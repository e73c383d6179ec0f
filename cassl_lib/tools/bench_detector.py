"""Speed and memory of the detector, each measured in a process of its own: `python -m cassl_lib bench`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from cassl_lib.config import ModelConfig, TrainConfig
from cassl_lib.models import CondInst, build_detector
from cassl_lib.training.optimizer import autocast, build_optimizer

# Seconds and peak GB of the public CondInst, R-50, 80 classes, batch 2, on 2 CPU threads; memory was taken in training.
PUBLIC = {("train", 320): (0.82, 1.26), ("train", 512): (2.06, 2.0), ("detect", 320): (0.40, None)}
PUBLIC |= {("detect", 512): (1.18, None)}
INSTANCES = 9  # per image, ellipses of up to half its side
WARM_UP = 3  # steps that are not counted
BACKBONES = {
    "resnet50": dict(backbone="resnet50", backbone_norm="frozen_bn", frozen_stages=2),
    "swin_tiny": dict(backbone="swin_tiny_patch4_window7_224"),
}


def bench(*, device: str, sizes: list[str], batch: int, threads: int, backbones: list[str], steps: int) -> list[dict]:
    """Measure every case in a fresh process, so that its memory is its own; prints a table as it goes."""
    titles = f"{'task':8}{'backbone':>12}{'size':>12}{'s/step':>9}{'images/s':>10}{'peak GB':>9}"
    print(f"{titles}  public s, GB  where the time goes")
    found = []
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
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(row(found[-1]), flush=True)
    return found


def row(case: dict) -> str:
    public = PUBLIC.get((case["task"], side(case["size"])), ("", ""))
    applies = case["device"] == "cpu" and (case["backbone"], case["batch"], case["threads"]) == ("resnet50", 2, 2)
    beside = f"{public[0]!s:>6} {public[1] or ''!s:<7}" if applies else " " * 14
    parts = ", ".join(f"{name} {share:.0%}" for name, share in case["shares"].items())
    return (
        f"{case['task']:8}{case['backbone']:>12}{case['size']:>12}{case['seconds']:9.3f}"
        f"{case['batch'] / case['seconds']:10.1f}{case['peak_gb']:9.2f}  {beside} {parts}"
    )


def side(size: str) -> int:
    """Of square images; 0 for others, which the public numbers do not have."""
    return 0 if "x" in size else int(size)


def measure(case: dict) -> dict:
    """`case` with seconds (median of a step), best_seconds, peak_gb, imports_gb and shares of the time by part."""
    torch.set_num_threads(case["threads"])
    imports = peak_gb("cpu")
    device = torch.device(case["device"])
    torch.manual_seed(0)
    height, _, width = case["size"].partition("x")
    model = build_detector(ModelConfig(**BACKBONES[case["backbone"]], score_threshold=0.0))
    model = model.to(device, memory_format=torch.channels_last)
    images, targets = make_batch(case["batch"], int(height), int(width or height), device)
    step = trainer(model, images, targets) if case["task"] == "train" else detector(model, images)
    seconds = [timed(step, device) for _ in range(WARM_UP + case["steps"])][WARM_UP:]
    case |= {"seconds": sorted(seconds)[len(seconds) // 2], "best_seconds": min(seconds)}
    case |= {"peak_gb": peak_gb(case["device"]), "imports_gb": imports}
    return case | {"shares": shares(model, step, device), "torch": torch.__version__}


def make_batch(batch: int, height: int, width: int, device: torch.device) -> tuple[list[Tensor], list[dict]]:
    """Random images with ellipses as instances."""
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


def trainer(model: CondInst, images: list[Tensor], targets: list[dict]):
    config = TrainConfig(optimizer="sgd", learning_rate=1e-4, batch_size=16)
    optimizer = build_optimizer(model.train(), config)

    def step() -> None:
        with autocast(config, images[0].device):
            losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def detector(model: CondInst, images: list[Tensor]):
    model.eval()

    def step() -> None:
        with autocast(TrainConfig(), images[0].device):
            model(images)

    return step


def timed(step, device: torch.device) -> float:
    started = now(device)
    step()
    return now(device) - started


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def shares(model: CondInst, step, device: torch.device) -> dict[str, float]:
    """Share of one step spent in the forward pass of each part; `rest` is losses, backward, update or detections."""
    parts = {"backbone": model.backbone, "neck": model.neck, "head": model.head, "mask branch": model.head.mask_branch}
    clocks = {name: Clock(device) for name in parts}
    hooks = [part.register_forward_pre_hook(clocks[name].start) for name, part in parts.items()]
    hooks += [part.register_forward_hook(clocks[name].stop) for name, part in parts.items()]
    total = timed(step, device)
    for hook in hooks:
        hook.remove()
    forward = {name: clock.seconds / total for name, clock in clocks.items()}
    forward["head"] -= forward["mask branch"]  # the head runs its mask branch
    return forward | {"rest": 1 - sum(forward.values())}


class Clock:
    """Seconds between the two hooks of a module."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self, *_) -> None:
        self.started = now(self.device)

    def stop(self, *_) -> None:
        self.seconds = now(self.device) - self.started


def peak_gb(device: str) -> float:
    """Of the process (Linux counts in KB) on a CPU, of what torch reserved on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
