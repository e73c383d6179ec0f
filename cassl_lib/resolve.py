"""From the parameters a person gives to the settings a run is made of; every bad value ends here, before any work."""

from __future__ import annotations

import glob
import math
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from cassl_lib import paths
from cassl_lib.config import SPLITS, AugmentConfig, Config, LabelConfig, ModelConfig, PanopticConfig, TrainConfig
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES

ANNOTATIONS, TARGETS, CROWDS = ("objects", "entities"), ("instances", "panoptic"), ("background", "ignore")
STAGES = ("labeler", "warmup", "finetune")
COCO = {  # detectron2's layout below the data root
    "labeled": "coco/annotations/instances_train2017.json",
    "val": "coco/annotations/instances_val2017.json",
}


def resolve(
    *,
    profile: str = "auto",
    split: str = "tiny",
    seed: int = 0,
    annotation: str = "objects",
    target: str = "instances",
    crowd: str = "background",
    labeled: str | None = None,
    unlabeled: str | None = None,
    val: str | None = None,
    heldout: str | None = None,
    labels: str | None = None,
    class_specific: bool = False,
    stage: str | None = None,
    epochs: float | None = None,
    size: int | None = None,
    masks: bool | None = None,
    overlap: bool | None = None,
    rescore: bool | None = None,
    pretrained: str | None = None,
    augment: str | None = None,
    threshold: float | None = None,
    batch_size: int | None = None,
) -> Config:
    """The settings for these parameters; None takes the profile's value.

    Args:
        profile: smoke, demo, gpu, paper, or auto ($CASSL_PROFILE, else paper where COCO is found, else demo).
        split: tiny, small, base or large pool of unlabeled images (Sec. 4).
        annotation: what labeler and warm-up learn: objects (instances JSON) or entities (panoptic JSON and PNGs).
        target: what finetuning learns: instances of thing classes, or panoptic, things and stuff.
        crowd: pixels of crowds and without annotation, in entities: background (public code) or ignore. A choice of
            the shell and of scripts; the notebooks have it at background.
        labeled, val: a COCO JSON, or JSON:FOLDER where the images are not beside it. Of instances_NAME.json and
            panoptic_NAME.json in one folder either may be given, the other is found.
        unlabeled: a folder of images or of .tar files, a .tar, a COCO image_info JSON, Open Images' CSV, a list of
            Places365, an index made by the verb `pool`, or several of them with commas between; FOLDER@0.3 is 3 in 10.
        heldout: labeled images, JSON or JSON:FOLDER, that neither training nor evaluation sees: the threshold of the
            pseudo labels is chosen on them.
        labels: a store of pseudo labels to warm up on, its folder or a run of stage 2, instead of the labeler's.
        class_specific: True has labeler and warm-up learn classes too: Objects (P,S) of Table 2.
        stage, epochs: the stage (labeler, warmup, finetune) that trains `epochs` passes instead of the profile's.
        size: short side of the images in pixels, training sizes in proportion.
        masks: False trains plain FCOS, boxes only.
        overlap: False leaves a pixel to the object or entity with the highest score and makes boxes of what is left, in
            labels and evaluation of labeler and warm-up, as the authors' code does for entities; None: the profile's
            value, at the paper profile False for entities and True for objects.
        rescore: True multiplies the score by the mean probability inside the mask.
        pretrained: what the backbone starts from: imagenet (timm downloads it), none (at random), or a file of weights
            (.pth, .safetensors) under any name that `interop.load` knows.
        threshold: constant score threshold of the pseudo labels in (0, 1), on sqrt(cls*ctr).
        batch_size: images per step over all processes, for every stage.

    Raises:
        ConfigError: naming the parameter, its value and what is allowed.
    """
    chosen = choose_profile(profile)
    _one_of("split", split, SPLITS)
    _one_of("annotation", annotation, ANNOTATIONS)
    _one_of("target", target, TARGETS)
    _one_of("crowd", crowd, CROWDS)
    _number("seed", seed, int, 0, 2**31 - 1)
    if stage is not None:
        _one_of("stage", stage, STAGES)
    _boolean("class_specific", class_specific)
    chosen_settings = {"annotation": annotation, "target": target, "crowd": crowd, "class_specific": class_specific}
    config = _from_profile(chosen, split=split, seed=seed, **chosen_settings)
    config = replace(config, **_data(chosen, labeled, unlabeled, val, heldout), labels=_store_of(labels))
    if epochs is not None:
        _number("epochs", epochs, (int, float), 0, 10_000, open_below=True)
        if stage is None:
            raise ConfigError(f"epochs={epochs!r} needs a stage; allowed: {', '.join(STAGES)}")
        config = replace(config, **{stage: replace(getattr(config, stage), epochs=float(epochs), steps=0)})
    if size is not None:
        _number("size", size, int, 32, 4096)
        config = replace(config, augment=_resized(config.augment, size))
    if masks is not None:
        _boolean("masks", masks)
        threshold_on, center = ("cls*ctr", "mask") if masks else ("cls", "box")
        config = replace(config, model=replace(config.model, masks=masks, threshold_on=threshold_on, center=center))
    if overlap is not None:
        _boolean("overlap", overlap)
        config = replace(config, overlap=overlap)
    if rescore is not None:
        _boolean("rescore", rescore)
        config = replace(config, model=replace(config.model, rescore_masks=rescore))
    if target == "panoptic" and not config.model.masks:
        raise ConfigError("target='panoptic' needs masks; use masks=True, or target=instances")
    if pretrained is not None:
        config = replace(config, model=replace(config.model, pretrained=_backbone_weights(pretrained)))
    if augment is not None:
        _one_of("augment", augment, ("weak", "strong"))
        config = replace(config, augment=replace(config.augment, kind=augment))
    if threshold is not None:
        _number("threshold", threshold, (int, float), 0 if labels else _weakest(config), 1)
        config = replace(config, label=replace(config.label, threshold=float(threshold)))
    if batch_size is not None:
        _number("batch_size", batch_size, int, 1, 65_536)
        sized = {name: replace(getattr(config, name), batch_size=batch_size) for name in STAGES}
        config = replace(config, **sized)
    return config


def choose_profile(profile: str) -> str:
    """`profile` itself, or what auto means here."""
    _one_of("profile", profile, ("auto", *PROFILES))
    if profile != "auto":
        return profile
    if asked := paths.profile():
        _one_of("$CASSL_PROFILE", asked, tuple(PROFILES))
        return asked
    return "paper" if (paths.datasets() / COCO["labeled"]).exists() else "demo"


def why_profile(profile: str) -> str:
    """One sentence that says which profile `profile` means here, and why."""
    chosen = choose_profile(profile)
    if profile != "auto":
        reason = "asked for"
    elif paths.profile():
        reason = "from $CASSL_PROFILE"
    elif chosen == "paper":
        reason = f"auto, and {COCO['labeled']} was found"
    else:
        reason = f"auto, and no {COCO['labeled']} was found"
    return f"profile {chosen} ({reason}): {PROFILES[chosen]['doc']}"


def to_json(config: Any) -> dict:
    """A config as plain JSON data; `from_json` is its inverse."""
    return asdict(config)


def from_json(data: dict) -> Config:
    """The Config that `to_json` wrote."""
    data = {
        "annotation": "objects",
        "target": "instances",
        "crowd": "background",
        "overlap": None,
        "panoptic": {},
        "heldout": None,
        "labels": None,
        "class_specific": False,
    } | data
    parts = {"model": ModelConfig, "augment": AugmentConfig, "label": LabelConfig, "panoptic": PanopticConfig}
    parts |= dict.fromkeys(STAGES, TrainConfig)
    values = {name: tuples(value) for name, value in data.items()}
    for name, kind in parts.items():
        values[name] = kind(**{key: tuples(value) for key, value in data[name].items()})
    return Config(**values)


def tuples(value):
    """JSON's lists as the tuples that frozen settings hold."""
    return tuple(tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _from_profile(name: str, **chosen) -> Config:
    profile = PROFILES[name]
    return Config(
        **chosen,
        overlap=profile["overlap"],
        profile=name,
        labeled="",
        unlabeled="",
        val="",
        heldout=None,
        labels=None,
        make_inputs=profile["scenes"] is not None,
        scenes=tuple((profile["scenes"] or {}).items()),
        model=ModelConfig(**profile["model"]),
        augment=AugmentConfig(**profile["augment"]),
        labeler=TrainConfig(**profile["labeler"]),
        label=LabelConfig(**profile["label"]),
        panoptic=PanopticConfig(**profile["panoptic"]),
        warmup=TrainConfig(**profile["warmup"]),
        finetune=TrainConfig(**profile["finetune"]),
    )


def _data(
    profile: str, labeled: str | None, unlabeled: str | None, val: str | None, heldout: str | None
) -> dict[str, str | None]:
    """Where the images of each kind come from: what the user gave, else the profile's own."""
    own = PROFILES[profile]["scenes"] is not None
    found = {}
    for name, value in (("labeled", labeled), ("val", val)):
        if value is None:
            found[name] = "scenes" if own else str(paths.datasets() / COCO[name])
        else:
            _text(name, value)
            found[name] = value
    if unlabeled is not None:
        _text("unlabeled", unlabeled)
    found["unlabeled"] = unlabeled or ("scenes" if own else "split")
    if (found["labeled"] == "scenes") != (found["val"] == "scenes"):
        missing = "val" if found["val"] == "scenes" else "labeled"
        raise ConfigError(f"{missing}=None beside your own data: give {missing}=JSON[:FOLDER] too, same classes")
    if heldout is not None:
        _text("heldout", heldout)
        if heldout != "scenes" and not Path(paths.file_and_folder(heldout)[0]).expanduser().is_file():
            raise ConfigError(f"heldout={heldout!r} is no file; give a COCO JSON, or JSON{os.pathsep}FOLDER")
        for name in ("labeled", "val") if heldout != "scenes" else ():
            if paths.file_and_folder(heldout)[0] == paths.file_and_folder(found[name])[0]:
                raise ConfigError(f"heldout={heldout!r} is {name} too; choose the threshold on images of their own")
    found["heldout"] = heldout or ("scenes" if found["val"] == "scenes" else None)
    return found


def _store_of(labels: str | None) -> str | None:
    """The folder of the store that `labels` names: a store's own, or that of a label run."""
    if labels is None:
        return None
    _text("labels", labels)
    given = Path(labels).expanduser()
    named = paths.runs().glob(f"{glob.escape(labels)}*/store") if "/" not in labels else []
    found = [folder for folder in (given, given / "store") if (folder / "manifest.json").is_file()]
    found = found or sorted(folder for folder in named if (folder / "manifest.json").is_file())
    if len(found) > 1:
        raise ConfigError(f"labels={labels!r} names {len(found)} runs: {', '.join(each.parent.name for each in found)}")
    if not found:
        raise ConfigError(
            f"labels={labels!r} is no finished store of pseudo labels; give its folder, or a run of stage 2"
        )
    return str(found[0].resolve())


def _resized(augment: AugmentConfig, size: int) -> AugmentConfig:
    """The same multi-scale range around another short side, rounded to 8 pixels."""
    ratio = size / augment.test_size
    sizes = tuple(max(8, round(side * ratio / 8) * 8) for side in augment.sizes)
    crop = -(-size // 32) * 32 if augment.crop else 0
    return replace(augment, sizes=sizes, longest=round(augment.longest * ratio), crop=crop, test_size=size)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed or not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is not allowed; use one of: {', '.join(allowed)}")


def _number(name: str, value: Any, kind, low: float, high: float, *, open_below: bool = False) -> None:
    whole = kind is int
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not a {'whole number' if whole else 'number'}; use {low} to {high}")
    if not (low <= value <= high) or (open_below and value == low):
        raise ConfigError(f"{name}={value!r} is out of range; use {'more than ' if open_below else ''}{low} to {high}")


def _weakest(config: Config) -> float:
    """The lowest score of a label in the store, rounded down."""
    if config.label.keep is not None:
        return config.label.keep
    lowest = math.sqrt(config.model.score_threshold) if config.model.threshold_on == "cls*ctr" else 0.0
    return math.floor(100 * lowest) / 100


def _backbone_weights(pretrained: str) -> bool | str:
    known = {"imagenet": True, "none": False}
    if pretrained in known:
        return known[pretrained]
    if not isinstance(pretrained, str) or not Path(pretrained).is_file():
        raise ConfigError(f"pretrained={pretrained!r} is no file; use imagenet, none, or a .safetensors or .pth file")
    return str(Path(pretrained).resolve())


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not True or False (papermill takes only these: -p {name} False)")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name}={value!r} is not a path; use None for the profile's own data")


def describe(config: Config) -> str:
    """The settings as aligned text, one a line, in the order of the code."""
    lines = []
    for field in fields(config):
        value = getattr(config, field.name)
        if hasattr(value, "__dataclass_fields__"):
            inner = ", ".join(f"{key}={item!r}" for key, item in asdict(value).items())
            lines.append(f"{field.name:12} {inner}")
        else:
            lines.append(f"{field.name:12} {value!r}")
    return "\n".join(lines)
