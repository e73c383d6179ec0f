"""Pseudo labels to and from COCO JSON: the labels of any other model can be warmed up on, and ours can be looked at."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from cassl_lib import paths
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore

SHARD_SIZE = 10_000  # images


def to_coco(labels: PseudoLabelStore, images: range | None = None) -> dict:
    """The labels above the store's threshold as a COCO dict: instances with a `score`, masks as compressed RLE.

    Args:
        images: which of the store; None takes all. A million images need about 10 GB as Python objects.
    """
    found, annotations = [], []
    for item in (labels[index] for index in (range(len(labels)) if images is None else images)):
        found.append({"id": item["image_id"]} | {name: item[name] for name in ("file_name", "height", "width")})
        boxes = np.concatenate([item["boxes"][:, :2], item["boxes"][:, 2:] - item["boxes"][:, :2]], axis=1).tolist()
        for n, box in enumerate(boxes):
            entry = {"id": len(annotations) + 1, "image_id": item["image_id"], "bbox": box, "iscrowd": 0}
            entry |= {"category_id": labels.categories[item["labels"][n]]["id"]}
            entry |= {"area": float(item["areas"][n]), "score": float(item["scores"][n])}
            if item["rles"]:
                entry["segmentation"] = item["rles"][n] | {"counts": item["rles"][n]["counts"].decode()}
            annotations.append(entry)
    info = {"description": f"pseudo labels of {labels.labeler}, scores above {labels.threshold}"}
    return {"info": info, "images": found, "annotations": annotations, "categories": labels.categories}


def from_coco(
    coco: str | Path | Mapping,
    folder: str | Path,
    *,
    results: str | Path | Sequence[Mapping] | None = None,
    images: str | Path | None = None,
    labeler: str = "coco",
    shard_size: int = SHARD_SIZE,
) -> PseudoLabelStore:
    """Make a store of any COCO instances JSON, path or dict: another tool's pseudo labels, or ground truth (score 1).

    Boxes are cut to their image. Crowd regions are not labels, and boxes without area in their image cannot be: they
    are left out, and counted on stderr. Labels are the ranks of the category ids.

    Args:
        results: another model's detections in COCO's results format (`image_id`, `category_id`, `bbox`, `score`,
            `segmentation`) instead of the annotations; `coco` then only says which images there are.
        images: folder of the images, to be put before their names; warm-up needs to find them.
        labeler: identity of what made the labels.

    Raises:
        DataError: a file that is not of this format, a label of an unknown image or category.
    """
    names = [given if isinstance(given, (str, Path)) else "COCO" for given in (results, coco) if given is not None]
    content, coco = _parsed(coco, dict)
    entries, report = coco.get("annotations", []), LeftOut()
    if results is not None:
        more, entries = _parsed(results, list)
        content += more
    with _naming(" for the images of ".join(map(str, names))):
        _check_images(coco["images"])
        entries = [_checked(entry, scored=results is not None) for entry in entries]
        categories = _checked_categories(coco.get("categories") or _categories_of(entries))
        rank = {category["id"]: label for label, category in enumerate(categories)}
        by_image = _by_image(coco["images"], entries, rank, report)
    if report.counts:
        print(report, file=sys.stderr)
    prefix = Path(images).expanduser().resolve() if images is not None else None
    for index, start in enumerate(range(0, len(coco["images"]), shard_size)):
        part = coco["images"][start : start + shard_size]
        write_shard(folder, index, [_row(image, by_image[image["id"]], rank, prefix) for image in part], labeler)
    pool = hashlib.sha256(content.encode()).hexdigest()
    finish(folder, labeler=labeler, pool=pool, shards=-(-len(coco["images"]) // shard_size), categories=categories)
    return PseudoLabelStore(folder)


@contextlib.contextmanager
def _naming(files: str):
    """Name the files in an error about what is in them."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{files}: {error}") from error


def _parsed(given, kind: type) -> tuple[str, dict | list]:
    """The text of a JSON file, or of what it would hold, and its content."""
    if not isinstance(given, (str, Path)):
        content = json.dumps(given, sort_keys=True)
        return content, json.loads(content)
    wanted = "COCO instances JSON" if kind is dict else "COCO results JSON, a list"
    try:
        content = Path(given).expanduser().read_text()
        found = json.loads(content)
    except (OSError, ValueError) as error:
        raise DataError(f"{given} cannot be read as a {wanted}: {error}") from error
    if not isinstance(found, kind) or (kind is dict and not isinstance(found.get("images"), list)):
        raise DataError(f"{given} is no {wanted}")
    return content, found


def _check_images(images: Sequence[Mapping]) -> None:
    """Refuse images that lack what a row needs, or share an id."""
    seen = set()
    for image in images:
        lacking = [name for name in ("id", "file_name", "height", "width") if name not in image]
        if lacking:
            raise DataError(f"an image (id {image.get('id')}) lacks {', '.join(lacking)}")
        numbers = [image[name] for name in ("id", "height", "width")]
        fit = all(isinstance(number, int) for number in numbers) and abs(numbers[0]) < 2**63
        if not fit or min(numbers[1:]) < 1 or max(numbers[1:]) >= 2**31:
            raise DataError(f"image {image['file_name']!r}: id, height, width {numbers} are not whole numbers above 0")
        if not isinstance(image["file_name"], str):
            raise DataError(f"image {image['id']}: file_name {image['file_name']!r} is no text")
        if image["id"] in seen:
            raise DataError(f"two images have the id {image['id']}, one is {image['file_name']!r}")
        seen.add(image["id"])


def _checked(entry: Mapping, *, scored: bool) -> dict:
    """A label with its box, which results of masks do not have; refused where something is missing or impossible."""
    entry = dict(entry) if isinstance(entry, Mapping) else {}
    name = f"a label (id {entry.get('id')}, image {entry.get('image_id')})"
    needed = ["image_id", "category_id", *(["score"] if scored else [])]
    if lacking := [key for key in needed if key not in entry]:
        raise DataError(f"{name} lacks {', '.join(lacking)}")
    try:
        shape = entry.get("segmentation")
        if "bbox" not in entry and isinstance(shape, Mapping):
            entry["bbox"] = mask_api.toBbox(_to_rle(shape, *shape["size"])).tolist()
        box = np.asarray(entry["bbox"], np.float64)
        score = float(entry.get("score", 1))
        area = float(entry.get("area", 0))
    except Exception as error:  # of pycocotools, too
        raise DataError(f"{name} has no usable box, mask, area or score: {error!r}") from error
    if not all(isinstance(entry[key], int) for key in ("image_id", "category_id")):
        raise DataError(f"{name}: image_id and category_id {entry['category_id']!r} are not whole numbers")
    if not np.isfinite(area):
        raise DataError(f"{name}: area {area} is no area")
    if box.shape != (4,) or not np.isfinite(box).all():
        raise DataError(f"{name}: bbox {entry['bbox']} is not x, y, width, height")
    if not 0 <= score <= 1:
        raise DataError(f"{name}: score {score} is not between 0 and 1")
    return entry


def _categories_of(entries: Sequence[Mapping]) -> list[dict]:
    """Nameless categories, of detections whose image list has none."""
    return [{"id": number, "name": str(number)} for number in sorted({entry["category_id"] for entry in entries})]


def _checked_categories(categories: Sequence[Mapping]) -> list[dict]:
    """In the order of their ids; refused where one has no id of its own or no name."""
    for category in categories:
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            raise DataError(f"a category has no whole number as id, or no name: {category}")
    categories = sorted(categories, key=lambda category: category["id"])
    for one, next_one in itertools.pairwise(categories):
        if one["id"] == next_one["id"]:
            raise DataError(f"two categories have the id {one['id']}: {one['name']} and {next_one['name']}")
    return categories


def _by_image(
    images: Sequence[Mapping], entries: Sequence[dict], rank: Mapping[int, int], report: LeftOut
) -> dict[int, list]:
    """The labels of each image, with their `box` xyxy cut to it; `report` counts what is left out."""
    by_image: dict[int, list] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    for entry in entries:
        for name, known in (("image_id", by_image), ("category_id", rank)):
            if entry[name] not in known:
                raise DataError(f"a label (id {entry.get('id')}) has the {name} {entry[name]!r}, which the JSON lacks")
        x, y, width, height = entry["bbox"]
        right, bottom = sizes[entry["image_id"]]
        entry["box"] = box = np.clip([x, y, x + width, y + height], 0, [right, bottom, right, bottom])
        name = f"{entry.get('id', entry['bbox'])} of image {entry['image_id']}"
        if entry.get("iscrowd", 0):
            report.add("crowds are no labels", name)
        elif (box[2:] <= box[:2]).any():
            report.add("labels have no area in their image", name)
        else:
            by_image[entry["image_id"]].append(entry)
    return by_image


def _row(image: Mapping, entries: list[Mapping], rank: Mapping[int, int], prefix: Path | None) -> dict:
    row = {"image_id": image["id"]} | {name: image[name] for name in ("file_name", "height", "width")}
    if prefix is not None:
        row["file_name"] = paths.portable(prefix / image["file_name"])
    row["boxes"] = np.array([entry["box"] for entry in entries], np.float64).reshape(-1, 4)
    row["scores"] = [entry.get("score", 1.0) for entry in entries]
    row["labels"] = [rank[entry["category_id"]] for entry in entries]
    shapes = [entry["segmentation"] for entry in entries if entry.get("segmentation")]
    try:
        row["rles"] = [_to_rle(shape, image["height"], image["width"]) for shape in shapes]
        if shapes:  # of an empty list pycocotools reads memory that is not its own
            mask_api.decode(row["rles"])
    except Exception as error:  # pycocotools raises this very class
        raise DataError(f"image {image['file_name']!r}: a mask cannot be read: {error}") from error
    if all("area" in entry for entry in entries):
        row["areas"] = [entry["area"] for entry in entries]
    return row


def _to_rle(shape, height: int, width: int) -> dict:
    """Polygons, or a run-length mask in either of COCO's two forms, as compressed RLE."""
    if isinstance(shape, Mapping) and not isinstance(shape["counts"], list):
        return dict(shape)
    rle = mask_api.frPyObjects(shape, height, width)
    return mask_api.merge(rle) if isinstance(rle, list) else rle
