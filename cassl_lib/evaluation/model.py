"""A detector's numbers on a labelled set: run it over the images, turn detections into COCO results, evaluate."""

from __future__ import annotations

import json

import numpy as np
import torch
from pycocotools import mask as coco_mask

from cassl_lib import engine
from cassl_lib.config import AugmentConfig, TrainConfig
from cassl_lib.data.augment import test_transform
from cassl_lib.data.coco import CocoImages, has_area
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.evaluation.coco import evaluate

TEST_BATCH = 16


def evaluate_model(
    model, images: CocoImages, *, augment: AugmentConfig, training: TrainConfig, classes: bool
) -> dict[str, dict[str, float]]:
    """AP and AR of a detector, between 0 and 1.

    Args:
        classes: whether the detector knows classes; one that does is also evaluated without them.

    Returns:
        By kind (`box_agnostic`, `mask_agnostic` and, with classes, `box`, `mask`) the twelve numbers of `evaluate`;
        empty in all processes but the first. No masks where the detector or the annotations have none.
    """
    results = detect(model, images, augment=augment, training=training)
    if engine.rank_and_world()[0]:
        return {}
    truth = _truth(images)
    with_masks = model.config.masks and all(entry.get("segmentation") for entry in truth["annotations"])
    metrics = {}
    for name, iou_type in (("box", "bbox"), ("mask", "segm")):
        if iou_type == "segm":
            if not with_masks:
                continue
            # pycocotools takes the area of a result, and so small, medium or large, from its box where it has one
            results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
        if classes:
            metrics[name] = evaluate(results, truth, iou_type)
        metrics[f"{name}_agnostic"] = evaluate(results, truth, iou_type, class_agnostic=True)
    return metrics


def detect(model, images: CocoImages, *, augment: AugmentConfig, training: TrainConfig) -> list[dict]:
    """COCO result dicts of every image, gathered in the first process; masks as compressed run lengths."""
    rank, world = engine.rank_and_world()
    size_of = {int(i): (int(h), int(w)) for i, h, w in zip(images.ids, images.heights, images.widths, strict=True)}
    samples = Samples(images, test_transform(augment), masks=False, classes=False, replace=False)
    tickets = in_turn(range(rank, len(images), world), TEST_BATCH)
    loader = batches(samples, tickets, workers=training.workers)
    results = []
    predictions = engine.predict(model, loader, sizes=size_of.get, config=training, title="evaluation")
    for image_id, found, _ in predictions:
        if image_id is not None:
            results += coco_results(image_id, found, images.category_ids)
    return [result for part in engine.of_all_processes(results, world) for result in part]


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


def encode_masks(masks: torch.Tensor) -> list[dict]:
    """Compressed run lengths (`size`, `counts` bytes) of (N, H, W) masks."""
    if not len(masks):
        return []
    columns_first = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).numpy())
    return coco_mask.encode(columns_first)


def _truth(images: CocoImages):
    """The annotation file without what `CocoImages` leaves out (but for crowds, which evaluation knows).

    Annotations are numbered anew, from 1: pycocotools takes a match with annotation 0 for none.
    """
    data = json.loads(images.path.read_bytes())
    present, classes = set(images.ids.tolist()), set(images.category_ids.tolist())
    data["images"] = [image for image in data["images"] if image["id"] in present]
    usable = [
        entry
        for entry in data["annotations"]
        if entry["image_id"] in present and entry["category_id"] in classes and has_area(entry["bbox"])
    ]
    data["annotations"] = [entry | {"id": number} for number, entry in enumerate(usable, start=1)]
    return data
