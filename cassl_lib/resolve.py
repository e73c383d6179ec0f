"""From the parameters of a notebook or the shell to the settings of a run; bad values are rejected before any work."""

from __future__ import annotations

import glob
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cassl_lib import paths
from cassl_lib.config import (
    SHIFTED,
    SPLITS,
    TRAINING_SECTIONS,
    AugmentConfig,
    Config,
    LabelConfig,
    ModelConfig,
    PanopticConfig,
    TrainConfig,
)
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES

ANNOTATIONS, TARGETS, CROWDS = ("objects", "entities"), ("instances", "panoptic"), ("background", "ignore")
COCO = {  # detectron2's layout below the data root
    "labeled": "coco/annotations/instances_train2017.json",
    "val": "coco/annotations/instances_val2017.json",
}


def resolve(
    *,
    profile: str = "auto",
    split: str | None = None,
    seed: int = 0,
    annotation: str = "objects",
    target: str = "instances",
    crowd: str = "background",
    labeled: str | None = None,
    labeled_images: int | None = None,
    unlabeled: str | None = None,
    val: str | None = None,
    heldout: str | None = None,
    store: str | None = None,
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
    """The settings for these parameters; None is the profile's value.

    Args:
        profile: smoke, demo, gpu, paper, or auto ($CASSL_PROFILE, else paper where COCO is found, else demo).
        split: tiny, small, base or large pool of unlabeled images (Sec. 4); of the embedded scenes also places and
            openimages, which look different from the labeled ones.
        seed: of weights, order and augmentation, and of the labeled images where not all are used.
        annotation: what pseudo labeler and warm-up learn: objects (instances JSON) or entities (panoptic JSON, PNGs).
        target: what finetuning learns: instances of thing classes, or panoptic (things and stuff).
        crowd: how crowds and unannotated pixels are trained in entities: background (as public code) or ignore. Not a
            notebook parameter.
        labeled, val: a COCO JSON, or JSON:FOLDER if the images are elsewhere. instances_NAME.json and
            panoptic_NAME.json in one folder stand for each other.
        labeled_images: use only so many of the labeled images, drawn by the seed; 0 is all.
        unlabeled: a folder of images or of .tar files, a .tar, a COCO image_info JSON, Open Images' CSV, a Places365
            list, an index written by `cassl pool`, or several of these joined by commas; FOLDER@0.3 takes 30 %.
        heldout: labeled images (JSON or JSON:FOLDER) that no stage trains or evaluates on; the threshold of the pseudo
            labels is chosen on them.
        store: a pseudo-label store to warm up on (its folder, or a pseudo_labels run) instead of the pseudo labeler's.
        class_specific: True trains pseudo labeler and warm-up with classes: Objects (P,S) of Table 2.
        stage, epochs: the training stage (pseudo_labeler, warmup, finetune) and its number of epochs.
        size: short side of the images in pixels; training sizes scale in proportion.
        masks: False trains plain FCOS, boxes only.
        overlap: False assigns each pixel to the highest-scoring mask and recomputes boxes from what is left, in pseudo
            labels and in the evaluation of pseudo labeler and warm-up, as the authors' code does for entities. None is
            the profile's value; at the paper profile False for entities and True for objects.
        rescore: True multiplies each score by the mean probability inside its mask.
        pretrained: initial weights of the backbone: imagenet (downloaded by timm), none (random), or a weights file
            (.pth, .safetensors) in any format that `interop.load` knows.
        threshold: constant score threshold of the pseudo labels, from the lowest stored score to 1, on sqrt(cls*ctr).
            None: the best one on the held-out images, 0.5 without any.
        batch_size: images per step over all processes, in every stage.

    Raises:
        ConfigError: naming the parameter, its value and what is allowed.
    """
    chosen = choose_profile(profile)
    split = PROFILES[chosen]["split"] if split is None else split
    _one_of("split", split, SPLITS if PROFILES[chosen]["scenes"] is None or unlabeled else (*SPLITS, *SHIFTED))
    _one_of("annotation", annotation, ANNOTATIONS)
    _one_of("target", target, TARGETS)
    _one_of("crowd", crowd, CROWDS)
    _number("seed", seed, int, 0, 2**31 - 1)
    if stage is not None:
        _one_of("stage", stage, TRAINING_SECTIONS)
    _boolean("class_specific", class_specific)
    config = _from_profile(chosen, split=split, seed=seed)
    config = replace(config, annotation=annotation, target=target, crowd=crowd, class_specific=class_specific)
    config = replace(config, **_data(chosen, labeled, unlabeled, val, heldout), store=_find_store(store))
    if config.labeled != "scenes" and labeled:  # the profile's number is for its own images
        config = replace(config, labeled_images=0)
    if labeled_images is not None:
        _number("labeled_images", labeled_images, int, 0, 10**9)
        config = replace(config, labeled_images=labeled_images)
    if epochs is not None:
        _number("epochs", epochs, (int, float), 0, 10_000, open_below=True)
        if stage is None:
            raise ConfigError(f"epochs={epochs!r} needs a stage: {', '.join(TRAINING_SECTIONS)}")
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
        _number("threshold", threshold, (int, float), 0 if store else _lowest_score(config), 1)
        config = replace(config, pseudo_labels=replace(config.pseudo_labels, threshold=float(threshold)))
    if batch_size is not None:
        _number("batch_size", batch_size, int, 1, 65_536)
        sized = {name: replace(getattr(config, name), batch_size=batch_size) for name in TRAINING_SECTIONS}
        config = replace(config, **sized)
    return config


def choose_profile(profile: str) -> str:
    """`profile` itself, or what auto stands for here."""
    _one_of("profile", profile, ("auto", *PROFILES))
    if profile != "auto":
        return profile
    if asked := paths.profile():
        _one_of("$CASSL_PROFILE", asked, tuple(PROFILES))
        return asked
    return "paper" if (paths.datasets() / COCO["labeled"]).exists() else "demo"


def why_profile(profile: str) -> str:
    """One line: which profile is used, and why."""
    chosen = choose_profile(profile)
    if profile != "auto":
        reason = "given"
    elif paths.profile():
        reason = "from $CASSL_PROFILE"
    elif chosen == "paper":
        reason = f"auto: {COCO['labeled']} was found"
    else:
        reason = f"auto: {COCO['labeled']} was not found"
    return f"profile {chosen} ({reason}): {PROFILES[chosen]['doc']}"


def to_json(config: Any) -> dict:
    """A config as plain JSON data; `from_json` is its inverse."""
    return asdict(config)


def from_json(data: dict) -> Config:
    """The Config that `to_json` wrote."""
    kinds = {"model": ModelConfig, "augment": AugmentConfig, "pseudo_labels": LabelConfig, "panoptic": PanopticConfig}
    kinds |= dict.fromkeys(TRAINING_SECTIONS, TrainConfig)
    values = {name: tuples(value) for name, value in data.items()}
    for name, kind in kinds.items():
        values[name] = kind(**{key: tuples(value) for key, value in data[name].items()})
    return Config(**values)


def tuples(value):
    """JSON lists as the tuples that frozen settings hold."""
    return tuple(tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _from_profile(name: str, *, split: str, seed: int) -> Config:
    profile = PROFILES[name]
    return Config(
        profile=name,
        split=split,
        seed=seed,
        annotation="objects",
        target="instances",
        crowd="background",
        overlap=profile["overlap"],
        labeled="",
        labeled_images=profile["labeled_images"],
        unlabeled="",
        val="",
        heldout=None,
        store=None,
        class_specific=False,
        make_inputs=profile["scenes"] is not None,
        baseline_lengths=profile["baseline_lengths"],
        scenes=tuple((profile["scenes"] or {}).items()),
        model=ModelConfig(**profile["model"]),
        augment=AugmentConfig(**profile["augment"]),
        panoptic=PanopticConfig(**profile["panoptic"]),
        pseudo_labeler=TrainConfig(**profile["pseudo_labeler"]),
        pseudo_labels=LabelConfig(**profile["pseudo_labels"]),
        warmup=TrainConfig(**profile["warmup"]),
        finetune=TrainConfig(**profile["finetune"]),
    )


def _data(
    profile: str, labeled: str | None, unlabeled: str | None, val: str | None, heldout: str | None
) -> dict[str, str | None]:
    """Where the images of each kind come from: what the user gave, else the profile's own data."""
    own = PROFILES[profile]["scenes"] is not None
    chosen = {}
    for name, value in (("labeled", labeled), ("val", val)):
        if value is None:
            chosen[name] = "scenes" if own else str(paths.datasets() / COCO[name])
        else:
            _text(name, value)
            chosen[name] = value
    if unlabeled is not None:
        _text("unlabeled", unlabeled)
    chosen["unlabeled"] = unlabeled or ("scenes" if own else "split")
    if (chosen["labeled"] == "scenes") != (chosen["val"] == "scenes"):
        missing = "val" if chosen["val"] == "scenes" else "labeled"
        raise ConfigError(f"{missing}=None with your own data; give {missing}=JSON[:FOLDER] too, with the same classes")
    if heldout is not None:
        _text("heldout", heldout)
        if heldout != "scenes" and not Path(paths.file_and_folder(heldout)[0]).expanduser().is_file():
            raise ConfigError(f"heldout={heldout!r} is not a file; give a COCO JSON, or JSON{os.pathsep}FOLDER")
        for name in ("labeled", "val") if heldout != "scenes" else ():
            if paths.file_and_folder(heldout)[0] == paths.file_and_folder(chosen[name])[0]:
                raise ConfigError(f"heldout={heldout!r} is also {name}; the threshold needs images of its own")
    chosen["heldout"] = heldout or ("scenes" if chosen["val"] == "scenes" else None)
    return chosen


def _find_store(store: str | None) -> str | None:
    """The folder of the store that `store` names: the store's own folder, or that of a pseudo_labels run."""
    if store is None:
        return None
    _text("store", store)
    given = Path(store).expanduser()
    named = paths.runs().glob(f"{glob.escape(store)}*/store") if "/" not in store else []
    stores = [folder for folder in (given, given / "store") if (folder / "manifest.json").is_file()]
    stores = stores or sorted(folder for folder in named if (folder / "manifest.json").is_file())
    if len(stores) > 1:
        names = ", ".join(each.parent.name for each in stores)
        raise ConfigError(f"store={store!r} is ambiguous, it matches {len(stores)} runs: {names}")
    if not stores:
        raise ConfigError(
            f"store={store!r} is not a finished pseudo-label store; give its folder, or a pseudo_labels run"
        )
    return str(stores[0].resolve())


def _resized(augment: AugmentConfig, size: int) -> AugmentConfig:
    """The same multi-scale ranges around another short side, rounded to multiples of 8 pixels."""
    ratio = size / augment.test_size
    sizes, strong_sizes = (
        tuple(max(8, round(side * ratio / 8) * 8) for side in sides) for sides in (augment.sizes, augment.strong_sizes)
    )
    crop = -(-size // 32) * 32 if augment.crop else 0
    longest = round(augment.longest * ratio)
    return replace(augment, sizes=sizes, strong_sizes=strong_sizes, longest=longest, crop=crop, test_size=size)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed or not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is not allowed; use one of: {', '.join(allowed)}")


def _number(name: str, value: Any, kind, low: float, high: float, *, open_below: bool = False) -> None:
    whole = kind is int
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not a{'n integer' if whole else ' number'}; use {low} to {high}")
    if not (low <= value <= high) or (open_below and value == low):
        raise ConfigError(f"{name}={value!r} is out of range; use {'more than ' if open_below else ''}{low} to {high}")


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


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not True or False (in papermill: -p {name} False)")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name}={value!r} is not a path; use None for the profile's own data")
