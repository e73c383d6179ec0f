"""What the parameters of `resolve` change in a configuration, and the checks of their values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from cassl_lib.config import KEEP, TRAINING_SECTIONS, AugmentConfig, Config
from cassl_lib.errors import ConfigError

RANGES = {  # kind, lowest and highest value
    "learning_rate": ((int, float), 0, 10),
    "weight_decay": ((int, float), 0, 1),
    "accumulate": (int, 1, 65_536),
    "evaluate_every": (int, 0, 10**9),
}
POSITIVE = ("learning_rate",)  # the lowest value itself is not allowed


def with_training(config: Config, stage: str | None, *, epochs=None, steps=None, batch_size=None, **others) -> Config:
    """How the stages train.

    Args:
        stage: the stage that `epochs` and `steps` are for; the others are for it, or for every stage if None.
        others: fields of `TrainConfig`: learning_rate, weight_decay, accumulate, evaluate_every, keep.
    """
    if stage is not None:
        one_of("stage", stage, TRAINING_SECTIONS)
    _check_length(stage, epochs, steps)
    lengths = {"epochs": float(epochs), "steps": 0} if epochs is not None else {"steps": steps}
    given = {name: value for name, value in others.items() if value is not None}
    for name, value in given.items():
        one_of(name, value, KEEP) if name == "keep" else number(name, value, *RANGES[name], open_below=name in POSITIVE)
    if batch_size is not None:
        number("batch_size", batch_size, int, 1, 65_536)
    for name in TRAINING_SECTIONS:
        own = given if stage in (None, name) else {}
        if stage == name and (epochs, steps) != (None, None):
            own = own | lengths
        if batch_size is not None:
            own = own | {"batch_size": batch_size}
        section = replace(getattr(config, name), **own)
        if section.batch_size % section.accumulate:
            raise ConfigError(
                f"accumulate={section.accumulate} does not divide batch_size={section.batch_size} of {name}; "
                "change one of them"
            )
        for field, off in (("keep", "last"), ("evaluate_every", 0)):
            if (value := getattr(section, field)) != off and config.heldout is None:
                raise ConfigError(f"{field}={value!r} needs held-out images to evaluate on; give heldout=JSON[:FOLDER]")
        config = replace(config, **{name: section})
    return config


def _check_length(stage: str | None, epochs, steps) -> None:
    if epochs is not None:
        number("epochs", epochs, (int, float), 0, 10_000, open_below=True)
    if steps is not None:
        number("steps", steps, int, 1, 10**9)
    if None not in (epochs, steps):
        raise ConfigError(f"steps={steps!r} and epochs={epochs!r} contradict each other; leave one of them out")
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None and stage is None:
            raise ConfigError(f"{name}={value!r} needs a stage: {', '.join(TRAINING_SECTIONS)}")


def with_model(config: Config, *, backbone=None, pretrained=None, masks=None, overlap=None, rescore=None) -> Config:
    """The detector."""
    model = config.model
    if backbone is not None and backbone != model.backbone:
        from cassl_lib.models.backbone_names import check_backbone, trained_with_drop_path  # imports torch

        check_backbone(backbone)
        drop_path = model.drop_path if model.drop_path and trained_with_drop_path(backbone) else 0.0
        model = replace(model, backbone=backbone, backbone_options=(), drop_path=drop_path)
    if pretrained is not None:
        model = replace(model, pretrained=_backbone_weights(pretrained))
    if masks is not None:
        boolean("masks", masks)
        threshold_on, center = ("cls*ctr", "mask") if masks else ("cls", "box")
        model = replace(model, masks=masks, threshold_on=threshold_on, center=center)
    if config.target == "panoptic" and not model.masks:
        raise ConfigError("target='panoptic' needs masks; use masks=True, or target=instances")
    if overlap is not None:
        boolean("overlap", overlap)
        config = replace(config, overlap=overlap)
    if rescore is not None:
        boolean("rescore", rescore)
        model = replace(model, rescore_masks=rescore)
    return replace(config, model=model)


def with_size(config: Config, *, size: int | None = None, augment: str | None = None) -> Config:
    """The size and the augmentation of images."""
    if size is not None:
        number("size", size, int, 32, 4096)
        config = replace(config, augment=_resized(config.augment, size))
    if augment is not None:
        one_of("augment", augment, ("weak", "strong"))
        config = replace(config, augment=replace(config.augment, kind=augment))
    return config


def with_labels(config: Config, *, threshold: float | None = None) -> Config:
    """The pseudo labels that are trained on."""
    if threshold is None:
        return config
    number("threshold", threshold, (int, float), 0 if config.store else _lowest_score(config), 1)
    return replace(config, pseudo_labels=replace(config.pseudo_labels, threshold=float(threshold)))


def _resized(augment: AugmentConfig, size: int) -> AugmentConfig:
    """The same multi-scale ranges around another short side, rounded to multiples of 8 pixels."""
    ratio = size / augment.test_size
    sizes, strong_sizes = (
        tuple(max(8, round(side * ratio / 8) * 8) for side in sides) for sides in (augment.sizes, augment.strong_sizes)
    )
    crop = -(-size // 32) * 32 if augment.crop else 0
    longest = round(augment.longest * ratio)
    return replace(augment, sizes=sizes, strong_sizes=strong_sizes, longest=longest, crop=crop, test_size=size)


def _lowest_score(config: Config) -> float:
    """The lowest score that the store can hold, rounded down."""
    if config.pseudo_labels.keep is not None:
        return config.pseudo_labels.keep
    lowest = math.sqrt(config.model.score_threshold) if config.model.threshold_on == "cls*ctr" else 0.0
    return math.floor(100 * lowest) / 100


def _backbone_weights(pretrained: str) -> bool | str:
    known = {"imagenet": True, "none": False}
    if pretrained in known:
        return known[pretrained]
    if not isinstance(pretrained, str) or not Path(pretrained).is_file():
        raise ConfigError(
            f"pretrained={pretrained!r} is not a file; use imagenet, none, or a .safetensors or .pth file"
        )
    return str(Path(pretrained).resolve())


# ---- checks of values ----


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless the value is one of these strings."""
    if value not in allowed or not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is not allowed; use one of: {', '.join(allowed)}")


def number(name: str, value: Any, kind, low: float, high: float, *, open_below: bool = False) -> None:
    """Raise ConfigError unless the value is a number of this kind from `low` (`open_below`: above it) to `high`."""
    whole = kind is int
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not a{'n integer' if whole else ' number'}; use {low} to {high}")
    if not (low <= value <= high) or (open_below and value == low):
        raise ConfigError(f"{name}={value!r} is out of range; use {'more than ' if open_below else ''}{low} to {high}")


def boolean(name: str, value: Any) -> None:
    """Raise ConfigError unless the value is True or False; papermill passes other words as strings."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not True or False (in papermill: -p {name} False)")


def text(name: str, value: Any) -> None:
    """Raise ConfigError unless the value can be a path."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name}={value!r} is not a path; use None for the profile's own data")
