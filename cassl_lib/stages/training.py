"""Training one detector: what pseudo labeler, warm-up and finetuning have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from cassl_lib.config import Config, ModelConfig, TrainConfig
from cassl_lib.data import datasets
from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.loader import Order, Samples, batches
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import ConfigError
from cassl_lib.evaluation.detector import evaluate_detector
from cassl_lib.models import Detector, TransferReport, build_detector, copy_parts
from cassl_lib.runs import Run
from cassl_lib.stages.models import trained_weights
from cassl_lib.streams import stream
from cassl_lib.training import engine
from cassl_lib.training.distributed import device_of_process, rank_and_world, seed_everything
from cassl_lib.training.optimizer import number_of_steps, scaled_rate
from cassl_lib.training.procedure import Supervised

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What a stage trains: a detector, for how long, on which images, starting where."""

    stage: str  # whose random streams it draws from
    title: str  # of the stage, for messages
    model: ModelConfig
    section: TrainConfig
    source: ImageSource
    val: CocoImages
    classes: bool  # whether the detector learns classes
    start: Run | None = None  # whose weights it starts from
    parts: tuple[str, ...] = ()  # which of them are copied

    @property
    def steps(self) -> int:
        return number_of_steps(self.section, len(self.source))


def train_detector(training: Training, config: Config, run: Run) -> dict:
    """Build, train, evaluate and save a detector; returns the run's result.

    Raises:
        NonFiniteLoss: a loss is not finite; the last checkpoint is kept.
    """
    # Build: initial weights, then the parts that are copied.
    seed_everything(stream(config.seed, training.stage, "weights"))
    detector = build_detector(training.model)
    copied = copy_parts(trained_weights(training.start), detector, parts=training.parts) if training.start else None
    fresh = {name for name, _ in detector.named_parameters()} - set(copied.copied) if copied else ()
    # channels_last: the memory format in which convolutions are fastest.
    detector = detector.to(device_of_process(), memory_format=torch.channels_last)
    _announce(training, copied, run)

    # Train, resuming from the run's checkpoint.
    samples, loader_from = _loader(training, config)
    trained = engine.train(
        Supervised(detector),
        loader_from,
        config=training.section,
        steps=training.steps,
        run=run,
        title=training.title,
        evaluate=_validation_of(training, config, detector, run),
        fresh=fresh,
    )

    # Evaluate and save.
    unreadable: list[str] = []
    metrics = evaluate_detector(
        detector,
        training.val,
        augment=config.augment,
        training=training.section,
        classes=training.classes,
        folder=run.folder,
        panoptic=config.panoptic,
        heldout=_heldout_of(training, config),
        side=datasets.area_side(config),
        unreadable=unreadable,
    )
    if rank_and_world()[0] == 0:
        engine.save_weights(detector, run.weights, metadata={"run": run.id, "model": asdict(training.model)})
    return {
        "metrics": metrics,
        "unreadable_validation": unreadable,
        "steps": training.steps,
        "images": len(samples),
        "learning_rate": scaled_rate(training.section),
        "copied": str(copied) if copied else None,
        "classes": list(training.val.classes) if training.classes else ["object"],
        "categories": _categories(training.val) if training.classes else None,
        "left_out": str(training.source.left_out or "") or None,
        **trained,
    }


def _validation_of(training: Training, config: Config, detector: Detector, run: Run) -> Callable | None:
    """The function that evaluates during training, if the settings ask for it and there are held-out images.

    Raises:
        ConfigError: the settings ask for it and there are none.
    """
    section = training.section
    if not section.evaluate_every and section.keep == "last":
        return None
    images = datasets.heldout_set(config, "entities" if isinstance(training.val, EntityImages) else "objects")
    if images is None:
        raise ConfigError("evaluate_every, keep='best': there are no held-out images; give heldout=JSON[:FOLDER]")
    kind = "box" if training.classes else "box_agnostic"

    def evaluate(step: int) -> float | None:
        metrics = evaluate_detector(
            detector,
            images,
            augment=config.augment,
            training=section,
            classes=training.classes,
            folder=run.folder / "validation",
            side=datasets.area_side(config),
        )
        return metrics[kind]["AP"] if metrics else None

    return evaluate


def _heldout_of(training: Training, config: Config) -> EntityImages | None:
    """The images on which the score threshold of the panoptic merge is chosen, where one has to be."""
    if not isinstance(training.val, EntityImages) or config.panoptic.score_threshold is not None:
        return None
    return datasets.heldout_set(config, "entities") if training.classes else None


def _loader(training: Training, config: Config):
    """The training samples, and a function of the first step that returns their loader."""
    samples = Samples(
        training.source,
        training_transform(config.augment, pseudo_labeled=training.stage == "warmup"),
        masks=training.model.masks,
        classes=training.classes,
        seed=stream(config.seed, training.stage, "augmentation"),
        keep=True,
    )
    rank, world = rank_and_world()

    def loader_from(step: int):
        order = Order(
            len(samples),
            batch_size=training.section.batch_size,
            start=step,
            stop=training.steps,
            seed=stream(config.seed, training.stage, "order"),
            rank=rank,
            world=world,
        )
        return batches(samples, order, workers=training.section.workers)

    return samples, loader_from


def _categories(images: CocoImages) -> list[dict]:
    """Ids and names of a labeled set's classes, in the order of the labels."""
    names = zip(images.category_ids.tolist(), images.classes, strict=True)
    return [{"id": number, "name": name} for number, name in names]


def _announce(training: Training, copied: TransferReport | None, run: Run) -> None:
    """Log what is about to be trained, with the scaled learning rate and what was copied."""
    if rank_and_world()[0]:
        return
    section, batch = training.section, training.section.batch_size
    logger.info(
        "%s: %s, %d steps of %d images from %d", run.id, training.title, training.steps, batch, len(training.source)
    )
    logger.info(
        "learning rate %g (setting %g for 16 images, batch %d)", scaled_rate(section), section.learning_rate, batch
    )
    if copied:
        logger.info("%s", copied)
    if left_out := str(training.source.left_out or ""):
        logger.info("left out: %s", left_out)
