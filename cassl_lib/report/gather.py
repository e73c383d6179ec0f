"""Detections of each stage of a finished chain on the first images of its pool and of validation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torchvision.ops import masks_to_boxes

from cassl_lib import inspection, paths
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.data.scenes.scene import Scene
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.report.pictures import images_of, scene_of
from cassl_lib.runs import Run
from cassl_lib.tables import summary

IMAGES = 6  # the first ones, not chosen
MIN_SCORE = 0.4  # of a detection that is shown
DIGITS = {"boxes": 1, "scores": 3, "labels": 0}  # of the stored numbers; boxes in pixels


def gather(config: Config) -> dict:
    """Detections of every stage on the same images, as JSON data.

    Returns:
        `classes`, `runs`, `profile`, `split`, `seed`, `environment`, and `pictures`: by name, `images` (file names as
        `paths.portable` writes them), `rows` (by name, the instances of each image) and `scenes` (the scenes' settings;
        None for other images).

    Raises:
        MissingRun: a run of the chain is missing.
    """
    runs, validation = summary.chain_runs(config), datasets.validation_set(config)
    finetuned = {"baseline": runs["baseline"], "CA-SSL": runs["cassl"]}
    pictures = {
        "stages": _on_pool(config, runs, finetuned),
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


def _on_pool(config: Config, runs: Mapping[str, Run], finetuned: Mapping[str, Run]) -> dict:
    """Unlabeled images with the output of every stage and, for scenes, the ground truth that no stage sees."""
    store = PseudoLabelStore(runs["pseudo_labels"].store).at(config.pseudo_labels.threshold)
    labeled, shown = PseudoLabeled(store), range(min(IMAGES, len(store)))
    pseudo_labels = [labeled.annotations(index, masks=store.has_masks) for index in shown]
    picture = {"images": [store.file_name(index) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.unlabeled == "scenes" else None
    rows = {}
    if picture["scenes"] is not None:
        rows["ground truth"] = [_ground_truth(scene_of(picture, name)) for name in picture["images"]]
    rows["pseudo labeler"] = [_without(each, "labels") for each in _detections(runs["pseudo_labeler"], picture)]
    rows["pseudo labels"] = [_without(each, "labels") for each in pseudo_labels]
    return picture | {"rows": rows | {name: _detections(run, picture) for name, run in finetuned.items()}}


def _on_validation(config: Config, validation: CocoImages, finetuned: Mapping[str, Run]) -> dict:
    shown = range(min(IMAGES, len(validation)))
    picture = {"images": [paths.portable(validation.image_path(index)) for index in shown]}
    picture["scenes"] = dict(config.scenes) if config.val == "scenes" else None
    rows = {"ground truth": [validation.annotations(index, masks=config.model.masks) for index in shown]}
    return picture | {"rows": rows | {name: _detections(run, picture) for name, run in finetuned.items()}}


def _detections(run: Run, picture: Mapping) -> list[dict]:
    """A run's detections without their scores, for which images of an inch have no room."""
    return [_without(each, "scores") for each in inspection.detections(run, images_of(picture), above=MIN_SCORE)]


def _ground_truth(scene: Scene) -> dict:
    masks = torch.from_numpy(np.array([thing.mask for thing in scene.things], bool).reshape(-1, *scene.stuff.shape))
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # ends behind the last pixel, as in COCO
    return {"boxes": boxes.numpy(), "masks": masks.numpy()}


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
