"""Images per second of loading, beside torchvision's wrapper: `python -m cassl_lib.tools.bench_loading FOLDER`.

FOLDER holds photographs, 640 x 480 as in COCO. Each gets ten random polygons. Measured is the CPU time of this process
with one thread; the loaders take turns, so that other load on the machine meets all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from cassl_lib.config import AugmentConfig
from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.loader import Samples, keep_freed_memory

OBJECTS = 10  # per image


def bench_loading(folder: Path, *, rounds: int = 5, images: int = 40) -> dict:
    """Milliseconds per image, the median of `rounds` passes over `images` photographs.

    Returns:
        `torchvision` (its wrapper, with the weak transforms), `weak` and `strong` (pseudo-labeled) at COCO size, and
        `small_weak` and `small_strong` at 96 pixels with three objects.
    """
    with tempfile.TemporaryDirectory() as place:
        full = _write(Path(place) / "full", folder, images, (480, 640), OBJECTS)
        small = _write(Path(place) / "small", folder, images, (96, 96), 3)
        config = AugmentConfig()
        demo = replace(config, sizes=(80, 96, 112), strong_sizes=(64, 144), longest=192, crop=96)
        loaders = {
            "torchvision": _torchvision(full, config),
            "weak": _ours(full, config),
            "strong": _ours(full, replace(config, kind="strong")),
            "small_weak": _ours(small, demo),
            "small_strong": _ours(small, replace(demo, kind="strong")),
        }
        times = {name: [] for name in loaders}
        for turn in range(rounds + 1):  # the first is not measured
            for name, load in loaders.items():
                torch.manual_seed(turn)
                started = time.process_time()
                for index in range(images):
                    load(turn * images + index, index)
                times[name].append((time.process_time() - started) * 1000 / images)
    return {name: round(float(np.median(values[1:])), 2) for name, values in times.items()}


def _write(place: Path, folder: Path, images: int, size: tuple[int, int], objects: int) -> CocoImages:
    """A COCO set of the first photographs of `folder`, resized to `size` if they differ, with random polygons."""
    height, width = size
    (place / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number, path in enumerate(sorted(folder.glob("*.jpg"))[:images], start=1):
        name = f"{number}.jpg"
        with Image.open(path) as image:
            image.convert("RGB").resize((width, height)).save(place / "images" / name, quality=90)
        data["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(objects):
            polygon = _polygon(random, size)
            low, high = polygon.min(0), polygon.max(0)
            entry = {"bbox": [*low.tolist(), *(high - low).tolist()], "segmentation": [polygon.reshape(-1).tolist()]}
            entry |= {"image_id": number, "category_id": 1, "iscrowd": 0, "area": float(np.prod(high - low))}
            data["annotations"].append(entry | {"id": len(data["annotations"]) + 1})
    (place / "instances.json").write_text(json.dumps(data))
    return CocoImages(place / "instances.json", place / "images")


def _polygon(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(24, 2) xy: star-shaped, a thirtieth to two thirds of the short side wide."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = min(size) / 60 * 20 ** random.uniform() * random.uniform(0.5, 1, 24)
    corners = random.uniform(0.1, 0.9, 2) * size[::-1] + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.clip(corners, 0, np.subtract(size[::-1], 1))


def _ours(source: CocoImages, config: AugmentConfig) -> Callable[[int, int], None]:
    samples = Samples(source, training_transform(config, pseudo_labeled=True), masks=True, classes=True)
    return lambda position, index: samples[position, index]


def _torchvision(source: CocoImages, config: AugmentConfig) -> Callable[[int, int], None]:
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomShortestSize(list(config.sizes), max_size=config.longest),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    raw = datasets.CocoDetection(source.folder, source.path, transforms=transforms)
    wrapped = datasets.wrap_dataset_for_transforms_v2(raw, target_keys=("boxes", "labels", "masks"))
    return lambda _, index: wrapped[index]


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a loading process
    print(json.dumps(bench_loading(Path(sys.argv[1]), rounds=int(sys.argv[2]) if len(sys.argv) > 2 else 5)))
