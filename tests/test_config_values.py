"""A configuration from a file: a wrong type or a value out of range is one line with the file and the field."""

import json
from dataclasses import fields, is_dataclass

import pytest

from cassl_lib.config import Config, ModelConfig, TrainConfig
from cassl_lib.config_values import ALLOWED, check
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import from_json, read_config, resolve, to_json


def changed(place: str, value) -> dict:
    """The smoke profile's settings as JSON, with the value at `section.field` replaced."""
    data = json.loads(json.dumps(to_json(resolve(profile="smoke"))))
    *section, field = place.split(".")
    (data[section[0]] if section else data)[field] = value
    return data


WRONG = [
    ("seed", True, "seed: expected an integer, got true or false"),
    ("seed", 1.5, "seed: expected an integer, got a number"),
    ("seed", -1, "seed=-1 is out of range; use 0 to 2,147,483,647"),
    ("split", "huge", "split='huge' is not allowed; use one of: tiny"),
    ("labeled", None, "labeled: expected a string, got null"),
    ("labeled", "", "labeled='' is empty"),
    ("overlap", "false", "overlap: expected true or false or null, got a string"),
    ("baseline_lengths", [], "baseline_lengths=[] is empty"),
    ("baseline_lengths", [1, -2], "baseline_lengths=[1, -2] is out of range"),
    ("baseline_lengths", "12", "baseline_lengths: expected a list, got a string"),
    ("scenes", [["size", "96"]], "scenes: size: expected an integer, got a string"),
    ("scenes", [["size"]], "scenes: ['size'] is not a pair"),
    ("scenes", [["colour", 1]], "scenes: unknown setting colour"),
    ("scenes", [["train", -5]], "scenes: train=-5 is out of range"),
    ("model", None, "model: expected an object, got null"),
    ("model.strides", "8", "model.strides: expected a list, got a string"),
    ("model.pixel_mean", [0.5, 0.5], "model.pixel_mean: expected a list of length 3, got 2"),
    ("model.pixel_std", [0.2, 0, 0.2], "model.pixel_std=[0.2, 0, 0.2] is out of range"),
    ("model.backbone_options", ["x"], "model.backbone_options: 'x' is not a pair"),
    ("model.head_norm", "ln", "model.head_norm='ln' is not allowed; use one of: gn, bn"),
    ("augment.sizes", [80, "96"], "augment.sizes[1]: expected an integer, got a string"),
    ("augment.sizes", [], "augment.sizes=[] is empty"),
    ("finetune.steps", "6", "finetune.steps: expected an integer, got a string"),
    ("finetune.epochs", float("nan"), "finetune.epochs=nan is out of range"),
    ("finetune.learning_rate", float("inf"), "finetune.learning_rate=inf is out of range"),
    ("finetune.learning_rate", 0, "finetune.learning_rate=0 is out of range; use more than 0"),
    ("finetune.accumulate", 3, "finetune.accumulate=3 does not divide batch_size=8"),
    ("warmup.checkpoint_every", 0, "warmup.checkpoint_every=0 is out of range"),
    ("warmup.milestones", [0.5, 2], "warmup.milestones=[0.5, 2] is out of range; use 0 to 1"),
    ("panoptic.overlap_threshold", 2, "panoptic: overlap_threshold is a share from 0 to 1, not 2"),
    ("pseudo_labels.keep", [0.3], "pseudo_labels.keep: expected a number or null, got a list"),
    ("pseudo_labels.stride", 1, "unknown setting pseudo_labels.stride"),
]


@pytest.mark.parametrize(("place", "value", "words"), WRONG, ids=lambda part: str(part))
def test_a_wrong_value_in_a_file_is_one_line_with_the_file_the_field_and_what_is_allowed(tmp_path, place, value, words):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed(place, value)))
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: {words}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "\x00", "[" * 100_000])
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="config.json") as caught:
        read_config(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_configuration_survives_its_file_with_the_same_types(tmp_path, profile):
    config, file = resolve(profile=profile), tmp_path / "config.json"
    file.write_text(json.dumps(to_json(config)))
    assert repr(read_config(file)) == repr(config)  # 36 stays 36 and does not become 36.0, which has another hash
    check(to_json(config), "itself")


def test_every_number_and_choice_has_a_range():
    free = {"labeled", "unlabeled", "val", "heldout", "store", "backbone", "backbone_options", "pretrained", "scenes"}
    for section, kind in (("", Config), ("model", ModelConfig), ("finetune", TrainConfig)):
        values = from_json(changed("seed", 0))
        values = getattr(values, section) if section else values
        plain = {field.name for field in fields(kind) if not is_dataclass(getattr(values, field.name))} - free
        plain = {name for name in plain if not isinstance(getattr(values, name), bool)}
        assert plain - ALLOWED[section].keys() == set()
