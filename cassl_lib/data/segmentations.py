"""COCO segmentations: polygons, uncompressed RLE and compressed RLE, packed in flat arrays and decoded one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask as coco_mask


class Segmentations:
    """The segmentations of many annotations in two flat arrays, which worker processes can share.

    Attributes:
        numbers: float64; polygon coordinates (x, y, x, y, ...) in pixels, and counts of uncompressed RLE.
        text: uint8; counts of compressed RLE, ASCII.
        parts: (P, 6) int64, one row per polygon or RLE, sorted by annotation: annotation, kind (`POLYGON`, `COUNTS` or
            `COMPRESSED`), start and stop in `numbers` or `text`, height and width of an RLE.
        first: (A + 1,) int64; annotation a owns rows first[a] to first[a + 1] of `parts`.
    """

    POLYGON, COUNTS, COMPRESSED = 0, 1, 2

    def __init__(self, segmentations: Sequence[list | dict | None]):
        """Pack COCO segmentations: a list of polygons, an RLE dict, or None, per annotation."""
        numbers, texts, parts = [], [], []
        at = text_at = 0
        for row, segmentation in enumerate(segmentations):
            for kind, values, size in _split(segmentation):
                start = text_at if kind == self.COMPRESSED else at
                parts.append((row, kind, start, start + len(values), *size))
                if kind == self.COMPRESSED:
                    texts.append(values)
                    text_at += len(values)
                else:
                    numbers.append(np.asarray(values, np.float64))
                    at += len(values)
        self.numbers = np.concatenate(numbers) if numbers else np.zeros(0)
        self.text = np.frombuffer(b"".join(texts), np.uint8)
        self.parts = np.array(parts, np.int64).reshape(-1, 6)
        self.first = np.searchsorted(self.parts[:, 0], np.arange(len(segmentations) + 1))

    def at(self, rows: np.ndarray) -> Segmentations:
        """Those of the annotations `rows`, ascending, which become 0, 1, ...; the arrays are shared."""
        chosen = copy.copy(self)
        chosen.parts = self.parts[np.isin(self.parts[:, 0], rows)]
        chosen.parts[:, 0] = np.searchsorted(rows, chosen.parts[:, 0])
        chosen.first = np.searchsorted(chosen.parts[:, 0], np.arange(len(rows) + 1))
        return chosen

    def decode(self, row: int, size: tuple[int, int]) -> np.ndarray:
        """The mask of one annotation, (H, W) uint8 of 0 and 1; all 0 if the annotation has no segmentation."""
        height, width = size
        rles = []
        for _, kind, start, stop, *own in self.parts[self.first[row] : self.first[row + 1]]:
            if kind == self.POLYGON:
                rles += coco_mask.frPyObjects([self.numbers[start:stop].tolist()], height, width)
            elif kind == self.COUNTS:
                counts = {"size": [int(n) for n in own], "counts": self.numbers[start:stop].astype(int).tolist()}
                rles.append(coco_mask.frPyObjects(counts, *counts["size"]))
            else:
                rles.append({"size": [int(n) for n in own], "counts": self.text[start:stop].tobytes()})
        if not rles:
            return np.zeros(size, np.uint8)
        return coco_mask.decode(coco_mask.merge(rles) if len(rles) > 1 else rles[0])


def _split(segmentation: list | dict | None) -> Iterator[tuple[int, Sequence, Sequence[int]]]:
    """Yield (kind, values, (height, width)) of each polygon or RLE of a COCO segmentation."""
    if isinstance(segmentation, dict):
        counts, size = segmentation["counts"], segmentation["size"]
        if isinstance(counts, str):
            yield Segmentations.COMPRESSED, counts.encode(), size
        else:
            yield Segmentations.COUNTS, counts, size
    else:
        for polygon in segmentation or ():
            if len(polygon) >= 6:  # fewer than three points have no area, and pycocotools raises
                yield Segmentations.POLYGON, polygon, (0, 0)


def decode_masks(rles: Sequence[dict], size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) uint8 masks of N compressed RLEs; `size` is (H, W), needed if N is 0."""
    if not rles:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1))
