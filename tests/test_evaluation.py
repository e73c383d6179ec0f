"""COCO's numbers against pycocotools on hard random cases, and box matching against hand-worked ones."""

import contextlib
import copy
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cassl_lib.evaluation import edge_errors, evaluate, label_quality
from cassl_lib.evaluation.coco import METRICS
from cassl_lib.evaluation.matching import box_iou, match

SIZE = 320  # pixels; large enough for boxes of COCO's large range
SAMPLES = Path(os.environ.get("CASSL_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(params=["faster-coco-eval", "pycocotools"])
def backend(request, monkeypatch):
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # importing it now fails
    else:
        pytest.importorskip("faster_coco_eval")


def random_boxes(rng, count):
    """Whole-pixel xywh boxes of all three size ranges."""
    sides = np.exp(rng.uniform(np.log(4), np.log(200), (count, 2))).astype(int)
    corners = (rng.uniform(0, 1, (count, 2)) * (SIZE - sides)).astype(int)
    return np.concatenate([corners, sides], axis=1).astype(float)


def ellipse(box):
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    left, top, width, height = box
    inside = ((x - left - width / 2) / (width / 2)) ** 2 + ((y - top - height / 2) / (height / 2)) ** 2 <= 1
    rle = mask_api.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [SIZE, SIZE], "counts": rle["counts"].decode()}


def random_case(seed, with_masks):
    """Ties, crowds, ignored sizes, empty images, images with over 100 detections, categories without ground truth."""
    rng = np.random.default_rng(seed)
    truths, results = [], []
    for image_id in range(1, 13):
        count = 0 if image_id in (3, 4) else int(rng.integers(1, 9))
        for box in random_boxes(rng, count):
            crowd = int(rng.random() < 0.15)
            truth = {"id": len(truths) + 1, "image_id": image_id, "category_id": int(rng.choice([2, 5, 9]))}
            truth |= {"bbox": list(box), "area": float(box[2] * box[3]), "iscrowd": crowd, "segmentation": []}
            if with_masks:
                rle = ellipse(box)
                truth |= {"segmentation": rle, "area": float(mask_api.area(rle))}
            truths.append(truth)
        own = [t for t in truths if t["image_id"] == image_id]
        near = [np.array(t["bbox"]) + rng.integers(-6, 7, 4) for t in own for _ in range(2)]
        categories = [t["category_id"] for t in own for _ in range(2)]
        highest = [1.0] * len(near)
        stray = {4: 0, 7: 130}.get(image_id, 10)
        near += list(random_boxes(rng, stray))
        categories += [2] * stray if image_id == 7 else list(rng.choice([2, 5, 9, 11], stray))
        highest += [0.7] * stray
        for box, category, high in zip(near, categories, highest, strict=True):
            box = np.maximum(box, [0, 0, 2, 2])
            entry = {"image_id": image_id, "category_id": int(category), "score": round(high * float(rng.random()), 1)}
            results.append(entry | ({"segmentation": ellipse(box)} if with_masks else {"bbox": list(box)}))
    images = [{"id": i, "height": SIZE, "width": SIZE, "file_name": f"{i}.jpg"} for i in range(1, 13)]
    categories = [{"id": i, "name": str(i)} for i in (2, 5, 9, 11)]  # 11 is never in the ground truth
    return results, {"images": images, "annotations": truths, "categories": categories}


def reference(results, dataset, iou_type, class_agnostic=False):
    """pycocotools itself, called as its own demo does; class-agnostic by relabelling the files."""
    results, dataset = copy.deepcopy(results), copy.deepcopy(dataset)
    if class_agnostic:
        dataset["categories"] = [{"id": 7, "name": "any"}]
        for entry in dataset["annotations"] + results:
            entry["category_id"] = 7
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(METRICS, evaluator.stats, strict=True))


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("iou_type, seed", [("bbox", 0), ("bbox", 1), ("bbox", 2), ("segm", 3)])
def test_equals_pycocotools_on_every_number(backend, capsys, iou_type, seed, class_agnostic):
    results, dataset = random_case(seed, with_masks=iou_type == "segm")
    expected = reference(results, dataset, iou_type, class_agnostic)
    measured = evaluate(results, dataset, iou_type, class_agnostic)
    assert measured == pytest.approx(expected, abs=1e-12)
    assert 0.02 < measured["AP"] < 0.98  # a case where the numbers can differ
    assert capsys.readouterr().out == ""


def test_class_agnostic_merges_the_categories(backend):
    results, dataset = random_case(0, with_masks=False)
    for entry in results:
        entry["category_id"] = {2: 5, 5: 9, 9: 2}.get(entry["category_id"], 2)  # right boxes, wrong names
    right_names = evaluate(random_case(0, with_masks=False)[0], dataset, class_agnostic=True)
    assert evaluate(results, dataset, class_agnostic=True) == right_names
    assert evaluate(results, dataset)["AP"] < right_names["AP"] / 2


def test_inputs_may_be_paths_or_loaded_and_stay_unchanged(backend, tmp_path):
    results, dataset = random_case(1, with_masks=True)
    before = copy.deepcopy((results, dataset))
    expected = evaluate(results, dataset, "segm", class_agnostic=True)
    assert (results, dataset) == before
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(tmp_path / "truth.json")
    for given in (tmp_path / "truth.json", str(tmp_path / "truth.json"), loaded):
        assert evaluate(tmp_path / "results.json", given, "segm", class_agnostic=True) == expected
    assert {entry["category_id"] for entry in loaded.dataset["annotations"]} == {2, 5, 9}


def test_one_right_box_by_hand(backend):
    """IoU 0.8 (40 of 50 rows) passes 7 of the 10 thresholds, 0.50 to 0.80: AP 0.7. One medium box, no other sizes."""
    truth = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 50], "area": 2000}  # without iscrowd
    dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": [truth]}
    measured = evaluate([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "score": 0.9}], dataset)
    expected = {"AP": 0.7, "AP50": 1, "AP75": 1, "APs": -1, "APm": 0.7, "APl": -1}
    expected |= {"AR1": 0.7, "AR10": 0.7, "AR100": 0.7, "ARs": -1, "ARm": 0.7, "ARl": -1}
    assert measured == pytest.approx(expected)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_no_results_score_zero_and_no_truth_scores_minus_one(backend, class_agnostic):
    results, dataset = random_case(0, with_masks=False)
    measured = evaluate([], dataset, class_agnostic=class_agnostic)
    assert measured == dict.fromkeys(METRICS, 0.0)
    measured = evaluate(results, {**dataset, "annotations": []}, class_agnostic=class_agnostic)
    assert measured == dict.fromkeys(METRICS, -1.0)


def test_a_file_without_annotations_is_named(tmp_path):
    path = tmp_path / "image_info_unlabeled2017.json"
    path.write_text(json.dumps({"images": [], "categories": []}))
    with pytest.raises(ValueError, match=r"image_info_unlabeled2017\.json has no annotations.*instances_val2017"):
        evaluate([], path)


def test_results_that_do_not_fit_are_refused():
    results, dataset = random_case(0, with_masks=False)
    with pytest.raises(ValueError, match="image 99"):
        evaluate([{"image_id": 99, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 1.0}], dataset)
    with pytest.raises(ValueError, match="no segmentation for 'segm'"):
        evaluate(results, dataset, "segm")
    with pytest.raises(ValueError, match="bbox"):
        evaluate(results, dataset, "box")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_results_on_real_annotations(backend, iou_type):
    folder = SAMPLES / "evaluator_samples"
    if not folder.is_dir():
        pytest.skip(f"the evaluator samples are not at {folder}; set CASSL_SHARED_DATA")
    expected = json.loads((folder / "pycocotools_reference_stats.json").read_text())[iou_type]
    images = set(expected["imgIds"])
    dataset = json.loads((SAMPLES / expected["gt"]).read_text())
    dataset["images"] = [image for image in dataset["images"] if image["id"] in images]
    dataset["annotations"] = [entry for entry in dataset["annotations"] if entry["image_id"] in images]
    results = [entry for entry in json.loads((folder / expected["results"]).read_text()) if entry["image_id"] in images]
    assert len(results) == expected["n_results"]
    measured = evaluate(results, dataset, iou_type)
    assert list(measured.values()) == pytest.approx(expected["stats"], abs=1e-12)


# Three truths in image "a". Box 0 overlaps truth 0 by 90/110 and box 1 by 80/100 (IoU of 10 x 10 boxes shifted by 1:
# 90 / 110; cut by 2: 80 / 100). Box 2 is nowhere. Image "b" has one truth and no prediction.
TRUTH = {"a": np.array([[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]), "b": np.array([[0, 0, 4, 4]])}
BOXES = np.array([[1, 0, 11, 10], [0, 0, 10, 8], [50, 52, 60, 62], [200, 200, 210, 210]])
PREDICTIONS = {"a": {"boxes": BOXES, "scores": np.array([0.6, 0.9, 0.5, 0.7])}}


def test_iou_by_hand():
    overlaps = box_iou(BOXES.astype(float), TRUTH["a"].astype(float))
    np.testing.assert_allclose(overlaps[:, 0], [90 / 110, 80 / 100, 0, 0])
    np.testing.assert_allclose(overlaps[2], [0, 80 / 120, 0])
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_the_higher_score_takes_the_truth():
    """Box 1 scores higher and takes truth 0, though box 0 overlaps it more; box 0 is then a false positive."""
    boxes, scores = PREDICTIONS["a"]["boxes"], PREDICTIONS["a"]["scores"]
    assert match(boxes.astype(float), scores, TRUTH["a"].astype(float)).tolist() == [-1, 0, 1, -1]
    assert match(boxes.astype(float), scores, TRUTH["a"].astype(float), iou=0.7).tolist() == [-1, 0, -1, -1]


def test_a_box_whose_best_truth_is_taken_gets_the_next_best():
    truth = np.array([[0, 0, 10, 10], [0, 0, 10, 12]], dtype=float)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=float)
    assert match(boxes, np.array([0.8, 0.8]), truth).tolist() == [0, 1]  # equal scores keep their order


def test_label_quality_by_hand():
    quality = label_quality(PREDICTIONS, TRUTH)
    assert quality == {"precision": 2 / 4, "recall": 2 / 4, "matched": 2, "predictions": 4, "truths": 4}
    subset = {"a": [False, True, True]}  # truth 1 is found, truth 2 is not; "b" has none of the kind
    quality = label_quality(PREDICTIONS, TRUTH, subset_by_image=subset)
    assert (quality["subset_recall"], quality["subset_matched"], quality["subset_truths"]) == (1 / 2, 1, 2)
    last_only = {"a": {"boxes": [[80, 80, 90, 90]], "scores": [0.9]}}
    assert label_quality(last_only, TRUTH, subset_by_image={"a": [False, False, True]})["subset_recall"] == 1


def test_edge_errors_by_hand():
    """Pairs: box 1 is 2 too short at the bottom of a 10-pixel box; box 2 lies 2 too low."""
    errors = edge_errors(PREDICTIONS, TRUTH)
    assert errors["pairs"] == 2
    assert [errors[e] for e in ("left", "top", "right", "bottom")] == [0, (0 + 2) / 2, 0, (-2 + 2) / 2]
    assert errors["top_relative"] == pytest.approx(0.1)
    wide = edge_errors({1: {"boxes": [[-2, 0, 23, 8]], "scores": [1.0]}}, {1: [[0, 0, 20, 10]]})
    assert [wide[e] for e in ("left", "top", "right", "bottom")] == [-2, 0, 3, -2]
    relative = [wide[f"{e}_relative"] for e in ("left", "top", "right", "bottom")]
    assert relative == pytest.approx([-2 / 20, 0, 3 / 20, -2 / 10])


def test_matching_without_boxes():
    assert label_quality({}, {1: np.zeros((0, 4))})["precision"] == 0
    assert label_quality({1: {"boxes": [], "scores": []}}, {1: [[0, 0, 5, 5]]})["recall"] == 0
    assert label_quality({1: {"boxes": [[0, 0, 5, 5]], "scores": [0.5]}}, {1: []})["predictions"] == 1
    assert edge_errors({}, {1: []})["pairs"] == 0
    with pytest.raises(ValueError, match="without truth"):
        label_quality({2: {"boxes": [], "scores": []}}, {1: []})
