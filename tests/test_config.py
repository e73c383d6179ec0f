"""From parameters to settings: the paper's values, what each parameter changes, and the error for each bad value."""

import inspect
import json

import pytest

from cassl_lib import paper
from cassl_lib.data import datasets
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import choose_profile, from_json, resolve, to_json, why_profile


def test_the_paper_profile_has_the_values_of_the_paper():
    config = resolve(profile="paper")
    assert {"warmup": config.warmup.epochs, "finetune": config.finetune.epochs} == paper.EPOCHS
    assert config.warmup.steps == config.finetune.steps == config.pseudo_labeler.steps == 0  # steps override epochs
    assert {config.pseudo_labeler.batch_size, config.warmup.batch_size, config.finetune.batch_size} == {16}
    assert config.augment.sizes == (640, 672, 704, 736, 768, 800) and config.augment.longest == 1333
    assert config.augment.kind == "weak" and config.augment.test_size == 800 and config.augment.crop == 0
    assert config.model.backbone.startswith("swin_tiny") and config.model.pretrained is True and config.model.masks
    assert (config.model.channels, config.model.tower_convs, config.model.strides) == (256, 4, (8, 16, 32, 64, 128))
    # "3x" is 270,000 steps; the rate falls at 180,000 and 250,000
    assert [round(share * 270_000) for share in config.finetune.milestones] == [180_000, 250_000]
    assert config.annotation == "entities" and config.baseline_lengths == (1, 2)
    assert not config.make_inputs and not config.scenes and config.unlabeled == "split"


@pytest.mark.parametrize("split", ["tiny", "small", "base", "large"])
def test_pools_have_the_sizes_that_the_paper_prints(split):
    size_of = {"coco": "coco_unlabeled", "places365": "places365", "openimages": "open_images"}
    images = sum(paper.SOURCES[size_of[name.split("/")[0]]] * share for name, share in datasets.SPLITS[split])
    assert round(images) == paper.IMAGES[split]


BAD = [
    ({"profile": "big"}, "profile='big'", "auto, smoke, demo, gpu, paper"),
    ({"profile": None}, "profile=None", "auto, smoke"),
    ({"split": "huge"}, "split='huge'", "tiny, small, base, large"),
    ({"seed": -1}, "seed=-1", "0 to 2147483647"),
    ({"seed": 1.0}, "seed=1.0", "integer"),
    ({"seed": True}, "seed=True", "integer"),
    ({"annotation": 1}, "annotation=1", "objects, entities"),
    ({"annotation": "entity"}, "annotation='entity'", "objects"),
    ({"annotation": "stuff"}, "annotation='stuff'", "entities"),
    ({"target": "objects"}, "target='objects'", "instances, panoptic"),
    ({"target": "panoptic", "masks": False}, "target='panoptic'", "masks=True"),
    ({"overlap": "false"}, "overlap='false'", "True or False"),
    ({"rescore": 1}, "rescore=1", "True or False"),
    ({"crowd": True}, "crowd=True", "background, ignore"),
    ({"labeled": ""}, "labeled=''", "None for the profile's own"),
    ({"labeled": 3}, "labeled=3", "path"),
    ({"labeled": "mine.json"}, "val=None", "val=JSON[:FOLDER]"),
    ({"val": "mine.json"}, "labeled=None", "labeled=JSON[:FOLDER]"),
    ({"unlabeled": " "}, "unlabeled=' '", "path"),
    ({"heldout": ""}, "heldout=''", "None for the profile's own"),
    ({"heldout": "absent.json"}, "heldout='absent.json'", "give a COCO JSON"),
    ({"store": "nowhere"}, "store='nowhere'", "give its folder, or a pseudo_labels run"),
    ({"store": 3}, "store=3", "path"),
    ({"class_specific": None}, "class_specific=None", "True or False"),
    ({"class_specific": "yes"}, "class_specific='yes'", "True or False"),
    ({"make_inputs": "yes"}, "make_inputs='yes'", "True or False"),
    ({"stage": "pseudo_labels"}, "stage='pseudo_labels'", "pseudo_labeler, warmup, finetune"),
    ({"epochs": 3}, "epochs=3", "pseudo_labeler, warmup, finetune"),
    ({"epochs": 0, "stage": "warmup"}, "epochs=0", "more than 0 to 10000"),
    ({"epochs": float("nan"), "stage": "warmup"}, "epochs=nan", "10000"),
    ({"epochs": "3", "stage": "warmup"}, "epochs='3'", "number"),
    ({"steps": 3}, "steps=3", "pseudo_labeler, warmup, finetune"),
    ({"steps": 0, "stage": "warmup"}, "steps=0", "1 to 1000000000"),
    ({"steps": 2.5, "stage": "warmup"}, "steps=2.5", "integer"),
    ({"steps": 3, "epochs": 2, "stage": "warmup"}, "steps=3 and epochs=2", "leave one of them out"),
    ({"learning_rate": 0}, "learning_rate=0", "more than 0 to 10"),
    ({"learning_rate": -1e-4, "stage": "warmup"}, "learning_rate=-0.0001", "more than 0 to 10"),
    ({"learning_rate": "1e-4"}, "learning_rate='1e-4'", "number"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1", "0 to 1"),
    ({"weight_decay": True}, "weight_decay=True", "number"),
    ({"accumulate": 0}, "accumulate=0", "1 to 65536"),
    ({"accumulate": 3}, "accumulate=3 does not divide batch_size=8 of pseudo_labeler", "change one of them"),
    ({"accumulate": 8, "stage": "warmup", "batch_size": 4}, "accumulate=8", "batch_size=4 of warmup"),
    ({"accumulate": "2"}, "accumulate='2'", "integer"),
    ({"evaluate_every": -1}, "evaluate_every=-1", "0 to"),
    ({"evaluate_every": 2.0}, "evaluate_every=2.0", "integer"),
    ({"keep": "first"}, "keep='first'", "last, best"),
    ({"evaluate_every": 9, "labeled": "a.json", "val": "b.json"}, "evaluate_every=9", "heldout=JSON[:FOLDER]"),
    ({"keep": "best", "labeled": "a.json", "val": "b.json"}, "keep='best'", "heldout=JSON[:FOLDER]"),
    ({"backbone": "resnet5"}, "backbone='resnet5'", "near names: resnet50"),
    ({"backbone": "swin_tiny_patch4"}, "backbone='swin_tiny_patch4'", "swin_tiny_patch4_window7_224"),
    ({"backbone": 50}, "backbone=50", "near names: resnet50"),
    ({"backbone": "resnet50.in99k"}, "backbone='resnet50.in99k'", "near names: resnet50."),
    ({"backbone": "vit_base_patch16_224"}, "backbone='vit_base_patch16_224'", "strides 4, 8, 16, 32"),
    ({"backbone": "levit_128"}, "backbone='levit_128'", "strides 4, 8, 16, 32"),
    ({"size": 31}, "size=31", "32 to 4096"),
    ({"size": 96.0}, "size=96.0", "integer"),
    ({"pretrained": "absent.pth"}, "pretrained='absent.pth'", "imagenet, none"),
    ({"pretrained": True}, "pretrained=True", "imagenet, none"),
    ({"masks": "false"}, "masks='false'", "True or False"),
    ({"masks": 0}, "masks=0", "True or False"),
    ({"augment": "none"}, "augment='none'", "weak, strong"),
    ({"labeled_images": -1}, "labeled_images=-1", "0 to"),
    ({"labeled_images": "9"}, "labeled_images='9'", "integer"),
    ({"threshold": 0.01}, "threshold=0.01", "0.22 to 1"),  # labels with lower scores are not stored
    ({"threshold": 1.5}, "threshold=1.5", "0.22 to 1"),
    ({"threshold": "0.4"}, "threshold='0.4'", "number"),
    ({"batch_size": 0}, "batch_size=0", "1 to 65536"),
    ({"batch_size": 8.0}, "batch_size=8.0", "integer"),
]


@pytest.mark.parametrize(("parameters", "value", "allowed"), BAD, ids=lambda part: None if part is None else str(part))
def test_a_bad_value_raises_an_error_with_its_name_and_the_allowed_values(parameters, value, allowed):
    with pytest.raises(ConfigError) as caught:
        resolve(**{"profile": "smoke", **parameters})
    assert str(caught.value).startswith(value) and allowed in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_parameter_has_a_bad_value_above():
    assert {name for parameters, _, _ in BAD for name in parameters} == set(inspect.signature(resolve).parameters)


def test_a_bad_profile_in_the_environment_raises_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.setenv("CASSL_PROFILE", "fast")
    with pytest.raises(ConfigError, match=r"^\$CASSL_PROFILE='fast' is not allowed; use one of: smoke, demo"):
        resolve()


def test_auto_is_the_environments_profile_else_paper_with_coco_else_demo(monkeypatch, tmp_path):
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path))
    assert choose_profile("auto") == "smoke" and "from $CASSL_PROFILE" in why_profile("auto")
    assert choose_profile("gpu") == "gpu" and "(given)" in why_profile("gpu")
    monkeypatch.delenv("CASSL_PROFILE")
    assert choose_profile(
        "auto"
    ) == "demo" and "coco/annotations/instances_train2017.json was not found" in why_profile("auto")
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_train2017.json").touch()
    assert choose_profile("auto") == "paper" and "instances_train2017.json was found" in why_profile("auto")
    assert resolve().labeled == str(tmp_path / "coco/annotations/instances_train2017.json")


def changed(**parameters) -> dict:
    """The settings that differ from the smoke profile's: {"section.name": new value}."""
    plain, chosen = to_json(resolve(profile="smoke")), to_json(resolve(profile="smoke", **parameters))
    differing = {}
    for name, value in chosen.items():
        if isinstance(value, dict):
            differing |= {f"{name}.{key}": item for key, item in value.items() if item != plain[name][key]}
        elif value != plain[name]:
            differing[name] = value
    return differing


def test_each_parameter_changes_its_own_settings_and_no_others():
    assert changed(split="base", seed=3) == {"split": "base", "seed": 3}
    assert changed(threshold=0.77) == {"pseudo_labels.threshold": 0.77}
    assert changed(augment="strong") == {"augment.kind": "strong"}
    assert changed(masks=False) == {"model.masks": False, "model.center": "box", "model.threshold_on": "cls"}
    assert changed(masks=True) == {}
    assert changed(pretrained="imagenet") == {"model.pretrained": True} and changed(pretrained="none") == {}
    assert changed(stage="warmup", epochs=2) == {"warmup.epochs": 2.0, "warmup.steps": 0}
    assert changed(stage="warmup") == {}
    assert changed(stage="finetune", steps=9) == {"finetune.steps": 9}
    assert changed(stage="finetune", learning_rate=2e-4) == {"finetune.learning_rate": 2e-4}
    assert changed(stage="warmup", weight_decay=0) == {"warmup.weight_decay": 0}
    stages = ("pseudo_labeler", "warmup", "finetune")
    assert changed(learning_rate=2e-4) == {f"{stage}.learning_rate": 2e-4 for stage in stages}
    assert changed(weight_decay=0.1) == {f"{stage}.weight_decay": 0.1 for stage in stages}
    for name, value in (("accumulate", 2), ("evaluate_every", 50), ("keep", "best")):
        assert changed(**{name: value}) == {f"{stage}.{name}": value for stage in stages}
        assert changed(stage="finetune", **{name: value}) == {f"finetune.{name}": value}
    assert changed(accumulate=1, evaluate_every=0, keep="last") == {}
    assert changed(make_inputs=False) == {"make_inputs": False} and changed(make_inputs=True) == {}
    assert changed(annotation="entities") == {"annotation": "entities"} and changed(annotation="objects") == {}
    assert changed(batch_size=4) == {f"{stage}.batch_size": 4 for stage in ("pseudo_labeler", "warmup", "finetune")}
    assert changed(labeled_images=7) == {"labeled_images": 7} and changed(labeled_images=16) == {}
    # Of your own labeled images all are used unless you say otherwise.
    data = {"labeled": "a.json", "val": "b.json", "unlabeled": "pictures"}
    assert changed(**data) == data | {"heldout": None, "labeled_images": 0}
    assert changed(**data, labeled_images=9) == data | {"heldout": None, "labeled_images": 9}
    own = data | {"heldout": __file__}
    assert changed(**own) == own | {"labeled_images": 0} and changed(heldout="scenes") == {}
    assert changed(class_specific=True) == {"class_specific": True}
    # The tuning scenes do not stand in for held-out images of your own data.
    alone = {"labeled": "a.json", "val": "b.json"}
    assert changed(**alone) == alone | {"heldout": None, "labeled_images": 0}


def test_another_size_scales_all_sizes_in_proportion():
    # smoke: sizes 80, 96, 112 and longest 192 around 96. Here half of them; the crop is rounded up to a multiple of 32.
    assert changed(size=48) == {
        "augment.sizes": (40, 48, 56),
        "augment.strong_sizes": (24, 72),
        "augment.longest": 96,
        "augment.crop": 64,
        "augment.test_size": 48,
    }
    assert resolve(profile="paper", size=400).augment.crop == 0
    assert resolve(profile="paper", size=400).augment.sizes == (320, 336, 352, 368, 384, 400)


def test_another_backbone_drops_the_options_of_the_profiles_own():
    assert changed(backbone="resnet18") == {"model.backbone": "resnet18", "model.backbone_options": ()}
    assert changed(backbone="resnet10t") == {}  # the profile's own keeps them


def test_drop_path_stays_where_the_backbone_is_trained_with_it():
    """0.2 at the paper profile; DLA does not take the option, and public detectors train ResNets without."""
    names = {"swin_tiny_patch4_window7_224": 0.2, "swin_small_patch4_window7_224": 0.2, "convnext_tiny": 0.2}
    names |= {"resnet50": 0, "resnet50.a1_in1k": 0, "dla34": 0}
    assert {name: resolve(profile="paper", backbone=name).model.drop_path for name in names} == names


def test_the_paper_profile_learns_entities_unless_objects_are_asked_for():
    assert {name: resolve(profile=name).annotation for name in PROFILES} == {
        "smoke": "objects",
        "demo": "objects",
        "gpu": "objects",
        "paper": "entities",
    }
    assert resolve(profile="paper", annotation="objects").annotation == "objects"
    assert resolve(profile="paper").target == "instances" and resolve(profile="paper").overlap is None


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_round_trip_through_json(profile):
    config = resolve(profile=profile, split="large", seed=5)
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config and hash(again) == hash(config)
    assert again.model.backbone_options == config.model.backbone_options


def test_json_with_unknown_or_missing_settings_raises():
    data = to_json(resolve(profile="smoke"))
    for odd in (data | {"color": 1}, data | {"model": data["model"] | {"color": 1}}):
        with pytest.raises(
            ConfigError, match=r"mine.json: unknown setting (model\.)?color, perhaps of another version"
        ):
            from_json(odd, name="mine.json")
    with pytest.raises(ConfigError, match=r"mine.json: lacks pseudo_labels; give the config.json of a run"):
        from_json({name: value for name, value in data.items() if name != "pseudo_labels"}, name="mine.json")


def test_a_configuration_prints_one_line_per_setting_or_section():
    lines = str(resolve(profile="smoke")).splitlines()
    assert [line.split()[0] for line in lines] == list(to_json(resolve(profile="smoke")))
    assert "batch_size=8" in next(line for line in lines if line.startswith("warmup"))
