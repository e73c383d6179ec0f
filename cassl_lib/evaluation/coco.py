"""COCO's average precision and recall: per class, or class-agnostic (entity AP, Sec. 3.1)."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import warnings
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from pycocotools import mask as mask_api

from cassl_lib.errors import DataError
from cassl_lib.evaluation.inputs import (
    GROUND_TRUTH,
    RESULTS,
    blocks,
    check_masks,
    check_result_masks,
    read_ground_truth,
    read_results,
    with_mask,
)
from cassl_lib.evaluation.results import StoredResults

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
AGNOSTIC_CATEGORY = {"id": 1, "name": "object"}
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # the field that each IoU type compares
COCO_SIDE = 640  # pixels, of a typical photograph of COCO
AREA_LIMITS = (32**2, 96**2)  # between small, medium and large
KEYPOINTS = 17  # of COCO's person, the only ones with tolerances in pycocotools

_threads_of: int | None = None  # the process that has used hotcoco


def evaluate(
    results, annotations, iou_type="bbox", class_agnostic=False, per_class=False, *, side: float | None = None
) -> dict:
    """COCO's numbers for detections against ground truth, each equal to that of pycocotools.

    Args:
        results: COCO result dicts (`image_id`, `category_id`, `score`, `bbox` as xywh pixels and/or `segmentation` as
            RLE and/or `keypoints` as 17 times x, y, v) in a list or any iterable, which is read once; or the path of a
            JSON file with such a list. May be empty. As in pycocotools, if the first result has a box, the area of
            every result is that of its box, for all IoU types. Leave the boxes out of mask results to have them binned
            into small, medium and large by mask area.
        annotations: path of a COCO JSON, the loaded dict, or a loaded COCO object; not modified. A missing `iscrowd` is
            0, a missing `area` that of the box. Annotation id 0 gives a warning: pycocotools never counts it as
            matched, and neither does this.
        iou_type: "bbox", "segm" or "keypoints".
        class_agnostic: merge all categories into one, in ground truth and results.
        per_class: also return the AP of each category.
        side: of the images in pixels, if the limits between small, medium and large should scale with it. COCO's, 32^2
            and 96^2 pixels, suit photographs of about 640 pixels; they are multiplied by (side / 640)^2. None keeps
            them.

    Returns:
        The twelve numbers of `METRICS`, or the ten of `KEYPOINT_METRICS`, in [0, 1]; -1 where there is no ground truth.
        AP and AR are averaged over IoU 0.50 to 0.95 and use at most 100 detections per image and category (AR1: 1,
        AR10: 10, keypoints: 20). With `per_class` also `per_class`: AP by category name, -1 for a category without
        ground truth.

    Raises:
        DataError: a field is missing or does not fit, such as a result for an unknown image.
    """
    if side is not None and not side > 0:
        raise DataError(f"side must be a number of pixels above 0, got {side}")
    if iou_type not in FIELDS:
        raise DataError(f"iou_type must be 'bbox', 'segm' or 'keypoints', got {iou_type!r}")
    with _garbage_collector_paused():
        ground_truth = _load_ground_truth(annotations, iou_type)
        detections = _load_results(results, ground_truth["images"], iou_type)
        if class_agnostic:
            ground_truth["categories"] = [AGNOSTIC_CATEGORY]
            for entry in ground_truth["annotations"] + detections:
                entry["category_id"] = AGNOSTIC_CATEGORY["id"]
        evaluator = _run(ground_truth, detections, iou_type, scale=(side / COCO_SIDE) ** 2 if side else None)
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    metrics = {name: float(value) for name, value in zip(names, evaluator.stats[: len(names)], strict=True)}
    if per_class:
        metrics["per_class"] = _ap_per_class(evaluator, ground_truth["categories"])
    return metrics


@contextlib.contextmanager
def _garbage_collector_paused():
    """Pause cycle collection, which scans the many result dicts over and over and takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(ground_truth: dict, detections: list[dict], iou_type: str, *, scale: float | None):
    coco_class, evaluator_class = _libraries(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="hotcoco: area range")  # of limits that scale
        evaluator = evaluator_class(
            _index(coco_class, ground_truth), _index(coco_class, ground_truth | {"annotations": detections}), iou_type
        )
        if scale is not None:
            scaled = {limit: limit * scale for limit in AREA_LIMITS}
            ranges = evaluator.params.areaRng
            evaluator.params.areaRng = [[scaled.get(limit, limit) for limit in limits] for limits in ranges]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _libraries(ground_truth: dict):
    """The COCO and evaluator classes of hotcoco, tested to give equal numbers, or else of pycocotools.

    Annotation id 0 is pycocotools' own: it stores the id of the matched annotation, or 0 for no match. And the threads
    of hotcoco do not survive a fork: a process whose parent has used it would wait for them for ever.
    """
    global _threads_of
    with contextlib.suppress(ImportError):
        from hotcoco import COCO, COCOeval

        _threads_of = _threads_of or os.getpid()
        if _threads_of == os.getpid() and all(entry["id"] != 0 for entry in ground_truth["annotations"]):
            return COCO, COCOeval
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _index(coco_class, dataset: dict):
    coco = coco_class()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _ap_per_class(evaluator, categories: list[dict]) -> dict[str, float]:
    names = [category["name"] for category in categories]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"per_class=True: several categories are called {', '.join(twice)}, so their AP cannot be listed by name"
        )
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, category): all areas, most detections
    position = {int(number): k for k, number in enumerate(evaluator.params.catIds)}
    ap = {}
    for category in categories:
        values = precision[:, :, position[category["id"]]]
        values = values[values > -1]
        ap[category["name"]] = float(values.mean()) if values.size else -1.0
    return ap


def _load_ground_truth(annotations, iou_type: str) -> dict:
    """A copy of the fields that evaluation reads, as a COCO dict: both libraries write into the dicts they get."""
    if isinstance(annotations, (str, Path)):
        name, dataset = str(annotations), read_ground_truth(annotations)
    else:
        name, dataset = "the given ground truth", getattr(annotations, "dataset", annotations)
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing:
        raise DataError(f"{name} has no {' and no '.join(missing)}; give {GROUND_TRUTH}")
    # Renumber all ids but 0: pycocotools takes any number, hotcoco positive integers.
    numbers: dict = {}
    entries = []
    for entry in dataset["annotations"]:
        if FIELDS[iou_type] not in entry:
            raise DataError(
                f"annotation {entry['id']} of {name} has no {FIELDS[iou_type]}, needed for iou_type={iou_type!r}"
            )
        number = numbers.setdefault(entry["id"], len(numbers) + 1) if entry["id"] != 0 else 0
        entries.append({"id": number} | _ground_truth_entry(entry, iou_type))
    if any(entry["id"] == 0 for entry in entries):
        warnings.warn(f"{name} has annotation id 0, which pycocotools never counts as matched", stacklevel=3)
    images = [{key: image[key] for key in ("id", "height", "width") if key in image} for image in dataset["images"]]
    if iou_type == "segm":
        sizes = _sizes(images)
        check_masks(dataset["annotations"], sizes, name)
        for entry in entries:
            entry["segmentation"] = with_mask(entry["segmentation"], sizes[entry["image_id"]])
    categories = [{key: each[key] for key in ("id", "name") if key in each} for each in dataset["categories"]]
    return {"info": {}, "images": images, "annotations": entries, "categories": categories}


def _sizes(images: list[dict]) -> dict[int, tuple[int | None, int | None]]:
    """Height and width by image id; None where the ground truth does not give them."""
    return {image["id"]: (image.get("height"), image.get("width")) for image in images}


def _ground_truth_entry(entry: Mapping, iou_type: str) -> dict:
    kept = {key: entry[key] for key in ("image_id", "category_id", "bbox", FIELDS[iou_type]) if key in entry}
    kept["iscrowd"] = int(entry.get("iscrowd", 0))
    area = entry.get("area")
    if area is None and "bbox" not in entry:
        raise DataError(f"annotation {entry['id']} has no area and no bbox; give one, which its size is taken from")
    kept["area"] = entry["bbox"][2] * entry["bbox"][3] if area is None else area
    if iou_type == "keypoints":
        visible = sum(v > 0 for v in _keypoints(entry)[2::3])
        kept["num_keypoints"] = entry.get("num_keypoints", visible)
    return kept


def _load_results(results, images: list[dict], iou_type: str) -> list[dict]:
    """A copy of the fields that evaluation reads, numbered from 1, with the areas that pycocotools assigns."""
    if isinstance(results, (str, Path)):
        results = read_results(results)
    if isinstance(results, Mapping) or not isinstance(results, Iterable):
        raise DataError(f"results must be {RESULTS}, not {type(results).__name__}")
    own = isinstance(results, StoredResults)  # masks that this program encoded; checking them takes as long as the rest
    sizes, kept, area_field, field = _sizes(images), [], None, FIELDS[iou_type]
    for block in blocks(results):
        area_field = area_field or (_area_field(block[0]) if block else None)
        for entry in block:
            _check_result(entry, sizes, area_field, iou_type)
        by_mask = area_field == "segmentation"
        if not own and (by_mask or field == "segmentation"):
            check_result_masks(block, sizes)
        for entry in block:
            box = None if by_mask and field != "bbox" else _box(entry, area_field)  # of masks it takes long
            kept.append(
                {
                    "id": len(kept) + 1,
                    "image_id": entry["image_id"],
                    "category_id": entry["category_id"],
                    "score": entry["score"],
                    "area": int(mask_api.area(entry[area_field])) if by_mask else box[2] * box[3],
                    field: box if field == "bbox" else entry[field],
                }
            )
    return kept


def _area_field(first: Mapping) -> str:
    """The field from which pycocotools takes the areas of all results, chosen by the first result."""
    if len(first.get("bbox", ())):
        return "bbox"
    return next((key for key in ("segmentation", "keypoints") if key in first), "bbox or segmentation")


def _check_result(entry: Mapping, known: Container[int], area_field: str, iou_type: str) -> None:
    """Raise DataError for a result of an unknown image, without a score, or without a needed field."""
    image_id, score = entry.get("image_id"), entry.get("score")
    if image_id not in known:
        raise DataError(f"a result is for image {image_id}, which is not in the ground truth")
    if score is None or score != score:
        raise DataError(f"a result for image {image_id} has no score, or its score is NaN")
    needed = area_field if iou_type == "bbox" else FIELDS[iou_type]
    for missing in (area_field, needed, "category_id"):
        if missing not in entry:
            raise DataError(f"a result for image {image_id} has no {missing}, needed for iou_type={iou_type!r}")
    if iou_type == "keypoints":
        _keypoints(entry)


def _box(entry: Mapping, area_field: str) -> list:
    """The xywh box of a result; without one, the one that pycocotools gives it."""
    if area_field == "bbox":
        return entry["bbox"]
    if area_field == "segmentation":
        return mask_api.toBbox(entry["segmentation"]).tolist()
    x, y = _keypoints(entry)[0::3], _keypoints(entry)[1::3]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _keypoints(entry: Mapping):
    """The keypoints of an annotation or a result, a flat list of x, y, v; raises DataError unless there are 17."""
    if (count := len(entry["keypoints"])) != 3 * KEYPOINTS:
        raise DataError(f"image {entry['image_id']}: keypoints must be {KEYPOINTS} times x, y, v, got {count} numbers")
    return entry["keypoints"]
