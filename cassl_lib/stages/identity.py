"""What decides the result of a run, and so its name. The only place where an identity is computed.

An identity is JSON data that is hashed (`runs.run_id`):

    stage, version   of the registry
    settings         what decides the result and differs from its default, section by section
    inputs           names of the runs it starts from, by stage
    data             fingerprints of the data it reads

Only values that differ from their defaults are hashed. So a new setting whose default keeps the old behavior renames
no run. A default must therefore never change without raising the version of the stages that it concerns; a test holds
the defaults.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cassl_lib.config import PARTS, Config, TrainConfig
from cassl_lib.data import datasets
from cassl_lib.files import file_fingerprint
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.stages.models import class_agnostic_model
from cassl_lib.stages.registry import STAGES
from cassl_lib.training.distributed import device_of_process
from cassl_lib.training.optimizer import precision_of

if TYPE_CHECKING:
    from cassl_lib.stages.requests import Request

ANNOTATIONS = {"instances": "objects", "panoptic": "entities"}  # target of finetuning: the annotation it reads
NEUTRAL = {"seed": 0, "annotation": "objects", "target": "instances", "crowd": "background", "class_specific": False}
IDLE = ("workers", "checkpoint_every", "log_every")  # of a training section: they do not decide the result


def identity(request: Request) -> dict[str, Any]:
    """The identity of a request whose inputs are runs.

    Reads the data it names, to fingerprint them.

    Raises:
        DataError: missing data, or data that cannot be used.
    """
    return _json(
        {
            "stage": request.stage,
            "version": STAGES[request.stage].version,
            "settings": settings(request),
            "inputs": {run.stage: run.id for run in request.inputs},
            "data": {name: _fingerprint(name, request) for name in data_names(request)},
        }
    )


def key(request: Request, inputs: Sequence[str]) -> str:
    """As an identity, but data are named instead of read (only a weights file is hashed, once).

    Equal keys mean equal identities.
    """
    data = {name: _description(name, request.config) for name in data_names(request)}
    return json.dumps(_json([request.stage, settings(request), list(inputs), data]), sort_keys=True)


def settings(request: Request) -> dict[str, Any]:
    """What decides the result besides inputs and data, where it differs from the default."""
    if request.stage == "pseudo_labels":
        return _label_settings(request.config)
    config, section = request.config, getattr(request.config, request.stage)
    chosen = {
        **_choices(request),
        "model": _model_settings(request),
        # Weak and strong augmentation draw the scale of training images from a range of their own.
        "augment": changed(config.augment, skip=("sizes" if config.augment.kind == "strong" else "strong_sizes",)),
        "train": _train_settings(request),
        "panoptic": changed(config.panoptic) if learns(request) == "panoptic" else {},
        "precision": _precision(section),
    }
    if request.stage == "warmup" and config.pseudo_labels.threshold is not None:
        chosen["threshold"] = config.pseudo_labels.threshold
    if request.stage == "finetune" and request.inputs and request.parts != PARTS[:3]:
        chosen["parts"] = request.parts
    return {name: value for name, value in chosen.items() if value not in ({}, None)}


def learns(request: Request) -> str:
    """What the detector learns: objects or entities, class-agnostic; instances or panoptic, with classes."""
    config = request.config
    if request.stage == "finetune":
        return config.target
    with_classes = {annotation: target for target, annotation in ANNOTATIONS.items()}
    return with_classes[config.annotation] if config.class_specific else config.annotation


def annotation_of(request: Request) -> str:
    """The annotation that a request's stage reads: objects or entities."""
    return ANNOTATIONS[request.config.target] if request.stage == "finetune" else request.config.annotation


def changed(section: Any, *, skip: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a section of the settings that differ from their defaults."""
    defaults = type(section)()
    names = (field.name for field in fields(section) if field.name not in skip)
    return {name: value for name in names if (value := getattr(section, name)) != getattr(defaults, name)}


def data_names(request: Request) -> tuple[str, ...]:
    """Names of the data that a request reads besides its inputs."""
    tuning = ("heldout",) if tunes(request) else ()
    if request.stage == "pseudo_labels":
        return ("pool",)
    if request.stage == "warmup":
        return ("val", *tuning, *(() if request.inputs else ("store",)))
    return ("labeled", "val", *tuning)


def tunes(request: Request) -> bool:
    """Whether the stage chooses something on held-out images: its weights, or a threshold.

    The thresholds are those of the pseudo labels and of the panoptic merge.
    """
    config = request.config
    if config.heldout is None or not STAGES[request.stage].trains:
        return False
    if getattr(config, request.stage).keep == "best":
        return True
    if request.stage == "warmup":
        return bool(request.inputs) and config.pseudo_labels.threshold is None
    return learns(request) == "panoptic" and config.panoptic.score_threshold is None


def _choices(request: Request) -> dict[str, Any]:
    """The choices of the configuration that the stage depends on, where they are not the neutral ones."""
    names = ["seed", *(["target"] if request.stage == "finetune" else ["annotation", "class_specific"])]
    if learns(request) in ("entities", "panoptic"):
        names.append("crowd")
    return {name: getattr(request.config, name) for name in names if getattr(request.config, name) != NEUTRAL[name]}


def _model_settings(request: Request) -> dict[str, Any]:
    """The detector; its number of classes follows from the data."""
    config = request.config
    model = config.model if request.stage == "finetune" else class_agnostic_model(config)
    chosen = changed(model, skip=("num_classes", "pretrained"))
    if model.pretrained:  # the file's content decides, not its place
        chosen["pretrained"] = _weights_hash(model.pretrained) if isinstance(model.pretrained, str) else "imagenet"
    return chosen


def _train_settings(request: Request) -> dict[str, Any]:
    """Schedule and optimizer; `epochs` does not decide where `steps` is given."""
    section = getattr(request.config, request.stage)
    # Evaluating during training decides nothing unless the best weights are kept.
    watched = () if section.keep == "best" else ("evaluate_every",)
    return changed(section, skip=(*IDLE, *watched, "precision", "epochs" if section.steps else "steps"))


def _weights_hash(file: str) -> str:
    """The hash of a weights file, which is read once as long as it stays the same."""
    state = Path(file).stat()
    return _hash_of(file, state.st_mtime_ns, state.st_size)


@functools.lru_cache
def _hash_of(file: str, modified: int, size: int) -> str:
    return file_fingerprint(Path(file))


def _label_settings(config: Config) -> dict[str, Any]:
    """What decides pseudo labels besides pseudo labeler and pool; the threshold is applied when they are read."""
    augment = changed(config.augment)
    test = {name: augment[name] for name in ("test_size", "longest") if name in augment}
    # batch_size decides: an image is padded to the largest of its batch, which moves scores a little.
    chosen = changed(config.pseudo_labels, skip=("threshold",)) | {"augment": test}
    chosen["precision"] = _precision(config.pseudo_labeler)
    return {name: value for name, value in chosen.items() if value not in ({}, None)}


def _precision(section: TrainConfig) -> str | None:
    precision = precision_of(section, device_of_process())
    return None if precision == "float32" else precision


def _fingerprint(name: str, request: Request) -> str:
    config, annotation = request.config, annotation_of(request)
    if name == "pool":
        return datasets.pool(config).fingerprint
    if name == "store":
        return PseudoLabelStore(config.store).fingerprint
    sets = {"labeled": datasets.labeled_set, "val": datasets.validation_set, "heldout": datasets.heldout_set}
    return sets[name](config, annotation).fingerprint


def _description(name: str, config: Config) -> list[Any]:
    """The data by what the configuration calls them."""
    value = config.unlabeled if name == "pool" else getattr(config, name)
    if name == "pool" and value in ("scenes", "split"):
        return [value, config.split, config.scenes]
    drawn = [config.labeled_images, config.seed] if name == "labeled" and config.labeled_images else []
    return [value, config.scenes if value == "scenes" else (), *drawn]


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
