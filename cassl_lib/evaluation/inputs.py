"""What evaluation is given: ground truth and results from files, and masks that are checked before they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from cassl_lib.data.annotation_checks import check_categories, check_images, check_references
from cassl_lib.data.coco_files import convert, read, segmentation_of
from cassl_lib.data.mask_checks import first_invalid
from cassl_lib.data.schema import NO_SEGMENTATION, GroundTruthFile, Object, Result, Rle, Segmentation
from cassl_lib.data.segmentations import Segmentations
from cassl_lib.errors import DataError

GROUND_TRUTH = (
    "a COCO ground-truth file with images, annotations and categories, such as instances_val2017.json; "
    "image_info_*.json files have no annotations"
)
RESULTS = "a list of COCO result dicts"


def read_ground_truth(path: Path | str) -> dict:
    """A COCO ground truth as a dict of dicts, with the fields that evaluation reads.

    Raises:
        DataError: the file has a field of another type, or contradicts itself.
    """
    data, name = read(path, GroundTruthFile, GROUND_TRUTH), str(path)
    check_images(data.images, name)
    check_categories(data.categories, name)
    check_references(data.annotations, data.images, [category.id for category in data.categories], name)
    return {
        "images": [_as_dict(image, name) for image in data.images],
        "annotations": [_as_dict(entry, f"{name}: annotation {entry.id}") for entry in data.annotations],
        "categories": [_as_dict(category, name) for category in data.categories],
    }


def read_results(path: Path | str) -> Iterator[dict]:
    """The results in a file as dicts. Raises DataError if a field has another type."""
    results = read(path, list[Result], RESULTS)
    return (_as_dict(entry, f"{path}: [{row}] (image_id {entry.image_id})") for row, entry in enumerate(results))


def check_masks(entries: Sequence[Mapping], sizes: Mapping[int, tuple[int | None, int | None]], name: str) -> None:
    """Raise DataError if a mask cannot be decoded safely, or has another size than its image.

    Args:
        entries: annotations or results; those without `segmentation` are passed over.
        sizes: height and width by image id.
        name: of the file, for messages.
    """
    entries = [entry for entry in entries if entry.get("segmentation") is not None]

    def where(row: int) -> str:
        entry = entries[row]
        named = f"annotation {entry['id']}" if "id" in entry else f"the result {row}"
        return f"{name}: {named} of image {entry['image_id']}"

    for row, entry in enumerate(entries):
        if None in sizes.get(entry["image_id"], (None,)):
            raise DataError(f"{where(row)} has a mask, but its image has no height and width; add them to `images`")
    masks = Segmentations(_parsed(entry["segmentation"], partial(where, row)) for row, entry in enumerate(entries))
    of_entries = np.array([sizes[entry["image_id"]] for entry in entries], np.int64).reshape(-1, 2)
    if invalid := first_invalid(masks, of_entries):
        raise DataError(f"{where(invalid[0])}: {invalid[1]}; correct or remove it")


def check_result_masks(results: Sequence[Mapping], sizes: Mapping[int, tuple[int | None, int | None]]) -> None:
    """The same for results, whose masks are compressed RLE."""
    for result in results:
        mask = result.get("segmentation")
        if mask is not None and not (isinstance(mask, Mapping) and isinstance(mask.get("counts"), (str, bytes))):
            raise DataError(f"a result for image {result.get('image_id')}: its mask is not compressed RLE; give that")
    check_masks(results, sizes, "results")


def with_mask(segmentation: list | dict | None, size: tuple[int, int]) -> list | dict:
    """A ground-truth mask as pycocotools can decode it: one without a polygon becomes an empty RLE, never matched."""
    if segmentation and (isinstance(segmentation, Mapping) or all(len(polygon) == 4 for polygon in segmentation)):
        return segmentation  # pycocotools takes lists of four numbers as boxes
    polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
    return polygons or {"size": list(size), "counts": [size[0] * size[1]]}


def _as_dict(entry: msgspec.Struct, where: str) -> dict:
    """The fields that are given, the segmentation parsed."""
    given = {key: value for key, value in msgspec.structs.asdict(entry).items() if value is not None}
    if isinstance(entry, (Object, Result)):
        given.pop("segmentation")
        if entry.segmentation is not NO_SEGMENTATION:
            mask = segmentation_of(entry.segmentation, lambda: where)
            given["segmentation"] = msgspec.to_builtins(mask) if isinstance(mask, Rle) else mask
        if entry.bbox is not None:
            given["bbox"] = list(entry.bbox)
    return given


def _parsed(mask: list | Mapping, where: Callable[[], str]) -> list | Rle | None:
    """A mask, checked; a parsed one may have counts as bytes, and numpy's numbers."""
    try:
        if isinstance(mask, Mapping):
            counts, size = mask.get("counts"), mask.get("size")
            counts = counts.decode("latin-1") if isinstance(counts, bytes) else counts
            mask = {"size": np.asarray(size).tolist(), "counts": np.asarray(counts).tolist()}
        elif isinstance(mask, Sequence) and not isinstance(mask, str):
            mask = [np.asarray(polygon, np.float64).tolist() for polygon in mask]
        return convert(mask, Segmentation, "segmentation")
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{where()}: {error}; give polygons or RLE") from error


def blocks(entries: Iterable, length: int = 10_000) -> Iterator[list]:
    """Lists of up to `length` entries."""
    block = []
    for entry in entries:
        block.append(entry)
        if len(block) == length:
            yield block
            block = []
    yield block
