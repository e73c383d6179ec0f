"""The usable annotations of an instances file as flat arrays, sorted by image; others are counted by reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cassl_lib.data.annotation_checks import doubtful_boxes
from cassl_lib.data.coco_files import segmentation_of
from cassl_lib.data.mask_checks import empty_masks, first_invalid
from cassl_lib.data.schema import Annotation
from cassl_lib.data.segmentations import Segmentations
from cassl_lib.errors import DataError, LeftOut

MOST_OBJECTS = 1000  # per image; matching locations to 10,000 objects takes half a minute per training step


@dataclass
class Instances:
    """The A objects of I images.

    Attributes:
        boxes: (A, 4) float32 xyxy in pixels; category_ids: (A,) int64; segmentations: their masks.
        first: (I + 1,) int64; image i owns objects first[i] to first[i + 1].
        doubt: why the boxes seem to be in another format than COCO's; None if they do not.
    """

    boxes: np.ndarray
    category_ids: np.ndarray
    segmentations: Segmentations
    first: np.ndarray
    doubt: str | None


def pack(
    annotations: Sequence[Annotation], ids: np.ndarray, sizes: np.ndarray, left_out: LeftOut, name: str
) -> Instances:
    """Pack the annotations that can be trained on.

    Crowds and boxes without area in their image are left out. Boxes that leave their image by more than a pixel are
    clipped. Of an image with more than `MOST_OBJECTS` objects, the largest are kept.

    Args:
        ids: (I,) distinct ids of the images; annotations of others are left out.
        sizes: (I, 2) their heights and widths in pixels.
        left_out: counts what is left out.
        name: of the file, for messages.

    Raises:
        DataError: a mask cannot be decoded; crowds are checked too, because evaluation decodes them.
    """
    image_ids = np.fromiter((entry.image_id for entry in annotations), np.int64, len(annotations))
    image_of = positions(image_ids, ids)
    order = np.argsort(image_of, kind="stable")
    absent = np.count_nonzero(image_of < 0)
    _leave_out(left_out, "annotations belong to images that are left out", annotations, order[:absent])
    order = order[absent:]
    entries, rows = [annotations[n] for n in order], image_of[order]
    masks = _checked_masks(entries, order, sizes[rows], name)
    # Leave out by the first reason that applies.
    xywh = np.array([entry.bbox for entry in entries], np.float64).reshape(-1, 4)
    boxes, clipped = _clipped(xywh, sizes[rows])
    crowds = np.fromiter((bool(entry.iscrowd) for entry in entries), bool, len(entries))
    flat, outside = (xywh[:, 2:] <= 0).any(1), (boxes[:, 2:] <= boxes[:, :2]).any(1)
    beyond = _beyond_largest(rows, np.where(crowds | flat | outside, -1, (boxes[:, 2:] - boxes[:, :2]).prod(1)))
    usable = np.ones(len(entries), bool)
    for reason, wrong in (
        ("crowds are not trained on", crowds),
        ("boxes have no area", flat),
        ("boxes lie outside their image", outside),
        (f"objects are not among the {MOST_OBJECTS:,} largest of their image", beyond),
    ):
        _leave_out(left_out, reason, entries, np.flatnonzero(usable & wrong))
        usable &= ~wrong
    _leave_out(left_out, "boxes are clipped to their image", entries, np.flatnonzero(usable & clipped))
    # Take the others.
    kept = np.flatnonzero(usable)
    masks = masks.at(kept)
    if len(masks.parts):
        without = np.flatnonzero(np.diff(masks.first) == 0)
        _leave_out(left_out, "annotations have no mask to train on", entries, kept[without])
        _leave_out(left_out, "masks cover no pixel", entries, kept[empty_masks(masks, sizes[rows[kept]])])
    return Instances(
        boxes=boxes[kept].astype(np.float32),
        category_ids=np.fromiter((entries[n].category_id for n in kept), np.int64, len(kept)),
        segmentations=masks,
        first=np.searchsorted(rows[kept], np.arange(len(ids) + 1)),
        doubt=doubtful_boxes(xywh[~crowds & ~flat], sizes[rows[~crowds & ~flat]]),
    )


def positions(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each value is in an array of distinct ones; -1 if it is not there."""
    order = np.argsort(among)
    found = order[np.minimum(np.searchsorted(among, values, sorter=order), len(among) - 1)]
    return np.where(among[found] == values, found, -1)


def _checked_masks(entries: Sequence[Annotation], order: np.ndarray, sizes: np.ndarray, name: str) -> Segmentations:
    """The masks of annotations, parsed one at a time; `order` are the places of the annotations in the file."""

    def where(n: int) -> str:
        return f"{name}: annotations[{order[n]}] (id {entries[n].id})"

    masks = Segmentations(segmentation_of(entry.segmentation, partial(where, n)) for n, entry in enumerate(entries))
    if invalid := first_invalid(masks, sizes):
        row, reason = invalid
        raise DataError(f"{where(row)}: {reason}; correct or remove it")
    return masks


def _clipped(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) xyxy, those that leave their image by more than a pixel clipped to it; and which these are."""
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    limits = sizes[:, ::-1]
    leaving = (boxes[:, :2] < -1).any(1) | (boxes[:, 2:] > limits + 1).any(1)
    boxes[leaving] = np.clip(boxes[leaving], 0, np.tile(limits[leaving], 2))
    return boxes, leaving


def _beyond_largest(rows: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Which annotations (N,) are not among the `MOST_OBJECTS` largest of their image; `rows`, the images, ascend."""
    beyond = np.zeros(len(rows), bool)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.diff(starts, append=len(rows))
    for start, count in zip(starts[counts > MOST_OBJECTS], counts[counts > MOST_OBJECTS], strict=True):
        beyond[start + np.argsort(-areas[start : start + count], kind="stable")[MOST_OBJECTS:]] = True
    return beyond


def _leave_out(left_out: LeftOut, reason: str, annotations: Sequence[Annotation], rows: np.ndarray) -> None:
    for row in rows:
        entry = annotations[row]
        box = f" [{', '.join(f'{number:g}' for number in entry.bbox)}]" if reason.startswith("boxes") else ""
        left_out.add(reason, f"annotation {entry.id}{box}")
