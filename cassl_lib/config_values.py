"""The values that a configuration may hold: type, range or choices of every field.

`resolve` checks its own parameters, in words about them; this checks a whole configuration that was read from a file.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from cassl_lib import typed_json
from cassl_lib.config import KEEP, SHIFTED, SPLITS, TRAINING_SECTIONS, Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES

MANY = 10**9  # of steps or images
SIDE = (1, 65_536)  # pixels of an image's side
WIDTH = (1, 65_536)  # channels
SHARE = (0, 1)
MODEL_CHOICES = {
    "backbone_norm": ("default", "frozen_bn", "gn"),
    "head_norm": ("gn", "bn"),
    "mask_norm": ("bn", "gn"),
    "center": ("mask", "box"),
    "class_normalizer": ("positives", "moving", "locations"),
    "threshold_on": ("cls*ctr", "cls"),
}

# By section and field: a pair is the lowest and highest number (of each number of a tuple), strings are choices.
TRAIN = {
    "epochs": (0, 10_000),
    "steps": (0, MANY),
    "batch_size": (1, 65_536),
    "accumulate": (1, 65_536),
    "learning_rate": (0, 10),
    "fresh_rate": (0, 1000),
    "optimizer": ("adamw", "sgd"),
    "weight_decay": SHARE,
    "warmup_steps": (0, MANY),
    "milestones": SHARE,
    "clip_norm": (0, 1e9),
    "precision": ("auto", "bf16", "float32"),
    "workers": (0, 1000),
    "checkpoint_every": (1, MANY),
    "log_every": (1, MANY),
    "evaluate_every": (0, MANY),
    "keep": KEEP,
}
ALLOWED: dict[str, dict[str, tuple]] = {
    "": {
        "profile": tuple(PROFILES),
        "split": (*SPLITS, *SHIFTED),
        "seed": (0, 2**31 - 1),
        "annotation": ("objects", "entities"),
        "target": ("instances", "panoptic"),
        "crowd": ("background", "ignore"),
        "labeled_images": (0, MANY),
        "baseline_lengths": (1e-6, 1000),
    },
    "model": {
        **MODEL_CHOICES,
        "frozen_stages": (0, 5),
        "drop_path": (0, 0.99),
        "num_classes": (1, 100_000),
        "channels": WIDTH,
        "strides": (4, 128),
        "ranges": (1, 1e8),
        "tower_convs": (0, 100),
        "center_radius": (0.01, 1000),
        "mask_channels": WIDTH,
        "mask_convs": (0, 100),
        "mask_features": WIDTH,
        "mask_stride": (1, 128),
        "mask_proposals": (1, MANY),
        "score_threshold": SHARE,
        "candidates_per_level": (1, MANY),
        "nms_threshold": SHARE,
        "detections_per_image": (1, MANY),
        "pixel_mean": (-1e3, 1e3),
        "pixel_std": (1e-6, 1e3),
    },
    "augment": {
        "kind": ("weak", "strong"),
        "sizes": SIDE,
        "strong_sizes": SIDE,
        "longest": SIDE,
        "crop": (0, 65_536),
        "test_size": SIDE,
    },
    "panoptic": {"score_threshold": SHARE, "overlap_threshold": SHARE, "min_stuff_area": (0, MANY)},
    "pseudo_labels": {"keep": SHARE, "threshold": SHARE, "batch_size": (1, 65_536), "shard_size": (1, 50_000)},
    **dict.fromkeys(TRAINING_SECTIONS, TRAIN),
}
NOT_EMPTY = ("labeled", "unlabeled", "val", "heldout", "store", "backbone", "pretrained", "sizes", "baseline_lengths")


def check(data: Any, name: str) -> None:
    """Check a configuration as parsed JSON.

    Args:
        name: of the file, for messages.

    Raises:
        ConfigError: one line with the file, the field, its value and what is allowed.
    """
    remedy = "give the config.json of a run"
    if problem := typed_json.check(data, Config):
        raise ConfigError(f"{name}: {problem}; {remedy}")
    if unknown := _unknown(data):
        raise ConfigError(f"{name}: unknown setting {unknown}, perhaps of another version of cassl; {remedy}")
    for section, allowed in ALLOWED.items():
        values = data[section] if section else data
        for field, value in values.items():
            if words := _wrong(field, value, allowed.get(field)):
                raise ConfigError(f"{name}: {'.'.join(filter(None, (section, field)))}={value!r} {words}")
    _check_pairs(data["model"].get("backbone_options", ()), f"{name}: model.backbone_options")
    _check_scenes(data["scenes"], f"{name}: scenes")
    for section in TRAINING_SECTIONS:
        _check_training(data[section], f"{name}: {section}")


def _wrong(field: str, value: Any, allowed: tuple | None) -> str | None:
    """What is wrong with a value of the right type; None if nothing is."""
    if field in NOT_EMPTY and (value == [] or (isinstance(value, str) and not value.strip())):
        return "is empty; give a value, or null where there is none"
    if allowed is None or value is None:
        return None
    if isinstance(allowed[0], str):
        return None if value in allowed else f"is not allowed; use one of: {', '.join(allowed)}"
    low, high = allowed
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if all(low <= number <= high for number in numbers):  # which NaN is not
        return None
    return f"is out of range; use {low:,} to {high:,}"


def _check_training(section: dict, name: str) -> None:
    """Checks of several fields of a training section at once."""
    epochs, steps = section.get("epochs", 1), section.get("steps", 0)
    if not epochs and not steps:
        raise ConfigError(f"{name}.steps=0 and epochs=0, so that nothing is trained; give one of them")
    batch_size, accumulate = section.get("batch_size", 16), section.get("accumulate", 1)
    if batch_size % accumulate:
        raise ConfigError(f"{name}.accumulate={accumulate} does not divide batch_size={batch_size}; change one of them")
    if not math.isfinite(rate := section.get("learning_rate", 1.0)) or rate <= 0:
        raise ConfigError(f"{name}.learning_rate={rate!r} is out of range; use more than 0 to 10")


def _check_pairs(pairs: Any, name: str) -> None:
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigError(f"{name}: {pair!r} is not a pair of a name and a value")


def _check_scenes(pairs: Any, name: str) -> None:
    """The fields of a SceneSpec that differ from its defaults."""
    from cassl_lib.data.scenes import SceneSpec  # imports the drawing

    _check_pairs(pairs, name)
    spec = dict(pairs)
    if unknown := [key for key in spec if key not in {field.name for field in fields(SceneSpec)}]:
        raise ConfigError(f"{name}: unknown setting {unknown[0]}, perhaps of another version of cassl")
    if problem := typed_json.check(spec, SceneSpec):
        raise ConfigError(f"{name}: {problem}")
    for key, value in spec.items():
        if words := _wrong(key, value, (32, 4096) if key == "size" else (0, MANY)):
            raise ConfigError(f"{name}: {key}={value!r} {words}")


def _unknown(data: dict) -> str | None:
    """The first key that no setting has, such as `finetune.stps`."""
    kinds = get_type_hints(Config)
    for key, value in data.items():
        if key not in kinds:
            return key
        if is_dataclass(kinds[key]):
            known = {field.name for field in fields(kinds[key])}
            if strange := [name for name in value if name not in known]:
                return f"{key}.{strange[0]}"
    return None
