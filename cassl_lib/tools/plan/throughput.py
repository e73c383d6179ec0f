"""How fast this machine trains and labels: short runs of the stages' own loops, for `tools/plan/estimate.py`.

Time is measured per pixel of a batch's canvas (its images padded to one size, a multiple of 32), so that a few small
batches can stand for large ones: sixteen photographs, some of them portraits, share a canvas of twice the area of one.
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
from cassl_lib.data.augment import test_transform, training_transform
from cassl_lib.data.image_files import spread
from cassl_lib.data.loader import Order, Samples, batches, in_turn
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import DataError
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.models import build_detector
from cassl_lib.runs import Run
from cassl_lib.stages.pseudo_labels import load_labeler, threshold_of
from cassl_lib.tools.plan.canvas import canvas, evaluation_canvas, labeling_canvas, training_canvas
from cassl_lib.training import engine
from cassl_lib.training.distributed import device_of_process, seed_everything
from cassl_lib.training.procedure import Supervised

UNCOUNTED, COUNTED = 10, 40  # batches; on a CPU the first ten steps of a process take up to 1.5 times as long
FEWEST = 3  # counted batches, however long they take
PATIENCE = 15.0  # seconds per measurement, a third of them for batches that are not counted
# Limits of a batch measured on a CPU, where a training step of one photograph at 800 pixels takes ten seconds: images
# are shrunk for it. In labeling they are not, because the labels depend on the size.
TRAIN_PIXELS, LABEL_PIXELS = 2**18, 2**20
SAMPLED = 640  # images of a source whose sizes stand for all
LABEL_BYTES, ROW_BYTES = 28, 60  # in the store: a label without its mask, an image without labels and path


@dataclass(frozen=True)
class Rate:
    """The measured rate of a training stage, or (without bytes) of labeling."""

    per_pixel: float  # seconds
    pixels: float  # of canvas per image, in batches of the stage's own size
    start: float = 0.0  # seconds until the stage runs at this rate
    weights: int = 0  # bytes
    checkpoint: int = 0  # bytes

    @property
    def seconds(self) -> float:
        """Per image."""
        return self.per_pixel * self.pixels


@dataclass(frozen=True)
class LabelCounts:
    """Means per image of the pool: labels in the store, labels above the threshold, bytes."""

    stored: float
    used: float
    bytes: float


def training_rate(
    config: Config,
    model: ModelConfig,
    train: TrainConfig,
    source: ImageSource,
    sizes: np.ndarray,
    *,
    classes: bool,
    pseudo_labeled: bool,
    devices: int,
) -> tuple[Rate, str]:
    """The rate of a training stage, and how it was measured.

    Args:
        source: of the stage's samples.
        sizes: (N, 2) height and width of images like those that the stage trains on.
        classes: whether the stage learns classes.
        pseudo_labeled: whether the images are augmented as pseudo-labeled ones.
        devices: number of devices that share the stage's batch.
    """
    own = at_once(train, devices)
    pixels = training_canvas(config.augment, sizes, own)
    batch, small = _affordable(own, training_canvas(config.augment, sizes, 1), TRAIN_PIXELS)
    measured = replace(config, augment=_shrunk(config.augment, small))
    while True:
        try:
            per_pixel, start, size = _train_briefly(
                measured, model, train, source, classes=classes, pseudo_labeled=pseudo_labeled, batch=batch
            )
            break
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2
    note = f"{batch} images at a time" + (f", shrunk to {small:.0%} of their training size" if small < 1 else "")
    if batch < own:
        note += f", scaled to batches of {own}, padded to {pixels / 1e6:.2f} million pixels per image"
        if device_of_process().type != "cpu":
            parts = own // batch * train.accumulate
            note += f"; {own} IMAGES DO NOT FIT INTO ITS MEMORY: use accumulate={parts}, or more devices"
    return Rate(per_pixel, pixels, start, weights=size["weights"], checkpoint=size["checkpoint"]), note


def at_once(train: TrainConfig, devices: int) -> int:
    """Images in a forward pass: a device's share of the batch, in `accumulate` parts."""
    return train.batch_size // devices // train.accumulate


def _affordable(batch: int, pixels: float, limit: int) -> tuple[int, float]:
    """How many images to measure with, and the factor on their sides; on a CPU the stage's own could take a minute."""
    if device_of_process().type != "cpu":
        return batch, 1.0
    return max(1, min(batch, int(limit // pixels))), min(1.0, (limit / pixels) ** 0.5)


def _shrunk(augment: AugmentConfig, factor: float) -> AugmentConfig:
    if factor == 1:
        return augment
    return replace(
        augment,
        sizes=tuple(round(side * factor) for side in augment.sizes),
        strong_sizes=tuple(round(side * factor) for side in augment.strong_sizes),
        longest=round(augment.longest * factor),
        crop=round(augment.crop * factor),
    )


def _train_briefly(
    config: Config,
    model: ModelConfig,
    train: TrainConfig,
    source: ImageSource,
    *,
    classes: bool,
    pseudo_labeled: bool,
    batch: int,
) -> tuple[float, float, dict[str, int]]:
    """Seconds per pixel, seconds of the start, and bytes of weights and checkpoint, of `engine.train` itself."""
    began, device = time.perf_counter(), device_of_process()
    seed_everything(config.seed)
    detector = build_detector(replace(model, pretrained=False)).to(device, memory_format=torch.channels_last)
    # A learning rate of 0 takes as long, and no loss can diverge.
    steps = UNCOUNTED + COUNTED
    train = replace(train, batch_size=batch, learning_rate=0.0, accumulate=1, evaluate_every=0, keep="last")
    transform = training_transform(config.augment, pseudo_labeled=pseudo_labeled)
    samples = Samples(source, transform, masks=model.masks, classes=classes, seed=config.seed)
    order = Order(len(samples), batch_size=batch, start=0, stop=steps + 1, seed=config.seed)
    loader = batches(samples, order, workers=train.workers)
    ticks: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        engine.train(
            Supervised(detector),
            lambda step: watched(loader, ticks),
            config=train,
            steps=steps,
            run=Run(Path(folder)),
            title="measuring",
        )
    weights = sum(value.nbytes for value in detector.state_dict().values())
    trained = sum(value.nbytes for value in detector.parameters() if value.requires_grad)
    moments = {"adamw": 2, "sgd": 1}[train.optimizer]
    return *rate_of(ticks, began), {"weights": weights, "checkpoint": weights + moments * trained}


def labeling_rate(
    config: Config, model: ModelConfig, labeler: Run | None, pool
) -> tuple[Rate, LabelCounts | None, str]:
    """The rate of labeling, the labels per image (None without a labeler), and how they were measured.

    Args:
        model: the pseudo labeler's.
        labeler: a finished run; None measures with random weights, every detection stored.
        pool: images as of a `Pool`; evenly spaced ones are labeled.
    """
    began, device = time.perf_counter(), device_of_process()
    detector = load_labeler(labeler, config) if labeler else _detects_all(model, config.seed)
    detector = detector.to(device, memory_format=torch.channels_last)
    some, own = PoolSample(pool), config.pseudo_labels.batch_size
    keep = (config.pseudo_labels.keep or 0.0) if labeler else 0.0
    batch, _ = _affordable(own, evaluation_canvas(config.augment, some.sizes, 1), LABEL_PIXELS)
    samples = Samples(some, test_transform(config.augment), masks=False, classes=False, replace=False)
    loader = batches(samples, some.tickets(batch), workers=config.pseudo_labeler.workers)
    ticks: list[tuple[float, int]] = []
    detections = engine.predict(
        detector,
        watched(loader, ticks),
        sizes=lambda place: some.sizes[place].tolist(),
        config=config.pseudo_labeler,
        title=None,
    )
    counts = [_stored(some.rows[place], each, keep, config) for place, each, _ in detections if place is not None]
    if not counts:
        raise DataError(
            f"none of {len(some)} images of the pool can be read, such as {some.image_path(0)}; restore them"
        )
    per_pixel, start = rate_of(ticks, began)
    labels = LabelCounts(*(statistics.fmean(values) for values in zip(*counts, strict=True)))
    note = f"{len(counts)} images, {batch} at a time, by "
    if labeler:
        note += f"the finished {labeler.id}"
    else:
        note += f"random weights with {labels.stored:.0f} detections per image: an upper bound on the time"
    return Rate(per_pixel, labeling_canvas(config.augment, some.sizes, own), start), labels if labeler else None, note


def _detects_all(model: ModelConfig, seed: int) -> torch.nn.Module:
    """An untrained labeler that gives every image as many detections as allowed."""
    seed_everything(seed)
    detector = build_detector(replace(model, pretrained=False, score_threshold=0.0, nms_threshold=1.0))
    torch.nn.init.constant_(
        detector.head.bbox_pred.bias, 2.0
    )  # strides to each side; random boxes would mostly be empty
    return detector


def _stored(row: dict, detections: dict, keep: float, config: Config) -> tuple[int, int, int]:
    """Labels in the store, labels above the threshold and bytes of one image, masks encoded as labeling does."""
    kept = detections["scores"] >= keep
    rles = encode_masks(detections["masks"][kept]) if "masks" in detections else []
    stored, used = int(kept.sum()), int((detections["scores"] > threshold_of(config, None)).sum())
    masks = sum(len(rle["counts"]) + 4 for rle in rles)
    return stored, used, ROW_BYTES + len(row["path"]) + LABEL_BYTES * stored + masks


class PoolSample:
    """Evenly spaced images of a pool as an ImageSource; their ids are their places here."""

    left_out = None

    def __init__(self, pool):
        self.rows = [pool.row(place) for place in spread(len(pool), SAMPLED)]
        self.sizes = np.array([(row["height"], row["width"]) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def image_path(self, index: int) -> Path:
        return paths.image(self.rows[index]["path"])

    def image_id(self, index: int) -> int:
        return index

    def tickets(self, batch: int) -> list[list[tuple[int, int]]]:
        """Batches of similar aspect ratio, as in labeling, in random order: the first few stand for all."""
        in_order = in_turn(np.argsort(self.sizes[:, 1] / self.sizes[:, 0], kind="stable").tolist(), batch)
        return [in_order[place] for place in np.random.default_rng(0).permutation(len(in_order))]

    def annotations(self, index: int, *, masks: bool = False) -> dict:
        """No instances, as in a pool."""
        none = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
        return none | {"masks": np.zeros((0, *self.sizes[index]), np.uint8)} if masks else none


def watched(loader, ticks: list[tuple[float, int]]):
    """The batches of `loader`, until enough are timed. `ticks` receives the time and the pixels of each."""
    for batch in loader:
        ticks.append((time.perf_counter(), len(batch[0]) * canvas([image.shape[-2:] for image in batch[0]])))
        first = _first_counted(ticks)
        counted = len(ticks) - 1 - first
        if counted >= COUNTED or (counted >= FEWEST and ticks[-1][0] - ticks[0][0] > PATIENCE):
            return
        yield batch
    ticks.append((time.perf_counter(), 0))


def _first_counted(ticks: list[tuple[float, int]]) -> int:
    """Index of the first counted batch: `UNCOUNTED`, or the first one after a third of the patience."""
    late = (i for i, (moment, _) in enumerate(ticks) if i and moment - ticks[0][0] > PATIENCE / 3)
    return min(UNCOUNTED, next(late, UNCOUNTED))


def rate_of(ticks: list[tuple[float, int]], began: float) -> tuple[float, float]:
    """Median seconds per pixel of the counted batches, and the extra seconds that those before took, from `began`."""
    first = max(0, min(_first_counted(ticks), len(ticks) - 1 - FEWEST))
    counted = list(itertools.pairwise(ticks))[first:]
    per_pixel = statistics.median((b - a) / pixels for (a, pixels), (b, _) in counted if pixels)
    return per_pixel, max(0.0, ticks[first][0] - began - per_pixel * sum(pixels for _, pixels in ticks[:first]))
