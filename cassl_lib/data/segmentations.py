"""COCO segmentations: polygons, uncompressed RLE and compressed RLE, packed in flat arrays and decoded one by one."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from cassl_lib.data.schema import Rle


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

    def __init__(self, segmentations: Iterable[list | Rle | None]):
        """Pack COCO segmentations: a list of polygons, an RLE, or None, per annotation; parsed ones, in an iterator."""
        numbers, text, parts, rows = array("d"), bytearray(), array("q"), 0
        for row, segmentation in enumerate(segmentations):
            rows = row + 1
            for kind, values, size in _split(segmentation):
                if kind == self.COMPRESSED:
                    parts.extend((row, kind, len(text), len(text) + len(values), *size))
                    text += values
                else:
                    parts.extend((row, kind, len(numbers), len(numbers) + len(values), *size))
                    numbers.extend(values)
        self.numbers, self.text = np.frombuffer(numbers, np.float64), np.frombuffer(bytes(text), np.uint8)
        self.parts = np.array(parts, np.int64).reshape(-1, 6)
        self.first = np.searchsorted(self.parts[:, 0], np.arange(rows + 1))

    def at(self, rows: np.ndarray) -> Segmentations:
        """Those of the annotations `rows`, ascending, which become 0, 1, ...; the arrays are shared."""
        chosen = copy.copy(self)
        chosen.parts = self.parts[np.isin(self.parts[:, 0], rows)]
        chosen.parts[:, 0] = np.searchsorted(rows, chosen.parts[:, 0])
        chosen.first = np.searchsorted(chosen.parts[:, 0], np.arange(len(rows) + 1))
        return chosen

    def decode(self, rows: Iterable[int], size: tuple[int, int]) -> np.ndarray:
        """Masks of annotations, (N, H, W) uint8 of 0 and 1; all 0 without a segmentation. See `decode_masks`."""
        return decode_masks([self.rle(row, size) for row in rows], size)

    def rle(self, row: int, size: tuple[int, int]) -> dict:
        """The mask of one annotation as compressed RLE: `size` (H, W) and `counts`, bytes."""
        rles = self._rles(row, size)
        return rles[0] if len(rles) == 1 else coco_mask.merge(rles) if rles else _empty(size)

    def covers(self, row: int, size: tuple[int, int]) -> bool:
        """Whether the mask of one annotation has a pixel."""
        return any(coco_mask.area(rle) for rle in self._rles(row, size))

    def _rles(self, row: int, size: tuple[int, int]) -> list[dict]:
        """The parts of an annotation as compressed RLE."""
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
        return rles


def _split(segmentation: list | Rle | None) -> Iterator[tuple[int, Sequence, Sequence[int]]]:
    """Yield (kind, values, (height, width)) of each polygon or RLE of a COCO segmentation."""
    if isinstance(segmentation, Rle):
        if isinstance(segmentation.counts, str):
            yield Segmentations.COMPRESSED, segmentation.counts.encode(), segmentation.size
        else:
            yield Segmentations.COUNTS, segmentation.counts, segmentation.size
    else:
        for polygon in segmentation or ():
            # Fewer than three points have no area, and pycocotools raises; an odd number is left for the checks.
            if len(polygon) >= 6 or len(polygon) % 2:
                yield Segmentations.POLYGON, polygon, (0, 0)


def _empty(size: tuple[int, int]) -> dict:
    """The RLE of a mask without a pixel."""
    return coco_mask.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)


def decode_masks(rles: Sequence[dict], size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) uint8 masks of N compressed RLEs; `size` is (H, W), needed if N is 0.

    In memory the pixels of a column are neighbors, as in an RLE.
    """
    return coco_mask.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, *size), np.uint8)
