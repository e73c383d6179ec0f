"""COCO's average precision and recall, class by class or class-agnostic (entity AP, Sec. 3.1)."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from pycocotools import mask as mask_api

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
AGNOSTIC_CATEGORY = {"id": 1, "name": "object"}
SHAPES = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # what each IoU type compares
KEYPOINTS = 17  # COCO's person; pycocotools has tolerances for no others


def evaluate(results, annotations, iou_type="bbox", class_agnostic=False, per_class=False) -> dict:
    """Score detections against ground truth, equal to pycocotools on every number.

    Args:
        results: COCO result dicts (`image_id`, `category_id`, `score`, `bbox` as xywh pixels and/or `segmentation` as
            RLE and/or `keypoints` as 17 times x, y, v) in a list or any iterable, which is read once; or the path of a
            JSON file with such a list. May be empty. As in pycocotools, where the first result has a box, the area of
            all results is that of their boxes, also for other IoU types: leave the box out of mask results to have
            them sorted into small, medium and large by mask area.
        annotations: path of a COCO JSON, the loaded dict, or a loaded COCO object. Left as it was. A missing `iscrowd`
            counts as 0, a missing `area` is the box's. Annotation id 0 is warned of: pycocotools takes a match with it
            for none, and so does this.
        iou_type: "bbox", "segm" or "keypoints".
        class_agnostic: merge all categories into one, in ground truth and results.
        per_class: also give the AP of each category.
    Returns:
        The twelve numbers of `METRICS`, for keypoints the ten of `KEYPOINT_METRICS`, 0 to 1; -1 where the ground truth
        has nothing to find. AP and AR are means over IoU 0.50 to 0.95, of at most 100 detections an image and category
        (AR1 and AR10: 1 and 10; keypoints: 20). With `per_class` also `per_class`, AP by category name; -1 for a
        category without ground truth.
    """
    if iou_type not in SHAPES:
        raise ValueError(f"iou_type is 'bbox', 'segm' or 'keypoints', not {iou_type!r}")
    with _garbage_collector_paused():
        truth = _load_truth(annotations, iou_type)
        detections = _load_results(results, truth["images"], iou_type)
        if class_agnostic:
            truth["categories"] = [AGNOSTIC_CATEGORY]
            for entry in truth["annotations"] + detections:
                entry["category_id"] = AGNOSTIC_CATEGORY["id"]
        evaluator = _run(truth, detections, iou_type)
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    metrics = {name: float(value) for name, value in zip(names, evaluator.stats[: len(names)], strict=True)}
    if per_class:
        metrics["per_class"] = _ap_per_class(evaluator, truth["categories"])
    return metrics


@contextlib.contextmanager
def _garbage_collector_paused():
    """Python would search the many result dicts for cycles again and again: a third of the time, for none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(truth: dict, detections: list[dict], iou_type: str):
    coco_class, evaluator_class = _libraries()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found annotation id 0")
        evaluator = evaluator_class(
            _index(coco_class, truth), _index(coco_class, truth | {"annotations": detections}), iou_type
        )
        # For keypoints faster-coco-eval would take the categories that have annotations, listed or not.
        evaluator.params.catIds = sorted(category["id"] for category in truth["categories"])
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _libraries():
    """The COCO and evaluator classes: faster-coco-eval, whose numbers are tested equal, else pycocotools."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
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
        raise ValueError(f"several categories are called {', '.join(twice)}: their AP cannot be given by name")
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, category), all areas, most detections
    position = {int(number): k for k, number in enumerate(evaluator.params.catIds)}
    found = {}
    for category in categories:
        values = precision[:, :, position[category["id"]]]
        values = values[values > -1]
        found[category["name"]] = float(values.mean()) if values.size else -1.0
    return found


def _load_truth(annotations, iou_type: str) -> dict:
    """A COCO dict of its own, with what evaluation reads: both libraries write into the dicts they are given."""
    if isinstance(annotations, (str, Path)):
        name, dataset = str(annotations), json.loads(Path(annotations).read_bytes())
    else:
        name, dataset = "the given ground truth", getattr(annotations, "dataset", annotations)
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing:
        raise ValueError(
            f"{name} has no {' and no '.join(missing)}: evaluation needs a COCO ground-truth file with images, "
            "annotations and categories, such as instances_val2017.json; image_info_*.json files have no annotations"
        )
    # Renumbered, 0 apart: faster-coco-eval takes a negative or broken number for 0, which pycocotools does not.
    numbers: dict = {}
    entries = []
    for entry in dataset["annotations"]:
        if SHAPES[iou_type] not in entry:
            raise ValueError(f"annotation {entry['id']} of {name} has no {SHAPES[iou_type]} for {iou_type!r}")
        number = numbers.setdefault(entry["id"], len(numbers) + 1) if entry["id"] != 0 else 0
        entries.append({"id": number} | _truth_entry(entry, iou_type))
    if any(entry["id"] == 0 for entry in entries):
        warnings.warn(f"{name} has annotation id 0, which pycocotools never counts as found", stacklevel=3)
    images = [{key: image[key] for key in ("id", "height", "width") if key in image} for image in dataset["images"]]
    return {"info": {}, "images": images, "annotations": entries, "categories": dataset["categories"]}


def _truth_entry(entry: Mapping, iou_type: str) -> dict:
    kept = {key: entry[key] for key in ("image_id", "category_id", "bbox", SHAPES[iou_type]) if key in entry}
    kept["iscrowd"] = entry.get("iscrowd", 0)
    kept["area"] = entry["area"] if "area" in entry else entry["bbox"][2] * entry["bbox"][3]
    if iou_type == "keypoints":
        visible = sum(v > 0 for v in _keypoints(entry)[2::3])
        kept["num_keypoints"] = entry.get("num_keypoints", visible)
    return kept


def _load_results(results, images: list[dict], iou_type: str) -> list[dict]:
    """Results of their own with what evaluation reads, numbered from 1, with the areas pycocotools gives them."""
    if isinstance(results, (str, Path)):
        results = json.loads(Path(results).read_bytes())
    if isinstance(results, Mapping) or not isinstance(results, Iterable):
        raise ValueError(f"results are a list of COCO result dicts, not {type(results).__name__}")
    known, kept, source, shape = {image["id"] for image in images}, [], None, SHAPES[iou_type]
    for number, entry in enumerate(results, start=1):
        source = source or _source_of_areas(entry)
        _check_result(entry, known, source, iou_type)
        box = entry["bbox"] if source == "bbox" else _box(entry, source)
        kept.append(
            {
                "id": number,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": entry["score"],
                "area": int(mask_api.area(entry[source])) if source == "segmentation" else box[2] * box[3],
                shape: box if shape == "bbox" else entry[shape],
            }
        )
    return kept


def _source_of_areas(first: Mapping) -> str:
    """What pycocotools takes the areas of all results from, by the first of them."""
    if len(first.get("bbox", ())):
        return "bbox"
    return next((key for key in ("segmentation", "keypoints") if key in first), "bbox or segmentation")


def _check_result(entry: Mapping, known: set[int], source: str, iou_type: str) -> None:
    image_id, score = entry["image_id"], entry.get("score")
    if image_id not in known:
        raise ValueError(f"a result is for image {image_id}, which the ground truth does not have")
    if score is None or score != score:
        raise ValueError(f"a result of image {image_id} has no score, or one that is not a number")
    needed = source if iou_type == "bbox" else SHAPES[iou_type]
    if source not in entry or needed not in entry:
        missing = needed if source in entry else source
        raise ValueError(f"a result of image {image_id} has no {missing} for {iou_type!r}")
    if iou_type == "keypoints":
        _keypoints(entry)


def _box(entry: Mapping, source: str) -> list:
    """The box, xywh, that pycocotools gives a result without one."""
    if source == "segmentation":
        return mask_api.toBbox(entry["segmentation"]).tolist()
    x, y = _keypoints(entry)[0::3], _keypoints(entry)[1::3]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _keypoints(entry: Mapping):
    """The keypoints of an annotation or a result, x, y, v each."""
    if (count := len(entry["keypoints"])) != 3 * KEYPOINTS:
        raise ValueError(f"image {entry['image_id']}: keypoints are {KEYPOINTS} times x, y, v, not {count} numbers")
    return entry["keypoints"]
