"""Quality of pseudo labels against ground truth that no training has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cassl_lib.data.annotation_checks import check_images, check_references
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.coco_files import read
from cassl_lib.data.schema import InstancesFile
from cassl_lib.evaluation.matching import edge_errors, label_quality
from cassl_lib.labels.store import PseudoLabelStore

UNNAMED = "unnamed"  # supercategory of the kinds that no label names


def judge_labels(
    labels: PseudoLabelStore,
    ground_truth: Mapping[int, np.ndarray],
    unnamed: Mapping[int, np.ndarray] | None = None,
    *,
    complete: bool = True,
) -> dict[str, float]:
    """Precision and recall of the boxes above the store's threshold, and the bias of their edges.

    Args:
        ground_truth: boxes (N, 4) xyxy by image id, as from `read_ground_truth` or `ground_truth_of`; may be empty.
            Images of the store that it lacks are not judged.
        unnamed: marks (N,) bool, by image id, of the boxes whose kind no label names; None if there are none.
        complete: whether the ground truth is exhaustive. It has no stuff segments, so for entity labels pass False:
            only recall is reported.

    Returns:
        `precision`, `recall` (IoU 0.5), `precision_75`, `recall_75` (IoU 0.75), `recall_unnamed` (IoU 0.5, of the kinds
        that no label names; only with `unnamed`) and `edge_errors`, as from the function of that name. Empty without
        ground truth.
    """
    if not ground_truth:
        return {}
    # The labels of the images that have ground truth
    predictions = {}
    for item in (labels[index] for index in range(len(labels))):
        if item["image_id"] in ground_truth:
            predictions[item["image_id"]] = {"boxes": item["boxes"], "scores": item["scores"]}
    # Recall
    at_50 = label_quality(predictions, ground_truth, iou=0.5)
    at_75 = label_quality(predictions, ground_truth, iou=0.75)
    judged = {"recall": at_50["recall"], "recall_75": at_75["recall"]}
    if unnamed:
        hidden = label_quality(predictions, ground_truth, iou=0.5, subset_by_image=unnamed)
        judged["recall_unnamed"] = hidden["subset_recall"]
    # Precision and bias, which need every object annotated
    if complete:
        judged = {"precision": at_50["precision"], "precision_75": at_75["precision"], **judged}
        judged["edge_errors"] = edge_errors(predictions, ground_truth)
    return judged


def ground_truth_of(images: CocoImages) -> dict[int, np.ndarray]:
    """Boxes (N, 4) xyxy of a labeled set by image id."""
    return {images.image_id(i): images.boxes[images.first[i] : images.first[i + 1]] for i in range(len(images))}


def read_ground_truth(files: Iterable[Path]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Boxes (N, 4) xyxy of COCO instances JSONs by image id, and marks (N,) bool of the kinds that no label names."""
    boxes: dict[int, list] = {}
    unnamed: dict[int, list] = {}
    for path in files:
        data = read(path, InstancesFile, "a COCO instances file")
        check_images(data.images, str(path))
        check_references(data.annotations, data.images, [category.id for category in data.categories], str(path))
        hidden = {category.id for category in data.categories if category.supercategory == UNNAMED}
        for image in data.images:
            boxes[image.id], unnamed[image.id] = [], []
        for entry in data.annotations:
            x, y, w, h = entry.bbox
            boxes[entry.image_id].append((x, y, x + w, y + h))
            unnamed[entry.image_id].append(entry.category_id in hidden)
    arrays = {image: np.array(each, np.float32).reshape(-1, 4) for image, each in boxes.items()}
    return arrays, {image: np.array(flags, bool) for image, flags in unnamed.items()}
