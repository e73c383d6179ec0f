"""The parameters of `resolve` as options of a verb."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

from cassl_lib.config import SHIFTED, SPLITS, TRAINING_SECTIONS, Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import from_json, resolve

SWITCHES = ("masks", "overlap", "rescore", "class_specific")
CHOICES = {"profile": ("auto", *PROFILES), "split": (*SPLITS, *SHIFTED)}
TYPES = {"seed": int, "epochs": float, "size": int, "threshold": float, "batch_size": int, "labeled_images": int}


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The parameters of `resolve` as options; --config replaces them all."""
    parser.add_argument("--config", type=Path, help="a run's config.json, instead of the options below")
    for name, parameter in inspect.signature(resolve).parameters.items():
        option = f"--{name.replace('_', '-')}"
        if name == "stage":  # given by the verb
            continue
        if name in SWITCHES:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=parameter.default)
        else:
            kind, choices = TYPES.get(name, str), CHOICES.get(name)
            parser.add_argument(option, type=kind, choices=choices, default=parameter.default)


def config_of(parsed: argparse.Namespace) -> Config:
    """The configuration that the parsed options mean."""
    if parsed.config:
        try:
            return from_json(json.loads(parsed.config.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--config {parsed.config} cannot be read ({error!r}); give the config.json of a run"
            ) from error
    values = {name: getattr(parsed, name) for name in inspect.signature(resolve).parameters if name != "stage"}
    stage = getattr(parsed, "stage", None)
    return resolve(**values, stage=stage if stage in TRAINING_SECTIONS else None)
