"""Times and memory of a synthetic pseudo-label store at full size: `cassl bench-store --images 3660000`.

The store is written here; opening, reading and training from it are each measured in a new process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from cassl_lib.labels.shards import finish, finished_shards, write_shard
from cassl_lib.labels.store import PseudoLabelStore

SIZE = (480, 640)  # height, width of every image
BANK = 4096  # different sets of labels; each image gets one of them at random
FILES = 64  # image files, shared by all images
SHARD = 10_000  # images
READS = 20_000  # rows per pass
STEPS = 60  # of training; the first third is not measured


def bench_store(*, images: int, labels: int, folder: Path, workers: int) -> dict:
    """Write the store, keeping finished shards, then measure; prints each result as it is measured.

    Args:
        labels: per image.
        folder: of the store and its image files; about 3 kB per image.
        workers: processes that load training images.

    Returns:
        `images`, `labels`, `bytes`, `written` and `write_seconds` (images and seconds of the shards written now), and
        a dict each for `open`, `read`, `statistics`, `verify` and `train`.
    """
    measured = {"images": images, "labels": images * labels, "workers": workers, **write(folder, images, labels)}
    print(json.dumps(measured), flush=True)
    for task in ("open", "read", "statistics", "verify", "train"):
        command = [sys.executable, "-m", "cassl_lib.tools.bench_store", task, str(folder), str(workers)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        measured[task] = json.loads(done.stdout.splitlines()[-1])
        print(task, json.dumps(measured[task]), flush=True)
    return measured


def write(folder: Path, images: int, labels: int) -> dict:
    """Write the missing shards: random polygons on noise images. Returns `bytes`, `written` and `write_seconds`."""
    random = np.random.default_rng(0)
    files = write_images(folder / "images", random)
    bank = [random_labels(random, labels) for _ in range(BANK)]
    done, started, written = finished_shards(folder / "store", "synthetic"), time.monotonic(), 0
    for shard, first in enumerate(range(0, images, SHARD)):
        if shard in done:
            continue
        rows = []
        for index in range(first, min(first + SHARD, images)):
            image = {"image_id": index, "file_name": files[index % FILES], "height": SIZE[0], "width": SIZE[1]}
            rows.append(image | bank[int(random.integers(BANK))])
        write_shard(folder / "store", shard, rows, "synthetic")
        written += len(rows)
    seconds = time.monotonic() - started
    manifest = finish(folder / "store", labeler="synthetic", pool="synthetic")
    size = sum(entry["bytes"] for entry in manifest["shards"])
    return {"bytes": size, "written": written, "write_seconds": round(seconds, 1)}


def write_images(folder: Path, random: np.random.Generator) -> list[str]:
    """Write the noise images; returns their absolute paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:02}.jpg" for number in range(FILES)]
    for file in files:
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(file)
    return [str(file.resolve()) for file in files]


def random_labels(random: np.random.Generator, labels: int) -> dict:
    """Labels of one image: star-shaped polygons of 24 corners, 16 to 300 pixels wide, with scores from 0.05 to 1."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    polygons = []
    for _ in range(labels):
        center = random.uniform(0.1, 0.9, 2) * SIZE[::-1]
        reach = 8 * 19 ** random.uniform(size=1) * random.uniform(0.5, 1, 24)
        corners = center + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        polygons.append(np.clip(corners, 0, np.subtract(SIZE[::-1], 1)).reshape(-1).tolist())
    rles = mask_api.frPyObjects(polygons, *SIZE)
    boxes = mask_api.toBbox(rles)
    boxes[:, 2:] += boxes[:, :2]
    return {"boxes": boxes, "scores": random.uniform(0.05, 1, labels), "rles": rles}


def own_memory(process: int | str = "self") -> float:
    """Private memory of a process in MB: without mapped files, which the system can reclaim."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


def measure_open(folder: Path, workers: int) -> dict:
    """Open the store and read one row."""
    before, started = own_memory(), time.perf_counter()
    labels = PseudoLabelStore(folder / "store", threshold=0.5)
    labels[len(labels) // 2]
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 4), "own_mb": round(own_memory() - before, 1), "imports_mb": round(before, 1)}


def measure_read(folder: Path, workers: int) -> dict:
    """Read random rows as training does, twice: the first pass also opens the shards."""
    before, labels = own_memory(), PseudoLabelStore(folder / "store", threshold=0.5)
    measured = {}
    for name in ("first", "second"):
        order, times = np.random.default_rng(len(name)).integers(len(labels), size=READS), []
        for index in order.tolist():
            started = time.perf_counter()
            labels[index]
            times.append(time.perf_counter() - started)
        median, worst = np.quantile(times, [0.5, 0.99]) * 1e6
        measured |= {f"{name}_us": round(float(median), 1), f"{name}_us_99": round(float(worst), 1)}
    return measured | {"own_mb": round(own_memory() - before, 1)}


def measure_statistics(folder: Path, workers: int) -> dict:
    """Count the labels at five thresholds."""
    started = time.perf_counter()
    PseudoLabelStore(folder / "store").statistics([0.3, 0.4, 0.5, 0.6, 0.7])
    return {"seconds": round(time.perf_counter() - started, 2), "own_mb": round(own_memory(), 1)}


def measure_verify(folder: Path, workers: int) -> dict:
    """Verify the checksums of all shards."""
    started = time.perf_counter()
    PseudoLabelStore(folder / "store").verify()
    return {"seconds": round(time.perf_counter() - started, 2)}


def measure_train(folder: Path, workers: int) -> dict:
    """Train the demo profile's detector on the store, with the warm-up's own samples, order and loaders."""
    import torch

    from cassl_lib.data.augment import training_transform
    from cassl_lib.data.loader import Order, Samples, batches
    from cassl_lib.data.pseudo_labeled import PseudoLabeled
    from cassl_lib.models.build import build_detector
    from cassl_lib.resolve import resolve
    from cassl_lib.stages.models import class_agnostic_model
    from cassl_lib.training.distributed import parallel
    from cassl_lib.training.engine import train_step
    from cassl_lib.training.optimizer import build_optimizer
    from cassl_lib.training.procedure import Batch, Supervised

    # Samples and detector as in a warm-up.
    config = resolve(profile="demo")
    training = replace(config.warmup, batch_size=16, workers=workers)
    source = PseudoLabeled(PseudoLabelStore(folder / "store", threshold=0.5))
    samples = Samples(source, training_transform(config.augment), masks=True, classes=False)
    order = Order(len(samples), batch_size=16, start=0, stop=STEPS, seed=0)
    model = build_detector(class_agnostic_model(config)).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, training)
    losses_of = parallel(Supervised(model), torch.device("cpu"))

    # Train, and note the memory of all processes after each measured step.
    memory, started, others = [], 0.0, set(children())
    for step, loaded in enumerate(batches(samples, order, workers=workers)):
        train_step(losses_of, optimizer, Batch(*loaded), step=step, steps=STEPS, config=training)
        if step == STEPS // 3:
            started = time.perf_counter()
        if step > STEPS // 3:
            memory.append([own_memory(), *(own_memory(child) for child in children() if child not in others)])
    seconds = time.perf_counter() - started

    # Images per second; highest private memory of the trainer and of each loading process.
    highest = [max(column) for column in zip(*(row for row in memory if len(row) == workers + 1), strict=True)]
    rate = 16 * (STEPS - STEPS // 3 - 1) / seconds
    return {"images_per_second": round(rate, 1), "own_mb": [round(each) for each in highest]}


def children() -> list[int]:
    """Ids of the processes that this one has started."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


if __name__ == "__main__":
    task, place, loaders = sys.argv[1:]
    print(json.dumps(globals()[f"measure_{task}"](Path(place), int(loaders))))
