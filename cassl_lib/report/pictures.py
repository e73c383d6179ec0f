"""Qualitative results: the same images with the detections of each stage, drawn from a recorded result.

`gather` makes such a result from the runs. It holds no image: a scene is redrawn from its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from cassl_lib import paths, plotting
from cassl_lib.data import scenes
from cassl_lib.data.loader import read_image
from cassl_lib.data.scenes.scene import Scene, SceneSpec
from cassl_lib.report.blocks import Block, Picture

RECORDED_ROWS = {"truth": "ground truth", "labeler": "pseudo labeler"}  # names of rows in results of version 0.1.0


def pipeline() -> Sequence[Block]:
    """The figure of the three stages (Fig. 2 of the paper)."""
    alt = "Diagram of the three stages: pseudo labeler training, warm-up training, finetuning."
    caption = "The three stages of CA-SSL (Sec. 3.1): which images and labels each one is trained on."
    return [Picture("../figures/pipeline.png", alt, caption)]


def draw(gathered: Mapping) -> dict[str, plotting.Figure]:
    """The figures of a result that `gather` made, by name."""
    figures = {}
    for name, picture in gathered["pictures"].items():
        rows = {RECORDED_ROWS.get(row, row): list(map(_unpacked, images)) for row, images in picture["rows"].items()}
        figures[name] = plotting.side_by_side(images_of(picture), rows, names=gathered["classes"])
    return figures


def save(figures: Mapping[str, plotting.Figure], folder: Path) -> list[Path]:
    """Write figures as palette PNGs, which keep the repository small."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        plotting.save_png(figure, file)
    return files


def images_of(picture: Mapping) -> list[torch.Tensor]:
    """The images of a picture, each (3, H, W) uint8. Scenes are redrawn, other images are read."""
    if picture["scenes"] is None:
        return [read_image(paths.image(name)) for name in picture["images"]]
    return [torch.from_numpy(scene_of(picture, name).image).permute(2, 0, 1) for name in picture["images"]]


def scene_of(picture: Mapping, name: str) -> Scene:
    """The scene of a file name."""
    return scenes.redraw(SceneSpec(**picture["scenes"]), int(Path(name).stem))


def _unpacked(packed: Mapping) -> dict:
    instances = {name: np.array(packed[name]) for name in ("boxes", "scores") if name in packed}
    instances |= {"labels": np.array(packed["labels"], int)} if "labels" in packed else {}
    if "masks" in packed:
        masks = [coco_mask.decode({"size": packed["size"], "counts": each}) for each in packed["masks"]]
        instances["masks"] = np.array(masks, bool).reshape(-1, *packed["size"])
    return instances
