"""The detectors of the stages: what is built for training, and what is loaded from a finished run."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cassl_lib.config import Config, ModelConfig
from cassl_lib.errors import ConfigError, MissingRun, WeightsError
from cassl_lib.files import sha256
from cassl_lib.models import build_detector
from cassl_lib.resolve import tuples
from cassl_lib.runs import Run
from cassl_lib.stages.registry import STAGES
from cassl_lib.training.distributed import device_of_process


def class_agnostic_model(config: Config) -> ModelConfig:
    """The detector of one class that pseudo labeler and warm-up train."""
    # UNSTATED: whether CA-SSL's entity labels overlap. The authors' entity inference gives each pixel to one entity.
    alone = config.annotation == "entities" if config.overlap is None else not config.overlap
    return replace(config.model, num_classes=1, one_entity_per_pixel=alone and config.model.masks)


def class_agnostic_or_specific_model(config: Config, classes: list[str]) -> ModelConfig:
    """The detector of pseudo labeler and warm-up: of one class, or of all of them for Objects (P,S), Table 2."""
    model = class_agnostic_model(config)
    return replace(model, num_classes=len(classes)) if config.class_specific else model


def model_config(run: Run) -> ModelConfig:
    """The ModelConfig that a finished run's weights carry; pretrained weights are not loaded again."""
    if not run.weights.is_file():
        raise MissingRun(f"{run.weights}: no such file; give a finished run of a detector")
    try:
        with safe_open(run.weights, framework="pt") as file:
            values = json.loads(file.metadata()["cassl"])["model"]
        return ModelConfig(**{name: tuples(value) for name, value in values.items()} | {"pretrained": False})
    except SafetensorError as error:
        raise _damaged(run, str(error)) from error
    except (KeyError, TypeError) as error:
        raise MissingRun(f"{run.weights}: written by another version of cassl ({error}); make the run again") from error


def check_trained(run: Run) -> None:
    """Raise ConfigError unless the run is of a stage that trains a detector."""
    stage = STAGES.get(run.stage)
    if stage is None or not stage.trains:
        trained = [name for name, each in STAGES.items() if each.trains]
        raise ConfigError(f"{run.id} is not a run of a detector; give a run of {', '.join(trained)}")


def load_detector(run: Run, **inference) -> torch.nn.Module:
    """The trained detector of a finished run, in eval mode on this process's device.

    Args:
        inference: fields of ModelConfig to set instead of the run's own, such as score_threshold.

    Raises:
        MissingRun, WeightsError: its weights are missing or damaged.
    """
    detector = build_detector(replace(model_config(run), **inference))
    detector.load_state_dict(trained_weights(run))
    return detector.to(device_of_process()).eval()


def trained_weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights of a finished run, on the CPU, compared with the checksum in its result if there is one.

    Raises:
        MissingRun: there are no weights.
        WeightsError: they are damaged.
    """
    if not run.weights.is_file():
        raise MissingRun(f"{run.weights}: no such file; give a finished run of a detector")
    checksum = run.result.get("weights_sha256") if run.finished else None  # results of version 0.1.0 have none
    if checksum and sha256(run.weights) != checksum:
        raise _damaged(run, "it does not have the checksum in result.json")
    try:
        return load_file(run.weights)
    except SafetensorError as error:
        raise _damaged(run, str(error)) from error


def _damaged(run: Run, problem: str) -> WeightsError:
    return WeightsError(
        f"{run.weights} is damaged: {problem}. Restore it, or delete {run.folder} and make the run again."
    )
