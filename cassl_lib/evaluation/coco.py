"""COCO's average precision and recall, class by class or class-agnostic (entity AP, Sec. 3.1)."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
AGNOSTIC_CATEGORY = {"id": 1, "name": "object"}


def evaluate(results, annotations, iou_type="bbox", class_agnostic=False) -> dict[str, float]:
    """Score detections against ground truth, equal to pycocotools on every number.

    Args:
        results: list of COCO result dicts (`image_id`, `category_id`, `score`, `bbox` as xywh pixels and/or
            `segmentation` as RLE), or the path of a JSON file with such a list. May be empty. As in pycocotools, where
            the first result has a box, the area of all results is that of their boxes, also for iou_type "segm":
            leave the box out of mask results to have them sorted into small, medium and large by mask area.
        annotations: path of a COCO JSON, the loaded dict, or a loaded COCO object. Left as it was. A missing `iscrowd`
            counts as 0, a missing `area` is the box's.
        iou_type: "bbox" or "segm".
        class_agnostic: merge all categories into one, in ground truth and results.
    Returns:
        The twelve numbers of `METRICS`, 0 to 1; -1 where the ground truth has nothing to find.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type is 'bbox' or 'segm', not {iou_type!r}")
    truth = _load_truth(annotations)
    detections = _load_results(results, truth["images"], iou_type)
    if class_agnostic:
        truth["categories"] = [AGNOSTIC_CATEGORY]
        for entry in truth["annotations"] + detections:
            entry["category_id"] = AGNOSTIC_CATEGORY["id"]

    coco_class, evaluator_class = _libraries()
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _index(coco_class, truth)
        if detections:
            detected = ground_truth.loadRes(detections)
        else:  # pycocotools cannot load an empty list, but can evaluate one
            detected = _index(coco_class, {**truth, "annotations": []})
        evaluator = evaluator_class(ground_truth, detected, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluator.stats[: len(METRICS)], strict=True)}


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


def _load_truth(annotations) -> dict:
    """A COCO dict whose annotations may be changed: both libraries write into the dicts they are given."""
    if isinstance(annotations, (str, Path)):
        name, dataset = str(annotations), json.loads(Path(annotations).read_text())
    else:
        name, dataset = "the given ground truth", getattr(annotations, "dataset", annotations)
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing:
        raise ValueError(
            f"{name} has no {' and no '.join(missing)}: evaluation needs a COCO ground-truth file with images, "
            "annotations and categories, such as instances_val2017.json; image_info_*.json files have no annotations"
        )
    truth = {"info": {}, **dataset, "annotations": [dict(entry) for entry in dataset["annotations"]]}
    for entry in truth["annotations"]:
        entry.setdefault("iscrowd", 0)
        if "area" not in entry:
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return truth


def _load_results(results, images: list[dict], iou_type: str) -> list[dict]:
    if isinstance(results, (str, Path)):
        results = json.loads(Path(results).read_text())
    if not isinstance(results, list):
        raise ValueError(f"results are a list of COCO result dicts, not {type(results).__name__}")
    needed = ("bbox", "segmentation") if iou_type == "bbox" else ("segmentation",)
    known = {image["id"] for image in images}
    for entry in results:
        if entry["image_id"] not in known:
            raise ValueError(f"a result is for image {entry['image_id']}, which the ground truth does not have")
        if not any(key in entry for key in needed):
            raise ValueError(f"a result of image {entry['image_id']} has no {' or '.join(needed)} for {iou_type!r}")
    return [dict(entry) for entry in results]
