"""A run is named by what decides its result: each such setting moves the name, and no new setting does."""

import json
import shutil
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cassl_lib.config import AugmentConfig, Config, LabelConfig, ModelConfig, PanopticConfig, TrainConfig
from cassl_lib.data import datasets
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run, run_id
from cassl_lib.stages import identity, registry, requests
from cassl_lib.stages.requests import Request

TRAINED = {"pseudo_labeler", "warmup", "finetune", "objects_ga", "baseline"}


@pytest.fixture(scope="module")
def config() -> Config:
    return resolve(profile="smoke")


def run_named(stage: str) -> Run:
    return Run(Path(f"{stage}-0123456789ab"))


def asked(config: Config) -> dict[str, Request]:
    """Every kind of request, from inputs that do not depend on the configuration."""
    labeler, labels, warmed = (run_named(stage) for stage in ("pseudo_labeler", "pseudo_labels", "warmup"))
    return {
        "pseudo_labeler": requests.pseudo_labeler(config),
        "pseudo_labels": requests.pseudo_labels(config, labeler),
        "warmup": requests.warmup(config, labels),
        "finetune": requests.finetune(config, warmed),
        "objects_ga": requests.finetune(config, labeler),
        "baseline": requests.baseline(config),
    }


def names(config: Config) -> dict[str, str]:
    return {name: run_id(identity.identity(request)) for name, request in asked(config).items()}


def moved(config: Config, other: Config) -> set[str]:
    """Which requests are named otherwise; keys, which read no data, must tell the same requests apart."""
    before, after = names(config), names(other)
    keys = {name: request.key for name, request in asked(config).items()}
    for name, request in asked(other).items():
        assert (request.key != keys[name]) == (after[name] != before[name]), name
    return {name for name in before if before[name] != after[name]}


def with_section(config: Config, name: str, **values: Any) -> Config:
    return replace(config, **{name: replace(getattr(config, name), **values)})


# ---- what decides ----


def another(value: Any) -> Any:
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return 0.01
    return (*value, value[-1] if value else ("name", 1))


@pytest.mark.parametrize("field", [field.name for field in fields(ModelConfig)])
def test_each_field_of_the_model_decides(field, config):
    if field == "num_classes":  # follows from the data
        assert moved(config, with_section(config, "model", num_classes=7)) == set()
        return
    value = another(getattr(config.model, field))
    expected = TRAINED
    if field == "one_entity_per_pixel":  # of pseudo labeler and warm-up: `overlap` decides
        expected = {"finetune", "objects_ga", "baseline"}
    assert moved(config, with_section(config, "model", **{field: value})) == expected


@pytest.mark.parametrize("field", [field.name for field in fields(AugmentConfig)])
def test_each_field_of_the_augmentation_decides(field, config):
    value = another(getattr(config.augment, field))
    expected = TRAINED | ({"pseudo_labels"} if field in ("test_size", "longest") else set())
    weak, strong = (with_section(config, "augment", kind=kind) for kind in ("weak", "strong"))
    for kind, other, used in (("weak", weak, field != "strong_sizes"), ("strong", strong, field != "sizes")):
        if field == "kind":
            other, value = weak, "strong"
        assert moved(other, with_section(other, "augment", **{field: value})) == (expected if used else set()), kind


# epochs: the smoke profile gives steps; evaluate_every: decides only what the best weights are
IDLE = {"workers", "checkpoint_every", "log_every", "epochs", "evaluate_every"}
STAGE_OF = {
    "pseudo_labeler": {"pseudo_labeler"},
    "warmup": {"warmup"},
    "finetune": {"finetune", "objects_ga", "baseline"},
}


@pytest.mark.parametrize("section", STAGE_OF)
@pytest.mark.parametrize("field", [field.name for field in fields(TrainConfig)])
def test_each_field_of_a_training_section_decides_its_own_stage(field, section, config):
    values = {"precision": "bf16", "optimizer": "sgd"}
    value = values.get(field, another(getattr(getattr(config, section), field)))
    expected = set() if field in IDLE else set(STAGE_OF[section])
    if field == "precision" and section == "pseudo_labeler":
        expected |= {"pseudo_labels"}
    assert moved(config, with_section(config, section, **{field: value})) == expected


def test_evaluations_and_held_out_images_decide_where_the_best_weights_are_kept(config):
    best = with_section(config, "finetune", keep="best", evaluate_every=2)
    finetuned = {"finetune", "objects_ga", "baseline"}
    assert moved(best, with_section(best, "finetune", evaluate_every=3)) == finetuned
    assert moved(best, replace(best, heldout=None)) == finetuned | {"warmup"}  # whose threshold they choose


def test_epochs_decide_where_there_are_no_steps(config):
    epochs = replace(config, **{name: replace(getattr(config, name), steps=0, epochs=3.0) for name in STAGE_OF})
    assert moved(epochs, with_section(epochs, "warmup", epochs=4.0)) == {"warmup"}
    assert moved(epochs, with_section(epochs, "warmup", batch_size=4)) == {"warmup"}
    assert moved(epochs, with_section(epochs, "finetune", epochs=4.0)) == {"finetune", "objects_ga", "baseline"}
    assert moved(epochs, replace(epochs, split="small")) == {"pseudo_labels"}


@pytest.mark.parametrize("field", [field.name for field in fields(LabelConfig)])
def test_each_field_of_the_pseudo_labels_decides(field, config):
    value = another(getattr(config.pseudo_labels, field))
    expected = {"warmup"} if field == "threshold" else {"pseudo_labels"}
    assert moved(config, with_section(config, "pseudo_labels", **{field: value})) == expected


@pytest.mark.parametrize("field", [field.name for field in fields(PanopticConfig)])
def test_each_field_of_the_panoptic_merge_decides_where_it_is_used(field, config):
    value = {"score_threshold": 0.4, "overlap_threshold": 0.25, "min_stuff_area": 7}[field]
    assert moved(config, with_section(config, "panoptic", **{field: value})) == set()
    panoptic = replace(config, target="panoptic")
    tuned = {"finetune", "objects_ga", "baseline"}
    assert moved(panoptic, with_section(panoptic, "panoptic", **{field: value})) == tuned


def test_the_choices_decide_what_they_concern(config):
    assert moved(config, replace(config, seed=1)) == TRAINED
    assert moved(config, replace(config, annotation="entities")) == {"pseudo_labeler", "warmup"}
    assert moved(config, replace(config, class_specific=True)) == {"pseudo_labeler", "warmup"}
    assert moved(config, replace(config, overlap=False)) == {"pseudo_labeler", "warmup"}
    assert moved(config, replace(config, target="panoptic")) == {"finetune", "objects_ga", "baseline"}
    assert moved(config, replace(config, crowd="ignore")) == set()  # objects have no crowds to ignore
    entities = replace(config, annotation="entities", target="panoptic")
    assert moved(entities, replace(entities, crowd="ignore")) == TRAINED
    assert moved(config, replace(config, split="small")) == {"pseudo_labels"}
    assert moved(config, replace(config, make_inputs=False, profile="demo", baseline_lengths=(3,))) == set()


def test_held_out_images_decide_where_a_threshold_is_chosen_on_them(config):
    assert moved(config, replace(config, heldout=None)) == {"warmup"}
    given = with_section(config, "pseudo_labels", threshold=0.4)
    assert moved(given, replace(given, heldout=None)) == set()
    panoptic = replace(config, target="panoptic")
    assert moved(panoptic, replace(panoptic, heldout=None)) == {"warmup", "finetune", "objects_ga", "baseline"}


def test_the_number_of_labeled_images_decides_where_they_are_trained_on(config):
    fewer = replace(config, labeled_images=3)
    assert moved(config, fewer) == {"pseudo_labeler", "finetune", "objects_ga", "baseline"}
    warmed = requests.finetune(config, run_named("warmup"))
    every, other = (replace(config, labeled_images=0, seed=seed) for seed in (0, 1))
    assert identity.identity(warmed)["data"] != identity.identity(replace(warmed, config=every))["data"]
    both = [identity.identity(replace(warmed, config=each))["data"] for each in (every, other)]
    assert both[0] == both[1]  # the seed draws nothing where all images are used


def test_parts_decide_where_something_is_copied(config):
    warmed = run_named("warmup")
    default = requests.finetune(config, warmed)
    assert requests.finetune(config, warmed, parts=("backbone", "neck", "head")) == default
    assert requests.finetune(config, warmed, parts=("head", "neck", "backbone")) == default  # their order does not
    assert requests.finetune(config, warmed, parts=("backbone",)) != default


def test_inputs_and_their_stage_decide(config):
    first, second = (Run(run_named("warmup").folder.with_name(f"warmup-{digit * 12}")) for digit in "01")
    assert requests.finetune(config, first) != requests.finetune(config, second)
    assert requests.finetune(config, run_named("pseudo_labeler")) != requests.finetune(config, run_named("warmup"))


def test_data_decide(config, tmp_path):
    """The contents of annotation file and images, not their place."""
    val = datasets.validation_set(config)
    data = json.loads(val.path.read_text())
    specs = {}
    for name, annotations in (("same", data["annotations"]), ("fewer", data["annotations"][1:])):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "instances_val.json"
        file.write_text(val.path.read_text() if name == "same" else json.dumps(data | {"annotations": annotations}))
        specs[name] = f"{file}:{val.folder}"
    specs["copy"] = f"{shutil.copy(val.path, tmp_path)}:{shutil.copytree(val.folder, tmp_path / 'images')}"

    def name(spec):
        return run_id(identity.identity(requests.pseudo_labeler(replace(config, val=spec))))

    assert name(specs["same"]) == name(specs["copy"]) != name(specs["fewer"])
    change = next((tmp_path / "images").iterdir())
    change.write_bytes(change.read_bytes() + b"\0")
    datasets._read.cache_clear()
    assert name(specs["copy"]) != name(specs["same"])


# ---- what must not ----


@pytest.mark.parametrize(
    "section", ["model", "augment", "panoptic", "pseudo_labels", "pseudo_labeler", "warmup", "finetune"]
)
def test_a_new_setting_with_a_neutral_default_renames_no_run(section, config):
    """Identities survive growth: the same sections with a field that version 0.1 did not have."""
    own = getattr(config, section)
    values = {field.name: getattr(own, field.name) for field in fields(own)}
    grown_kind = make_dataclass(type(own).__name__, [("new_setting", float, 0.0)], bases=(type(own),), frozen=True)
    grown = replace(config, **{section: grown_kind(**values)})
    assert getattr(grown, section).new_setting == 0.0 and moved(config, grown) == set()
    used = replace(config, **{section: grown_kind(**values, new_setting=0.5)})
    assert moved(config, used) != set() or section == "panoptic"


def test_a_raised_version_renames_the_runs_of_its_stage(config, monkeypatch):
    before = names(config)
    newer = replace(registry.STAGES["warmup"], version=registry.STAGES["warmup"].version + 1)
    monkeypatch.setitem(registry.STAGES, "warmup", newer)
    after = names(config)
    assert {name for name in before if before[name] != after[name]} == {"warmup"}


def test_defaults_are_held():
    """Only what differs from a default is hashed: a default that changes would pass old runs off as new ones.

    Whoever changes one raises the version of the stages that it concerns (stages/registry.py), and this list.
    """
    kinds = (ModelConfig, AugmentConfig, TrainConfig, LabelConfig, PanopticConfig)
    assert {kind.__name__: {f.name: f.default for f in fields(kind)} for kind in kinds} == DEFAULTS
    assert {stage.name: stage.version for stage in registry.STAGES.values()} == {
        "pseudo_labeler": 2,
        "pseudo_labels": 2,
        "warmup": 2,
        "finetune": 2,
    }


DEFAULTS = {
    "ModelConfig": {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_options": (),
        "backbone_norm": "default",
        "frozen_stages": 0,
        "pretrained": False,
        "drop_path": 0.0,
        "num_classes": 80,
        "masks": True,
        "channels": 256,
        "strides": (8, 16, 32, 64, 128),
        "ranges": (64, 128, 256, 512),
        "tower_convs": 4,
        "head_norm": "gn",
        "center": "mask",
        "center_radius": 1.5,
        "class_normalizer": "positives",
        "mask_channels": 128,
        "mask_convs": 4,
        "mask_features": 8,
        "mask_norm": "bn",
        "mask_stride": 4,
        "mask_proposals": 500,
        "score_threshold": 0.05,
        "threshold_on": "cls*ctr",
        "candidates_per_level": 1000,
        "nms_threshold": 0.6,
        "detections_per_image": 100,
        "one_entity_per_pixel": False,
        "rescore_masks": False,
        "pixel_mean": (0.485, 0.456, 0.406),
        "pixel_std": (0.229, 0.224, 0.225),
    },
    "AugmentConfig": {
        "kind": "weak",
        "sizes": (640, 672, 704, 736, 768, 800),
        "strong_sizes": (400, 1200),
        "longest": 1333,
        "crop": 0,
        "test_size": 800,
    },
    "TrainConfig": {
        "epochs": 36,
        "steps": 0,
        "batch_size": 16,
        "accumulate": 1,
        "learning_rate": 1e-4,
        "fresh_rate": 1.0,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "warmup_steps": 1500,
        "milestones": (2 / 3, 25 / 27),
        "clip_norm": 1.0,
        "precision": "auto",
        "workers": 4,
        "checkpoint_every": 1000,
        "log_every": 50,
        "evaluate_every": 0,
        "keep": "last",
    },
    "LabelConfig": {"keep": None, "threshold": None, "batch_size": 16, "shard_size": 10_000},
    "PanopticConfig": {"score_threshold": 0.5, "overlap_threshold": 0.5, "min_stuff_area": 64 * 64},
}


def test_the_name_is_a_hash_of_the_identity_alone():
    """Known names: an identity of another order of keys has the same one."""
    one = {"stage": "warmup", "version": 1, "settings": {"seed": 1}, "inputs": {}, "data": {"val": "a"}}
    other = {"data": {"val": "a"}, "inputs": {}, "settings": {"seed": 1}, "version": 1, "stage": "warmup"}
    assert run_id(one) == run_id(other) == "warmup-f77b071dee86"


def test_a_weights_file_is_hashed_once_and_by_its_content(config, tmp_path, monkeypatch):
    hashed, real = [], identity.file_fingerprint

    def fingerprint(path):
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(identity, "file_fingerprint", fingerprint)
    files = [tmp_path / name for name in ("a.pth", "b.pth", "c.pth")]
    for file, content in zip(files, (b"same", b"same", b"other"), strict=True):
        file.write_bytes(content)
    one, same, other = (
        [requests.baseline(with_section(config, "model", pretrained=str(file))).key for _ in range(3)] for file in files
    )
    assert hashed == files and one == same and one[0] != other[0]
