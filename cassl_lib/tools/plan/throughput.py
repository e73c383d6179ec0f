"""How fast this machine trains and labels: short runs of the stages' own loops, for `cassl_lib.plan`.

Time is measured per pixel of a batch's canvas (its images padded to one size, a multiple of 32), so that a few small
batches can stand for large ones: sixteen photographs, some upright, share a canvas of twice the area of one of them.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cassl_lib import paths
from cassl_lib.config import AugmentConfig, Config, ModelConfig, TrainConfig
from cassl_lib.data.augment import test_shape, test_transform, training_transform
from cassl_lib.data.loader import Order, Samples, batches, in_turn
from cassl_lib.errors import DataError
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.models.build import build_detector
from cassl_lib.models.condinst import SIZE_DIVISOR
from cassl_lib.runs import Run
from cassl_lib.stages import all_stages as stages
from cassl_lib.training import engine

UNCOUNTED, COUNTED = 10, 40  # batches; on a CPU the first ten steps of a process take up to half as long again
FEWEST = 3  # counted batches, however long they take
PATIENCE = 15.0  # seconds for one measurement, a third of them for batches that are not counted
# Of a batch measured on a CPU. A training step of one photograph at 800 pixels takes ten seconds there: images are
# made smaller for it. In labeling they are not, for the labels depend on it.
TRAIN_PIXELS, LABEL_PIXELS = 2**18, 2**20
SPREAD = 640  # images of a source whose sizes stand for all
LABEL_BYTES, ROW_BYTES = 28, 60  # in the store: a label without its mask, an image without labels and path


@dataclass(frozen=True)
class Pace:
    """What was measured of a training, or (without bytes) of labeling."""

    per_pixel: float  # seconds
    pixels: float  # of canvas, an image, in batches of the stage's own size
    start: float = 0.0  # seconds until the stage works at that pace
    weights: int = 0  # bytes
    checkpoint: int = 0  # bytes

    @property
    def seconds(self) -> float:
        """Of one image."""
        return self.per_pixel * self.pixels


@dataclass(frozen=True)
class Labels:
    """What an image of the pool gets, on average: labels in the store, labels above the threshold, bytes."""

    stored: float
    used: float
    bytes: float


def training_pace(
    config: Config, model: ModelConfig, train: TrainConfig, source, sizes: np.ndarray, *, classes: bool, devices: int
) -> tuple[Pace, str]:
    """Pace of a training stage, and how it was measured.

    Args:
        source: of the stage's samples.
        sizes: (N, 2) height and width of images like those that the stage trains on.
        classes: whether the stage learns them.
        devices: that share the stage's batch.
    """
    own = train.batch_size // devices
    pixels = training_canvas(config.augment, sizes, own)
    at_once, small = _small_enough(own, training_canvas(config.augment, sizes, 1), TRAIN_PIXELS)
    measured = replace(config, augment=_shrunk(config.augment, small))
    while True:
        try:
            per_pixel, start, size = _train_briefly(measured, model, train, source, classes=classes, batch=at_once)
            break
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
        at_once //= 2
    note = f"{at_once} at a time" + (f", their sides {small:.0%} of those in training" if small < 1 else "")
    if at_once < own:
        note += f", scaled to batches of {own}, padded to {pixels / 1e6:.2f} million pixels an image"
        if engine.device_of_process().type != "cpu":
            note += f"; {own} AT A TIME DO NOT FIT ITS MEMORY: use more devices or a smaller batch_size"
    return Pace(per_pixel, pixels, start, **size), note


def _small_enough(batch: int, pixels: float, limit: int) -> tuple[int, float]:
    """How many images to measure with, and the factor on their sides: on a CPU the stage's own may take a minute."""
    if engine.device_of_process().type != "cpu":
        return batch, 1.0
    return max(1, min(batch, int(limit // pixels))), min(1.0, (limit / pixels) ** 0.5)


def _shrunk(augment: AugmentConfig, factor: float) -> AugmentConfig:
    if factor == 1:
        return augment
    sizes = tuple(round(side * factor) for side in augment.sizes)
    return replace(augment, sizes=sizes, longest=round(augment.longest * factor), crop=round(augment.crop * factor))


def _train_briefly(
    config: Config, model: ModelConfig, train: TrainConfig, source, *, classes: bool, batch: int
) -> tuple[float, float, dict[str, int]]:
    """Seconds a pixel, seconds of the start, and bytes of weights and checkpoint, of `engine.train` itself."""
    began, device = time.perf_counter(), engine.device_of_process()
    engine.seed_everything(config.seed)
    detector = build_detector(replace(model, pretrained=False)).to(device, memory_format=torch.channels_last)
    # With a rate of 0 a step takes as long, and no loss can grow out of bounds.
    steps, train = UNCOUNTED + COUNTED, replace(train, batch_size=batch, learning_rate=0.0)
    transform = training_transform(config.augment)
    samples = Samples(source, transform, masks=model.masks, classes=classes, seed=config.seed)
    order = Order(len(samples), batch_size=batch, start=0, stop=steps + 1, seed=config.seed)
    loader = batches(samples, order, workers=train.workers)
    ticks: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        where = {"run": Run(Path(folder)), "title": "measuring"}
        engine.train(detector, lambda step: watched(loader, ticks), config=train, steps=steps, **where)
    weights = sum(value.nbytes for value in detector.state_dict().values())
    trained = sum(value.nbytes for value in detector.parameters() if value.requires_grad)
    moments = {"adamw": 2, "sgd": 1}[train.optimizer]
    return *pace_of(ticks, began), {"weights": weights, "checkpoint": weights + moments * trained}


def labeling_pace(config: Config, model: ModelConfig, labeler: Run | None, pool) -> tuple[Pace, Labels | None, str]:
    """Pace of stage 2, what an image gets (None without a labeler), and how it was measured.

    Args:
        model: the labeler's.
        labeler: a finished run; None measures with random weights, and every detection stored.
        pool: images as of a `Pool`; some of them, spread over it, are labeled.
    """
    began, device = time.perf_counter(), engine.device_of_process()
    detector = stages.load_labeler(labeler, config) if labeler else _detects_all(model, config.seed)
    detector = detector.to(device, memory_format=torch.channels_last)
    some, own, keep = Some(pool), config.label.batch_size, (config.label.keep or 0.0) if labeler else 0.0
    at_once, _ = _small_enough(own, test_canvas(config.augment, some.sizes, 1), LABEL_PIXELS)
    samples = Samples(some, test_transform(config.augment), masks=False, classes=False, replace=False)
    loader = batches(samples, some.tickets(at_once), workers=config.labeler.workers)
    ticks: list[tuple[float, int]] = []
    how = {"sizes": lambda place: some.sizes[place].tolist(), "config": config.labeler, "title": None}
    found = engine.predict(detector, watched(loader, ticks), **how)
    counts = [_stored(some.rows[place], labels, keep, config) for place, labels, _ in found if place is not None]
    if not counts:
        raise DataError(f"none of {len(some)} images of the pool can be read, such as {some.image_path(0)}")
    per_pixel, start = pace_of(ticks, began)
    labels = Labels(*(statistics.fmean(values) for values in zip(*counts, strict=True)))
    note = f"{len(counts)} images, {at_once} at a time, by "
    if labeler:
        note += f"the finished {labeler.id}"
    else:
        note += f"random weights with {labels.stored:.0f} detections each: an upper bound of the time"
    return Pace(per_pixel, labeling_canvas(config.augment, some.sizes, own), start), labels if labeler else None, note


def _detects_all(model: ModelConfig, seed: int) -> torch.nn.Module:
    """A labeler without training whose every image gets as many detections as it may."""
    engine.seed_everything(seed)
    detector = build_detector(replace(model, pretrained=False, score_threshold=0.0, nms_threshold=1.0))
    torch.nn.init.constant_(detector.head.bbox_pred.bias, 2.0)  # strides to each side: random boxes are mostly empty
    return detector


def _stored(row: dict, found: dict, keep: float, config: Config) -> tuple[int, int, int]:
    """Labels in the store, labels above the threshold and bytes of one image, masks encoded as labeling does."""
    kept = found["scores"] >= keep
    rles = encode_masks(found["masks"][kept]) if "masks" in found else []
    stored, used = int(kept.sum()), int((found["scores"] > config.label.threshold).sum())
    masks = sum(len(rle["counts"]) + 4 for rle in rles)
    return stored, used, ROW_BYTES + len(row["path"]) + LABEL_BYTES * stored + masks


class Some:
    """Images spread over a pool; their ids are their places here. A source of `Samples`."""

    def __init__(self, pool):
        places = np.linspace(0, len(pool) - 1, min(SPREAD, len(pool))).astype(int).tolist()
        self.rows = [pool.row(place) for place in places]
        self.sizes = np.array([(row["height"], row["width"]) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def image_path(self, index: int) -> Path:
        return paths.image(self.rows[index]["path"])

    def image_id(self, index: int) -> int:
        return index

    def tickets(self, batch: int) -> list[list[tuple[int, int]]]:
        """Batches of like proportions, as labeling makes them, in a random order: the first few stand for all."""
        in_order = in_turn(np.argsort(self.sizes[:, 1] / self.sizes[:, 0], kind="stable").tolist(), batch)
        return [in_order[place] for place in np.random.default_rng(0).permutation(len(in_order))]

    def annotations(self, index: int, *, masks: bool = False) -> dict:
        """Nothing, as of a pool."""
        return {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}


def watched(loader, ticks: list[tuple[float, int]]):
    """The batches of `loader`, until enough are timed. `ticks` gets the time, and the pixels of the batch, of each."""
    for batch in loader:
        ticks.append((time.perf_counter(), len(batch[0]) * canvas([image.shape[-2:] for image in batch[0]])))
        first = _first_counted(ticks)
        counted = len(ticks) - 1 - first
        if counted >= COUNTED or (counted >= FEWEST and ticks[-1][0] - ticks[0][0] > PATIENCE):
            return
        yield batch
    ticks.append((time.perf_counter(), 0))


def _first_counted(ticks: list[tuple[float, int]]) -> int:
    """The batch from which on time is counted: after `UNCOUNTED`, or after one and a third of the patience."""
    late = (i for i, (moment, _) in enumerate(ticks) if i and moment - ticks[0][0] > PATIENCE / 3)
    return min(UNCOUNTED, next(late, UNCOUNTED))


def pace_of(ticks: list[tuple[float, int]], began: float) -> tuple[float, float]:
    """Median seconds a pixel of the counted batches, and the seconds from `began` on that those before took longer."""
    first = max(0, min(_first_counted(ticks), len(ticks) - 1 - FEWEST))
    counted = list(itertools.pairwise(ticks))[first:]
    per_pixel = statistics.median((b - a) / pixels for (a, pixels), (b, _) in counted if pixels)
    return per_pixel, max(0.0, ticks[first][0] - began - per_pixel * sum(pixels for _, pixels in ticks[:first]))


def canvas(shapes) -> int:
    """Pixels of the smallest canvas, sides multiples of 32, that holds images of these (height, width); 0 of none."""
    if not len(shapes):
        return 0
    height, width = np.ceil(np.max(np.asarray(shapes), axis=0) / SIZE_DIVISOR).astype(int) * SIZE_DIVISOR
    return int(height * width)


def training_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int) -> float:
    """Mean pixels of canvas that an image has in training, `batch` at a time."""
    if augment.crop:
        return canvas([(augment.crop, augment.crop)])
    return _mean_canvas(augment, sizes, batch, augment.sizes)


def test_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int) -> float:
    """The same in evaluation."""
    return _mean_canvas(augment, sizes, batch, (augment.test_size,))


def labeling_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int) -> float:
    """The same in labeling, where images of like proportions share a batch: in 50 batches of these sizes."""
    many = np.tile(sizes, (-(-50 * batch // len(sizes)), 1)).tolist()
    shapes = [test_shape(shape, augment) for shape in sorted(many, key=lambda size: size[1] / size[0])]
    parts = [shapes[at : at + batch] for at in range(0, len(shapes), batch)]
    return sum(len(part) * canvas(part) for part in parts) / len(shapes)


def _mean_canvas(augment: AugmentConfig, sizes: np.ndarray, batch: int, sides: tuple[int, ...]) -> float:
    """Over 200 batches drawn at random, the same ones every time."""
    draw = np.random.default_rng(0)
    chosen, side = sizes[draw.integers(len(sizes), size=(200, batch))], draw.choice(sides, (200, batch))
    scale = np.minimum(side / chosen.min(-1), augment.longest / chosen.max(-1))
    return float(np.mean([canvas(shapes) for shapes in chosen * scale[..., None]]))
