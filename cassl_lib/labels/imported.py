"""Reading another model's labels, or ground truth, from COCO JSON: checked as a whole before anything is written."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from cassl_lib import paths
from cassl_lib.data.annotation_checks import check_categories, check_images, check_references
from cassl_lib.data.coco_files import convert, parse, segmentation_of
from cassl_lib.data.image_files import inside
from cassl_lib.data.instances import positions
from cassl_lib.data.mask_checks import empty_masks, first_invalid
from cassl_lib.data.schema import Category, Detection, Label, LabelFile
from cassl_lib.data.segmentations import Segmentations
from cassl_lib.errors import DataError, LeftOut

COCO, RESULTS = "a COCO instances JSON", "a COCO results JSON (a list)"

logger = logging.getLogger(__name__)


class ImportedLabels:
    """The labels of a COCO JSON, as rows of a store. What is left out is logged as a warning.

    Attributes:
        images: the image records; categories: COCO's category dicts, sorted by id.
        pool: identity of the images and labels: a hash of the JSON.
    """

    def __init__(self, coco: str | Path | Mapping, results: str | Path | Sequence[Mapping] | None = None):
        """Read and check the files.

        Args:
            coco: path of a COCO instances JSON, or its parsed content.
            results: detections that are used instead of its annotations: a path, or the parsed list.

        Raises:
            DataError: a file is not in this format, contradicts itself, or has a mask that cannot be decoded.
        """
        content, name = _content(coco, COCO)
        data, scored = parse(content, LabelFile, name, COCO), results is not None
        entries: Sequence[Label] = data.annotations
        self._name, self._place = name, "annotations"
        if scored:
            detections, file = _content(results, RESULTS)
            entries = parse(detections, list[Detection], file, RESULTS)
            content += detections
            self._name, self._place = f"{file} for the images of {name}", ""
        self.pool, self.images = hashlib.sha256(content).hexdigest(), data.images
        check_images(self.images, name)
        self.categories = _sorted(data.categories or _categories_of(entries), name)
        category_ids = np.array([category["id"] for category in self.categories], np.int64)
        check_references(entries, self.images, category_ids, self._name, self._place)
        self._pack(entries, category_ids)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def check_inside(self, folder: Path) -> None:
        """Raise DataError if the name of an image leads out of its folder, see `image_files.inside`."""
        for image in self.images:
            inside(folder, image.file_name, listed_in=self._name)

    def row(self, index: int, prefix: Path | None = None) -> dict:
        """The store's row of an image, its file name joined to the folder `prefix`."""
        image, labels = self.images[index], range(self._first[index], self._first[index + 1])
        name = image.file_name if prefix is None else paths.portable(prefix / image.file_name)
        row = {"image_id": image.id, "file_name": name, "height": image.height, "width": image.width}
        row |= {"boxes": self._boxes[labels.start : labels.stop], "labels": self._labels[labels.start : labels.stop]}
        row["scores"] = self._scores[labels.start : labels.stop]
        if len(self._masks.parts):
            row["rles"] = [self._masks.rle(label, (image.height, image.width)) for label in labels]
        areas = self._areas[labels.start : labels.stop]
        return row if np.isnan(areas).any() else row | {"areas": areas}

    def _pack(self, entries: Sequence[Label], category_ids: np.ndarray) -> None:
        """Sort the usable labels by image into flat arrays."""
        ids = np.array([image.id for image in self.images], np.int64)
        rows = positions(np.fromiter((entry.image_id for entry in entries), np.int64, len(entries)), ids)
        order = np.argsort(rows, kind="stable")
        entries, rows = [entries[n] for n in order], rows[order]
        sizes = np.array([(image.height, image.width) for image in self.images], np.int64).reshape(-1, 2)[rows]
        masks = self._checked_masks(entries, order, sizes)
        # Clip the boxes.
        xywh = np.array(
            [self._box(entry, n, masks, sizes, order) for n, entry in enumerate(entries)], np.float64
        ).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        boxes = np.clip(boxes, 0, np.tile(sizes[:, ::-1], 2))
        # Leave out crowds and empty boxes; name empty masks.
        left_out = LeftOut()
        crowds = np.fromiter((bool(entry.iscrowd) for entry in entries), bool, len(entries))
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(1) & ~crowds
        empty = np.array([n for n in empty_masks(masks, sizes) if not crowds[n] and not flat[n]], np.int64)
        for reason, wrong in (
            ("crowd regions are not used as labels", np.flatnonzero(crowds)),
            ("labels have no area in their image", np.flatnonzero(flat)),
            ("masks cover no pixel", empty),
        ):
            for n in wrong:
                bbox = [*entries[n].bbox] if entries[n].bbox else None
                left_out.add(
                    reason, f"{bbox if entries[n].id is None else entries[n].id} of image {entries[n].image_id}"
                )
        if left_out.counts:
            logger.warning("%s", left_out)
        # Take the others.
        kept = np.flatnonzero(~crowds & ~flat)
        self._boxes, self._masks, labels = boxes[kept], masks.at(kept), [entries[n] for n in kept]
        self._first = np.searchsorted(rows[kept], np.arange(len(self.images) + 1))
        self._labels = positions(np.array([label.category_id for label in labels], np.int64), category_ids)
        self._scores = np.array([label.score for label in labels], np.float64)
        self._areas = np.array([np.nan if label.area is None else label.area for label in labels], np.float64)
        without = np.flatnonzero(np.diff(self._masks.first) == 0)
        if len(self._masks.parts) and len(without):
            where = self._where(entries, order, kept[without[0]])
            raise DataError(f"{where} has no mask, but others have; give masks to all or none")

    def _checked_masks(self, entries: Sequence[Label], order: np.ndarray, sizes: np.ndarray) -> Segmentations:
        masks = Segmentations(
            segmentation_of(entry.segmentation, partial(self._where, entries, order, n))
            for n, entry in enumerate(entries)
        )
        if invalid := first_invalid(masks, sizes):
            raise DataError(f"{self._where(entries, order, invalid[0])}: {invalid[1]}; correct or remove it")
        for n in np.flatnonzero(np.diff(masks.first) == 0):
            if segmentation_of(entries[n].segmentation, str):
                raise DataError(f"{self._where(entries, order, n)}: its polygons have fewer than three points")
        return masks

    def _box(self, entry: Label, n: int, masks: Segmentations, sizes: np.ndarray, order: np.ndarray) -> Sequence[float]:
        """The xywh box of a label; that of its mask if it has none."""
        if entry.bbox is not None:
            return entry.bbox
        if masks.first[n] == masks.first[n + 1]:
            raise DataError(f"the label {order[n]} of {self._name} (id {entry.id}) has no bbox and no mask; give one")
        return mask_api.toBbox(masks.rle(n, tuple(sizes[n].tolist())))

    def _where(self, entries: Sequence[Label], order: np.ndarray, n: int) -> str:
        return f"{self._name}: {self._place}[{order[n]}] (id {entries[n].id}, image_id {entries[n].image_id})"


def _content(given, what: str) -> tuple[bytes, str]:
    """The JSON text of a path, or of data that is parsed already, and its name for messages."""
    if not isinstance(given, (str, Path)):
        return json.dumps(given, sort_keys=True).encode(), "COCO"
    try:
        return Path(given).expanduser().read_bytes(), str(given)
    except OSError as error:
        raise DataError(f"{given} cannot be read as {what}: {error}") from error


def _sorted(categories: Sequence[dict], name: str) -> list[dict]:
    """The categories sorted by id, checked."""
    typed = [convert(category, Category, f"{name}: categories[{row}]") for row, category in enumerate(categories)]
    check_categories(typed, name)
    return sorted(categories, key=lambda category: category["id"])


def _categories_of(entries: Sequence[Label]) -> list[dict]:
    """The category ids that detections use, named by their number: for a JSON without categories."""
    return [{"id": number, "name": str(number)} for number in sorted({entry.category_id for entry in entries})]
