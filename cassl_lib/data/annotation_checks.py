"""Checks of what an instances file says: ids and names that contradict each other, and boxes in another format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cassl_lib.data.schema import Annotation, Category, Image, JudgedImage, Label, Object
from cassl_lib.errors import DataError

if TYPE_CHECKING:
    from cassl_lib.data.coco import CocoImages

OVERHANG = 0.1  # of the image's side: a box that leaves its image by more is not an inexact x, y, width, height
MOST_FIT = 0.95  # share of boxes that are valid corners; of COCO's x, y, width, height, 3 in 10 are
SOME_LEAVE = 0.1  # share of boxes that leave their image if read as x, y, width, height; of COCO's none do


def check_images(images: Sequence[Image | JudgedImage], name: str) -> None:
    """Raise DataError if images share an id or a file name. `name` is that of the file, for messages."""
    if (twice := _repeated(image.id for image in images)) is not None:
        names = [image.file_name for image in images if image.id == twice]
        raise DataError(f"{name}: {len(names)} images have the id {twice}, such as {names[-1]!r}; give each its own id")
    if (twice := _repeated(image.file_name for image in images if image.file_name is not None)) is not None:
        ids = [image.id for image in images if image.file_name == twice]
        raise DataError(f"{name}: the images {ids[0]} and {ids[1]} have the same file_name {twice!r}; list it once")
    if wrong := next((image for image in images if "\0" in (image.file_name or "")), None):
        raise DataError(f"{name}: image {wrong.id}: file_name {wrong.file_name!r} has a NUL character; rename the file")


def check_categories(categories: Sequence[Category], name: str) -> None:
    """Raise DataError if categories share an id or a name."""
    for field in ("id", "name"):
        if (twice := _repeated(getattr(category, field) for category in categories)) is not None:
            one, other = [category for category in categories if getattr(category, field) == twice][:2]
            raise DataError(
                f"{name}: two categories have the {field} {twice!r}: {one.name!r} (id {one.id}) and {other.name!r} "
                f"(id {other.id}); give each its own {field}"
            )


def check_references(
    annotations: Sequence[Annotation | Label | Object],
    images: Iterable[Image | JudgedImage],
    category_ids: Iterable[int],
    name: str,
    place: str = "annotations",
) -> None:
    """Raise DataError if an annotation has an image or a category that the file does not list.

    Args:
        place: of the list of annotations in the file, for messages.
    """
    for field, known in (("image_id", [image.id for image in images]), ("category_id", list(category_ids))):
        given = np.fromiter((getattr(entry, field) for entry in annotations), np.int64, len(annotations))
        unknown = np.flatnonzero(~np.isin(given, np.array(known, np.int64)))
        if len(unknown):
            row = int(unknown[0])
            more = f" (and {len(unknown) - 1} more do)" if len(unknown) > 1 else ""
            raise DataError(
                f"{name}: {place}[{row}] (id {annotations[row].id}) has the {field} {given[row]}{more}, which the JSON "
                "does not list; list it, or remove the annotation"
            )


def doubtful_boxes(xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """In which other format boxes seem to be, as a sentence; None if they seem to be COCO's x, y, width, height.

    Args:
        xywh: (N, 4) as in the file, with a width and a height above 0.
        sizes: (N, 2) heights and widths of their images in pixels.
    """
    if not len(xywh):
        return None
    if np.abs(xywh).max() <= 1:
        return (
            f"all {len(xywh)} boxes lie between 0 and 1, as if they were relative to the image; COCO's are "
            "x, y, width, height in pixels: multiply them by width and height of the image"
        )
    sides = sizes[:, ::-1]
    corners = (xywh[:, 2:] > xywh[:, :2]).all(1) & (xywh[:, 2:] <= sides + 1).all(1)
    leaving = (xywh[:, :2] + xywh[:, 2:] > (1 + OVERHANG) * sides).any(1)
    if corners.mean() >= MOST_FIT and leaving.mean() >= SOME_LEAVE:
        return (
            f"the boxes seem to be x1, y1, x2, y2: {corners.mean():.0%} fit their image so, and {leaving.mean():.0%} "
            "leave it by far as x, y, width, height, which COCO's boxes are: subtract x1, y1 from x2, y2"
        )
    return None


def check_boxes(source: CocoImages) -> None:
    """Raise DataError if a set's boxes seem not to be in COCO's format."""
    if source.doubt:
        raise DataError(f"{source.path}: {source.doubt}")


def check_trainable(source: CocoImages) -> None:
    """Raise DataError if a labeled set has nothing to learn from, or boxes that are not in COCO's format."""
    check_boxes(source)
    if not len(source.boxes):
        reasons = str(source.left_out).replace("\n", "; ")
        raise DataError(
            f"{source.path}: no object to learn from in {len(source)} images{reasons and f' ({reasons})'}; "
            "give a set with annotated objects"
        )


def _repeated(values: Iterable) -> object:
    """A value that occurs more than once, or None."""
    values = list(values)
    if len(set(values)) == len(values):
        return None
    return Counter(values).most_common(1)[0][0]
