"""How good pseudo labels are, against a truth that no training has seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cassl_lib.data.coco import CocoImages
from cassl_lib.evaluation.matching import edge_errors, label_quality
from cassl_lib.labels.store import PseudoLabelStore

UNNAMED = "unnamed"  # supercategory of the kinds that no label names


def judge_labels(
    labels: PseudoLabelStore,
    boxes: Mapping[int, np.ndarray],
    unnamed: Mapping[int, np.ndarray] | None = None,
    *,
    complete: bool = True,
) -> dict[str, float]:
    """Precision and recall of the boxes at the store's threshold, and the bias of their edges.

    Args:
        boxes: the truth, (N, 4) xyxy by image id, as of `read_truth` or `truth_of`; without images an empty dict.
        unnamed: which of them (N,) bool are of a kind no label names; None for none.
        complete: whether the truth has all that the labels may name. It has no stuff, so that for labels of entities
            (False) only recall means something.

    Returns:
        precision, recall (IoU 0.5), precision_75, recall_75 (IoU 0.75), recall_unnamed (IoU 0.5, on the kinds no label
        names; with `unnamed` only), and mean signed errors of the edges, prediction minus truth.
    """
    if not boxes:
        return {}
    found = {}
    for item in (labels[index] for index in range(len(labels))):
        if item["image_id"] in boxes:
            found[item["image_id"]] = {"boxes": item["boxes"], "scores": item["scores"]}
    at_50, at_75 = label_quality(found, boxes, iou=0.5), label_quality(found, boxes, iou=0.75)
    judged = {"recall": at_50["recall"], "recall_75": at_75["recall"]}
    if unnamed:
        hidden = label_quality(found, boxes, iou=0.5, subset_by_image=unnamed)
        judged["recall_unnamed"] = hidden["subset_recall"]
    if complete:
        judged = {"precision": at_50["precision"], "precision_75": at_75["precision"], **judged}
        judged["edge_errors"] = edge_errors(found, boxes)
    return judged


def truth_of(images: CocoImages) -> dict[int, np.ndarray]:
    """Boxes (N, 4) xyxy by image id of a labeled set."""
    return {images.image_id(i): images.boxes[images.first[i] : images.first[i + 1]] for i in range(len(images))}


def read_truth(truth: Iterable[Path]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of instances JSONs: boxes (N, 4) xyxy by image id, and which of them (N,) bool are of a kind no label names."""
    boxes: dict[int, list] = {}
    unnamed: dict[int, list] = {}
    for path in truth:
        data = json.loads(Path(path).read_bytes())
        hidden = {c["id"] for c in data["categories"] if c.get("supercategory") == UNNAMED}
        for image in data["images"]:
            boxes[image["id"]], unnamed[image["id"]] = [], []
        for entry in data["annotations"]:
            x, y, w, h = entry["bbox"]
            boxes[entry["image_id"]].append((x, y, x + w, y + h))
            unnamed[entry["image_id"]].append(entry["category_id"] in hidden)
    arrays = {image: np.array(found, np.float32).reshape(-1, 4) for image, found in boxes.items()}
    return arrays, {image: np.array(flags, bool) for image, flags in unnamed.items()}
