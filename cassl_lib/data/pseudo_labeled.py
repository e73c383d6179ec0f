"""A pseudo-label store as an image source: what warm-up trains on (Sec. 3.1, eq. 4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cassl_lib import paths
from cassl_lib.data.segmentations import decode_masks
from cassl_lib.data.source import Annotations
from cassl_lib.labels.store import PseudoLabelStore


class PseudoLabeled:
    """The images of a store with their labels above its threshold, an `ImageSource`. Masks are decoded on request."""

    # DEVIATES: images without a label above the threshold are kept and trained as background, as labeled images without
    # objects are; public code drops them.
    left_out = None  # unreadable images were skipped, and listed, when the store was labeled

    def __init__(self, labels: PseudoLabelStore):
        """Open the store, so that a missing or damaged one is noticed now."""
        self.labels = labels
        labels.open()

    def __len__(self) -> int:
        return len(self.labels)

    def image_path(self, index: int) -> Path:
        return paths.image(self.labels.file_name(index))

    def image_id(self, index: int) -> int:
        return self.labels.image_id(index)

    def annotations(self, index: int, *, masks: bool = True) -> Annotations:
        """Labels of an image above the threshold.

        Raises:
            ValueError: masks are requested, but the store holds boxes only.
        """
        item = self.labels[index]
        size = item["height"], item["width"]
        instances: Annotations = {"size": size, "boxes": item["boxes"], "labels": item["labels"].astype(np.int64)}
        if masks:
            if len(item["boxes"]) and not item["rles"]:
                raise ValueError(f"{self.labels.folder} holds boxes only; train with masks=False, or label with masks")
            instances["masks"] = decode_masks(item["rles"], size)
        return instances
