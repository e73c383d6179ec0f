"""Evaluate a detector on a labeled set: detect, convert to COCO results, compute AP, AR and panoptic quality."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cassl_lib.config import AugmentConfig, PanopticConfig, TrainConfig
from cassl_lib.data.augment import test_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.data.panoptic_writer import write_image, write_json
from cassl_lib.data.segmentations import decode_masks
from cassl_lib.evaluation.coco import evaluate
from cassl_lib.evaluation.panoptic_merge import merge_panoptic
from cassl_lib.evaluation.panoptic_quality import count_images, quality
from cassl_lib.evaluation.results import ResultWriter, StoredResults
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.training import distributed, engine

if TYPE_CHECKING:
    from cassl_lib.models.detector import Detector

TEST_BATCH = 16  # images

logger = logging.getLogger(__name__)


def evaluate_detector(
    detector: Detector,
    images: CocoImages,
    *,
    augment: AugmentConfig,
    training: TrainConfig,
    classes: bool,
    folder: Path,
    panoptic: PanopticConfig | None = None,
    unreadable: list[str] | None = None,
) -> dict[str, dict[str, float]]:
    """AP and AR of a detector on a labeled set, in [0, 1].

    An unreadable image counts as one without detections, and is logged as a warning.

    Args:
        training: precision and loading processes.
        classes: whether the detector is class-aware; one that is, is evaluated class-agnostically too.
        folder: shared by all processes; holds the detections during evaluation, and receives the merged result as
            panoptic.json and panoptic/.
        panoptic: how to merge detections, used if `images` are panoptic and the detector is class-aware with masks.
        unreadable: list to which the names of unreadable images are added.

    Returns:
        The twelve numbers of `evaluate` by kind: `box_agnostic`, `mask_agnostic` and, with classes, `box`, `mask`; and
        PQ, SQ, RQ by `panoptic`, `panoptic_things`, `panoptic_stuff`. No masks if the detector or the annotations have
        none. Empty in all processes but the first.
    """
    # Detect on all images
    unreadable = [] if unreadable is None else unreadable
    results = detect(
        detector, images, folder=folder / "detections", augment=augment, training=training, unreadable=unreadable
    )
    if results is None:
        return {}
    if unreadable:
        logger.warning(
            "evaluation: %d of %d images could not be read and count as missed, such as %s",
            len(unreadable),
            len(images),
            unreadable[0],
        )
    # Score them
    ground_truth = images.ground_truth()
    with_masks = detector.config.masks and all(entry.get("segmentation") for entry in ground_truth["annotations"])
    metrics = {}
    if panoptic and classes and with_masks and isinstance(images, EntityImages):
        metrics |= panoptic_metrics(results, images, settings=panoptic, folder=folder)
    metrics |= _ap_and_ar(results, ground_truth, with_masks=with_masks, classes=classes)
    results.remove()
    return metrics


def _ap_and_ar(results: StoredResults, ground_truth: dict, *, with_masks: bool, classes: bool) -> dict[str, dict]:
    """The numbers of `evaluate` for boxes and masks: class-agnostic and, with classes, per class."""
    metrics = {}
    for name, iou_type in (("box", "bbox"), ("mask", "segm")) if with_masks else (("box", "bbox"),):
        for class_agnostic in (False, True) if classes else (True,):
            kind = f"{name}_agnostic" if class_agnostic else name
            detections = results if iou_type == "bbox" else _without_boxes(results)
            metrics[kind] = evaluate(detections, ground_truth, iou_type, class_agnostic=class_agnostic)
    return metrics


def _without_boxes(results: Iterable[dict]) -> Iterator[dict]:
    """Results without `bbox`, from which pycocotools would take the area, and so the size class, of a mask."""
    return ({key: value for key, value in result.items() if key != "bbox"} for result in results)


def panoptic_metrics(results: StoredResults, images: EntityImages, *, settings: PanopticConfig, folder: Path) -> dict:
    """Merge the detections of every image into segments, write them as COCO panoptic files, and score those."""
    label_of = {int(category): label for label, category in enumerate(images.category_ids)}
    annotations, records = [], []
    for image_id, height, width in zip(images.ids.tolist(), images.heights, images.widths, strict=True):
        # Decode the masks of one image
        size = (int(height), int(width))
        chosen = [result for result in results.of_image(image_id) if result["score"] >= settings.score_threshold]
        masks = decode_masks([result["segmentation"] for result in chosen], size)
        detections = {
            "scores": torch.tensor([result["score"] for result in chosen]),
            "labels": torch.tensor([label_of[result["category_id"]] for result in chosen], dtype=torch.int64),
            "masks": torch.from_numpy(masks).bool(),
        }
        # Merge and write them
        ids, segments = merge_panoptic(detections, size=size, categories=images.categories, settings=settings)
        annotations.append(write_image(folder / "panoptic", image_id, ids, segments))
        records.append({"id": image_id, "height": size[0], "width": size[1]})
    written = write_json(folder / "panoptic.json", annotations, images=records, categories=images.categories)
    # Score the written files
    ground_truth = PanopticFiles(images.path)
    counts = count_images(PanopticFiles(written), ground_truth, images.ids.tolist())
    scores = quality(counts, ground_truth.categories)
    return {
        name: {key: value for key, value in scores[group].items() if key != "n"}
        for name, group in (("panoptic", "all"), ("panoptic_things", "things"), ("panoptic_stuff", "stuff"))
    }


def detect(
    detector: Detector,
    images: CocoImages,
    *,
    folder: Path,
    augment: AugmentConfig,
    training: TrainConfig,
    unreadable: list[str],
) -> StoredResults | None:
    """COCO results of all images, written to `folder` as they are made; masks as compressed RLE.

    The processes share the images. The first one returns the results of all, the others None.

    Args:
        folder: visible to all processes.
        unreadable: list to which the names of unreadable images are added, in every process those of all.
    """
    # Every world-th image is this process's.
    rank, world = distributed.rank_and_world()
    size_of = {int(i): (int(h), int(w)) for i, h, w in zip(images.ids, images.heights, images.widths, strict=True)}
    samples = Samples(images, test_transform(augment), masks=False, classes=False, replace=False)
    tickets = in_turn(range(rank, len(images), world), TEST_BATCH)
    loader = batches(samples, tickets, workers=training.workers)
    # Detect and write, image by image
    predictions = engine.predict(detector, loader, sizes=size_of.get, config=training, title="evaluation")
    with ResultWriter(folder, rank, world) as writer:
        lost = []
        for image_id, detections, names in predictions:
            lost += names
            if image_id is not None:
                writer.add(image_id, coco_results(image_id, detections, images.category_ids))
    # Wait for the others; then all have finished their files
    unreadable += sorted(itertools.chain(*distributed.of_all_processes(lost, world)))
    return None if rank else StoredResults(folder, world)


def coco_results(image_id: int, detections: dict[str, torch.Tensor], category_ids: np.ndarray) -> list[dict]:
    """COCO result dicts of one image's detections, in pixels of the original image."""
    boxes = detections["boxes"].double()
    boxes[:, 2:] -= boxes[:, :2]
    rles = encode_masks(detections["masks"]) if "masks" in detections else [None] * len(boxes)
    scores, labels = detections["scores"].tolist(), detections["labels"].tolist()
    results = []
    for box, score, label, rle in zip(boxes.tolist(), scores, labels, rles, strict=True):
        result = {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
        results.append(result | ({"segmentation": rle} if rle else {}))
    return results
