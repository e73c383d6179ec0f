"""Choosing the threshold of the pseudo labels (Sec. 3.1, eq. 3): what each one costs, and one proposed with its reason.

The paper does not print its value. Precision and recall come from labeled images of their own, which no stage trains
or reports on; without such images only the number of labels can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.pool.build import build_pool
from cassl_lib.errors import DataError
from cassl_lib.evaluation.labels import judge_labels, truth_of
from cassl_lib.evaluation.matching import match
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run
from cassl_lib.stages import all_stages as stages

THRESHOLDS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
LEVEL = 0.01  # of F1: thresholds this close to the best are as good


@dataclass(frozen=True)
class Proposal:
    threshold: float
    reason: str


def heldout_labels(config: Config, labeler: Run) -> tuple[PseudoLabelStore, CocoImages] | None:
    """The labeler's labels of the held-out images, a label run of its own, and these images; None where there are none.

    Raises:
        DataError: a held-out image is also trained on or evaluated on.
    """
    images = datasets.heldout_set(config)
    if images is None:
        return None
    pool, _ = build_pool([f"{images.path}{os.pathsep}{images.folder}"], paths.runs() / "pools")
    return PseudoLabelStore(stages.label(config, labeler=labeler, pool=pool).folder / "store"), images


def quality_at(labels: PseudoLabelStore, images: CocoImages, thresholds: Sequence[float] = THRESHOLDS) -> list[dict]:
    """Precision, recall, F1 (boxes at IoU 0.5) and labels an image at each threshold, against the images' truth."""
    truth, rows = truth_of(images), []
    for threshold in tqdm(thresholds, desc="judging", unit="threshold", mininterval=1, disable=None):
        found = judge_labels(labels.at(threshold), truth)
        precision, recall = found["precision"], found["recall"]
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        count = int(labels.at(threshold).statistics([threshold])["labels"][0])
        rows.append({"threshold": threshold, "precision": precision, "recall": recall, "f1": f1})
        rows[-1]["labels_per_image"] = count / max(len(labels), 1)
    return rows


def propose_threshold(quality: Sequence[dict]) -> Proposal:
    """The threshold with the best F1, of rows as of `quality_at`."""
    best = max(quality, key=lambda row: row["f1"])
    if not best["f1"]:
        return Proposal(
            quality[-1]["threshold"], "no label is right at any threshold: the labeler has learned nothing yet"
        )
    level = [row["threshold"] for row in quality if row["f1"] >= best["f1"] - LEVEL]
    reason = (
        f"F1 of the boxes at IoU 0.5 is highest: {best['f1']:.3f}, precision {best['precision']:.3f}, recall "
        f"{best['recall']:.3f}, {best['labels_per_image']:.1f} labels an image; within {LEVEL} of it from "
        f"{min(level)} to {max(level)}"
    )
    return Proposal(best["threshold"], reason)


def propose_by_count(
    labels: PseudoLabelStore, labeled: CocoImages, thresholds: Sequence[float] = THRESHOLDS
) -> Proposal:
    """Without held-out truth: the threshold that keeps about as many labels an image as people gave."""
    human = len(labeled.boxes) / max(len(labeled), 1)
    kept = labels.statistics(thresholds)["labels_per_image"]
    place = int(np.abs(kept - human).argmin())
    reason = (
        f"it keeps {kept[place]:.1f} labels an image, nearest to the {human:.1f} that people gave the labeled images. "
        "No precision was measured: give heldout=JSON[:FOLDER]"
    )
    return Proposal(thresholds[place], reason)


def by_class(
    labels: PseudoLabelStore, images: CocoImages, threshold: float, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict]:
    """What one constant threshold does to each class of class-specific labels, the class with most objects first.

    Returns:
        A row a class: `name`, `objects` in the truth, `labels` above `threshold`, its `f1`, and `best`, the threshold
        with the best F1 for this class alone, with `best_f1`; None without objects.

    Raises:
        DataError: the labels are of other classes.
    """
    if (names := [category["name"] for category in labels.categories]) != list(images.classes):
        raise DataError(f"{labels.folder}: its classes {names} are not those of {images.path}, {images.classes}")
    grid = sorted({*thresholds, threshold})
    right, kept = (np.zeros((len(images.classes), len(grid)), np.int64) for _ in range(2))
    for item, span in _with_truth(labels.at(min(grid)), images):
        for label in np.union1d(item["labels"], images.labels[span]):
            own, true = item["labels"] == label, images.boxes[span][images.labels[span] == label]
            scores = item["scores"][own]
            matched = match(item["boxes"][own], scores, true) >= 0
            for place, value in enumerate(grid):
                kept[label, place] += int((scores > value).sum())
                right[label, place] += int(matched[scores > value].sum())
    objects = np.bincount(images.labels, minlength=len(images.classes))
    f1 = 2 * right / np.maximum(kept + objects[:, None], 1)
    constant, rows = grid.index(threshold), []
    for label in np.argsort(-objects, kind="stable"):
        best = int(f1[label].argmax())
        row = {"name": images.classes[label], "objects": int(objects[label]), "labels": int(kept[label, constant])}
        known = objects[label] > 0
        row |= {"f1": float(f1[label, constant]) if known else None, "best": grid[best] if known else None}
        rows.append(row | {"best_f1": float(f1[label, best]) if known else None})
    return rows


def recall_by_class(labels: PseudoLabelStore, images: CocoImages, threshold: float) -> list[dict]:
    """How many objects of each class the labels above `threshold` find, whatever their own class; most objects first.

    Returns:
        A row a class: `name`, `objects` in the truth, `found` of them at IoU 0.5.
    """
    found = np.zeros(len(images.classes), np.int64)
    for item, span in _with_truth(labels.at(threshold), images):
        taken = match(item["boxes"], item["scores"], images.boxes[span])
        found += np.bincount(images.labels[span][taken[taken >= 0]], minlength=len(found))
    objects = np.bincount(images.labels, minlength=len(images.classes))
    names = images.classes
    order = np.argsort(-objects, kind="stable")
    return [{"name": names[n], "objects": int(objects[n]), "found": int(found[n])} for n in order]


def _with_truth(labels: PseudoLabelStore, images: CocoImages) -> Iterator[tuple[dict, slice]]:
    """Every image of the store with the rows of its objects in `images`."""
    row_of = {images.image_id(index): index for index in range(len(images))}
    for index in tqdm(range(len(labels)), desc="judging", unit="image", mininterval=1, disable=None):
        item = labels[index]
        row = row_of[item["image_id"]]
        yield item, slice(images.first[row], images.first[row + 1])
