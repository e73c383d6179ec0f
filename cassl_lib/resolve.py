"""From the parameters of a notebook or the shell to the settings of a run; bad values are rejected before any work."""

from __future__ import annotations

import glob
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cassl_lib import config_values, paths
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
from cassl_lib.parameters import boolean, number, one_of, text, with_labels, with_model, with_size, with_training
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
    annotation: str | None = None,
    target: str = "instances",
    crowd: str = "background",
    labeled: str | None = None,
    labeled_images: int | None = None,
    unlabeled: str | None = None,
    val: str | None = None,
    heldout: str | None = None,
    store: str | None = None,
    class_specific: bool = False,
    make_inputs: bool | None = None,
    stage: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    accumulate: int | None = None,
    evaluate_every: int | None = None,
    keep: str | None = None,
    size: int | None = None,
    augment: str | None = None,
    backbone: str | None = None,
    pretrained: str | None = None,
    masks: bool | None = None,
    overlap: bool | None = None,
    rescore: bool | None = None,
    threshold: float | None = None,
) -> Config:
    """The settings for these parameters; None is the profile's value. The shell shows these descriptions as its help.

    Args:
        profile: smoke, demo, gpu, paper, or auto ($CASSL_PROFILE, else paper where COCO is found, else demo).
        split: tiny, small, base or large pool of unlabeled images (Sec. 4); of the embedded scenes also places and
            openimages, which look different from the labeled ones.
        seed: of weights, order and augmentation, and of the labeled images where not all are used.
        annotation: what pseudo labeler and warm-up learn: objects (instances JSON) or entities (things and stuff;
            panoptic JSON and its PNGs). The profile's value is entities at paper (Sec. 3.1), objects elsewhere.
        target: what finetuning learns: instances of thing classes, or panoptic (things and stuff).
        crowd: how crowds and unannotated pixels are trained in entities: background (as public code) or ignore. Not a
            notebook parameter.
        labeled: labeled training images: a COCO JSON, or JSON:FOLDER if the images are elsewhere. instances_NAME.json
            and panoptic_NAME.json in one folder stand for each other.
        labeled_images: use only so many of the labeled images, drawn by the seed; 0 is all.
        unlabeled: a folder of images or of .tar files, a .tar, a COCO image_info JSON, Open Images' CSV, a Places365
            list, an index written by `cassl pool`, or several of these joined by commas; FOLDER@0.3 takes 30 %.
        val: labeled images that results are reported on: a COCO JSON, or JSON:FOLDER.
        heldout: labeled images (JSON or JSON:FOLDER) that no stage trains or evaluates on; the threshold of the pseudo
            labels is chosen on them.
        store: a pseudo-label store to warm up on (its folder, or a pseudo_labels run) instead of the pseudo labeler's.
        class_specific: True trains pseudo labeler and warm-up with classes; with annotation=objects this is Objects
            (P,S) of Table 2.
        make_inputs: True makes missing input runs first; False stops with the command that makes them. The profile's
            value is False at paper, True elsewhere.
        stage: the training stage that the parameters below speak of: pseudo_labeler, warmup or finetune.
        epochs: of `stage`, passes over its images.
        steps: of `stage`, instead of epochs: as many whatever the number of images.
        batch_size: images per step over all processes, in every stage.
        learning_rate: for 16 images per step, scaled linearly to the batch size; of `stage`, or of every stage without
            one.
        weight_decay: of `stage`, or of every stage without one.
        accumulate: of `stage`, or of every stage without one: parts of each process's batch that are trained on one
            after another before each update, for batches that do not fit into memory.
        evaluate_every: of `stage`, or of every stage without one: steps between evaluations on the held-out images
            during training; 0 is none.
        keep: of `stage`, or of every stage without one: weights of the last step or, of those evaluations, of the best.
        size: short side of the images in pixels; training sizes scale in proportion.
        augment: weak (multi-scale and flip) or strong (Table 6), in every stage.
        backbone: a timm name, such as resnet50, with stages at strides 4, 8, 16, 32. Options of the profile's own
            backbone are dropped; its drop path stays where the new one is trained with it (not ResNets).
        pretrained: initial weights of the backbone: imagenet (downloaded by timm), none (random), or a weights file
            (.pth, .safetensors) in any format that `interop.load` knows.
        masks: False trains plain FCOS, boxes only.
        overlap: False assigns each pixel to the highest-scoring mask and recomputes boxes from what is left, in pseudo
            labels and in the evaluation of pseudo labeler and warm-up, as the authors' code does for entities. The
            profile's value at paper is False for entities and True for objects.
        rescore: True multiplies each score by the mean probability inside its mask.
        threshold: constant score threshold of the pseudo labels, from the lowest stored score to 1, on sqrt(cls*ctr).
            Without one: the best one on the held-out images, 0.5 without any.

    Raises:
        ConfigError: naming the parameter, its value and what is allowed.
    """
    # What is learned, from which data.
    chosen = choose_profile(profile)
    split = PROFILES[chosen]["split"] if split is None else split
    one_of("split", split, SPLITS if PROFILES[chosen]["scenes"] is None or unlabeled else (*SPLITS, *SHIFTED))
    annotation = PROFILES[chosen].get("annotation", "objects") if annotation is None else annotation
    one_of("annotation", annotation, ANNOTATIONS)
    one_of("target", target, TARGETS)
    one_of("crowd", crowd, CROWDS)
    number("seed", seed, int, 0, 2**31 - 1)
    boolean("class_specific", class_specific)
    config = _from_profile(chosen, split=split, seed=seed)
    config = replace(config, annotation=annotation, target=target, crowd=crowd, class_specific=class_specific)
    config = replace(config, **_data(chosen, labeled, unlabeled, val, heldout), store=_find_store(store))
    if config.labeled != "scenes" and labeled:  # the profile's number is for its own images
        config = replace(config, labeled_images=0)
    if labeled_images is not None:
        number("labeled_images", labeled_images, int, 0, 10**9)
        config = replace(config, labeled_images=labeled_images)
    if make_inputs is not None:
        boolean("make_inputs", make_inputs)
        config = replace(config, make_inputs=make_inputs)

    # The detector, its images, and how each stage trains.
    config = with_model(config, backbone=backbone, pretrained=pretrained, masks=masks, overlap=overlap, rescore=rescore)
    config = with_size(config, size=size, augment=augment)
    config = with_training(
        config,
        stage,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        accumulate=accumulate,
        evaluate_every=evaluate_every,
        keep=keep,
    )
    return with_labels(config, threshold=threshold)


def choose_profile(profile: str) -> str:
    """`profile` itself, or what auto stands for here."""
    one_of("profile", profile, ("auto", *PROFILES))
    if profile != "auto":
        return profile
    if asked := paths.profile():
        one_of("$CASSL_PROFILE", asked, tuple(PROFILES))
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


def read_config(file: Path, remedy: str = "give the config.json of a run") -> Config:
    """The configuration in a file that holds what `to_json` returned.

    Raises:
        ConfigError: the file cannot be read, or one of its values is not allowed; the message names both.
    """
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON ({error}); {remedy}") from error
    return from_json(data, name=str(file))


def from_json(data: dict, *, name: str = "config") -> Config:
    """The Config of what `to_json` returned.

    Args:
        name: of the file that the data are from, for messages.

    Raises:
        ConfigError: a setting is unknown, missing, of another type or out of range.
    """
    config_values.check(data, name)
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
            text(name, value)
            chosen[name] = value
    if unlabeled is not None:
        text("unlabeled", unlabeled)
    chosen["unlabeled"] = unlabeled or ("scenes" if own else "split")
    if (chosen["labeled"] == "scenes") != (chosen["val"] == "scenes"):
        missing = "val" if chosen["val"] == "scenes" else "labeled"
        raise ConfigError(f"{missing}=None with your own data; give {missing}=JSON[:FOLDER] too, with the same classes")
    if heldout is not None:
        text("heldout", heldout)
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
    text("store", store)
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
