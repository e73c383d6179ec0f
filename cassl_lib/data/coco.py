"""COCO instances JSON as flat arrays: images, boxes, labels and segmentations of a labeled set, validated when read.

Masks stay polygons or RLE, packed in two arrays, until a sample is drawn. There are no Python objects per annotation,
so worker processes share the arrays.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from cassl_lib import paths
from cassl_lib.data.annotation_checks import check_categories, check_images, check_references
from cassl_lib.data.coco_files import read
from cassl_lib.data.image_contents import files_fingerprint
from cassl_lib.data.image_files import MOST_PIXELS, inside
from cassl_lib.data.instances import pack, positions
from cassl_lib.data.schema import Image, InstancesFile
from cassl_lib.data.segmentations import Segmentations
from cassl_lib.data.source import Annotations
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.files import file_fingerprint
from cassl_lib.streams import stream

WHAT = "a COCO instances file"


def locate(spec: str) -> tuple[Path, Path]:
    """The annotation file and the image folder of `JSON` or `JSON:FOLDER`.

    Without FOLDER, COCO's layouts are searched: a folder named like the split (`instances_train2017.json` ->
    `train2017/`) or `images/`, beside the JSON or one level up.

    Raises:
        DataError: the file or the folder does not exist.
    """
    name, folder = paths.file_and_folder(spec)
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file; give a COCO JSON, or JSON{os.pathsep}FOLDER")
    if folder is not None:
        images = Path(folder).expanduser()
        if not images.is_dir():
            raise DataError(f"{images}: no such image folder (from {spec!r}); give the folder of the images")
        return path, images
    split = path.stem.rpartition("_")[2]
    for base in (path.parent, path.parent.parent):
        for candidate in (base / split, base / "images"):
            if candidate.is_dir() and candidate != path.with_suffix(""):  # which holds the PNGs of a panoptic JSON
                return path, candidate
    raise DataError(f"{path}: no image folder found beside it; give it as {path}{os.pathsep}FOLDER")


class CocoImages:
    """A labeled set, an `ImageSource`. Images without objects are kept, absent image files are not.

    Attributes:
        path, folder: the JSON and its image folder.
        classes: C category names, in the order of the labels 0, 1, ...
        category_ids: (C,) int64, their ids in the JSON, ascending.
        ids, heights, widths: (I,) int64, per image; names: (I,) str, relative to `folder`.
        boxes: (A, 4) float32 xyxy in pixels; labels: (A,) int64; segmentations: of the A annotations without crowds,
            sorted by image.
        first: (I + 1,) int64; image i owns annotations first[i] to first[i + 1].
        left_out: images and annotations that were skipped, by reason.
        doubt: why the boxes seem to be in another format, for `check_trainable`; None if they do not.
    """

    segmentations: Segmentations | None = None  # None: masks come from elsewhere
    own = False  # whether the images are the user's own, so that the fingerprint covers their contents
    doubt: str | None = None

    def __init__(self, path: Path | str, folder: Path | str):
        """Read and validate the file.

        Images of more than `MOST_PIXELS` are left out. What is left out of the annotations, see `pack`.

        Raises:
            DataError: the file is not COCO instances JSON, contradicts itself, has a mask that cannot be decoded, or
                none of its images is in `folder`.
        """
        self.path, self.folder, self.left_out = Path(path), Path(folder), LeftOut()
        data = _read(self.path)
        categories = sorted(data.categories, key=lambda category: category.id)
        self.category_ids = np.array([category.id for category in categories], np.int64)
        self.classes = [category.name for category in categories]
        images = [data.images[row] for row in self._present([image.file_name for image in data.images])]
        images = [image for image in images if not self._too_large(image)]
        self._partial = len(images) < len(data.images)
        self.ids = np.array([image.id for image in images], np.int64)
        self.heights = np.array([image.height for image in images], np.int64)
        self.widths = np.array([image.width for image in images], np.int64)
        self.names = np.array([image.file_name for image in images], str)
        sizes = np.stack([self.heights, self.widths], axis=1)
        packed = pack(data.annotations, self.ids, sizes, self.left_out, str(self.path))
        self.boxes, self.segmentations, self.first = packed.boxes, packed.segmentations, packed.first
        self.labels, self.doubt = positions(packed.category_ids, self.category_ids), packed.doubt
        for label in np.setdiff1d(np.arange(len(self.classes)), self.labels):
            self.left_out.add("classes have no instance", self.classes[label])

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the JSON, of the names of its images if not all are used, and of the images if `own`."""
        parts = [file_fingerprint(self.path)]
        if self._partial:
            parts += self.names.tolist()
        if self.own:
            parts.append(files_fingerprint(self.folder, self.names.tolist()))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if len(parts) > 1 else parts[0]

    def image_path(self, index: int) -> Path:
        return self.folder / str(self.names[index])

    def image_id(self, index: int) -> int:
        return int(self.ids[index])

    def annotations(self, index: int, *, masks: bool = True) -> Annotations:
        """Instances of an image, without crowds. Masks are decoded here.

        Raises:
            DataError: masks are asked for, but the file has boxes only.
        """
        rows = slice(self.first[index], self.first[index + 1])
        size = int(self.heights[index]), int(self.widths[index])
        instances: Annotations = {"size": size, "boxes": self.boxes[rows], "labels": self.labels[rows]}
        if masks:
            if len(self.boxes) and not len(self.segmentations.parts):
                raise DataError(f"{self.path} holds boxes only, no segmentation; use masks=False")
            instances["masks"] = self.segmentations.decode(range(rows.start, rows.stop), size)
        return instances

    def ground_truth(self) -> dict:
        """The annotation file as parsed COCO JSON for evaluation, without what is left out here.

        Crowds are kept, because COCO's evaluation handles them. Annotations are renumbered from 1: pycocotools treats a
        match with annotation 0 as no match.
        """
        data = read(self.path, dict, WHAT)
        present, classes = set(self.ids.tolist()), set(self.category_ids.tolist())
        data["images"] = [image for image in data["images"] if image["id"] in present]
        usable = [
            entry
            for entry in data["annotations"]
            if entry["image_id"] in present and entry["category_id"] in classes and has_area(entry["bbox"])
        ]
        data["annotations"] = [entry | {"id": number} for number, entry in enumerate(usable, start=1)]
        return data

    def draw(self, count: int, seed: int) -> CocoImages:
        """The same set with `count` of its images, drawn by `seed`: the same ones of objects and of entities.

        Raises:
            DataError: it has fewer images.
        """
        if count > len(self):
            raise DataError(f"{self.path}: labeled_images={count}, but it has {len(self)} images; ask for fewer")
        by_id = np.argsort(self.ids, kind="stable")
        rows = np.sort(by_id[np.random.default_rng(stream(seed, "labeled images")).permutation(len(self))[:count]])
        drawn = copy.copy(self)
        drawn._keep(rows)
        drawn.left_out = copy.deepcopy(self.left_out)
        for label in np.setdiff1d(self.labels, drawn.labels):
            drawn.left_out.add("classes have no instance in the drawn images", self.classes[label])
        return drawn

    def _keep(self, rows: np.ndarray) -> None:
        """Reduce this set to the images of ascending `rows`."""
        kept = np.repeat(np.isin(np.arange(len(self)), rows), np.diff(self.first))
        counts = np.diff(self.first)[rows]
        self.boxes, self.labels = self.boxes[kept], self.labels[kept]
        if self.segmentations is not None:
            self.segmentations = self.segmentations.at(np.flatnonzero(kept))
        self.ids, self.heights, self.widths, self.names = (
            values[rows] for values in (self.ids, self.heights, self.widths, self.names)
        )
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._partial = True
        self.__dict__.pop("fingerprint", None)

    def _present(self, names: list[str]) -> list[int]:
        """Indices of the images whose files exist; the others are left out. If none exists, the folder is wrong."""
        # DEVIATES: images without objects are kept, because they teach the background; public code drops them.
        listing = set(os.listdir(self.folder))
        kept = []
        for row, name in enumerate(inside(self.folder, name, listed_in=self.path) for name in names):
            if name in listing or ("/" in name and (self.folder / name).exists()):
                kept.append(row)
            else:
                self.left_out.add("images of the JSON are not in the folder", name)
        if not kept:
            raise DataError(
                f"{self.path}: none of its {len(names)} images (such as {names[0]!r}) is in {self.folder}; give the "
                f"folder as {self.path}{os.pathsep}FOLDER"
            )
        return kept

    def _too_large(self, image: Image) -> bool:
        too_large = image.height * image.width > MOST_PIXELS
        if too_large:
            self.left_out.add(f"images have more than {MOST_PIXELS:,} pixels", image.file_name)
        return too_large


def has_area(box: list[float]) -> bool:
    """Whether a COCO box, xywh, is finite with a width and height above 0, so that it can be trained on."""
    return isinstance(box, list) and len(box) == 4 and all(np.isfinite(box)) and box[2] > 0 and box[3] > 0


def _read(path: Path) -> InstancesFile:
    """The parsed instances file. Raises DataError that names the place of what is wrong."""
    try:
        data = read(path, InstancesFile, WHAT)
    except DataError as error:
        if _is_panoptic(path):
            raise DataError(
                f"{path} is a panoptic file; use annotation=entities (or target=panoptic), or give an instances file"
            ) from error
        raise
    for key in ("images", "categories"):
        if not getattr(data, key):
            raise DataError(f"{path}: {key!r} is empty, so there is nothing to train or evaluate on")
    check_images(data.images, str(path))
    check_categories(data.categories, str(path))
    check_references(data.annotations, data.images, [category.id for category in data.categories], str(path))
    return data


def _is_panoptic(path: Path) -> bool:
    """Whether the first annotation of a file has `segments_info`."""
    with contextlib.suppress(DataError):
        entries = read(path, dict, WHAT).get("annotations")
        first = entries[0] if isinstance(entries, list) and entries else None
        return isinstance(first, dict) and "segments_info" in first
    return False
