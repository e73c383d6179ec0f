"""Synthetic photographs that stand in for a data set that is not on disk: for measuring speed only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cassl_lib.tools.bench_detector import make_batch

# (height, width): number among 16 photographs of COCO train2017. The padded batch size depends on these shapes.
TYPICAL = {(480, 640): 6, (427, 640): 5, (640, 480): 3, (640, 427): 1, (375, 500): 1}
GRAIN = 17  # standard deviation in gray levels: files as large, and as slow to decode, as photographs


class SyntheticPhotos:
    """Sixteen JPEGs with ellipses as instances: an ImageSource with `heights` and `widths`, and rows as of a pool."""

    left_out = None
    classes = tuple(str(place) for place in range(80))

    def __init__(self, folder: Path):
        """Draw them into `folder`."""
        shapes = [shape for shape, number in TYPICAL.items() for _ in range(number)]
        self.heights, self.widths = np.array(shapes).T
        self.paths = [Path(folder) / f"{place:02d}.jpg" for place in range(len(shapes))]
        self.targets = []
        draw = np.random.default_rng(0)
        for (height, width), path in zip(shapes, self.paths, strict=True):
            self.targets += make_batch(1, height, width, torch.device("cpu"))[1]
            coarse = Image.fromarray(draw.integers(0, 256, (15, 20, 3), np.uint8)).resize((width, height))
            pixels = np.asarray(coarse) + draw.normal(0, GRAIN, (height, width, 1))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)

    def __len__(self) -> int:
        return len(self.paths)

    def image_path(self, index: int) -> Path:
        return self.paths[index]

    def image_id(self, index: int) -> int:
        return index

    def row(self, index: int) -> dict:
        """As `Pool.row`."""
        size = {"height": int(self.heights[index]), "width": int(self.widths[index])}
        return {"id": index, "path": str(self.paths[index]), **size}

    def annotations(self, index: int, *, masks: bool = True) -> dict[str, np.ndarray]:
        """boxes (9, 4) float32 xyxy, labels (9,) int64 from 0 to 79 and masks (9, H, W) uint8."""
        target = {name: value.numpy() for name, value in self.targets[index].items() if name != "masks" or masks}
        target["boxes"] = target["boxes"].astype(np.float32)
        return target | {"masks": target["masks"].astype(np.uint8)} if masks else target
