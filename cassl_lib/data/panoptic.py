"""Reading COCO's panoptic format: a JSON that lists each image's segments, and PNGs whose colors are segment ids.

The id of a pixel is R + 256 G + 256^2 B; 0 is void. Ground truth and results have the same format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from cassl_lib.data.annotation_checks import check_images
from cassl_lib.data.coco_files import convert, read
from cassl_lib.data.image_files import MOST_PIXELS, inside
from cassl_lib.data.schema import JudgedImage, PanopticAnnotation, PanopticCategory, PanopticFile
from cassl_lib.errors import DataError

ID_LIMIT = 256**3  # three color channels
# (H, W) integer segment ids, 0 for void, and the `segments_info` of exactly these ids
Panoptic = tuple[np.ndarray, list[dict]]
T = TypeVar("T")


class PanopticError(DataError):
    """Panoptic files are missing, invalid or disagree; the message names the file, the value and the remedy."""


class PanopticFiles:
    """Ground truth or results in COCO's panoptic format. PNGs are read and checked on request.

    Results need no `images` and no `categories`, as in COCO's result format.

    Attributes:
        path, folder: the JSON and its PNG folder.
        categories: dicts with `id`, `name`, `isthing`, sorted by id; empty if the JSON has none.
        images: COCO's image records; empty if the JSON has none.
        image_ids: ids of the annotated images, in the order of the JSON.
    """

    def __init__(self, path: Path | str, folder: Path | str | None = None):
        """Read and validate the JSON.

        Args:
            folder: the PNG folder, by default the one that `pngs_of` locates.
        """
        self.path = Path(path)
        data = _read(self.path)
        self.folder = Path(folder) if folder is not None else pngs_of(self.path)
        if not self.folder.is_dir():
            raise PanopticError(f"{self.folder}: no such folder; give the folder of the PNGs that {self.path} names")
        self.categories = _categories(data.categories or [], self.path)
        self._annotations = {annotation["image_id"]: annotation for annotation in data.annotations}
        self.images = _images(data.images or [], self.path)
        self._sizes = {
            image["id"]: (image["height"], image["width"]) for image in self.images if {"height", "width"} <= set(image)
        }
        self.image_ids = list(self._annotations)
        _check_annotations(data.annotations, {category["id"] for category in self.categories}, self.path)

    def __len__(self) -> int:
        return len(self._annotations)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._annotations

    def segments(self, image_id: int) -> list[dict]:
        """`segments_info` of an image: dicts with at least `id` and `category_id`."""
        if image_id not in self._annotations:
            raise PanopticError(f"{self.path} has no annotation of image {image_id}; add it or leave out the image")
        return self._annotations[image_id]["segments_info"]

    def png(self, image_id: int) -> Path:
        """Path of an image's PNG, which may not exist."""
        self.segments(image_id)
        return self.folder / inside(self.folder, self._annotations[image_id]["file_name"], listed_in=self.path)

    def read(self, image_id: int) -> Panoptic:
        """The (H, W) int32 segment ids of an image, 0 for void, and its `segments_info`.

        Raises:
            PanopticError: the PNG is missing, damaged, of another size than the image, or disagrees with the JSON.
        """
        segments, png = self.segments(image_id), self.png(image_id)
        if not png.is_file():
            raise PanopticError(f"{png}: no such PNG, but {self.path} names it for image {image_id}; add it")
        ids = read_ids(png)
        height, width = self._sizes.get(image_id, ids.shape)
        if ids.shape != (height, width):
            raise PanopticError(
                f"{png} is {ids.shape[1]} x {ids.shape[0]} pixels, but {self.path} says {width} x {height} for image "
                f"{image_id}; the PNG must have the size of the original image"
            )
        check_segments(count_values(ids)[0], segments, f"{png} and image {image_id} of {self.path}")
        return ids, segments


def pngs_of(path: Path) -> Path:
    """The PNG folder of a panoptic JSON.

    It is named like the JSON and lies beside it (COCO) or beside its folder (detectron2), or is `panoptic` beside it.
    """
    places = [path.with_suffix(""), path.parent.parent / path.stem, path.with_name("panoptic")]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise PanopticError(f"{path}: no folder with its PNGs; put it, or a link to it, at {places[0]}, or name it")
    return folder


def read_ids(png: Path | str) -> np.ndarray:
    """The (H, W) int32 segment ids of a PNG, 0 for void."""
    try:
        with Image.open(png) as image:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise PanopticError(f"{png} is a {image.mode!r} image; ids are colors, R + 256 G + 256^2 B: write RGB")
            if image.width * image.height > MOST_PIXELS:
                raise PanopticError(f"{png} has {image.width} x {image.height} pixels; {MOST_PIXELS:,} are the most")
            # The four bytes of a pixel are one little-endian number: several times faster than a sum over channels.
            pixels, shape = image.convert("RGBA").tobytes(), (image.height, image.width)
    except PanopticError:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:  # a damaged PNG
        raise PanopticError(f"{png} cannot be read ({error}); write it again") from error
    return (np.frombuffer(pixels, "<u4").reshape(shape) & (ID_LIMIT - 1)).astype(np.int32)


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of an array, ascending, and how often each occurs, int64.

    Equal neighbors in a map form long runs, so only the starts of runs are sorted: faster than `np.unique`.
    """
    flat = values.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1])[: flat.size])
    distinct, which = np.unique(flat[starts], return_inverse=True)
    return distinct, np.bincount(which, np.diff(starts, append=flat.size)).astype(np.int64)


def check_segments(present: np.ndarray, segments: Sequence[dict], where: str) -> None:
    """Raise PanopticError unless a `segments_info` lists exactly the ids present in the pixels, except void.

    Args:
        present: the distinct ids of the map.
        where: names the files in the message.
    """
    listed, present = {segment["id"] for segment in segments}, set(present.tolist()) - {0}
    if len(listed) < len(segments):
        raise PanopticError(f"{where}: segments_info lists an id twice; give each segment its own id")
    if unlisted := sorted(present - listed):
        raise PanopticError(
            f"{where}: pixels have the ids {few(unlisted)}, which segments_info lacks; list them or make them 0, void"
        )
    if absent := sorted(listed - present):
        raise PanopticError(f"{where}: segments_info lists the ids {few(absent)}, which no pixel has; remove them")


def few(values: list) -> str:
    """The first five of some values, for messages: `1, 2, 3, 4, 5 and 7 more`."""
    return f"{', '.join(map(str, values[:5]))}{f' and {len(values) - 5} more' if len(values) > 5 else ''}"


def _read(path: Path) -> PanopticFile:
    """The parsed panoptic JSON. Raises PanopticError that names the place of what is wrong."""
    try:
        return read(path, PanopticFile, "a COCO panoptic JSON")
    except DataError as error:
        if _is_instances(path):
            raise PanopticError(
                f"{path} is an instances file: its annotations have 'bbox' and no 'segments_info'; "
                "give the panoptic JSON, such as panoptic_val2017.json"
            ) from error
        raise PanopticError(str(error)) from error


def _is_instances(path: Path) -> bool:
    with contextlib.suppress(DataError):
        entries = read(path, dict, "a COCO panoptic JSON").get("annotations")
        first = entries[0] if isinstance(entries, list) and entries else None
        return isinstance(first, dict) and "bbox" in first and "segments_info" not in first
    return False


def _categories(categories: list[dict], path: Path) -> list[dict]:
    """The validated categories, sorted by id."""
    for row, category in enumerate(categories):
        _typed(category, PanopticCategory, f"{path}: categories[{row}]")
    for name in ("id", "name"):
        if len({category[name] for category in categories}) < len(categories):
            raise PanopticError(f"{path}: two categories have the same {name}; give each its own")
    return sorted(categories, key=lambda category: category["id"])


def _images(images: list[dict], path: Path) -> list[dict]:
    """The validated image records."""
    typed = [_typed(image, JudgedImage, f"{path}: images[{row}]") for row, image in enumerate(images)]
    try:
        check_images(typed, str(path))
    except DataError as error:
        raise PanopticError(str(error)) from error
    return images


def _typed(entry: dict, kind: type[T], where: str) -> T:
    try:
        return convert(entry, kind, f"{where} (id {entry.get('id')})")
    except DataError as error:
        raise PanopticError(str(error)) from error


def _check_annotations(annotations: list[PanopticAnnotation], categories: set[int], path: Path) -> None:
    """Raise PanopticError for repeated images or PNGs, and for invalid ids of segments."""
    images: set[int] = set()
    names: set[str] = set()
    for annotation in annotations:
        where = f"{path}, image {annotation['image_id']}"
        if annotation["image_id"] in images:
            raise PanopticError(f"{where}: the image has two annotations; keep one")
        if annotation["file_name"] in names:
            raise PanopticError(f"{where}: another image has its PNG {annotation['file_name']!r}; name its own")
        images.add(annotation["image_id"])
        names.add(annotation["file_name"])
        for segment in annotation["segments_info"]:
            number, category = segment["id"], segment["category_id"]
            if not 0 < number < ID_LIMIT:
                raise PanopticError(f"{where}: segment id {number} is out of range; use 1 to {ID_LIMIT - 1}, 0 is void")
            if categories and category not in categories:
                raise PanopticError(f"{where}: segment {number} has category {category}, which the JSON lacks; add it")
