"""Entities (Sec. 3.1): every segment of a panoptic annotation, thing or stuff, is one instance with mask and box.

The masks come from a store of Arrow shards that entity_store.py converts COCO panoptic files into, once.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entity_store import CROWD, entity_store
from cassl_lib.data.segmentations import decode_masks
from cassl_lib.data.source import Annotations
from cassl_lib.errors import LeftOut
from cassl_lib.labels.coco import to_coco


class EntityImages(CocoImages):
    """A panoptic set as instances: `CocoImages` with things and stuff as classes.

    Args:
        path: panoptic JSON, e.g. panoptic_train2017.json; its PNGs lie in the folder of that name beside it.
        folder: the image folder.
        crowd: how pixels of crowds and unannotated pixels are treated. "background", as in the authors' public code:
            trained as background. "ignore": locations there are neither objects nor background in the loss, and
            evaluation does not count detections that lie mostly in a crowd as false positives.
    Attributes:
        categories: COCO's category dicts, with `isthing`, in the order of the labels.
        isthing: (C,) bool, by label.
        rows: (I,) int64, indices of the images in the store.
    """

    def __init__(self, path: Path | str, folder: Path | str, *, crowd: str = "background"):
        """Open the store of the panoptic files, or create it.

        Raises:
            DataError: the panoptic files are invalid, or none of the images is in `folder`.
        """
        self.path, self.folder, self.left_out, self.crowd = Path(path), Path(folder), LeftOut(), crowd
        self.store = entity_store(self.path)
        self.categories = self.store.categories
        self.category_ids = np.array([category["id"] for category in self.categories], np.int64)
        self.classes = [str(category["name"]) for category in self.categories]
        self.isthing = np.array([bool(category["isthing"]) for category in self.categories])
        flat = self.store.flat()
        self.rows = np.array(self._present(flat["file_name"].tolist()), np.int64)
        self._partial = len(self.rows) < len(self.store)
        self.ids, self.names = flat["image_id"][self.rows], flat["file_name"][self.rows]
        self.heights, self.widths = flat["height"][self.rows], flat["width"][self.rows]
        of_present = np.isin(np.repeat(np.arange(len(self.store)), flat["counts"]), self.rows)
        self.boxes, self.labels = flat["boxes"][of_present], flat["labels"][of_present].astype(np.int64)
        self.first = np.concatenate([[0], np.cumsum(flat["counts"][self.rows])]).astype(np.int64)
        for label in np.setdiff1d(np.arange(len(self.classes)), self.labels):
            self.left_out.add("classes have no instance", self.classes[label])

    def _keep(self, rows: np.ndarray) -> None:
        super()._keep(rows)
        self.rows = self.rows[rows]

    def annotations(self, index: int, *, masks: bool = True) -> Annotations:
        """Entities of an image, without crowds; with crowd="ignore" also `ignored`."""
        rows = slice(self.first[index], self.first[index + 1])
        size = int(self.heights[index]), int(self.widths[index])
        instances: Annotations = {"size": size, "boxes": self.boxes[rows], "labels": self.labels[rows]}
        if masks:
            instances["masks"] = decode_masks(self.store[int(self.rows[index])]["rles"], size)
        if self.crowd == "ignore":
            unclaimed = [rle for rle, _, score in self._stored(index) if score <= CROWD]
            instances["ignored"] = decode_masks(unclaimed, size).any(0).astype(np.uint8)
        return instances

    def ground_truth(self) -> dict:
        """The entities as parsed COCO instances JSON; with crowd="ignore" also the crowds, for COCO's AP."""
        ground_truth = to_coco(self.store)
        present = set(self.ids.tolist())
        ground_truth["images"] = [image for image in ground_truth["images"] if image["id"] in present]
        ground_truth["annotations"] = [entry for entry in ground_truth["annotations"] if entry["image_id"] in present]
        if self.crowd == "ignore":
            ground_truth["annotations"] += self._crowds(first_id=self.store.manifest["labels"] + 1)
        return ground_truth

    def _crowds(self, *, first_id: int) -> list[dict]:
        """COCO annotations of the crowds, with ids from `first_id`."""
        crowds = []
        for index in range(len(self)):
            for rle, label, _ in (stored for stored in self._stored(index) if stored[2] == CROWD):
                crowds.append(
                    {
                        "id": first_id + len(crowds),
                        "image_id": self.image_id(index),
                        "category_id": int(self.category_ids[label]),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "area": float(coco_mask.area(rle)),
                        "iscrowd": 1,
                    }
                )
        return crowds

    def _stored(self, index: int) -> list[tuple[dict, int, float]]:
        """RLE, label and score of all that is stored of an image: entities, crowds and unannotated pixels."""
        item = self.store.at(-2.0)[int(self.rows[index])]
        return list(zip(item["rles"], item["labels"].tolist(), item["scores"].tolist(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the panoptic JSON and the present images, with `crowd`."""
        return f"{super().fingerprint}-{self.crowd}"
