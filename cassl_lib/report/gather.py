"""Detections of each stage of a finished chain on the first images of its pool and of validation.

The images are the first ones of each set, in the order of the data, so that nothing is chosen by its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from cassl_lib import inspection, paths
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.data.source import ImageSource
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.report.pictures import MIN_SCORE, ground_truth, images_of, scene_of
from cassl_lib.runs import Run
from cassl_lib.stages.pseudo_labels import threshold_of
from cassl_lib.tables import summary

IMAGES = 5  # per set
DIGITS = {"boxes": 1, "scores": 3, "labels": 0}  # of the stored numbers; boxes in pixels


def gather(config: Config) -> dict:
    """Detections of every stage on the same images, as JSON data.

    Returns:
        `classes`, `runs`, `profile`, `split`, `seed`, `environment`, and `pictures`: by name, `images` (file names as
        `paths.portable` writes them), `rows` (by name, the instances of each image) and `scenes` (the scenes' settings;
        None for other images). The pictures are `labeled`, `stages` (on the pool) and `detections` (on validation).

    Raises:
        MissingRun: a run of the chain is missing.
    """
    runs, validation = summary.chain_runs(config), datasets.validation_set(config)
    finetuned = {"baseline": runs["baseline"], "CA-SSL": runs["cassl"]}
    pictures = {
        "labeled": _labeled(config),
        "stages": _on_pool(config, runs, finetuned, validation.classes),
        "detections": _on_validation(config, validation, finetuned),
    }
    for picture in pictures.values():
        picture["rows"] = {name: [_packed(instances) for instances in row] for name, row in picture["rows"].items()}
    return {
        "classes": list(validation.classes),
        "pictures": pictures,
        "runs": {name: run.id for name, run in runs.items()},
        "profile": config.profile,
        "split": config.split,
        "seed": config.seed,
        "environment": runs["cassl"].result["environment"],
    }


def _labeled(config: Config) -> dict:
    """The first labeled images of this seed with their annotation."""
    labeled = datasets.labeled_set(config, "objects")
    shown = range(min(IMAGES, len(labeled)))
    picture = {"images": [paths.portable(labeled.image_path(index)) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.labeled == "scenes" else None
    return picture | {"rows": {"ground truth": _annotations(labeled, shown, masks=config.model.masks)}}


def _on_pool(config: Config, runs: Mapping[str, Run], finetuned: Mapping[str, Run], classes: Sequence[str]) -> dict:
    """Unlabeled images with the output of every stage and, for scenes, the ground truth that no stage sees."""
    labels = runs["pseudo_labels"]
    store = PseudoLabelStore(labels.store, threshold=threshold_of(config, labels))
    labeled, shown = PseudoLabeled(store), range(min(IMAGES, len(store)))
    picture = {"images": [store.file_name(index) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.unlabeled == "scenes" else None
    rows = {}
    if picture["scenes"] is not None:
        rows["ground truth"] = [ground_truth(scene_of(picture, name), classes) for name in picture["images"]]
    rows["pseudo labeler"] = [_without(each, "labels") for each in _detections(runs["pseudo_labeler"], picture)]
    pseudo_labels = _annotations(labeled, shown, masks=store.has_masks)
    rows["pseudo labels"] = [_without(each, "labels") for each in pseudo_labels]
    return picture | {"rows": rows | {name: _detections(run, picture) for name, run in finetuned.items()}}


def _on_validation(config: Config, validation: CocoImages, finetuned: Mapping[str, Run]) -> dict:
    shown = range(min(IMAGES, len(validation)))
    picture = {"images": [paths.portable(validation.image_path(index)) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.val == "scenes" else None
    rows = {"ground truth": _annotations(validation, shown, masks=config.model.masks)}
    return picture | {"rows": rows | {name: _detections(run, picture) for name, run in finetuned.items()}}


def _annotations(source: ImageSource, shown: Iterable[int], *, masks: bool) -> list[dict]:
    return [dict(source.annotations(index, masks=masks)) for index in shown]


def _detections(run: Run, picture: Mapping) -> list[dict]:
    return inspection.detections(run, images_of(picture), above=MIN_SCORE)


def _without(instances: Mapping, part: str) -> dict:
    return {name: value for name, value in instances.items() if name != part}


def _packed(instances: Mapping) -> dict:
    """Instances as JSON data: rounded numbers, masks as COCO RLE."""
    packed = {}
    for name, places in DIGITS.items():
        if instances.get(name) is not None:
            packed[name] = np.asarray(instances[name], float).round(places).tolist()
    if instances.get("masks") is not None:
        masks = torch.as_tensor(np.asarray(instances["masks"], np.uint8))
        packed["size"] = list(masks.shape[1:])
        packed["masks"] = [each["counts"].decode() for each in encode_masks(masks)]
    return packed
