"""The parameters of `resolve` as options of a verb, with the words of its docstring as their help."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

from cassl_lib.config import SHIFTED, SPLITS, TRAINING_SECTIONS, Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import read_config, resolve

SWITCHES = ("masks", "overlap", "rescore", "class_specific", "make_inputs")
CHOICES = {"profile": ("auto", *PROFILES), "split": (*SPLITS, *SHIFTED), "stage": TRAINING_SECTIONS}
INTEGERS = ("seed", "labeled_images", "steps", "batch_size", "accumulate", "evaluate_every", "size")
NUMBERS = ("epochs", "learning_rate", "weight_decay", "threshold")
TYPES = dict.fromkeys(INTEGERS, int) | dict.fromkeys(NUMBERS, float)
LIMITS = {  # lowest and highest value of the verbs' own options
    "jobs": (1, 1024),
    "devices": (1, 1024),
    "seeds": (1, 1000),
    "minutes": (0.001, 1e6),
    "batch": (1, 65_536),
    "threads": (1, 1024),
    "labels": (0, 10_000),
}


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


def check_numbers(parsed: argparse.Namespace) -> None:
    """Raise ConfigError for a number out of the `LIMITS` of its option; NaN always is."""
    for name, (low, high) in LIMITS.items():
        value = getattr(parsed, name, None)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ConfigError(f"--{name} {value:g} is out of range; use {low:g} to {high:,.0f}")


def config_of(parsed: argparse.Namespace) -> Config:
    """The configuration that the parsed options mean."""
    if parsed.config:
        return read_config(parsed.config)
    values = {name: getattr(parsed, name) for name in inspect.signature(resolve).parameters if name != "stage"}
    stage = getattr(parsed, "stage", None)
    return resolve(**values, stage=stage if stage in TRAINING_SECTIONS else None)
