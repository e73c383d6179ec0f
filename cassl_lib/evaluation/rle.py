"""Masks as COCO's compressed RLE: identical to pycocotools' `encode`, in a third of its time or less.

On the CPU, only the bounding box of each mask is scanned. On another device the run boundaries are computed there, and
only they are copied: a hundred masks of a photo take 30 MB, their runs 0.2 MB.
"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask


def encode_masks(masks: torch.Tensor) -> list[dict]:
    """Compressed RLE (`size` [H, W], `counts` bytes) of (N, H, W) masks of 0 and 1, on any device."""
    if not len(masks):
        return []
    size = list(masks.shape[1:])
    edges = edges_of(masks.numpy()) if masks.device.type == "cpu" else edges_on_device(masks)
    counts = [run_lengths(each, size[0] * size[1]) for each in edges]
    # An empty last run is not written; an empty first one is.
    counts = [each[: len(each) - (each[-1] == 0)].tolist() for each in counts]
    return coco_mask.frPyObjects([{"size": size, "counts": each} for each in counts], *size)


def run_lengths(edges: np.ndarray, pixels: int) -> np.ndarray:
    """Lengths (E + 1,) of the runs between 0, the ascending edges (E,) and `pixels`; faster than np.diff."""
    lengths = np.append(edges, pixels)
    lengths[1:] -= edges
    return lengths


def edges_of(masks: np.ndarray) -> list[np.ndarray]:
    """Where the runs of ones of each (H, W) mask begin and end: positions in its pixels in column-major order."""
    height, edges = masks.shape[1], []
    for mask, rows, columns in zip(masks, masks.any(2), masks.any(1), strict=True):
        (rows,), (columns,) = rows.nonzero(), columns.nonzero()
        if not len(rows):
            edges.append(rows)
            continue
        # Cut out the mask's bounding box, with an empty pixel above and below each column that ends every run
        top, left, high = rows[0], columns[0], rows[-1] + 1 - rows[0]
        part = np.zeros((columns[-1] + 1 - left, high + 2), np.int8)
        part[:, 1:-1] = mask[top : top + high, left : columns[-1] + 1].T
        # Find the edges in it, as positions in the whole mask
        flat = part.reshape(-1)
        column, row = np.divmod((flat[1:] != flat[:-1]).nonzero()[0], high + 2)
        own = (column + left) * height + row + top
        # Join runs that continue from the bottom of a column to the top of the next
        joined = (own[1:-1:2] == own[2::2]).nonzero()[0]
        kept = np.ones(len(own), bool)
        kept[2 * joined + 1] = kept[2 * joined + 2] = False
        edges.append(own[kept])
    return edges


def edges_on_device(masks: torch.Tensor) -> list[np.ndarray]:
    """The same, computed on the device of the masks."""
    column_major = masks.transpose(1, 2).flatten(1)
    before = torch.nn.functional.pad(column_major[:, :-1], (1, 0))
    mask, position = (column_major != before).nonzero(as_tuple=True)
    return np.split(position.cpu().numpy(), np.searchsorted(mask.cpu().numpy(), np.arange(1, len(masks))))
