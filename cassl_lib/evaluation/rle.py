"""Masks as COCO's compressed run lengths: what pycocotools' `encode` returns, in a third of its time or less.

On a CPU each mask is looked at inside its own extent only; on another device the runs are found there, and only they
leave it: a hundred masks of a photograph are 30 MB, their runs 0.2 MB.
"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask


def encode_masks(masks: torch.Tensor) -> list[dict]:
    """Compressed run lengths (`size` [H, W], `counts` bytes) of (N, H, W) masks of 0 and 1, on any device."""
    if not len(masks):
        return []
    size = list(masks.shape[1:])
    edges = edges_of(masks.numpy()) if masks.device.type == "cpu" else edges_on_device(masks)
    counts = [np.diff(each, prepend=0, append=size[0] * size[1]) for each in edges]
    # A last run of no pixel is not written; a first one of no pixel is.
    counts = [each[: len(each) - (each[-1] == 0)].tolist() for each in counts]
    return coco_mask.frPyObjects([{"size": size, "counts": each} for each in counts], *size)


def edges_of(masks: np.ndarray) -> list[np.ndarray]:
    """Where the runs of each (H, W) mask begin and end: places in its pixels, column after column."""
    height, edges = masks.shape[1], []
    for mask, rows, columns in zip(masks, masks.any(2), masks.any(1), strict=True):
        (rows,), (columns,) = rows.nonzero(), columns.nonzero()
        if not len(rows):
            edges.append(rows)
            continue
        top, left, high = rows[0], columns[0], rows[-1] + 1 - rows[0]
        part = np.zeros((columns[-1] + 1 - left, high + 2), np.int8)  # a free pixel above and below: no run goes on
        part[:, 1:-1] = mask[top : top + high, left : columns[-1] + 1].T
        column, row = np.divmod(np.diff(part.reshape(-1)).nonzero()[0], high + 2)
        found = (column + left) * height + row + top
        goes_on = (found[1:-1:2] == found[2::2]).nonzero()[0]  # from the foot of a column to the head of the next
        edges.append(np.delete(found, np.concatenate([2 * goes_on + 1, 2 * goes_on + 2])))
    return edges


def edges_on_device(masks: torch.Tensor) -> list[np.ndarray]:
    """The same, found on the device of the masks."""
    columns_first = masks.transpose(1, 2).flatten(1)
    before = torch.nn.functional.pad(columns_first[:, :-1], (1, 0))
    mask, place = (columns_first != before).nonzero(as_tuple=True)
    return np.split(place.cpu().numpy(), np.searchsorted(mask.cpu().numpy(), np.arange(1, len(masks))))
