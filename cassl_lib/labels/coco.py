"""Pseudo labels to and from COCO JSON: warm up on another model's labels, or read ours with other tools."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from cassl_lib import paths
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.labels.request import begin, check_same
from cassl_lib.labels.shards import finish, finished_shard, write_shard
from cassl_lib.labels.store import PseudoLabelStore

SHARD_SIZE = 10_000  # images

logger = logging.getLogger(__name__)


def to_coco(labels: PseudoLabelStore, images: range | None = None) -> dict:
    """The labels above the store's threshold as a COCO dict: annotations with a `score`, masks as compressed RLE.

    Args:
        images: indices of the images to export; None exports all. A million images take about 10 GB as Python objects.
    """
    records, annotations = [], []
    for item in (labels[index] for index in (range(len(labels)) if images is None else images)):
        records.append({"id": item["image_id"]} | {name: item[name] for name in ("file_name", "height", "width")})
        corners = item["boxes"].astype(np.float64)  # so that x + width gives exactly the stored corner again
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        for n, box in enumerate(boxes):
            entry = {"id": len(annotations) + 1, "image_id": item["image_id"], "bbox": box, "iscrowd": 0}
            entry |= {"category_id": labels.categories[item["labels"][n]]["id"]}
            entry |= {"area": float(item["areas"][n]), "score": float(item["scores"][n])}
            if item["rles"]:
                entry["segmentation"] = item["rles"][n] | {"counts": item["rles"][n]["counts"].decode()}
            annotations.append(entry)
    info = {"description": f"pseudo labels of {labels.labeler}, scores above {labels.threshold}"}
    return {"info": info, "images": records, "annotations": annotations, "categories": labels.categories}


def from_coco(
    coco: str | Path | Mapping,
    folder: str | Path,
    *,
    results: str | Path | Sequence[Mapping] | None = None,
    images: str | Path | None = None,
    labeler: str = "coco",
    shard_size: int = SHARD_SIZE,
) -> PseudoLabelStore:
    """Write a store from any COCO instances JSON (path or dict): another tool's pseudo labels, or ground truth.

    An import that was stopped resumes. Annotations without a score get 1. Boxes are clipped to their image. Crowd
    regions, and boxes without area inside their image, are left out and logged as a warning. Label k is the k-th
    category by id.

    Args:
        folder: of the new store.
        results: another model's detections in COCO's results format (`image_id`, `category_id`, `score`, `bbox` and/or
            `segmentation`), used instead of the annotations; `coco` then only lists the images.
        images: folder of the images; file names are taken relative to it. Warm-up has to find the images.
        labeler: identity of the model that made the labels.
        shard_size: images per shard.

    Raises:
        DataError: a file is not in this format, or a label has an unknown image or category.
        LabelingError: the folder has the store of another import.
    """
    content, records, categories, by_image = _read_labels(coco, results)
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    prefix = Path(images).expanduser().resolve() if images is not None else None
    pool, folder = hashlib.sha256(content.encode()).hexdigest(), Path(folder)
    request = {"labeler": labeler, "pool": pool, "shard_size": shard_size, "images": prefix and str(prefix)}
    check_same(folder, request, begin(folder, request), remedy="Import")
    for index, start in enumerate(range(0, len(records), shard_size)):
        part = records[start : start + shard_size]
        if not finished_shard(folder, index, labeler):
            rows = [_row(image, by_image[image["id"]], label_of, prefix) for image in part]
            write_shard(folder, index, rows, labeler)
    finish(folder, labeler=labeler, pool=pool, shards=-(-len(records) // shard_size), categories=categories)
    return PseudoLabelStore(folder)


def _read_labels(coco, results) -> tuple[str, list[dict], list[dict], dict[int, list]]:
    """The JSON text, the image records, the categories sorted by id, and the usable labels by image id."""
    names = [given if isinstance(given, (str, Path)) else "COCO" for given in (results, coco) if given is not None]
    content, coco = _parsed(coco, dict)
    entries, left_out = coco.get("annotations", []), LeftOut()
    if results is not None:
        more, entries = _parsed(results, list)
        content += more
    with _naming(" for the images of ".join(map(str, names))):
        _check_images(coco["images"])
        entries = [_checked_label(entry, scored=results is not None) for entry in entries]
        categories = _checked_categories(coco.get("categories") or _categories_of(entries))
        by_image = _by_image(coco["images"], entries, categories, left_out)
    if left_out.counts:
        logger.warning("%s", left_out)
    return content, coco["images"], categories, by_image


@contextlib.contextmanager
def _naming(files: str):
    """Prefix a DataError about the content with the names of the files."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{files}: {error}") from error


def _parsed(given, kind: type) -> tuple[str, dict | list]:
    """The JSON text and the parsed content of a path, or of data that is already parsed.

    Raises:
        DataError: the file cannot be read, or is not a JSON of this kind.
    """
    if not isinstance(given, (str, Path)):
        content = json.dumps(given, sort_keys=True)
        return content, json.loads(content)
    expected = "COCO instances JSON" if kind is dict else "COCO results JSON (a list)"
    try:
        content = Path(given).expanduser().read_text()
        parsed = json.loads(content)
    except (OSError, ValueError) as error:
        raise DataError(f"{given} cannot be read as a {expected}: {error}") from error
    if not isinstance(parsed, kind) or (kind is dict and not isinstance(parsed.get("images"), list)):
        raise DataError(f"{given} is not a {expected}.")
    return content, parsed


def _check_images(images: Sequence[Mapping]) -> None:
    """Raise DataError for images that lack a field of a row, have one out of range, or share an id."""
    seen = set()
    for image in images:
        lacking = [name for name in ("id", "file_name", "height", "width") if name not in image]
        if lacking:
            raise DataError(f"an image (id {image.get('id')}) has no {', '.join(lacking)}.")
        numbers = [image[name] for name in ("id", "height", "width")]
        in_range = all(isinstance(number, int) for number in numbers) and abs(numbers[0]) < 2**63
        if not in_range or min(numbers[1:]) < 1 or max(numbers[1:]) >= 2**31:
            raise DataError(
                f"image {image['file_name']!r}: id, height and width must be integers in range, got {numbers}."
            )
        if not isinstance(image["file_name"], str):
            raise DataError(f"image {image['id']}: file_name {image['file_name']!r} is not a string.")
        if image["id"] in seen:
            raise DataError(f"two images have the id {image['id']}, one of them is {image['file_name']!r}.")
        seen.add(image["id"])


def _checked_label(entry: Mapping, *, scored: bool) -> dict:
    """A copy of the label, with the box of its mask if it has no `bbox`.

    Raises:
        DataError: a field is missing or out of range.
    """
    entry = dict(entry) if isinstance(entry, Mapping) else {}
    name = f"a label (id {entry.get('id')}, image {entry.get('image_id')})"
    needed = ["image_id", "category_id", *(["score"] if scored else [])]
    if lacking := [key for key in needed if key not in entry]:
        raise DataError(f"{name} has no {', '.join(lacking)}.")
    try:
        shape = entry.get("segmentation")
        if "bbox" not in entry and isinstance(shape, Mapping):
            entry["bbox"] = mask_api.toBbox(_to_rle(shape, *shape["size"])).tolist()
        box = np.asarray(entry["bbox"], np.float64)
        score = float(entry.get("score", 1))
        area = float(entry.get("area", 0))
    except Exception as error:  # pycocotools raises plain Exception
        raise DataError(f"{name} has no usable box, mask, area or score: {error!r}") from error
    if not all(isinstance(entry[key], int) for key in ("image_id", "category_id")):
        raise DataError(f"{name}: image_id and category_id must be integers, got category_id {entry['category_id']!r}.")
    if not np.isfinite(area):
        raise DataError(f"{name}: area {area} is not finite.")
    if box.shape != (4,) or not np.isfinite(box).all():
        raise DataError(f"{name}: bbox {entry['bbox']} is not x, y, width, height.")
    if not 0 <= score <= 1:
        raise DataError(f"{name}: score {score} is not between 0 and 1.")
    return entry


def _categories_of(entries: Sequence[Mapping]) -> list[dict]:
    """The category ids that detections use, named by their number: for a JSON without categories."""
    return [{"id": number, "name": str(number)} for number in sorted({entry["category_id"] for entry in entries})]


def _checked_categories(categories: Sequence[Mapping]) -> list[dict]:
    """The categories sorted by id; raises DataError if an id or a name is missing, or an id occurs twice."""
    for category in categories:
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            raise DataError(f"category {category}: id must be an integer and name a string.")
    categories = sorted(categories, key=lambda category: category["id"])
    for one, other in itertools.pairwise(categories):
        if one["id"] == other["id"]:
            raise DataError(f"two categories have the id {one['id']}: {one['name']} and {other['name']}.")
    return categories


def _by_image(
    images: Sequence[Mapping], entries: Sequence[dict], categories: Sequence[dict], left_out: LeftOut
) -> dict[int, list]:
    """The labels of each image, each with its `box` xyxy clipped to the image; counts what is skipped in `left_out`."""
    known_categories = {category["id"] for category in categories}
    by_image: dict[int, list] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    for entry in entries:
        for name, known in (("image_id", by_image), ("category_id", known_categories)):
            if entry[name] not in known:
                raise DataError(
                    f"a label (id {entry.get('id')}) has the {name} {entry[name]!r}, which the JSON does not list."
                )
        x, y, width, height = entry["bbox"]
        right, bottom = sizes[entry["image_id"]]
        entry["box"] = box = np.clip([x, y, x + width, y + height], 0, [right, bottom, right, bottom])
        name = f"{entry.get('id', entry['bbox'])} of image {entry['image_id']}"
        if entry.get("iscrowd", 0):
            left_out.add("crowd regions are not used as labels", name)
        elif (box[2:] <= box[:2]).any():
            left_out.add("labels have no area in their image", name)
        else:
            by_image[entry["image_id"]].append(entry)
    return by_image


def _row(image: Mapping, entries: list[Mapping], label_of: Mapping[int, int], prefix: Path | None) -> dict:
    """The store's row of an image, its file name joined to `prefix`; raises DataError if a mask cannot be decoded."""
    row = {"image_id": image["id"]} | {name: image[name] for name in ("file_name", "height", "width")}
    if prefix is not None:
        row["file_name"] = paths.portable(prefix / image["file_name"])
    row["boxes"] = np.array([entry["box"] for entry in entries], np.float64).reshape(-1, 4)
    row["scores"] = [entry.get("score", 1.0) for entry in entries]
    row["labels"] = [label_of[entry["category_id"]] for entry in entries]
    shapes = [entry["segmentation"] for entry in entries if entry.get("segmentation")]
    try:
        row["rles"] = [_to_rle(shape, image["height"], image["width"]) for shape in shapes]
        if shapes:  # for an empty list pycocotools reads memory that it does not own
            mask_api.decode(row["rles"])
    except Exception as error:  # pycocotools raises plain Exception
        raise DataError(f"image {image['file_name']!r}: a mask cannot be read: {error}") from error
    if all("area" in entry for entry in entries):
        row["areas"] = [entry["area"] for entry in entries]
    return row


def _to_rle(shape, height: int, width: int) -> dict:
    """Polygons, or RLE in either of COCO's two forms, as compressed RLE."""
    if isinstance(shape, Mapping) and not isinstance(shape["counts"], list):
        return dict(shape)
    rle = mask_api.frPyObjects(shape, height, width)
    return mask_api.merge(rle) if isinstance(rle, list) else rle
