"""What a notebook inspects: images of a source, detections of a run, its errors, selected pseudo labels.

Images are (3, H, W) uint8 tensors; instances are dicts of boxes (N, 4) xyxy pixels, labels, scores and masks, as
`plotting.show_instances` draws them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.image_files import spread
from cassl_lib.data.loader import Order, Samples, batches, read_image
from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import DataError
from cassl_lib.evaluation.matching import box_iou, match
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.predictor import Predictor
from cassl_lib.runs import Run
from cassl_lib.stages.identity import ANNOTATIONS
from cassl_lib.streams import stream

logger = logging.getLogger(__name__)

MARKS = ("correct", "wrong class", "poorly localized", "false positive", "missed")  # what `mark_errors` calls a box
CORRECT, WRONG_CLASS, POORLY_LOCALIZED, FALSE_POSITIVE, MISSED = range(len(MARKS))
RANKED = 2000  # images of a store that `gallery` ranks


def sample(source: ImageSource, count: int = 8, *, masks: bool = False) -> tuple[list[torch.Tensor], list[dict]]:
    """Evenly spaced images of a source and their annotations; unreadable ones are skipped."""
    images, instances = [], []
    for index in spread(len(source), count):
        try:
            images.append(read_image(source.image_path(index)))
        except OSError as error:
            logger.warning("skipped %s: %s", source.image_path(index), error)
            continue
        instances.append(source.annotations(index, masks=masks))
    return images, instances


def first_batch(
    source: ImageSource, config: Config, *, stage: str, classes: bool
) -> tuple[list[torch.Tensor], list[dict]]:
    """The first four images and targets that `stage` would see in training on `source`."""
    transform = training_transform(config.augment, pseudo_labeled=stage == "warmup")
    seeds = {use: stream(config.seed, stage, use) for use in ("augmentation", "order")}
    samples = Samples(source, transform, masks=config.model.masks, classes=classes, seed=seeds["augmentation"])
    order = Order(len(samples), batch_size=4, start=0, stop=1, seed=seeds["order"])
    images, targets, _, _ = next(iter(batches(samples, order, workers=0)))
    return images, targets


def objects_and_entities(config: Config, count: int) -> tuple[list[torch.Tensor], dict[str, list[dict]]]:
    """Labeled images and, by annotation, their instances; objects alone if there is no panoptic annotation."""
    sets = {"objects": datasets.labeled_set(config, "objects")}
    with contextlib.suppress(DataError):
        sets["entities"] = datasets.labeled_set(config, "entities")
    shared = functools.reduce(np.intersect1d, (each.ids for each in sets.values()))
    chosen, masks = shared[spread(len(shared), count)], config.model.masks

    def row(images: CocoImages, image_id: int) -> int:
        return int(np.flatnonzero(images.ids == image_id)[0])

    kind = "masks" if masks else "boxes"
    instances = {
        name: [{kind: each.annotations(row(each, image_id), masks=masks)[kind]} for image_id in chosen]
        for name, each in sets.items()
    }
    objects = sets["objects"]
    return [read_image(objects.image_path(row(objects, image_id))) for image_id in chosen], instances


def validation_of(config: Config, run: Run) -> CocoImages:
    """The validation images with the annotation that the run was trained and evaluated on."""
    own = run.config
    return datasets.validation_set(config, ANNOTATIONS[own.target] if run.stage == "finetune" else own.annotation)


def panoptic_maps(validation: EntityImages, runs: Mapping[str, Run], count: int) -> tuple[list[torch.Tensor], dict]:
    """Validation images and, for the ground truth and each run, their segment ids and `segments_info`."""
    files = {"ground truth": PanopticFiles(validation.path)}
    files |= {name: PanopticFiles(run.folder / "panoptic.json") for name, run in runs.items()}
    chosen = spread(len(validation), count)
    images = [read_image(validation.image_path(index)) for index in chosen]
    return images, {name: [each.read(validation.image_id(index)) for index in chosen] for name, each in files.items()}


def detections(run: Run, images: Sequence[torch.Tensor], *, above: float = 0.3) -> list[dict[str, np.ndarray]]:
    """A run's detections with a score above `above`, in the frame of each image; see `Predictor`."""
    return Predictor(run).predict(images, threshold=above)


def shared_names(*classes: Sequence[str]) -> list[str] | None:
    """Names of the labels if all agree on more than one class; else None, and every instance has its own color."""
    names = list(classes[0])
    return names if len(names) > 1 and all(list(other) == names for other in classes) else None


def mark_errors(detected: Mapping, ground_truth: Mapping, *, classes: bool = True) -> dict[str, np.ndarray]:
    """The boxes of an image with labels that index `MARKS`.

    Detections are matched to the ground truth at IoU 0.5 in order of decreasing score. An unmatched box is poorly
    localized if its best IoU with any ground-truth box, of any class, is at least 0.1 and below 0.5; otherwise it is a
    false positive, as is a second box on a detected object. An object with only poorly localized boxes is missed.

    Args:
        classes: False counts every matched box as correct, whatever its label.
    """
    taken = match(detected["boxes"], detected["scores"], ground_truth["boxes"])
    right = ground_truth["labels"][taken] == detected["labels"] if len(ground_truth["labels"]) else taken >= 0
    overlap = box_iou(detected["boxes"], ground_truth["boxes"]).max(axis=1, initial=0)
    near = (overlap >= 0.1) & (overlap < 0.5)
    of_matched = np.where(right | (not classes), CORRECT, WRONG_CLASS)
    marks = np.where(taken >= 0, of_matched, np.where(near, POORLY_LOCALIZED, FALSE_POSITIVE))
    missed = np.setdiff1d(np.arange(len(ground_truth["boxes"])), taken)
    boxes = np.concatenate([detected["boxes"], ground_truth["boxes"][missed]])
    return {"boxes": boxes, "labels": np.concatenate([marks, np.full(len(missed), MISSED)]).astype(np.int64)}


def count_marks(marked: Sequence[Mapping]) -> dict[str, int]:
    """How many boxes of all images have each mark."""
    labels = np.concatenate([np.zeros(0, np.int64), *(image["labels"] for image in marked)])
    return dict(zip(MARKS, np.bincount(labels, minlength=len(MARKS)).tolist(), strict=True))


def labeler_of(store: PseudoLabelStore) -> Run | None:
    """The finished run whose detector made the labels; None for another model's labels."""
    run = Run(paths.runs() / store.labeler)
    return run if run.finished else None


def gallery(store: PseudoLabelStore, rank: Callable, *, count: int = 8, masks: bool = False) -> tuple[list, list[dict]]:
    """The images that rank highest, of up to 2000 evenly spaced ones, with selected labels.

    Args:
        rank: function of an image of the store that returns its rank, None to leave it out, and the indices of the
            labels to show.
    """
    ranked = []
    for index in spread(len(store), RANKED):
        value, rows = rank(store[index])
        if value is not None:
            ranked.append((-value, index, rows))
    source, images, shown = PseudoLabeled(store), [], []
    for _, index, rows in sorted(ranked, key=lambda entry: entry[:2])[:count]:
        item = store[index]
        instances = source.annotations(index, masks=masks and bool(item["rles"])) | {"scores": item["scores"]}
        images.append(read_image(paths.image(item["file_name"])))
        shown.append({name: value[rows] for name, value in instances.items() if name != "size"})
    return images, shown


def most_confident(item: Mapping) -> tuple:
    """Rank by the mean score of the labels, of which there are at least two."""
    scores = item["scores"]
    return (float(scores.mean()) if len(scores) > 1 else None), np.arange(len(scores))


def borderline(threshold: float, *, width: float = 0.05) -> Callable:
    """Rank by the number of labels within `width` of the threshold; only these are shown."""

    def rank(item: Mapping) -> tuple:
        rows = np.flatnonzero(np.abs(item["scores"] - threshold) < width)
        return (len(rows) or None), rows

    return rank


def most_extreme(item: Mapping) -> tuple:
    """Rank by the most extreme box: max(aspect ratio, 10 x share of the image); only this one is shown."""
    if not len(item["boxes"]):
        return None, np.zeros(0, np.int64)
    sides = np.maximum(item["boxes"][:, 2:] - item["boxes"][:, :2], 1)
    aspect = sides.max(1) / sides.min(1)
    share = 10 * sides.prod(1) / (item["height"] * item["width"])
    extreme = np.maximum(aspect, share)
    return float(extreme.max()), extreme.argmax()[None]
