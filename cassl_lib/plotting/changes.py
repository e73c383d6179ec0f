"""What two detectors did on the same image: correct detections, wrong classes, false positives, and what changed.

Instances are dicts of `boxes` (N, 4) xyxy pixels and optionally `labels` (N,), -1 for an object without a class, and
`scores` (N,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cassl_lib.evaluation.matching import match
from cassl_lib.plotting.overlays import boxes_of
from cassl_lib.plotting.style import as_array


class Judged(NamedTuple):
    """The detections of one image against its ground truth of M objects."""

    object_of: np.ndarray  # (N,) index of the object a detection lies on, -1 for a false positive
    correct: np.ndarray  # (N,) bool: on an object, with its class
    detected: np.ndarray  # (M,) bool: objects with a correct detection


def judge(detections: Mapping, ground_truth: Mapping) -> Judged:
    """Match detections to objects at IoU 0.5, highest score first.

    Where both have labels, detections of the right class are matched first. Of the others, one may lie on each object
    that is left; its class is wrong. All the rest are false positives, a second detection of an object among them.
    """
    boxes, objects = boxes_of(detections), boxes_of(ground_truth)
    scores = as_array(detections.get("scores"))
    scores = -np.arange(len(boxes), dtype=float) if scores is None else scores
    labels, classes = as_array(detections.get("labels")), as_array(ground_truth.get("labels"))
    object_of, correct = np.full(len(boxes), -1), np.zeros(len(boxes), bool)
    agnostic = labels is None or classes is None
    # 1. detections of the right class, class by class
    for label in [None] if agnostic else np.unique(labels[labels >= 0]).tolist():
        own = np.arange(len(boxes)) if label is None else np.flatnonzero(labels == label)
        of_class = np.arange(len(objects)) if label is None else np.flatnonzero(classes == label)
        matches = match(boxes[own], scores[own], objects[of_class])
        hits = own[matches >= 0]
        object_of[hits], correct[hits] = of_class[matches[matches >= 0]], True
    detected = np.isin(np.arange(len(objects)), object_of[correct])
    # 2. what is left: detections on an object without a correct one
    others, free = np.flatnonzero(object_of < 0), np.flatnonzero(~detected)
    matches = match(boxes[others], scores[others], objects[free])
    object_of[others[matches >= 0]] = free[matches[matches >= 0]]
    return Judged(object_of, correct, detected)
