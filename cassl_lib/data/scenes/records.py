"""Drawn scenes as COCO records: images, instances, panoptic segments. Masks hold visible pixels only."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from cassl_lib.data.scenes.kinds import NAMED, STUFF, UNNAMED, Kind
from cassl_lib.data.scenes.scene import UNITS, Scene

_COMMON = {
    "info": {"description": "embedded scenes, drawn", "version": "1.0", "year": 2022, "contributor": "cassl_lib"},
    "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
}


def _categories(kinds: tuple[Kind, ...]) -> list[dict]:
    return [{"id": kind.id, "name": kind.name, "supercategory": kind.supercategory} for kind in kinds]


def tight_box(mask: np.ndarray) -> list[int]:
    """Tight box of a non-empty (H, W) mask: x, y, width, height in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _annotation(image_id: int, number: int, kind: Kind, mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {
        "id": image_id * 1000 + number,
        "image_id": image_id,
        "category_id": kind.id,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": tight_box(mask),
        "iscrowd": 0,
    }


def panoptic_segments(scene: Scene) -> tuple[np.ndarray, list[dict]]:
    """(H, W) int64 map of segment ids, 0 on things of unnamed kinds, and COCO's `segments_info`."""
    ids, category_of = np.zeros(scene.stuff.shape, np.int64), {}
    for place, (category, _) in enumerate(STUFF):
        ids[scene.stuff == place] = category * 1000
        category_of[category * 1000] = category
    for number, thing in enumerate(scene.things, start=1):
        segment = thing.kind.id * 1000 + number if thing.kind.named else 0
        ids[thing.mask] = segment
        category_of[segment] = thing.kind.id
    segments = []
    for segment, area in zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True):
        if segment:
            box = tight_box(ids == segment)
            facts = {"id": segment, "category_id": category_of[segment], "area": area, "bbox": box, "iscrowd": 0}
            segments.append(facts)
    return ids, segments


def as_png(ids: np.ndarray) -> np.ndarray:
    """COCO's PNG encoding of a map of segment ids, (H, W, 3) uint8: id = R + 256 G + 256^2 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


class UnitRecords:
    """Collects the records of one unit's scenes and returns the contents of its JSON files."""

    def __init__(self, unit: str):
        self.unit = unit
        self.images: list[dict] = []
        self.annotations: list[dict] = []  # of named and unnamed kinds
        self.panoptic: list[dict] = []

    def add_image(self, index: int, scene: Scene) -> str:
        """Add scene `index` and return the stem of its file names: its image id, which is unique across units."""
        image_id = (UNITS.index(self.unit) + 1) * 1_000_000 + index
        stem, (height, width) = f"{image_id:012d}", scene.stuff.shape
        self.images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width, "license": 1})
        for number, thing in enumerate(scene.things, start=1):
            self.annotations.append(_annotation(image_id, number, thing.kind, thing.mask))
        return stem

    def add_panoptic(self, stem: str, segments: list[dict]) -> None:
        self.panoptic.append({"image_id": int(stem), "file_name": f"{stem}.png", "segments_info": segments})

    def instances(self) -> dict:
        named = {kind.id for kind in NAMED}
        annotations = [annotation for annotation in self.annotations if annotation["category_id"] in named]
        return {**_COMMON, "images": self.images, "annotations": annotations, "categories": _categories(NAMED)}

    def ground_truth(self) -> dict:
        categories = _categories((*NAMED, *UNNAMED))
        return {**_COMMON, "images": self.images, "annotations": self.annotations, "categories": categories}

    def image_info(self) -> dict:
        return {**_COMMON, "images": self.images, "categories": _categories(NAMED)}

    def panoptic_json(self) -> dict:
        things = [{**category, "isthing": 1} for category in _categories(NAMED)]
        stuff = [{"id": number, "name": name, "supercategory": "stuff", "isthing": 0} for number, name in STUFF]
        return {**_COMMON, "images": self.images, "annotations": self.panoptic, "categories": things + stuff}
