"""Stage 3: finetuning with classes (Sec. 3.1, eq. 5), and the baseline that starts from scratch."""

from __future__ import annotations

from dataclasses import replace

from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.errors import DataError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run
from cassl_lib.stages.identity import ANNOTATIONS, annotation_of
from cassl_lib.stages.requests import Request
from cassl_lib.stages.training import Training, train_detector
from cassl_lib.training.optimizer import number_of_steps


def finetune(request: Request, run: Run) -> dict:
    """Train with classes on the labeled images, or (`config.target`) with things and stuff.

    Starts from a warm-up (CA-SSL) or a pseudo labeler (Objects (G,A), Table 2), of which `request.parts` are copied
    (Table 9). Without an input it is the baseline: the backbone's initial weights, trained for the steps of warm-up
    and finetuning together.

    Returns:
        The run's result: metrics on the validation images, steps, seconds, what was copied.
    """
    config, annotation = request.config, annotation_of(request)
    labeled, val = datasets.labeled_set(config, annotation), datasets.validation_set(config, annotation)
    if labeled.classes != val.classes:
        raise DataError(f"{val.path}: its classes {val.classes} differ from those of {labeled.path}, {labeled.classes}")
    training = Training(
        title=request.title,
        model=replace(config.model, num_classes=len(labeled.classes)),
        section=replace(config.finetune, steps=baseline_steps(config)) if request.is_baseline else config.finetune,
        source=labeled,
        val=val,
        classes=True,
        start=None if request.is_baseline else request.inputs[0],
        parts=request.parts,
    )
    return train_detector(training, config, run)


def baseline_steps(config: Config) -> int:
    """Training steps of the baseline: warm-up plus finetuning steps, so that compute is matched."""
    return warmup_steps(config) + finetune_steps(config)


def warmup_steps(config: Config) -> int:
    """Steps of the warm-up; in epochs they depend on the size of the pool or store."""
    if config.warmup.steps:
        return config.warmup.steps
    return number_of_steps(
        config.warmup, len(PseudoLabelStore(config.store) if config.store else datasets.pool(config))
    )


def finetune_steps(config: Config) -> int:
    """Steps of finetuning; in epochs they depend on the number of labeled images."""
    if config.finetune.steps:
        return config.finetune.steps
    return number_of_steps(config.finetune, len(datasets.labeled_set(config, ANNOTATIONS[config.target])))
