"""A pseudo-label store as a source of training samples: what warm-up reads (Sec. 3.1, eq. 4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cassl_lib import paths
from cassl_lib.data.coco import decode_masks
from cassl_lib.labels.store import PseudoLabelStore


class PseudoLabeled:
    """Images of a store with their labels above its threshold; masks are decoded only for the image asked for."""

    left_out = None  # unreadable images were skipped when the store was labeled

    def __init__(self, labels: PseudoLabelStore):
        self.labels = labels
        labels.open()

    def __len__(self) -> int:
        return len(self.labels)

    def image_path(self, index: int) -> Path:
        return paths.image(self.labels.file_name(index))

    def image_id(self, index: int) -> int:
        return self.labels.image_id(index)

    def annotations(self, index: int, *, masks: bool = True) -> dict[str, np.ndarray]:
        """size (H, W) of the image, boxes (N, 4) float32 xyxy, labels (N,) int64, and masks (N, H, W) uint8."""
        item = self.labels[index]
        size = item["height"], item["width"]
        found = {"size": size, "boxes": item["boxes"], "labels": item["labels"].astype(np.int64)}
        if masks:
            if len(item["boxes"]) and not item["rles"]:
                raise ValueError(f"{self.labels.folder} holds boxes only; train with masks=False, or label with masks")
            found["masks"] = decode_masks(item["rles"], size)
        return found
