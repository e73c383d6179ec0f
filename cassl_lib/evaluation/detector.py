"""A detector's numbers on a labeled set: run it over the images, turn detections into COCO results, evaluate."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from cassl_lib.config import AugmentConfig, PanopticConfig, TrainConfig
from cassl_lib.data.augment import test_transform
from cassl_lib.data.coco import CocoImages, decode_masks
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.data.panoptic import PanopticFiles, write_image, write_json
from cassl_lib.evaluation.coco import evaluate
from cassl_lib.evaluation.panoptic_merge import merge_panoptic
from cassl_lib.evaluation.panoptic_quality import count_images, quality
from cassl_lib.evaluation.results import ResultWriter, StoredResults
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.training import distributed, engine

TEST_BATCH = 16


def evaluate_model(
    model,
    images: CocoImages,
    *,
    augment: AugmentConfig,
    training: TrainConfig,
    classes: bool,
    folder: Path,
    panoptic: PanopticConfig | None = None,
    unreadable: list[str] | None = None,
) -> dict[str, dict[str, float]]:
    """AP and AR of a detector, between 0 and 1.

    An image that cannot be read counts as one in which nothing was found, and is named on stderr.

    Args:
        classes: whether the detector knows classes; one that does is also evaluated without them.
        folder: of all processes; holds the detections while they are evaluated, and receives the merged result as
            panoptic.json and panoptic/.
        panoptic: how instances are merged where `images` are panoptic and the detector knows their classes.
        unreadable: receives the names of the images that cannot be read.

    Returns:
        By kind (`box_agnostic`, `mask_agnostic` and, with classes, `box`, `mask`) the twelve numbers of `evaluate`, and
        by `panoptic`, `panoptic_things`, `panoptic_stuff` PQ, SQ, RQ; empty in all processes but the first. No masks
        where the detector or the annotations have none.
    """
    lost: list[str] = [] if unreadable is None else unreadable
    how = {"folder": folder / "detections", "augment": augment, "training": training, "unreadable": lost}
    results = detect(model, images, **how)
    if results is None:
        return {}
    if lost:
        line = f"{len(lost)} of {len(images)} images could not be read and count as missed, such as {lost[0]}"
        print(f"evaluation: {line}", file=sys.stderr, flush=True)
    truth = images.truth()
    with_masks = model.config.masks and all(entry.get("segmentation") for entry in truth["annotations"])
    metrics = {}
    if panoptic and classes and with_masks and isinstance(images, EntityImages):
        metrics |= panoptic_metrics(results, images, settings=panoptic, folder=folder)
    for name, iou_type in (("box", "bbox"), ("mask", "segm")):
        if iou_type == "segm" and not with_masks:
            continue
        for class_agnostic in (False, True) if classes else (True,):
            found = results if iou_type == "bbox" else _without_boxes(results)
            kind = f"{name}_agnostic" if class_agnostic else name
            metrics[kind] = evaluate(found, truth, iou_type, class_agnostic=class_agnostic)
    results.remove()
    return metrics


def _without_boxes(results: Iterable[dict]) -> Iterator[dict]:
    """pycocotools takes the area of a result, and so small, medium or large, from its box where it has one."""
    return ({key: value for key, value in result.items() if key != "bbox"} for result in results)


def panoptic_metrics(results: StoredResults, images: EntityImages, *, settings: PanopticConfig, folder: Path) -> dict:
    """Merge the instances of every image into segments, write them as COCO panoptic files, and score these."""
    label_of = {int(category): label for label, category in enumerate(images.category_ids)}
    annotations, records = [], []
    for image_id, height, width in zip(images.ids.tolist(), images.heights, images.widths, strict=True):
        size = (int(height), int(width))
        found = [result for result in results.of_image(image_id) if result["score"] >= settings.score_threshold]
        masks = decode_masks([result["segmentation"] for result in found], size)
        instances = {
            "scores": torch.tensor([result["score"] for result in found]),
            "labels": torch.tensor([label_of[result["category_id"]] for result in found], dtype=torch.int64),
            "masks": torch.from_numpy(masks).bool(),
        }
        ids, segments = merge_panoptic(instances, size=size, categories=images.categories, settings=settings)
        annotations.append(write_image(folder / "panoptic", image_id, ids, segments))
        records.append({"id": image_id, "height": size[0], "width": size[1]})
    written = write_json(folder / "panoptic.json", annotations, images=records, categories=images.categories)
    truth = PanopticFiles(images.path)
    found = quality(count_images(PanopticFiles(written), truth, images.ids.tolist()), truth.categories)
    return {
        name: {key: value for key, value in found[group].items() if key != "n"}
        for name, group in (("panoptic", "all"), ("panoptic_things", "things"), ("panoptic_stuff", "stuff"))
    }


def detect(
    model, images: CocoImages, *, folder: Path, augment: AugmentConfig, training: TrainConfig, unreadable: list[str]
) -> StoredResults | None:
    """COCO results of every image, on disk as they are found; of all processes in the first, none in the others.

    Masks are compressed run lengths. All processes must see `folder`. `unreadable` receives the names of the images
    that no process could read.
    """
    rank, world = distributed.rank_and_world()
    size_of = {int(i): (int(h), int(w)) for i, h, w in zip(images.ids, images.heights, images.widths, strict=True)}
    samples = Samples(images, test_transform(augment), masks=False, classes=False, replace=False)
    tickets = in_turn(range(rank, len(images), world), TEST_BATCH)
    loader = batches(samples, tickets, workers=training.workers)
    predictions = engine.predict(model, loader, sizes=size_of.get, config=training, title="evaluation")
    with ResultWriter(folder, rank, world) as writer:
        lost = []
        for image_id, found, names in predictions:
            lost += names
            if image_id is not None:
                writer.add(image_id, coco_results(image_id, found, images.category_ids))
    unreadable += sorted(itertools.chain(*distributed.of_all_processes(lost, world)))  # all have finished their files
    return None if rank else StoredResults(folder, world)


def coco_results(image_id: int, found: dict[str, torch.Tensor], category_ids: np.ndarray) -> list[dict]:
    """COCO result dicts of one image's detections, in the frame of the original image."""
    boxes = found["boxes"].double()
    boxes[:, 2:] -= boxes[:, :2]
    rles = encode_masks(found["masks"]) if "masks" in found else [None] * len(boxes)
    results = []
    for box, score, label, rle in zip(
        boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), rles, strict=True
    ):
        result = {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
        results.append(result | ({"segmentation": rle} if rle else {}))
    return results
