"""What a notebook looks at: images of a source, what a run finds on them, its errors, chosen pseudo labels.

Images are (3, H, W) uint8 tensors; instances are dicts of boxes (N, 4) xyxy pixels, labels, scores and masks, as
`plotting.show_instances` draws them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cassl_lib import paths
from cassl_lib.config import AugmentConfig, Config
from cassl_lib.data import datasets
from cassl_lib.data.augment import test_transform, training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.loader import Order, Samples, batches, read_image
from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.data.pool.build import ENDINGS
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import DataError
from cassl_lib.evaluation.matching import box_iou, match
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run
from cassl_lib.stages import all_stages as stages

MARKS = ("found", "wrong class", "poorly placed", "spurious", "missed")  # what `mark_errors` says of a box
FOUND, WRONG_CLASS, POORLY_PLACED, SPURIOUS, MISSED = range(len(MARKS))


def sample(source, count: int = 8, *, masks: bool = False) -> tuple[list[torch.Tensor], list[dict]]:
    """Images, and their annotations, spread evenly over a source; those that cannot be read are passed over."""
    images, found = [], []
    for index in _spread(len(source), count):
        try:
            images.append(read_image(source.image_path(index)))
        except OSError as error:
            print(f"passed over {source.image_path(index)}: {error}", file=sys.stderr)
            continue
        found.append(source.annotations(index, masks=masks))
    return images, found


def first_batch(source, config: Config, *, classes: bool) -> tuple[list[torch.Tensor], list[dict]]:
    """Four images and targets as the first step of a training on `source` would see them."""
    transform = training_transform(config.augment)
    samples = Samples(source, transform, masks=config.model.masks, classes=classes, seed=config.seed)
    order = Order(len(samples), batch_size=4, start=0, stop=1, seed=config.seed)
    images, targets, _, _ = next(iter(batches(samples, order, workers=0)))
    return images, targets


def objects_and_entities(config: Config, count: int) -> tuple[list[torch.Tensor], dict[str, list[dict]]]:
    """Labeled images and, by annotation, their instances; objects alone where there is no panoptic annotation."""
    found = {"objects": datasets.labeled_set(config, "objects")}
    with contextlib.suppress(DataError):
        found["entities"] = datasets.labeled_set(config, "entities")
    shared = functools.reduce(np.intersect1d, (each.ids for each in found.values()))
    chosen = shared[_spread(len(shared), count)]
    masks = config.model.masks
    rows = {
        name: [each.annotations(int(np.flatnonzero(each.ids == image_id)[0]), masks=masks) for image_id in chosen]
        for name, each in found.items()
    }
    objects = found["objects"]
    images = [read_image(objects.image_path(int(np.flatnonzero(objects.ids == image_id)[0]))) for image_id in chosen]
    shown = "masks" if masks else "boxes"
    return images, {name: [{shown: row[shown]} for row in annotations] for name, annotations in rows.items()}


def validation_of(config: Config, run: Run) -> CocoImages:
    """The validation images with the annotation that the run was trained and evaluated on."""
    learns = json.loads((run.folder / "request.json").read_text())["settings"].get("learns")
    return datasets.validation_set(config, "entities" if learns in ("entities", "panoptic") else "objects")


def panoptic_maps(validation: EntityImages, runs: Mapping[str, Run], count: int) -> tuple[list[torch.Tensor], dict]:
    """Validation images and, for the truth and each run finetuned on them, their segment ids and `segments_info`."""
    files = {"truth": PanopticFiles(validation.path)}
    files |= {name: PanopticFiles(run.folder / "panoptic.json") for name, run in runs.items()}
    chosen = _spread(len(validation), count)
    images = [read_image(validation.image_path(index)) for index in chosen]
    return images, {name: [each.read(validation.image_id(index)) for index in chosen] for name, each in files.items()}


def pictures(place: str, count: int = 8) -> list[torch.Tensor]:
    """The image of a file, or the first images of a folder by name."""
    path = Path(place).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give an image or a folder of images")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in ENDINGS) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no image in it; endings that count are {' '.join(ENDINGS)}")
    try:
        return [read_image(file) for file in files[:count]]
    except OSError as error:
        raise DataError(f"{path}: {error}") from error


def detections(run: Run, images: Sequence[torch.Tensor], *, above: float = 0.3) -> list[dict[str, np.ndarray]]:
    """A run's detections with a score above `above`, in the frame of each image, at the run's own test size."""
    model = stages.load_model(run)
    augment = json.loads((run.folder / "request.json").read_text())["settings"]["augment"]
    transform, found = test_transform(AugmentConfig(**augment)), []
    for image in images:
        resized, _ = transform(image, {})
        (result,) = model.predict([resized.to(model.pixel_mean.device)], sizes=[tuple(image.shape[-2:])])
        kept = result["scores"] > above
        found.append({name: value[kept].cpu().numpy() for name, value in result.items()})
    return found


def shared_names(*classes: Sequence[str]) -> list[str] | None:
    """The names of the labels where all agree on more than one class; None, and so a color an instance, elsewhere."""
    names = list(classes[0])
    return names if len(names) > 1 and all(list(other) == names for other in classes) else None


def mark_errors(found: Mapping, truth: Mapping, *, classes: bool = True) -> dict[str, np.ndarray]:
    """The boxes of an image with labels that index `MARKS`: matched at IoU 0.5 by falling score, or not.

    A box that is not matched is poorly placed where its best IoU with any truth, free or not and of whatever class, is
    at least 0.1 and below 0.5; else it is spurious, as is a second box of an object that is found. An object that has
    only poorly placed boxes is missed.

    Args:
        classes: False takes every matched box for found, whatever its label.
    """
    taken = match(found["boxes"], found["scores"], truth["boxes"])
    right = truth["labels"][taken] == found["labels"] if len(truth["labels"]) else taken >= 0
    overlap = box_iou(found["boxes"], truth["boxes"]).max(axis=1, initial=0)
    near = (overlap >= 0.1) & (overlap < 0.5)
    of_matched = np.where(right | (not classes), FOUND, WRONG_CLASS)
    marks = np.where(taken >= 0, of_matched, np.where(near, POORLY_PLACED, SPURIOUS))
    missed = np.setdiff1d(np.arange(len(truth["boxes"])), taken)
    boxes = np.concatenate([found["boxes"], truth["boxes"][missed]])
    return {"boxes": boxes, "labels": np.concatenate([marks, np.full(len(missed), MISSED)]).astype(np.int64)}


def count_marks(marked: Sequence[Mapping]) -> dict[str, int]:
    """How many boxes of all images have which mark."""
    labels = np.concatenate([np.zeros(0, np.int64), *(image["labels"] for image in marked)])
    return dict(zip(MARKS, np.bincount(labels, minlength=len(MARKS)).tolist(), strict=True))


def labeler_of(labels: PseudoLabelStore) -> Run | None:
    """The finished run whose detector made the labels; None where they are another model's."""
    run = Run(paths.runs() / labels.labeler)
    return run if run.finished else None


def gallery(
    labels: PseudoLabelStore, rank: Callable, *, count: int = 8, masks: bool = False
) -> tuple[list, list[dict]]:
    """The images, with chosen labels, that come first by `rank`, of at most 2000 spread evenly over the store.

    Args:
        rank: function of an image of the store that returns how far ahead it comes, None to leave it out, and the
            indices of the labels to show.
    """
    ranked = []
    for index in _spread(len(labels), 2000):
        value, rows = rank(labels[index])
        if value is not None:
            ranked.append((-value, index, rows))
    images, shown = [], []
    for _, index, rows in sorted(ranked, key=lambda entry: entry[:2])[:count]:
        item = labels[index]
        found = PseudoLabeled(labels).annotations(index, masks=masks and bool(item["rles"])) | {
            "scores": item["scores"]
        }
        images.append(read_image(paths.image(item["file_name"])))
        shown.append({name: value[rows] for name, value in found.items() if name != "size"})
    return images, shown


def surest(item: Mapping) -> tuple:
    """By the mean score of the labels, of which there are at least two."""
    scores = item["scores"]
    return (float(scores.mean()) if len(scores) > 1 else None), np.arange(len(scores))


def borderline(threshold: float, *, width: float = 0.05) -> Callable:
    """By the number of labels within `width` of the threshold; only these are shown."""

    def rank(item: Mapping) -> tuple:
        rows = np.flatnonzero(np.abs(item["scores"] - threshold) < width)
        return (len(rows) or None), rows

    return rank


def strangest(item: Mapping) -> tuple:
    """By the one label that is thinnest for its length, or covers most of the image: 6 to 1 counts as 6 tenths."""
    if not len(item["boxes"]):
        return None, np.zeros(0, np.int64)
    sides = np.maximum(item["boxes"][:, 2:] - item["boxes"][:, :2], 1)
    thin = sides.max(1) / sides.min(1)
    large = 10 * sides.prod(1) / (item["height"] * item["width"])
    strange = np.maximum(thin, large)
    return float(strange.max()), strange.argmax()[None]


def _spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` indices at even distances, the first included."""
    return [place * total // min(count, total) for place in range(min(count, total))]
