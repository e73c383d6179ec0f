"""COCO's numbers equal those of pycocotools on hard random cases; box matching agrees with cases worked by hand."""

import contextlib
import copy
import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cassl_lib.evaluation import edge_errors, evaluate, label_quality
from cassl_lib.evaluation.coco import KEYPOINT_METRICS, METRICS
from cassl_lib.evaluation.matching import box_iou, match
from cassl_lib.evaluation.results import ResultWriter, StoredResults

SIZE = 320  # pixels; holds boxes of COCO's large range
SAMPLES = Path(os.environ.get("CASSL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(params=["hotcoco", "pycocotools"])
def backend(request, monkeypatch):
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "hotcoco", None)  # importing it now fails
    else:
        pytest.importorskip("hotcoco")


def random_boxes(rng, count):
    """Integer xywh boxes of all three size ranges."""
    sides = np.exp(rng.uniform(np.log(4), np.log(200), (count, 2))).astype(int)
    corners = (rng.uniform(0, 1, (count, 2)) * (SIZE - sides)).astype(int)
    return np.concatenate([corners, sides], axis=1).astype(float)


def ellipse(box):
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    left, top, width, height = box
    inside = ((x - left - width / 2) / (width / 2)) ** 2 + ((y - top - height / 2) / (height / 2)) ** 2 <= 1
    rle = mask_api.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [SIZE, SIZE], "counts": rle["counts"].decode()}


def random_case(seed, iou_type="bbox"):
    """Ties, crowds, ignored sizes, empty images, images with over 100 detections, categories without ground truth.

    Image 3 has detections only, 4 neither detections nor objects, 5 objects only, 7 more than 100 detections of one
    category. Some detections are exact, so that IoU 1 occurs; integer pixels make an IoU at a threshold likely.
    """
    rng = np.random.default_rng(seed)
    objects, results = [], []
    for image_id in range(1, 13):
        count = 0 if image_id in (3, 4) else int(rng.integers(1, 9))
        for box in random_boxes(rng, count):
            crowd = int(rng.random() < 0.15)
            one = {"id": len(objects) + 1, "image_id": image_id, "category_id": int(rng.choice([2, 5, 9]))}
            one |= {"bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": crowd, "segmentation": []}
            objects.append(one | drawn_object(rng, iou_type, box, crowd))
        own = [one for one in objects if one["image_id"] == image_id]
        near = [(one, np.array(one["bbox"]) + wobble(rng)) for one in own for _ in range(2) if image_id != 5]
        stray = {4: 0, 5: 0, 7: 130}.get(image_id, 10)
        detections = [(one["category_id"], box, 1.0, one) for one, box in near]
        for box in random_boxes(rng, stray):
            detections.append((2 if image_id == 7 else int(rng.choice([2, 5, 9, 11])), box, 0.7, None))
        for category, box, highest, one in detections:
            entry = {"image_id": image_id, "category_id": category, "score": round(highest * float(rng.random()), 1)}
            results.append(entry | drawn_result(rng, iou_type, np.maximum(box, [0, 0, 2, 2]), one))
    order = rng.permutation(len(results))
    images = [{"id": i, "height": SIZE, "width": SIZE, "file_name": f"{i}.jpg"} for i in range(1, 13)]
    categories = [{"id": i, "name": f"class {i}"} for i in (9, 2, 5, 11)]  # 11 is never in the ground truth
    dataset = {"images": images, "annotations": objects, "categories": categories}
    return [results[i] for i in order], dataset


def wobble(rng):
    return rng.integers(-6, 7, 4) if rng.random() < 0.8 else np.zeros(4)


def drawn_object(rng, iou_type, box, crowd):
    """Masks as polygons, compressed RLE and (crowds) uncompressed RLE; people with hidden and without keypoints."""
    if iou_type == "segm":
        rle = ellipse(box)
        area = float(mask_api.area(rle))
        if crowd:
            flat = mask_api.decode(rle).ravel(order="F")
            edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
            return {"segmentation": {"size": [SIZE, SIZE], "counts": np.diff(edges, prepend=0).tolist()}, "area": area}
        if rng.random() < 0.5:
            x, y, width, height = box
            return {"segmentation": [[x, y, x + width, y + 0.25, x + width / 2, y + height]], "area": area / 2}
        return {"segmentation": rle, "area": area}
    if iou_type == "keypoints":
        points = np.column_stack([rng.uniform(box[:2], box[:2] + box[2:], (17, 2)).round(), rng.integers(0, 3, 17)])
        points *= rng.random() > 0.2
        points[points[:, 2] == 0] = 0
        seen = int((points[:, 2] > 0).sum())
        return {"keypoints": points.ravel().tolist(), "num_keypoints": seen, "area": 0.53 * box[2] * box[3]}
    return {}


def drawn_result(rng, iou_type, box, one):
    if iou_type == "segm":
        return {"segmentation": ellipse(box)}
    if iou_type == "keypoints":
        points = np.array(one["keypoints"]).reshape(17, 3) if one else rng.uniform(0, SIZE, (17, 3))
        points[:, :2] += rng.normal(0, 0.08, (17, 2)) * np.sqrt(box[2] * box[3]) * rng.integers(0, 2)
        return {"keypoints": points.ravel().tolist()}
    return {"bbox": box.tolist()}


def reference(results, dataset, iou_type, class_agnostic=False, area_ranges=None):
    """pycocotools itself, called as in its demo; class-agnostic by relabeling the data."""
    results, dataset = copy.deepcopy(results), copy.deepcopy(dataset)
    if class_agnostic:
        dataset["categories"] = [{"id": 7, "name": "object"}]
        for entry in dataset["annotations"] + results:
            entry["category_id"] = 7
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = dataset
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), iou_type)
        evaluator.params.areaRng = area_ranges or evaluator.params.areaRng
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    return dict(zip(names, evaluator.stats, strict=True)), reference_per_class(evaluator, dataset["categories"])


def reference_per_class(evaluator, categories):
    """AP by category from pycocotools' precision (IoU, recall, category by id), for all areas and most detections."""
    names = {category["id"]: category["name"] for category in categories}
    ap = {}
    for k, category in enumerate(sorted(names)):
        values = [float(v) for v in evaluator.eval["precision"][:, :, k, 0, -1].ravel() if v > -1]
        ap[names[category]] = sum(values) / len(values) if values else -1.0
    return ap


def assert_equal(measured, expected):
    per_class = measured.pop("per_class")
    numbers, reference_by_class = expected
    assert list(measured) == list(numbers)
    assert measured == pytest.approx(numbers, abs=1e-12)
    assert per_class == pytest.approx(reference_by_class, abs=1e-12)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize(
    "iou_type, seed", [("bbox", 0), ("bbox", 1), ("bbox", 2), ("segm", 3), ("keypoints", 4), ("keypoints", 5)]
)
def test_every_number_equals_that_of_pycocotools(backend, capsys, iou_type, seed, class_agnostic):
    results, dataset = random_case(seed, iou_type)
    measured = evaluate(results, dataset, iou_type, class_agnostic, per_class=True)
    assert 0.02 < measured["AP"] < 0.98  # neither 0 nor 1, so that the numbers could differ
    assert measured["per_class"].get("class 11", -1) == -1
    assert_equal(measured, reference(results, dataset, iou_type, class_agnostic))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("iou_type", ["segm", "keypoints"])
def test_areas_are_those_of_the_boxes_if_the_first_result_has_one(backend, iou_type):
    """A box of 2 x 2 makes a false positive small, so that it no longer counts in APm."""
    results, dataset = random_case(6, iou_type)
    boxed = [entry | {"bbox": [5.0, 5.0, 2.0, 2.0]} for entry in results]
    measured = evaluate(boxed, dataset, iou_type, per_class=True)
    assert measured["APm"] > evaluate(results, dataset, iou_type)["APm"]
    assert_equal(measured, reference(boxed, dataset, iou_type))


@pytest.mark.parametrize("iou_type", ["segm", "keypoints"])
def test_results_without_boxes_get_those_of_their_masks_and_keypoints(backend, iou_type):
    results, dataset = random_case(7, iou_type)
    assert_equal(evaluate(results, dataset, per_class=True), reference(results, dataset, "bbox"))


def test_objects_on_a_size_limit_count_in_both_ranges(backend):
    """Areas of exactly 32 * 32 and 96 * 96 count as small and medium, medium and large."""
    objects = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 32, 32], "area": 32**2, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [99, 99, 96, 96], "area": 96**2, "iscrowd": 0},
    ]
    dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 32, 32], "score": 0.5}]
    measured = evaluate(results, dataset)
    assert [measured[name] for name in ("ARs", "ARm", "ARl")] == [1, 0.5, 0]


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("side", [96, 128, 1000])
@pytest.mark.parametrize("iou_type, seed", [("bbox", 10), ("segm", 11), ("keypoints", 12)])
def test_area_limits_scale_with_the_side_of_the_images(backend, iou_type, seed, side, class_agnostic):
    """Limits of 32 and 96 pixels at a side of 640: 4.8 and 14.4 at 96, 6.4 and 19.2 at 128, 50 and 150 at 1000."""
    results, dataset = random_case(seed, iou_type)
    rng = np.random.default_rng(seed)
    for entry in dataset["annotations"]:  # objects of all sizes, at any side
        entry["area"] = float(np.exp(rng.uniform(np.log(8), np.log(160**2))))
    low, high = {96: (4.8, 14.4), 128: (6.4, 19.2), 1000: (50, 150)}[side]
    ranges = [[0, 1e10], [0, low * low], [low * low, high * high], [high * high, 1e10]]
    if iou_type == "keypoints":
        del ranges[1]
    measured = evaluate(results, dataset, iou_type, class_agnostic, per_class=True, side=side)
    plain = evaluate(results, dataset, iou_type, class_agnostic)
    sizes = [name for name in plain if name[-1] in "sml"]
    assert all(measured[name] != plain[name] for name in sizes)
    assert all(measured[name] == plain[name] for name in plain if name not in sizes)
    assert_equal(measured, reference(results, dataset, iou_type, class_agnostic, area_ranges=ranges))


def test_a_side_of_640_pixels_keeps_cocos_area_limits(backend):
    results, dataset = random_case(13)
    assert evaluate(results, dataset, side=640) == evaluate(results, dataset)
    for side in (0, -96, float("nan")):
        with pytest.raises(ValueError, match="side must be a number of pixels above 0"):
            evaluate(results, dataset, side=side)


def renumbered(results, dataset, *, image=0, category=0):
    results, dataset = copy.deepcopy((results, dataset))
    for entry in results + dataset["annotations"]:
        entry["image_id"] += image
        entry["category_id"] += category
    for entry in dataset["images"]:
        entry["id"] += image
    for entry in dataset["categories"]:
        entry["id"] += category
    return results, dataset


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_image_and_category_ids_may_be_0(backend, class_agnostic):
    results, dataset = random_case(0)
    expected = evaluate(results, dataset, class_agnostic=class_agnostic, per_class=True)
    with_zeros = renumbered(results, dataset, image=-1, category=-2)
    assert evaluate(*with_zeros, class_agnostic=class_agnostic, per_class=True) == expected
    assert_equal(expected, reference(*with_zeros, "bbox", class_agnostic))


def test_annotation_ids_do_not_matter(backend):
    """Negative, huge and unordered ids. A duplicate id refers to the last annotation that has it, as in pycocotools."""
    results, dataset = random_case(1)
    expected = evaluate(results, dataset)
    for number, entry in enumerate(dataset["annotations"]):
        entry["id"] = (-1) ** number * (900_100_000_000 - number)
    assert evaluate(results, dataset) == expected
    dataset["annotations"][0]["id"] = dataset["annotations"][1]["id"]
    assert_equal(evaluate(results, dataset, per_class=True), reference(results, dataset, "bbox"))


def test_a_forked_process_evaluates_too():
    """Hotcoco's threads, which its parent has started, are not there."""
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 50], "area": 2000, "iscrowd": 0}]
    dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 50], "score": 0.9}]
    assert evaluate(results, dataset)["AP"] > 0.999
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends it without a handler
        os._exit(0 if evaluate(results, dataset)["AP"] > 0.999 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_annotation_id_0_is_never_matched_and_gives_a_warning(backend):
    """As in pycocotools, which stores the id of the matched annotation, or 0 for no match."""
    objects = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [99 * number, 0, 40, 50], "area": 2000, "iscrowd": 0}
        for number in (0, 1)
    ]
    dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    results = [{"image_id": 1, "category_id": 1, "bbox": one["bbox"], "score": 0.9} for one in objects]
    with pytest.warns(UserWarning, match="annotation id 0") as caught:
        measured = evaluate(results, dataset, per_class=True)
    assert len(caught) == 1 and measured["AR100"] == 0.5
    assert_equal(measured, reference(results, dataset, "bbox"))


def test_class_agnostic_evaluation_merges_the_categories(backend):
    results, dataset = random_case(0)
    for entry in results:
        entry["category_id"] = {2: 5, 5: 9, 9: 2}.get(entry["category_id"], 2)  # right boxes, wrong classes
    right_classes = evaluate(random_case(0)[0], dataset, class_agnostic=True)
    assert evaluate(results, dataset, class_agnostic=True) == right_classes
    assert evaluate(results, dataset)["AP"] < right_classes["AP"] / 2


def test_inputs_may_be_paths_or_loaded_and_are_not_modified(backend, tmp_path):
    results, dataset = random_case(1, "segm")
    before = copy.deepcopy((results, dataset))
    expected = evaluate(results, dataset, "segm", class_agnostic=True)
    assert (results, dataset) == before
    (tmp_path / "ground_truth.json").write_text(json.dumps(dataset))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(tmp_path / "ground_truth.json")
    for given in (tmp_path / "ground_truth.json", str(tmp_path / "ground_truth.json"), loaded):
        assert evaluate(tmp_path / "results.json", given, "segm", class_agnostic=True) == expected
    assert {entry["category_id"] for entry in loaded.dataset["annotations"]} == {2, 5, 9}


def test_one_true_positive_by_hand(backend):
    """IoU 0.8 (40 of 50 rows) passes 7 of the 10 thresholds, 0.50 to 0.80: AP 0.7. One medium box, no other sizes."""
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 50], "area": 2000}  # without iscrowd
    dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": [one]}
    measured = evaluate([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "score": 0.9}], dataset)
    expected = {"AP": 0.7, "AP50": 1, "AP75": 1, "APs": -1, "APm": 0.7, "APl": -1}
    expected |= {"AR1": 0.7, "AR10": 0.7, "AR100": 0.7, "ARs": -1, "ARm": 0.7, "ARl": -1}
    assert measured == pytest.approx(expected)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_no_results_give_0_and_no_ground_truth_gives_minus_1(backend, class_agnostic):
    results, dataset = random_case(0)
    measured = evaluate([], dataset, class_agnostic=class_agnostic)
    assert measured == dict.fromkeys(METRICS, 0.0)
    measured = evaluate(results, {**dataset, "annotations": []}, class_agnostic=class_agnostic)
    assert measured == dict.fromkeys(METRICS, -1.0)


def test_a_file_without_annotations_raises(tmp_path):
    path = tmp_path / "image_info_unlabeled2017.json"
    path.write_text(json.dumps({"images": [], "categories": []}))
    with pytest.raises(ValueError, match=r"image_info_unlabeled2017\.json: lacks annotations.*instances_val2017"):
        evaluate([], path)


def test_invalid_results_raise():
    results, dataset = random_case(0)
    box = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 1.0}
    with pytest.raises(ValueError, match="image 99"):
        evaluate([box | {"image_id": 99}], dataset)
    with pytest.raises(ValueError, match="bbox"):
        evaluate(results, dataset, "box")
    with pytest.raises(ValueError, match="has no bbox, needed for iou_type='bbox'"):
        evaluate([box, {"image_id": 1, "category_id": 2, "segmentation": {}, "score": 1.0}], dataset)
    with pytest.raises(ValueError, match="has no bbox or segmentation"):
        evaluate([{"image_id": 1, "category_id": 2, "score": 1.0}], dataset)
    with pytest.raises(ValueError, match="has no score, or its score is NaN"):
        evaluate([box | {"score": float("nan")}], dataset)
    with pytest.raises(ValueError, match="has no score, or its score is NaN"):
        evaluate([{"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]}], dataset)
    with pytest.raises(ValueError, match="not dict"):
        evaluate(box, dataset)
    results, dataset = random_case(3, "segm")
    with pytest.raises(ValueError, match="no segmentation, needed for iou_type='segm'"):
        evaluate([box], dataset, "segm")
    del dataset["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="annotation 1 of the given ground truth has no segmentation"):
        evaluate(results, dataset, "segm")
    results, dataset = random_case(4, "keypoints")
    with pytest.raises(ValueError, match="17 times x, y, v, got 9 numbers"):
        evaluate([box | {"keypoints": [0] * 9}], dataset, "keypoints")


def test_ap_per_class_by_hand(backend):
    """One box detected with IoU 0.8 (7 of 10 thresholds), one exactly, one not at all; "d" has no ground truth."""
    objects = [
        {"id": k, "image_id": 1, "category_id": k, "bbox": [0, 0, 40, 50], "area": 2000, "iscrowd": 0}
        for k in (1, 2, 3)
    ]
    categories = [{"id": k, "name": name} for k, name in zip((4, 2, 3, 1), "dbca", strict=True)]
    dataset = {"images": [{"id": 1}], "categories": categories, "annotations": objects}
    boxes = {1: [0, 0, 40, 40], 2: [0, 0, 40, 50], 4: [0, 0, 40, 50]}
    results = [{"image_id": 1, "category_id": k, "bbox": box, "score": 0.9} for k, box in boxes.items()]
    measured = evaluate(results, dataset, per_class=True)
    assert measured["per_class"] == pytest.approx({"d": -1, "b": 1, "c": 0, "a": 0.7})
    assert list(measured["per_class"]) == ["d", "b", "c", "a"]
    assert measured["AP"] == pytest.approx((1 + 0 + 0.7) / 3)
    assert "per_class" not in evaluate(results, dataset)
    agnostic = evaluate(results, dataset, class_agnostic=True, per_class=True)
    assert agnostic["per_class"] == {"object": agnostic["AP"]}
    dataset["categories"][0]["name"] = "b"
    with pytest.raises(ValueError, match="several categories are called b"):
        evaluate(results, dataset, per_class=True)


def test_no_detected_keypoints_give_0(backend):
    measured = evaluate([], random_case(4, "keypoints")[1], "keypoints")
    sizes = {name: -1.0 for name in ("APl", "ARl")}  # no object with keypoints is that large
    assert measured == dict.fromkeys(KEYPOINT_METRICS, 0.0) | sizes


def real_samples(iou_type):
    """The results that COCO publishes for its own tests, on the images whose ground truth is available."""
    folder = SAMPLES / "evaluator_samples"
    if not folder.is_dir():
        pytest.skip(f"no evaluator samples in {folder}; set CASSL_SHARED_DATA")
    expected = json.loads((folder / "pycocotools_reference_stats.json").read_text())[iou_type]
    images = set(expected["imgIds"])
    dataset = json.loads((SAMPLES / expected["gt"]).read_text())
    dataset["images"] = [image for image in dataset["images"] if image["id"] in images]
    dataset["annotations"] = [entry for entry in dataset["annotations"] if entry["image_id"] in images]
    results = [entry for entry in json.loads((folder / expected["results"]).read_text()) if entry["image_id"] in images]
    assert len(results) == expected["n_results"]
    return results, dataset, expected["stats"]


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_published_results_are_reproduced_on_real_annotations(backend, iou_type):
    results, dataset, stats = real_samples(iou_type)
    measured = evaluate(results, dataset, iou_type, per_class=True)
    assert [measured[name] for name in measured if name != "per_class"] == pytest.approx(stats, abs=1e-12)
    assert_equal(measured, reference(results, dataset, iou_type))
    agnostic = evaluate(results, dataset, iou_type, class_agnostic=True, per_class=True)
    assert_equal(agnostic, reference(results, dataset, iou_type, class_agnostic=True))


def write_parts(folder, results, dataset, world):
    """Write results as `world` processes that take the images in turn; returns the unfinished writers."""
    writers = [ResultWriter(folder, rank, world) for rank in range(world)]
    for number, image in enumerate(reversed(dataset["images"])):  # not in the order of the ids
        own = [entry for entry in results if entry["image_id"] == image["id"]]
        writers[number % world].add(image["id"], own)
    return writers


@pytest.mark.parametrize("world", [1, 2, 3])
def test_stored_results_are_the_written_ones_sorted_by_image(tmp_path, world):
    results, dataset = random_case(3, "segm")
    in_bytes = [
        entry | {"segmentation": entry["segmentation"] | {"counts": entry["segmentation"]["counts"].encode()}}
        for entry in results
    ]
    for writer in write_parts(tmp_path, in_bytes, dataset, world):
        writer.finish()
    stored = StoredResults(tmp_path, world)
    assert list(stored) == sorted(
        results, key=lambda entry: entry["image_id"]
    )  # stable: the order within an image is kept
    assert len(stored) == len(results) == len(list(stored))  # a second time
    assert stored.image_ids == list(range(1, 13))  # 4 and 5 have no results
    assert stored.of_image(7) == [entry for entry in results if entry["image_id"] == 7]
    assert stored.of_image(4) == stored.of_image(99) == []
    assert evaluate(stored, dataset, "segm") == evaluate(results, dataset, "segm")
    unboxed = ({key: value for key, value in entry.items() if key != "bbox"} for entry in stored)
    assert evaluate(unboxed, dataset, "segm") == evaluate(results, dataset, "segm")
    (tmp_path / "other.txt").write_text("stays")
    stored.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_numbers_are_stored_exactly(tmp_path):
    entry = {"image_id": 3, "category_id": 1, "bbox": [1 / 3, 2.0**-40, 1e5 / 7, 5e-324], "score": 0.1 + 0.2}
    with ResultWriter(tmp_path) as writer:
        writer.add(3, [entry])
    assert list(StoredResults(tmp_path)) == [entry]


def test_unfinished_results_are_not_read(tmp_path):
    results, dataset = random_case(0)
    first, second = write_parts(tmp_path / "parts", results, dataset, 2)
    with pytest.raises(FileNotFoundError, match="process 0 of 2"):
        StoredResults(tmp_path / "parts", 2)
    first.finish()
    with pytest.raises(FileNotFoundError, match="process 1 of 2"):
        StoredResults(tmp_path / "parts", 2)
    assert len(second.path.read_bytes().splitlines()) == 6  # results are on disk before the file is finished
    with pytest.raises(KeyError), ResultWriter(tmp_path / "parts", 1, 2) as again:
        assert second.path.read_bytes() == b""  # a new writer overwrites the old file
        again.add(1, [])
        raise KeyError
    with pytest.raises(FileNotFoundError, match="process 1 of 2"):
        StoredResults(tmp_path / "parts", 2)
    with ResultWriter(tmp_path / "parts", 1, 2) as again:
        again.add(99, [])
    assert 99 in StoredResults(tmp_path / "parts", 2).image_ids
    ResultWriter(tmp_path / "parts", 0, 2)
    with pytest.raises(FileNotFoundError, match="process 0 of 2"):  # the old index is not mistaken for the new one
        StoredResults(tmp_path / "parts", 2)


def test_damaged_and_duplicate_results_raise(tmp_path):
    entry = {"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1.0}
    for rank in (0, 1):
        with ResultWriter(tmp_path, rank, 2) as writer:
            writer.add(3, [entry])
            with pytest.raises(ValueError, match="already has the results of image 3"):
                writer.add(3, [entry])
            with pytest.raises(ValueError, match="image 4 include some of image 3"):
                writer.add(4, [entry])
    with pytest.raises(ValueError, match="both have results of image 3"):
        StoredResults(tmp_path, 2)
    with ResultWriter(tmp_path) as writer:
        writer.add(3, [entry])
    writer.path.write_bytes(writer.path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="does not have the .* bytes"):
        StoredResults(tmp_path)


# Image "a" has three objects. Box 0 overlaps object 0 with IoU 90/110 (10 x 10 boxes shifted by 1), box 1 with 80/100
# (2 rows cut off); box 2 overlaps object 1 with 80/120 and box 3 nothing. Image "b" has one object and no prediction.
OBJECTS = {"a": np.array([[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]), "b": np.array([[0, 0, 4, 4]])}
BOXES = np.array([[1, 0, 11, 10], [0, 0, 10, 8], [50, 52, 60, 62], [200, 200, 210, 210]])
PREDICTIONS = {"a": {"boxes": BOXES, "scores": np.array([0.6, 0.9, 0.5, 0.7])}}


def test_iou_by_hand():
    overlaps = box_iou(BOXES.astype(float), OBJECTS["a"].astype(float))
    np.testing.assert_allclose(overlaps[:, 0], [90 / 110, 80 / 100, 0, 0])
    np.testing.assert_allclose(overlaps[2], [0, 80 / 120, 0])
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_the_higher_score_is_matched_first():
    """Box 1 has the higher score and takes object 0, though box 0 overlaps it more; box 0 is a false positive."""
    boxes, scores = PREDICTIONS["a"]["boxes"], PREDICTIONS["a"]["scores"]
    assert match(boxes.astype(float), scores, OBJECTS["a"].astype(float)).tolist() == [-1, 0, 1, -1]
    assert match(boxes.astype(float), scores, OBJECTS["a"].astype(float), iou=0.7).tolist() == [-1, 0, -1, -1]


def test_a_box_whose_best_object_is_taken_gets_the_next_best():
    objects = np.array([[0, 0, 10, 10], [0, 0, 10, 12]], dtype=float)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=float)
    assert match(boxes, np.array([0.8, 0.8]), objects).tolist() == [0, 1]  # equal scores keep their order


def test_label_quality_by_hand():
    quality = label_quality(PREDICTIONS, OBJECTS)
    assert quality == {"precision": 2 / 4, "recall": 2 / 4, "matched": 2, "predictions": 4, "ground_truths": 4}
    subset = {"a": [False, True, True]}  # object 1 is matched, object 2 is not; "b" has no marked ones
    quality = label_quality(PREDICTIONS, OBJECTS, subset_by_image=subset)
    assert (quality["subset_recall"], quality["subset_matched"], quality["subset_ground_truths"]) == (1 / 2, 1, 2)
    last_only = {"a": {"boxes": [[80, 80, 90, 90]], "scores": [0.9]}}
    assert label_quality(last_only, OBJECTS, subset_by_image={"a": [False, False, True]})["subset_recall"] == 1


def test_edge_errors_by_hand():
    """Two pairs: box 1 ends 2 pixels too high on a 10-pixel object; box 2 lies 2 pixels too low."""
    errors = edge_errors(PREDICTIONS, OBJECTS)
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
    with pytest.raises(ValueError, match="1 images have predictions but no ground truth, such as 2"):
        label_quality({2: {"boxes": [], "scores": []}}, {1: []})
