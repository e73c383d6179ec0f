"""COCO JSON as flat arrays: images, boxes and masks of a labeled set, checked when they are read.

Masks stay polygons or run lengths, packed in two arrays, until a sample is drawn. Nothing is kept as Python objects for
each annotation, so worker processes share the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from cassl_lib import paths
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.files import file_fingerprint


def locate(spec: str) -> tuple[Path, Path]:
    """The JSON and the image folder that `JSON` or `JSON:FOLDER` names.

    Without a folder it is looked for where COCO's layouts have it: `images/` or a folder named like the split
    (`instances_train2017.json` -> `train2017/`), beside the JSON or beside the JSON's folder.
    """
    name, folder = paths.file_and_folder(spec)
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file; give a COCO JSON, or JSON{os.pathsep}FOLDER")
    if folder is not None:
        images = Path(folder).expanduser()
        if not images.is_dir():
            raise DataError(f"{images}: no such image folder (from {spec!r})")
        return path, images
    split = path.stem.rpartition("_")[2]
    for base in (path.parent, path.parent.parent):
        for candidate in (base / split, base / "images"):
            if candidate.is_dir() and candidate != path.with_suffix(""):  # where a panoptic JSON has its PNGs
                return path, candidate
    raise DataError(f"{path}: no image folder found beside it; give it as {path}{os.pathsep}FOLDER")


class CocoImages:
    """A labeled set.

    Attributes:
        path, folder: the JSON and its image folder.
        classes: category names, in the order of the labels 0, 1, ...; `category_ids` are their ids in the JSON.
        ids, heights, widths: of the images, int64 (I,).
        left_out: what was left out and why.
    Annotations without crowds, sorted by image; those of image i are rows first[i] to first[i + 1] of
        boxes (A, 4) float32 xyxy in pixels, labels (A,) int64, segmentations.
    """

    def __init__(self, path: Path | str, folder: Path | str):
        self.path, self.folder, self.left_out = Path(path), Path(folder), LeftOut()
        data = _read(self.path)
        categories = sorted(data["categories"], key=lambda category: category["id"])
        self.category_ids = np.array([category["id"] for category in categories], np.int64)
        self.classes = [str(category["name"]) for category in categories]
        images = [data["images"][row] for row in self._present([image["file_name"] for image in data["images"]])]
        self._absent = len(data["images"]) - len(images)
        self.ids = np.array([image["id"] for image in images], np.int64)
        self.heights = np.array([image["height"] for image in images], np.int64)
        self.widths = np.array([image["width"] for image in images], np.int64)
        self.names = np.array([image["file_name"] for image in images])
        self._take(data["annotations"])

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the JSON and, where images are absent, of the names of those that are there."""
        content = file_fingerprint(self.path)
        if not self._absent:
            return content
        return hashlib.sha256("\n".join([content, *self.names.tolist()]).encode()).hexdigest()[:16]

    def image_path(self, index: int) -> Path:
        return self.folder / str(self.names[index])

    def image_id(self, index: int) -> int:
        return int(self.ids[index])

    def annotations(self, index: int, *, masks: bool = True) -> dict[str, np.ndarray]:
        """size (H, W) of an image, its boxes (N, 4) float32 xyxy, labels (N,) int64, and masks (N, H, W) uint8."""
        rows = slice(self.first[index], self.first[index + 1])
        size = int(self.heights[index]), int(self.widths[index])
        found = {"size": size, "boxes": self.boxes[rows], "labels": self.labels[rows]}
        if masks:
            if len(self.boxes) and not len(self.segmentations.parts):
                raise DataError(f"{self.path} holds boxes only, no segmentation; use masks=False")
            decoded = [self.segmentations.decode(row, size) for row in range(rows.start, rows.stop)]
            found["masks"] = np.stack(decoded) if decoded else np.zeros((0, *size), np.uint8)
        return found

    def ground_truth(self) -> dict:
        """The annotation file without what is left out here (but for crowds, which evaluation knows), as COCO's JSON.

        Annotations are numbered anew, from 1: pycocotools takes a match with annotation 0 for none.
        """
        data = read_json(self.path)
        present, classes = set(self.ids.tolist()), set(self.category_ids.tolist())
        data["images"] = [image for image in data["images"] if image["id"] in present]
        usable = [
            entry
            for entry in data["annotations"]
            if entry["image_id"] in present and entry["category_id"] in classes and has_area(entry["bbox"])
        ]
        data["annotations"] = [entry | {"id": number} for number, entry in enumerate(usable, start=1)]
        return data

    def _present(self, names: list[str]) -> list[int]:
        """Which of the images are on disk; absent ones are reported, and if all are absent the folder is wrong."""
        # DEVIATES: images without objects are kept, public code drops them; they teach what is background.
        there = set(os.listdir(self.folder))
        kept = []
        for row, name in enumerate(names):
            if name in there or ("/" in name and (self.folder / name).exists()):
                kept.append(row)
            else:
                self.left_out.add("images of the JSON are not in the folder", name)
        if not kept:
            raise DataError(
                f"{self.path}: none of its {len(names)} images (such as {names[0]!r}) is in {self.folder}; give the "
                f"folder as {self.path}{os.pathsep}FOLDER"
            )
        return kept

    def _take(self, annotations: list[dict]) -> None:
        """Sort the usable annotations by image into flat arrays; report the others."""
        row_of = {int(image_id): row for row, image_id in enumerate(self.ids)}
        label_of = {int(category): label for label, category in enumerate(self.category_ids)}
        taken: list[tuple[int, dict]] = []
        for annotation in annotations:
            row = row_of.get(annotation["image_id"])
            if row is None:
                self.left_out.add("annotations belong to no image", f"annotation {annotation.get('id')}")
            elif annotation.get("iscrowd", 0):
                self.left_out.add("crowds are not trained on", f"annotation {annotation.get('id')}")
            elif annotation["category_id"] not in label_of:
                self.left_out.add("annotations have a category the JSON does not list", annotation["category_id"])
            elif not has_area(annotation["bbox"]):
                self.left_out.add("boxes have no area", f"annotation {annotation.get('id')} {annotation['bbox']}")
            else:
                taken.append((row, annotation))
        taken.sort(key=lambda pair: pair[0])
        rows = np.array([row for row, _ in taken], np.int64)
        self.first = np.searchsorted(rows, np.arange(len(self) + 1))
        xywh = np.array([annotation["bbox"] for _, annotation in taken], np.float64).reshape(-1, 4)
        self.boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
        self.labels = np.array([label_of[annotation["category_id"]] for _, annotation in taken], np.int64)
        self.segmentations = Segmentations([annotation.get("segmentation") for _, annotation in taken])
        for row in np.flatnonzero(np.diff(self.segmentations.first) == 0) if len(self.segmentations.parts) else ():
            self.left_out.add("annotations have no mask to train on", f"annotation {taken[row][1].get('id')}")
        counts = Counter(self.labels.tolist())
        for label, name in enumerate(self.classes):
            if not counts[label]:
                self.left_out.add("classes have no instance", name)


class Segmentations:
    """Polygons and run lengths of many annotations in two flat arrays.

    `numbers` holds polygon coordinates or uncompressed counts, `text` compressed counts; `parts` has one row a polygon
    or run length: (annotation, kind, start, stop, height, width), sorted by annotation.
    """

    POLYGON, COUNTS, COMPRESSED = 0, 1, 2

    def __init__(self, segmentations: list):
        numbers, texts, parts = [], [], []
        at = text_at = 0
        for row, segmentation in enumerate(segmentations):
            for kind, values, size in _pieces(segmentation):
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

    def decode(self, row: int, size: tuple[int, int]) -> np.ndarray:
        """The mask of one annotation, (H, W) uint8 of 0 and 1; empty where the annotation has no segmentation."""
        height, width = size
        encoded = []
        for _, kind, start, stop, *own in self.parts[self.first[row] : self.first[row + 1]]:
            if kind == self.POLYGON:
                encoded += coco_mask.frPyObjects([self.numbers[start:stop].tolist()], height, width)
            elif kind == self.COUNTS:
                counts = {"size": [int(n) for n in own], "counts": self.numbers[start:stop].astype(int).tolist()}
                encoded.append(coco_mask.frPyObjects(counts, *counts["size"]))
            else:
                encoded.append({"size": [int(n) for n in own], "counts": self.text[start:stop].tobytes()})
        if not encoded:
            return np.zeros(size, np.uint8)
        return coco_mask.decode(coco_mask.merge(encoded) if len(encoded) > 1 else encoded[0])


def _pieces(segmentation):
    """(kind, values, (height, width)) of each polygon or run length of a COCO segmentation."""
    if isinstance(segmentation, dict):
        counts, size = segmentation["counts"], segmentation["size"]
        if isinstance(counts, str):
            yield Segmentations.COMPRESSED, counts.encode(), size
        else:
            yield Segmentations.COUNTS, counts, size
    else:
        for polygon in segmentation or ():
            if len(polygon) >= 6:  # fewer than three points have no area; pycocotools refuses them
                yield Segmentations.POLYGON, polygon, (0, 0)


def decode_masks(rles: list[dict], size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) uint8 of N run lengths; N may be 0."""
    if not rles:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1))


def has_area(box: list[float]) -> bool:
    """Whether a COCO box, xywh, can be trained and evaluated on."""
    return isinstance(box, list) and len(box) == 4 and all(np.isfinite(box)) and box[2] > 0 and box[3] > 0


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}); give a COCO annotation file") from error


def _read(path: Path) -> dict:
    """The parsed JSON, with COCO's three lists; anything else is refused by name."""
    data = read_json(path)
    lists = ("images", "annotations", "categories")
    missing = [key for key in lists if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise DataError(f"{path} is not a COCO instances file: it has no list {', '.join(map(repr, missing))}")
    for key in ("images", "categories"):
        if not data[key]:
            raise DataError(f"{path}: {key!r} is empty, nothing to train or evaluate on")
    if any("segments_info" in annotation for annotation in data["annotations"][:1]):
        raise DataError(
            f"{path} is a panoptic file; use annotation=entities (or target=panoptic), or an instances file"
        )
    wanted = {"images": ("id", "file_name", "height", "width"), "annotations": ("image_id", "bbox", "category_id")}
    wanted["categories"] = ("id", "name")
    for key, names in wanted.items():
        for item in data[key]:
            if lacking := [name for name in names if name not in item]:
                raise DataError(f"{path}: an entry of {key!r} (id {item.get('id')}) lacks {', '.join(lacking)}")
    return data
