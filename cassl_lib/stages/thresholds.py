"""Choosing the score threshold of the pseudo labels (Sec. 3.1, eq. 3): the cost of each, and a proposal with a reason.

The paper does not state its threshold. Precision and recall need labeled images that no stage trains or reports on;
without them only the number of labels can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from cassl_lib.data.coco import CocoImages
from cassl_lib.errors import DataError
from cassl_lib.evaluation.labels import ground_truth_of, judge_labels
from cassl_lib.evaluation.matching import match
from cassl_lib.labels.store import PseudoLabelStore

THRESHOLDS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
TOLERANCE = 0.01  # of F1: thresholds this close to the best are equally good


@dataclass(frozen=True)
class Proposal:
    """A threshold and the reason for it."""

    threshold: float
    reason: str

    def __str__(self) -> str:
        return f"threshold {self.threshold:g}: {self.reason}"


def quality_at(labels: PseudoLabelStore, images: CocoImages, thresholds: Sequence[float] = THRESHOLDS) -> list[dict]:
    """Precision, recall and F1 of the boxes (IoU 0.5) at each threshold, against labeled images.

    Class-specific labels must also have the class of the object that they match.

    Returns:
        One row per threshold: `threshold`, `precision`, `recall`, `f1`, `labels_per_image`.
    """
    names = [category["name"] for category in labels.categories]
    if len(names) > 1 and names == list(images.classes):
        kept, correct = (counts.sum(0) for counts in _counts_by_class(labels, images, thresholds))
        shares = list(zip(correct / np.maximum(kept, 1), correct / max(len(images.boxes), 1), strict=True))
    else:
        ground_truth, shares = ground_truth_of(images), []
        for threshold in tqdm(thresholds, desc="judging", unit="threshold", mininterval=1, disable=None):
            judged = judge_labels(labels.at(threshold), ground_truth)
            shares.append((judged["precision"], judged["recall"]))
    per_image = labels.statistics(thresholds)["labels_per_image"]
    return [
        {
            "threshold": threshold,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0,
            "labels_per_image": float(count),
        }
        for threshold, (precision, recall), count in zip(thresholds, shares, per_image, strict=True)
    ]


def propose_threshold(quality: Sequence[dict]) -> Proposal:
    """The threshold with the best F1.

    Args:
        quality: rows of `quality_at`.
    """
    best = max(quality, key=lambda row: row["f1"])
    if not best["f1"]:
        reason = "no label matches an object at any threshold, so the pseudo labeler has learned nothing yet"
        return Proposal(quality[-1]["threshold"], reason)
    as_good = [row["threshold"] for row in quality if row["f1"] >= best["f1"] - TOLERANCE]
    reason = (
        f"best F1 of the boxes at IoU 0.5: {best['f1']:.3f} (precision {best['precision']:.3f}, recall "
        f"{best['recall']:.3f}, {best['labels_per_image']:.1f} labels per image); F1 is within {TOLERANCE} of it from "
        f"{min(as_good)} to {max(as_good)}"
    )
    return Proposal(best["threshold"], reason)


def propose_by_count(
    labels: PseudoLabelStore, labeled: CocoImages, thresholds: Sequence[float] = THRESHOLDS
) -> Proposal:
    """The threshold that keeps about as many labels per image as the labeled images have, without held-out images.

    Args:
        labeled: the labeled images that the pseudo labeler was trained on.
    """
    annotated = len(labeled.boxes) / max(len(labeled), 1)
    kept = labels.statistics(thresholds)["labels_per_image"]
    nearest = int(np.abs(kept - annotated).argmin())
    reason = (
        f"it keeps {kept[nearest]:.1f} labels per image, closest to the {annotated:.1f} annotations per labeled image. "
        "Precision is not known: give held-out images as heldout=JSON[:FOLDER]"
    )
    return Proposal(thresholds[nearest], reason)


def by_class(
    labels: PseudoLabelStore, images: CocoImages, threshold: float, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict]:
    """How one constant threshold suits each class of class-specific labels, compared with a threshold per class.

    Returns:
        One row per class, most frequent class first: `name`, `objects` in the ground truth, `labels` above `threshold`
        and their `f1` (IoU 0.5, within the class), `best_threshold` of `thresholds` for this class and its `best_f1`.
        F1 and threshold are None for a class without objects.

    Raises:
        DataError: labels and images have different classes.
    """
    if (names := [category["name"] for category in labels.categories]) != list(images.classes):
        raise DataError(f"{labels.folder}: its classes {names} are not those of {images.path}, {list(images.classes)}.")
    # F1 by class and threshold
    grid = sorted({*thresholds, threshold})
    kept, correct = _counts_by_class(labels, images, grid)
    objects = np.bincount(images.labels, minlength=len(images.classes))
    f1 = 2 * correct / np.maximum(kept + objects[:, None], 1)
    # One row per class
    constant, rows = grid.index(threshold), []
    for label in np.argsort(-objects, kind="stable"):
        best, known = int(f1[label].argmax()), objects[label] > 0
        rows.append(
            {
                "name": images.classes[label],
                "objects": int(objects[label]),
                "labels": int(kept[label, constant]),
                "f1": float(f1[label, constant]) if known else None,
                "best_threshold": grid[best] if known else None,
                "best_f1": float(f1[label, best]) if known else None,
            }
        )
    return rows


def _counts_by_class(
    labels: PseudoLabelStore, images: CocoImages, grid: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels above each of T ascending thresholds, and those that match an object of their class; both (C, T) int64."""
    kept, correct = (np.zeros((len(images.classes), len(grid)), np.int64) for _ in range(2))
    for item, rows in _with_ground_truth(labels.at(min(grid)), images):
        for label in np.union1d(item["labels"], images.labels[rows]):
            own, objects = item["labels"] == label, images.boxes[rows][images.labels[rows] == label]
            scores = item["scores"][own]
            matched = match(item["boxes"][own], scores, objects) >= 0
            for column, threshold in enumerate(grid):
                kept[label, column] += int((scores > threshold).sum())
                correct[label, column] += int(matched[scores > threshold].sum())
    return kept, correct


def recall_by_class(labels: PseudoLabelStore, images: CocoImages, threshold: float) -> list[dict]:
    """Class-agnostic recall (IoU 0.5) of the labels above `threshold`, by the class of the object.

    Returns:
        One row per class, most frequent class first: `name`, `objects` in the ground truth, `matched` of them, and
        `recall`, None for a class without objects.
    """
    matched = np.zeros(len(images.classes), np.int64)
    for item, rows in _with_ground_truth(labels.at(threshold), images):
        matches = match(item["boxes"], item["scores"], images.boxes[rows])
        matched += np.bincount(images.labels[rows][matches[matches >= 0]], minlength=len(matched))
    objects = np.bincount(images.labels, minlength=len(images.classes))
    return [
        {
            "name": images.classes[label],
            "objects": int(objects[label]),
            "matched": int(matched[label]),
            "recall": int(matched[label]) / int(objects[label]) if objects[label] else None,
        }
        for label in np.argsort(-objects, kind="stable")
    ]


def _with_ground_truth(labels: PseudoLabelStore, images: CocoImages) -> Iterator[tuple[dict, slice]]:
    """Yield every image of the store with the rows of its objects in `images`."""
    row_of = {images.image_id(index): index for index in range(len(images))}
    for index in tqdm(range(len(labels)), desc="judging", unit="image", mininterval=1, disable=None):
        item = labels[index]
        row = row_of[item["image_id"]]
        yield item, slice(images.first[row], images.first[row + 1])
