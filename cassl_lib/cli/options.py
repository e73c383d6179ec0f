"""The parameters of `resolve` as options of a verb, with the words of its docstring as their help."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from pathlib import Path

from cassl_lib.config import SHIFTED, SPLITS, TRAINING_SECTIONS, Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import from_json, resolve

SWITCHES = ("masks", "overlap", "rescore", "class_specific", "make_inputs")
CHOICES = {"profile": ("auto", *PROFILES), "split": (*SPLITS, *SHIFTED), "stage": TRAINING_SECTIONS}
INTEGERS = ("seed", "labeled_images", "steps", "batch_size", "accumulate", "evaluate_every", "size")
NUMBERS = ("epochs", "learning_rate", "weight_decay", "threshold")
TYPES = dict.fromkeys(INTEGERS, int) | dict.fromkeys(NUMBERS, float)


def add_config_options(parser: argparse.ArgumentParser, *, stage: bool = True) -> None:
    """The parameters of `resolve` as options; --config replaces them all.

    Args:
        stage: False for a verb whose argument is the stage.
    """
    parser.add_argument("--config", type=Path, help="a run's config.json, instead of the options below")
    described = descriptions()
    for name, parameter in inspect.signature(resolve).parameters.items():
        option, words = f"--{name.replace('_', '-')}", described[name].replace("%", "%%")
        if name == "stage" and not stage:
            continue
        if name in SWITCHES:
            switch = argparse.BooleanOptionalAction
            parser.add_argument(option, action=switch, default=parameter.default, help=words)
        else:
            kind, choices = TYPES.get(name, str), CHOICES.get(name)
            parser.add_argument(option, type=kind, choices=choices, default=parameter.default, help=words)


def descriptions() -> dict[str, str]:
    """What the docstring of `resolve` says of each parameter."""
    words = inspect.getdoc(resolve).partition("Args:\n")[2].partition("\nRaises:")[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", words, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


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
