"""Evaluate a detector on a labeled set: detect, convert to COCO results, compute AP, AR and panoptic quality."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cassl_lib.config import AugmentConfig, PanopticConfig, TrainConfig
from cassl_lib.data.augment import test_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.evaluation.coco import evaluate
from cassl_lib.evaluation.panoptic_detections import THRESHOLDS, best_threshold, panoptic_metrics, quality_by_threshold
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
    heldout: EntityImages | None = None,
    side: int | None = None,
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
        heldout: panoptic images to choose the score threshold of `panoptic` on, used if that is None.
        side: of the images in pixels, if small, medium and large should scale with it; see `evaluate`.
        unreadable: list to which the names of unreadable images are added.

    Returns:
        The twelve numbers of `evaluate` by kind: `box_agnostic`, `mask_agnostic` and, with classes, `box`, `mask`; and
        PQ, SQ, RQ by `panoptic`, `panoptic_things`, `panoptic_stuff`; `panoptic` also has the `score_threshold` if it
        was None in the settings. No masks if the detector or the annotations have none. Empty in all processes but the
        first.
    """
    # Choose the score threshold of the panoptic merge on held-out images.
    with_panoptic = panoptic and classes and detector.config.masks and isinstance(images, EntityImages)
    chosen = None
    if with_panoptic and heldout is not None and panoptic.score_threshold is None:
        chosen = choose_panoptic_threshold(
            detector, heldout, settings=panoptic, augment=augment, training=training, folder=folder / "heldout"
        )
    # Detect on all images.
    unreadable = [] if unreadable is None else unreadable
    results = detect(
        detector, images, folder=folder / "detections", augment=augment, training=training, unreadable=unreadable
    )
    if results is None:
        return {}
    _warn_of(unreadable, images)
    # Score them.
    ground_truth = images.ground_truth()
    with_masks = detector.config.masks and all(entry.get("segmentation") for entry in ground_truth["annotations"])
    metrics = {}
    if with_panoptic and panoptic.score_threshold is None:
        panoptic = replace(panoptic, score_threshold=chosen[0] if chosen else PanopticConfig.score_threshold)
        metrics["panoptic"] = {"score_threshold": panoptic.score_threshold}
    if with_panoptic:
        quality = panoptic_metrics(results, images, settings=panoptic, folder=folder)
        metrics |= {kind: numbers | metrics.get(kind, {}) for kind, numbers in quality.items()}
    metrics |= _ap_and_ar(results, ground_truth, with_masks=with_masks, classes=classes, side=side)
    results.remove()
    return metrics


def _warn_of(unreadable: list[str], images: CocoImages) -> None:
    if unreadable:
        logger.warning(
            "evaluation: %d of %d images could not be read and count as missed, such as %s",
            len(unreadable),
            len(images),
            unreadable[0],
        )


def _ap_and_ar(
    results: StoredResults, ground_truth: dict, *, with_masks: bool, classes: bool, side: int | None
) -> dict[str, dict]:
    """The numbers of `evaluate` for boxes and masks: class-agnostic and, with classes, per class."""
    metrics, results = {}, list(results)  # parsed once
    for name, iou_type in (("box", "bbox"), ("mask", "segm")) if with_masks else (("box", "bbox"),):
        for class_agnostic in (False, True) if classes else (True,):
            kind = f"{name}_agnostic" if class_agnostic else name
            detections = results if iou_type == "bbox" else _without_boxes(results)
            metrics[kind] = evaluate(detections, ground_truth, iou_type, class_agnostic=class_agnostic, side=side)
    return metrics


def _without_boxes(results: Iterable[dict]) -> Iterator[dict]:
    """Results without `bbox`, from which pycocotools would take the area, and so the size class, of a mask."""
    return ({key: value for key, value in result.items() if key != "bbox"} for result in results)


def choose_panoptic_threshold(
    detector: Detector,
    heldout: EntityImages,
    *,
    settings: PanopticConfig,
    augment: AugmentConfig,
    training: TrainConfig,
    folder: Path,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[float, dict[float, float]] | None:
    """The score threshold with the best PQ on held-out images; of several, the highest one.

    The detections are made once and merged at each threshold. All processes must call this.

    Args:
        heldout: panoptic images that are neither trained on nor evaluated on.
        settings: how to merge; its own score threshold is not used.
        training: precision and loading processes.
        folder: shared by all processes; holds the detections until they are merged.

    Returns:
        The threshold, and the PQ in [0, 1] by threshold. None in all processes but the first.
    """
    unreadable: list[str] = []
    results = detect(detector, heldout, folder=folder, augment=augment, training=training, unreadable=unreadable)
    if results is None:
        return None
    _warn_of(unreadable, heldout)
    qualities = quality_by_threshold(results, heldout, settings=settings, thresholds=thresholds)
    results.remove()
    chosen = best_threshold(qualities)
    logger.info(
        "panoptic score threshold %g: PQ %.1f on %d held-out images (%s)",
        chosen,
        100 * qualities[chosen],
        len(heldout),
        ", ".join(f"{threshold:g}: {100 * value:.1f}" for threshold, value in qualities.items()),
    )
    return chosen, qualities


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
