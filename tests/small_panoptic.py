"""Small panoptic maps, their files, and panoptic quality in plain loops."""

from collections import Counter

import numpy as np
import pytest

from cassl_lib.data.panoptic_writer import write_image, write_json

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 12, "name": "sea", "isthing": 0},
]
CAT, DOG, SKY, SEA = (category["id"] for category in CATEGORIES)
PERFECT = {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0}


def panoptic(pixels, crowds=(), **classes):
    """A map of segment ids from rows of digits, and its segments: `_3=CAT` makes segment 3 a cat."""
    rows = [[int(digit) for digit in row] for row in pixels.split()]
    segments = [
        {"id": int(name[1:]), "category_id": category, "iscrowd": int(int(name[1:]) in crowds)}
        for name, category in classes.items()
    ]
    return np.array(rows), segments


def plain_quality(images, categories):
    """PQ in plain Python from [(prediction, ground truth)], each (list of ids, segments)."""
    iou_sum, tp, fp, fn = Counter(), Counter(), Counter(), Counter()
    for (predicted, predicted_segments), (ground_truth, true_segments) in images:
        shared = Counter(zip(predicted, ground_truth, strict=True))
        predicted_area, true_area = Counter(predicted), Counter(ground_truth)
        matched, detected = set(), set()
        for p in predicted_segments:
            for t in true_segments:
                if t.get("iscrowd") or p["category_id"] != t["category_id"]:
                    continue
                both = shared[p["id"], t["id"]]
                seen_of_prediction = predicted_area[p["id"]] - shared[p["id"], 0]
                iou = both / (seen_of_prediction + true_area[t["id"]] - both)
                if iou > 0.5:
                    matched.add(p["id"])
                    detected.add(t["id"])
                    tp[p["category_id"]] += 1
                    iou_sum[p["category_id"]] += iou
        for t in true_segments:
            if not t.get("iscrowd") and t["id"] not in detected:
                fn[t["category_id"]] += 1
        for p in predicted_segments:
            if p["id"] in matched:
                continue
            ignored = shared[p["id"], 0]
            for t in true_segments:
                if t.get("iscrowd") and t["category_id"] == p["category_id"]:
                    ignored += shared[p["id"], t["id"]]
            if not ignored / predicted_area[p["id"]] > 0.5:
                fp[p["category_id"]] += 1
    result = {}
    for group, wanted in (("all", (0, 1)), ("things", (1,)), ("stuff", (0,))):
        classes = [c["id"] for c in categories if c["isthing"] in wanted and tp[c["id"]] + fp[c["id"]] + fn[c["id"]]]
        pq = [iou_sum[c] / (tp[c] + 0.5 * fp[c] + 0.5 * fn[c]) for c in classes]
        sq = [iou_sum[c] / tp[c] if tp[c] else 0.0 for c in classes]
        rq = [tp[c] / (tp[c] + 0.5 * fp[c] + 0.5 * fn[c]) for c in classes]
        result[group] = {"PQ": sum(pq), "SQ": sum(sq), "RQ": sum(rq)}
        result[group] = {name: total / len(classes) if classes else -1 for name, total in result[group].items()}
        result[group]["n"] = len(classes)
    counts = {c["name"]: (tp[c["id"]], fp[c["id"]], fn[c["id"]]) for c in categories}
    return result, counts


def agrees(measured, images, categories):
    """Assert that the code under test gives the numbers of the plain loop."""
    expected, counts = plain_quality(images, categories)
    assert {name: (c["tp"], c["fp"], c["fn"]) for name, c in measured["per_class"].items()} == counts
    for group, numbers in expected.items():
        assert measured[group] == pytest.approx(numbers, abs=1e-12)


GROUND_TRUTH = panoptic("1113 1113 2223 2200", _1=CAT, _2=CAT, _3=SKY)  # areas 6, 5, 3; two void pixels


def random_panoptic(rng, crowd_share):
    """28 x 35 pixels in blocks: up to 9 segments of random classes, some void, some crowds."""
    ids = np.kron(rng.integers(0, 10, (4, 4)), np.ones((7, 9), int))[:, :35]
    names = rng.choice([CAT, DOG, SKY, SEA], 10).tolist()
    segments = [
        {"id": segment, "category_id": names[segment], "iscrowd": int(rng.random() < crowd_share)}
        for segment in np.unique(ids).tolist()
        if segment
    ]
    return ids, segments


def disturbed(rng, ids, segments):
    """The ground truth shifted by a pixel, with some segments relabeled and some dropped."""
    ids = np.roll(ids, rng.integers(-1, 2, 2).tolist(), (0, 1))
    kept = [segment for segment in segments if rng.random() < 0.9]
    ids = np.where(np.isin(ids, [segment["id"] for segment in kept]), ids, 0)
    names = [CAT, DOG, SKY, SEA]
    changed = [{**s, "category_id": s["category_id"] if rng.random() < 0.8 else int(rng.choice(names))} for s in kept]
    return ids, changed


def as_lists(pair):
    return [(ids.ravel().tolist(), segments) for ids, segments in pair]


def write_set(folder, images, categories=CATEGORIES, name="panoptic"):
    """Write the files of {image id: (ids, segments)}; returns the JSON, beside which lies the PNG folder."""
    annotations = [write_image(folder / name, image_id, *image) for image_id, image in images.items()]
    records = [
        {"id": image_id, "file_name": f"{image_id}.jpg", "height": ids.shape[0], "width": ids.shape[1]}
        for image_id, (ids, _) in images.items()
    ]
    return write_json(folder / f"{name}.json", annotations, images=records, categories=categories)
