"""Panoptic quality against a plain-loop derivation and hand-counted cases; COCO's files; merging detections."""

import json
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from cassl_lib.config import PanopticConfig
from cassl_lib.data.panoptic import PanopticFiles, read_ids
from cassl_lib.data.panoptic_writer import write_image, write_json
from cassl_lib.errors import DataError
from cassl_lib.evaluation.panoptic_merge import merge_panoptic
from cassl_lib.evaluation.panoptic_quality import count_images, image_counts, panoptic_quality, quality

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


def counts_of(predicted, ground_truth):
    """{category: (sum of IoU, TP, FP, FN)} of one image by the code under test, without categories that are all 0."""
    ids = [category["id"] for category in CATEGORIES]
    rows = image_counts(predicted, ground_truth, category_ids=ids)
    return {category: tuple(row) for category, row in zip(ids, rows.tolist(), strict=True) if any(row)}


def score(*images):
    ids = [category["id"] for category in CATEGORIES]
    return quality(sum(image_counts(p, t, category_ids=ids) for p, t in images), CATEGORIES)


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


# --- the definition, by hand


GROUND_TRUTH = panoptic("1113 1113 2223 2200", _1=CAT, _2=CAT, _3=SKY)  # areas 6, 5, 3; two void pixels


def test_the_ground_truth_against_itself_is_perfect():
    result = score((GROUND_TRUTH, GROUND_TRUTH))
    assert result["all"] == {**PERFECT, "n": 2}
    assert result["things"] == result["stuff"] == {**PERFECT, "n": 1}
    assert result["per_class"]["cat"] == {**PERFECT, "tp": 2, "fp": 0, "fn": 0}
    assert result["per_class"]["dog"] == {"PQ": -1, "SQ": -1, "RQ": -1, "tp": 0, "fp": 0, "fn": 0}


def test_a_split_segment():
    # 4 of 6 pixels match with IoU 4/6, the other 2 are a false positive
    split = panoptic("1143 1143 2223 2200", _1=CAT, _2=CAT, _3=SKY, _4=CAT)
    assert counts_of(split, GROUND_TRUTH) == {CAT: (4 / 6 + 1, 2, 1, 0), SKY: (1, 1, 0, 0)}
    result = score((split, GROUND_TRUTH))
    cat = {"PQ": (4 / 6 + 1) / 2.5, "SQ": (4 / 6 + 1) / 2, "RQ": 2 / 2.5}
    assert result["things"] == pytest.approx({**cat, "n": 1})
    assert result["all"] == pytest.approx({name: (value + 1) / 2 for name, value in cat.items()} | {"n": 2})


def test_a_segment_split_in_halves_matches_nothing():
    # each half has 3 of 6 pixels, IoU exactly 0.5: two false positives and a miss
    halves = panoptic("1113 4443 2223 2200", _1=CAT, _2=CAT, _3=SKY, _4=CAT)
    assert counts_of(halves, GROUND_TRUTH)[CAT] == (1, 1, 2, 1)


def test_a_removed_segment():
    removed = panoptic("0003 0003 2223 2200", _2=CAT, _3=SKY)
    assert counts_of(removed, GROUND_TRUTH) == {CAT: (1, 1, 0, 1), SKY: (1, 1, 0, 0)}
    assert score((removed, GROUND_TRUTH))["things"] == pytest.approx({"PQ": 1 / 1.5, "SQ": 1, "RQ": 1 / 1.5, "n": 1})


def test_a_wrong_class_is_a_miss_of_one_and_a_false_positive_of_the_other():
    wrong = panoptic("1113 1113 2223 2200", _1=DOG, _2=CAT, _3=SKY)
    assert counts_of(wrong, GROUND_TRUTH) == {CAT: (1, 1, 0, 1), DOG: (0, 0, 1, 0), SKY: (1, 1, 0, 0)}
    result = score((wrong, GROUND_TRUTH))
    assert result["per_class"]["dog"] == {"PQ": 0, "SQ": 0, "RQ": 0, "tp": 0, "fp": 1, "fn": 0}
    # a class that only has a false positive counts in the means
    assert result["things"] == pytest.approx({"PQ": (1 / 1.5 + 0) / 2, "SQ": 1 / 2, "RQ": (1 / 1.5 + 0) / 2, "n": 2})


def test_void_pixels_are_excluded_from_the_union():
    onto_void = panoptic("1113 1113 2223 2222", _1=CAT, _2=CAT, _3=SKY)
    assert counts_of(onto_void, GROUND_TRUTH) == counts_of(GROUND_TRUTH, GROUND_TRUTH)
    # segment 2 loses one pixel to 3, and void is not in the union: cat 4 of 5, sky 3 of 4
    beside_void = panoptic("1113 1113 2233 2222", _1=CAT, _2=CAT, _3=SKY)
    assert counts_of(beside_void, GROUND_TRUTH) == {CAT: (1 + 4 / 5, 2, 0, 0), SKY: (3 / 4, 1, 0, 0)}


def test_excluding_void_can_make_a_match():
    ground_truth = panoptic("110000", _1=CAT)
    assert counts_of(panoptic("222222", _2=CAT), ground_truth) == {CAT: (1, 1, 0, 0)}  # 2 of 6 pixels, but 4 are void


@pytest.mark.parametrize(
    ("prediction", "false_positives"),
    [("0022", 0), ("0222", 0), ("2222", 1), ("2200", 1)],  # void shares 2/2, 2/3, exactly 2/4, 0
)
def test_unmatched_segments_on_void_are_excused(prediction, false_positives):
    ground_truth = panoptic("1100 1111", _1=CAT)
    predicted = panoptic(f"{prediction} 0000", _2=DOG)
    assert counts_of(predicted, ground_truth).get(DOG, (0, 0, 0, 0)) == (0, 0, false_positives, 0)
    assert counts_of(predicted, ground_truth)[CAT] == (0, 0, 0, 1)


def test_crowds_are_never_missed_and_excuse_segments_of_their_class():
    ground_truth = panoptic("777788 110000", crowds=[7, 8], _7=CAT, _8=DOG, _1=CAT)
    assert counts_of(panoptic("000000 000000"), ground_truth) == {CAT: (0, 0, 0, 1)}  # crowds are never missed
    whole = panoptic("222200 110000", _2=CAT, _1=CAT)
    assert counts_of(whole, ground_truth) == {
        CAT: (1, 1, 0, 0)
    }  # a crowd cannot be matched, but segments on it are excused
    other = panoptic("222200 110000", _2=DOG, _1=CAT)
    assert counts_of(other, ground_truth) == {CAT: (1, 1, 0, 0), DOG: (0, 0, 1, 0)}  # on a crowd of another class
    half = panoptic("000022 330000", _2=CAT, _3=DOG)
    assert counts_of(half, ground_truth) == {CAT: (0, 0, 1, 1), DOG: (0, 0, 1, 0)}


def test_void_and_crowd_pixels_add_up():
    ground_truth = panoptic("77001111", crowds=[7], _7=CAT, _1=DOG)
    assert counts_of(panoptic("22222000", _2=CAT), ground_truth) == {DOG: (0, 0, 0, 1)}  # 2 + 2 of 5
    assert counts_of(panoptic("22222222", _2=CAT), ground_truth) == {CAT: (0, 0, 1, 0), DOG: (0, 0, 0, 1)}  # 4 of 8
    # two crowds of one class and the void pixel between them
    ground_truth = panoptic("770881111", crowds=[7, 8], _7=CAT, _8=CAT, _1=DOG)
    assert counts_of(panoptic("222222222", _2=CAT), ground_truth) == {
        DOG: (0, 0, 0, 1)
    }  # 5 of 9; one crowd alone would not suffice
    assert counts_of(panoptic("220222200", _2=CAT), ground_truth) == {DOG: (0, 0, 0, 1)}  # 4 of 6
    assert counts_of(panoptic("020020220", _2=CAT), ground_truth)[CAT] == (0, 0, 1, 0)  # exactly 2 of 4


def test_iscrowd_in_predictions_is_ignored():
    predicted = panoptic("1113 1113 2223 2200", crowds=[1], _1=CAT, _2=CAT, _3=SKY)
    assert counts_of(predicted, GROUND_TRUTH) == counts_of(GROUND_TRUTH, GROUND_TRUTH)


def test_classes_average_over_images():
    first = panoptic("1111 3333", _1=CAT, _3=SKY), panoptic("1110 3333", _1=CAT, _3=SEA)
    second = panoptic("0000 4444", _4=SEA), panoptic("1100 4444", _1=CAT, _4=SEA)
    result = score(first, second)
    # cat: IoU 1 (without void), one missed; sky: FP; sea: one match, one missed
    assert [result["per_class"][name]["PQ"] for name in ("cat", "dog", "sky", "sea")] == [1 / 1.5, -1, 0, 1 / 1.5]
    assert result["all"] == pytest.approx({"PQ": 4 / 9, "SQ": 2 / 3, "RQ": 4 / 9, "n": 3})
    assert result["stuff"] == pytest.approx({"PQ": 1 / 3, "SQ": 1 / 2, "RQ": 1 / 3, "n": 2})


def test_empty_images_have_no_quality():
    empty = panoptic("000 000")
    assert score((empty, empty))["all"] == {"PQ": -1, "SQ": -1, "RQ": -1, "n": 0}
    assert counts_of(empty, WITHOUT_VOID) == {CAT: (0, 0, 0, 1), SKY: (0, 0, 0, 1)}
    assert counts_of(WITHOUT_VOID, empty) == {}  # a ground truth that is all void excuses everything


WITHOUT_VOID = panoptic("111 222", _1=CAT, _2=SKY)


def test_maps_of_different_sizes_or_unknown_categories_raise():
    with pytest.raises(ValueError, match="cannot be compared"):
        counts_of(panoptic("11", _1=CAT), panoptic("111", _1=CAT))
    with pytest.raises(ValueError, match="category 77"):
        counts_of(panoptic("111", _1=77), panoptic("111", _1=CAT))
    with pytest.raises(ValueError, match="prediction: pixels have the ids 1"):
        counts_of(panoptic("111"), panoptic("111", _1=CAT))


# --- against the plain loop


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


@pytest.mark.parametrize("seed", range(6))
def test_random_maps_agree_with_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    ground_truths = [random_panoptic(rng, crowd_share=0.25) for _ in range(20)]
    pairs = [(disturbed(rng, *ground_truth), ground_truth) for ground_truth in ground_truths]
    measured = score(*pairs)
    assert 0.1 < measured["all"]["PQ"] < 0.9
    agrees(measured, [as_lists(pair) for pair in pairs], CATEGORIES)


# --- COCO's files


def write_set(folder, images, categories=CATEGORIES, name="panoptic"):
    """Write the files of {image id: (ids, segments)}; returns the JSON, beside which lies the PNG folder."""
    annotations = [write_image(folder / name, image_id, *image) for image_id, image in images.items()]
    records = [
        {"id": image_id, "file_name": f"{image_id}.jpg", "height": ids.shape[0], "width": ids.shape[1]}
        for image_id, (ids, _) in images.items()
    ]
    return write_json(folder / f"{name}.json", annotations, images=records, categories=categories)


def test_what_is_written_is_read_back(tmp_path):
    large = 256**3 - 1
    ids = np.array([[0, 7, 7], [256, 70_000, large]])
    segments = [{"id": segment, "category_id": CAT} for segment in (7, 256, 70_000, large)]
    segments[1] |= {"iscrowd": 1, "category_id": SKY}
    empty = np.zeros((2, 4), np.int32), []
    path = write_set(tmp_path, {31: (ids, segments), 4: empty})

    colors = np.asarray(Image.open(tmp_path / "panoptic" / "000000000031.png")).tolist()
    assert colors == [[[0, 0, 0], [7, 0, 0], [7, 0, 0]], [[0, 1, 0], [112, 17, 1], [255, 255, 255]]]  # 70000 = 112 ...
    files = PanopticFiles(path)
    read, infos = files.read(31)
    assert files.image_ids == [31, 4] and files.categories == CATEGORIES and len(files) == 2
    assert read.dtype == np.int32 and read.tolist() == ids.tolist()
    assert infos == [
        {"id": 7, "category_id": CAT, "iscrowd": 0, "area": 2, "bbox": [1, 0, 2, 1]},
        {"id": 256, "category_id": SKY, "iscrowd": 1, "area": 1, "bbox": [0, 1, 1, 1]},
        {"id": 70_000, "category_id": CAT, "iscrowd": 0, "area": 1, "bbox": [1, 1, 1, 1]},
        {"id": large, "category_id": CAT, "iscrowd": 0, "area": 1, "bbox": [2, 1, 1, 1]},
    ]
    assert files.read(4)[0].tolist() == [[0] * 4] * 2 and files.read(4)[1] == []
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == [
        "000000000004.png",
        "000000000031.png",
        "panoptic.json",
    ]


def test_the_ids_of_a_palette_png_are_its_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 3, 2, 1])
    image.save(tmp_path / "a.png")
    assert read_ids(tmp_path / "a.png").tolist() == [[0, 66051], [66051, 66051]]  # 3 + 2 * 256 + 65536


def test_results_need_only_annotations(tmp_path):
    path = write_set(tmp_path, {1: GROUND_TRUTH})
    whole = json.loads(path.read_text())
    for annotation in whole["annotations"]:
        annotation["segments_info"] = [
            {"id": s["id"], "category_id": s["category_id"]} for s in annotation["segments_info"]
        ]
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"annotations": whole["annotations"]}))
    assert panoptic_quality((result, tmp_path / "panoptic"), path)["all"]["PQ"] == 1
    with pytest.raises(DataError, match="no categories"):
        panoptic_quality(path, (result, tmp_path / "panoptic"))


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def segments_of(data):
    return data["annotations"][0]["segments_info"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: segments_of(data).pop(), "pixels have the ids 3, which segments_info lacks"),
        (lambda data: segments_of(data).append({"id": 8, "category_id": CAT}), "lists the ids 8, which no pixel has"),
        (lambda data: segments_of(data).append({"id": 3, "category_id": CAT}), "lists an id twice"),
        (lambda data: segments_of(data)[0].pop("category_id"), "segment 1 lacks category_id"),
        (lambda data: segments_of(data)[0].update(category_id=2), "category 2, which the JSON lacks"),
        (lambda data: segments_of(data)[0].update(id=0), "segment id 0 is out of range; use 1 to 16777215"),
        (lambda data: data["images"][0].update(width=5), "is 4 x 4 pixels, but .* says 5 x 4 for image 1"),
        (lambda data: data["annotations"].append(data["annotations"][0]), "image 1: the image has two annotations"),
        (lambda data: data["annotations"][0].update(file_name="no.png"), "no.png: no such PNG"),
        (lambda data: data["annotations"][0].pop("file_name"), "image 1 lacks file_name"),
        (lambda data: data["categories"][0].pop("isthing"), "category 1 lacks isthing"),
        (lambda data: data["categories"][0].update(name="dog"), "same name"),
        (lambda data: data.pop("annotations"), "no list 'annotations'"),
        (lambda data: data.update(annotations=[{"image_id": 1, "bbox": [0, 0, 1, 1]}]), "is an instances file"),
    ],
)
def test_files_that_disagree_raise(tmp_path, change, message):
    path = write_set(tmp_path, {1: GROUND_TRUTH})
    edit(path, change)
    with pytest.raises(DataError, match=message) as raised:
        PanopticFiles(path).read(1)
    assert str(tmp_path) in str(raised.value)


def test_missing_or_damaged_files_raise(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        PanopticFiles(tmp_path / "panoptic.json")
    path = write_set(tmp_path, {1: GROUND_TRUTH})
    with pytest.raises(DataError, match="no such folder"):
        PanopticFiles(path, tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no annotation of image 2"):
        PanopticFiles(path).read(2)
    png = PanopticFiles(path).png(1)
    Image.fromarray(GROUND_TRUTH[0].astype(np.uint8)).save(png)
    with pytest.raises(DataError, match="is a 'L' image"):
        PanopticFiles(path).read(1)
    Image.effect_noise((40, 40), 90).convert("RGB").save(png)
    png.write_bytes(png.read_bytes()[: png.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        PanopticFiles(path).read(1)
    path.write_text("[")
    with pytest.raises(DataError, match="is not JSON"):
        PanopticFiles(path)


@pytest.mark.parametrize(
    ("ids", "segments", "message"),
    [
        (np.array([[1.0]]), [{"id": 1, "category_id": CAT}], "not float64"),
        (np.array([[256**3]]), [{"id": 256**3, "category_id": CAT}], "are out of range; use 0 to 16777215"),
        (np.array([[-1]]), [{"id": -1, "category_id": CAT}], "ids -1 to -1 are out of range"),
        (np.array([[1]]), [], "segments_info lacks"),
        (np.array([[0]]), [{"id": 1, "category_id": CAT}], "no pixel has"),
    ],
)
def test_invalid_ids_are_not_written(tmp_path, ids, segments, message):
    with pytest.raises(DataError, match=message):
        write_image(tmp_path, 1, ids, segments)
    assert not list(tmp_path.iterdir())


def test_each_image_needs_exactly_one_annotation(tmp_path):
    annotation = write_image(tmp_path / "p", 1, *GROUND_TRUTH)
    for annotations, images, message in (
        ([annotation, annotation], [1], "written twice"),
        ([annotation], [1, 2], "images 2 were not written"),
        ([annotation], [], "images 1 were written but"),
    ):
        with pytest.raises(DataError, match=message):
            write_json(tmp_path / "p.json", annotations, images=[{"id": i} for i in images], categories=CATEGORIES)
    assert not (tmp_path / "p.json").exists()


def test_prediction_and_ground_truth_must_have_the_same_images_and_categories(tmp_path):
    ground_truth = write_set(tmp_path, {1: GROUND_TRUTH, 2: GROUND_TRUTH}, name="ground_truth")
    one = write_set(tmp_path, {1: GROUND_TRUTH}, name="one")
    with pytest.raises(DataError, match="lacks 1 of the 2 images .* such as 2"):
        panoptic_quality(one, ground_truth)
    with pytest.raises(DataError, match="has image 2, which is not in the ground truth"):
        panoptic_quality(ground_truth, one)
    missing = panoptic_quality(one, ground_truth, allow_missing=True)
    assert missing["per_class"]["cat"] == pytest.approx({"PQ": 2 / 3, "SQ": 1, "RQ": 2 / 3, "tp": 2, "fp": 0, "fn": 2})
    assert missing["per_class"]["sky"] == pytest.approx({"PQ": 2 / 3, "SQ": 1, "RQ": 2 / 3, "tp": 1, "fp": 0, "fn": 1})

    places = [{"id": 0, "name": "cat", "isthing": 1}]
    other = write_set(tmp_path, {1: (np.ones((4, 4), int), [{"id": 1, "category_id": 0}])}, places, name="places")
    with pytest.raises(DataError, match="category 0, which is not in .*one"):
        panoptic_quality(other, one)
    small = write_set(tmp_path, {1: (GROUND_TRUTH[0][:3], GROUND_TRUTH[1])}, name="small")
    with pytest.raises(DataError, match="has 4 x 3 pixels, but the ground truth .* 4 x 4"):
        panoptic_quality(small, one)


# --- several processes


def test_several_processes_can_write_and_count(tmp_path):
    rng = np.random.default_rng(7)
    ground_truths = {image_id: random_panoptic(rng, crowd_share=0.1) for image_id in range(1, 41)}
    predictions = {image_id: disturbed(rng, *ground_truth) for image_id, ground_truth in ground_truths.items()}
    ground_truth = write_set(tmp_path, ground_truths, name="ground_truth")
    folders, maps, segments = [tmp_path / "predicted"] * 40, *zip(*predictions.values(), strict=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        annotations = list(pool.map(write_image, folders, predictions, maps, segments, chunksize=10))[::-1]
    images = json.loads(ground_truth.read_text())["images"]
    predicted = write_json(tmp_path / "predicted.json", annotations, images=images, categories=CATEGORIES)

    alone = panoptic_quality(predicted, ground_truth)
    agrees(alone, [as_lists((predictions[i], ground_truths[i])) for i in ground_truths], CATEGORIES)
    assert panoptic_quality(predicted, ground_truth, workers=1) == alone
    assert panoptic_quality(predicted, ground_truth, workers=2) == alone
    files = PanopticFiles(predicted), PanopticFiles(ground_truth)
    halves = [count_images(*files, files[1].image_ids[rank::2]) for rank in range(2)]
    assert quality(sum(halves), CATEGORIES)["all"] == pytest.approx(alone["all"], abs=1e-12)


def test_an_error_in_a_worker_process_names_the_file(tmp_path):
    path = write_set(tmp_path, {1: GROUND_TRUTH, 2: GROUND_TRUTH})
    (tmp_path / "panoptic" / "000000000002.png").unlink()
    with pytest.raises(DataError, match="000000000002.png: no such PNG"):
        panoptic_quality(path, path, workers=1)


# --- real images


@pytest.fixture(scope="module")
def real(shared_data):
    """COCO's panoptic JSON, its PNG folder, and the parsed JSON."""
    folder = shared_data / "coco_subset"
    return folder / "panoptic.json", folder / "panoptic", json.loads((folder / "panoptic.json").read_text())


def test_real_ground_truth_against_itself_is_perfect(real):
    path, _, data = real
    result = panoptic_quality(path, path)
    segments = [segment for annotation in data["annotations"] for segment in annotation["segments_info"]]
    whole = Counter(segment["category_id"] for segment in segments if not segment["iscrowd"])
    things = {category["id"] for category in data["categories"] if category["isthing"]}
    assert result["all"] == {**PERFECT, "n": len(whole)}
    assert result["things"] == {**PERFECT, "n": len(things & set(whole))}
    assert result["stuff"] == {**PERFECT, "n": len(set(whole) - things)}
    for category in data["categories"]:
        counts = result["per_class"][category["name"]]
        assert (counts["tp"], counts["fp"], counts["fn"]) == (whole[category["id"]], 0, 0)


def test_real_areas_and_boxes(real, tmp_path):
    path, folder, data = real
    files = PanopticFiles(path, folder)
    for annotation in data["annotations"][::20]:
        ids, segments = files.read(annotation["image_id"])
        written = write_image(tmp_path, annotation["image_id"], ids, segments)["segments_info"]
        assert [segment["area"] for segment in written] == [segment["area"] for segment in segments]
        assert read_ids(tmp_path / annotation["file_name"]).tolist() == ids.tolist()


def test_real_maps_agree_with_the_plain_loop(real, tmp_path):
    path, folder, data = real
    rng = np.random.default_rng(3)
    with_crowd = [a for a in data["annotations"] if any(segment["iscrowd"] for segment in a["segments_info"])]
    annotations = with_crowd[:4] + data["annotations"][:4]
    files, names = PanopticFiles(path, folder), [category["id"] for category in data["categories"]]
    predictions, pairs = {}, []
    for annotation in annotations:
        ids, segments = files.read(annotation["image_id"])
        moved = np.roll(ids, (9, 14), (0, 1))
        other = [{**s, "category_id": int(rng.choice(names))} if rng.random() < 0.1 else s for s in segments]
        predictions[annotation["image_id"]] = moved, other
        pixels = np.asarray(Image.open(folder / annotation["file_name"])).reshape(-1, 3).tolist()
        ground_truth = [r + 256 * g + 256 * 256 * b for r, g, b in pixels]
        pairs.append(((moved.ravel().tolist(), other), (ground_truth, segments)))
    few = tmp_path / "few.json"
    few.write_text(json.dumps({**data, "annotations": annotations}))
    measured = panoptic_quality(write_set(tmp_path, predictions, data["categories"]), (few, folder))
    assert 0.2 < measured["all"]["PQ"] < 0.8
    agrees(measured, pairs, data["categories"])


class RealEdit:
    """Twelve real images and a prediction that equals the ground truth but for one; `n` counts segments per class."""

    def __init__(self, real, tmp_path):
        path, self.folder, data = real
        self.tmp_path, self.categories = tmp_path, data["categories"]
        self.annotations = data["annotations"][:12]
        self.ground_truth = tmp_path / "ground_truth.json"
        self.ground_truth.write_text(json.dumps({**data, "annotations": self.annotations}))
        self.name_of = {category["id"]: category["name"] for category in data["categories"]}
        self.n = Counter(s["category_id"] for a in self.annotations for s in a["segments_info"] if not s["iscrowd"])
        self.ids, self.segments = PanopticFiles(self.ground_truth, self.folder).read(self.annotations[0]["image_id"])
        self.ids = self.ids.copy()
        self.target = max(self.segments, key=lambda segment: segment["area"])

    def score(self):
        image_id = self.annotations[0]["image_id"]
        images = {
            a["image_id"]: PanopticFiles(self.ground_truth, self.folder).read(a["image_id"]) for a in self.annotations
        }
        images[image_id] = self.ids, self.segments
        result = write_set(self.tmp_path, images, self.categories, name="edited")
        return panoptic_quality(result, (self.ground_truth, self.folder))

    def expect(self, pq):
        """Assert the PQ of the classes that the edit changes, `pq` by category; all others must be perfect."""
        result, classes = self.score(), set(self.n) | set(pq)
        for category, value in pq.items():
            assert result["per_class"][self.name_of[category]]["PQ"] == pytest.approx(value, abs=1e-12)
        total = sum(pq.get(category, 1.0) for category in classes)
        assert result["all"]["PQ"] == pytest.approx(total / len(classes), abs=1e-12)
        assert result["all"]["n"] == len(classes)


@pytest.fixture
def edited(real, tmp_path):
    return RealEdit(real, tmp_path)


def test_real_segment_split(edited):
    category, area = edited.target["category_id"], edited.target["area"]
    rows, columns = np.nonzero(edited.ids == edited.target["id"])
    part = area // 3
    edited.ids[rows[:part], columns[:part]] = 5
    edited.segments = [*edited.segments, {"id": 5, "category_id": category}]
    n = edited.n[category]
    edited.expect({category: (n - 1 + (area - part) / area) / (n + 0.5)})


def test_real_segment_removed(edited):
    category = edited.target["category_id"]
    edited.ids[edited.ids == edited.target["id"]] = 0
    edited.segments = [segment for segment in edited.segments if segment is not edited.target]
    n = edited.n[category]
    edited.expect({category: (n - 1) / (n - 1 + 0.5)})


def test_real_segment_of_a_wrong_class(edited):
    category = edited.target["category_id"]
    wrong = next(number for number in edited.n if number != category)
    edited.segments = [
        {**segment, "category_id": wrong} if segment is edited.target else segment for segment in edited.segments
    ]
    n, m = edited.n[category], edited.n[wrong]
    edited.expect({category: (n - 1) / (n - 1 + 0.5), wrong: m / (m + 0.5)})


def test_real_segment_over_void(edited):
    assert (edited.ids == 0).any()
    edited.ids[edited.ids == 0] = edited.target["id"]
    edited.expect({})


def test_real_segment_is_excused_if_more_than_half_is_void(edited):
    wrong = next(number for number in edited.n if number != edited.target["category_id"])
    void = np.argwhere(edited.ids == 0)[:40]
    inside = np.argwhere(edited.ids == edited.target["id"])[:40]
    area, n, m = edited.target["area"], edited.n[edited.target["category_id"]], edited.n[wrong]
    edited.ids[tuple(void.T)] = 5
    edited.ids[tuple(inside[:39].T)] = 5
    edited.segments = [*edited.segments, {"id": 5, "category_id": wrong}]
    edited.expect({edited.target["category_id"]: (n - 1 + (area - 39) / area) / n})  # 40 of 79 pixels are void
    edited.ids[tuple(inside[39])] = 5
    edited.expect({edited.target["category_id"]: (n - 1 + (area - 40) / area) / n, wrong: m / (m + 0.5)})  # 40 of 80


# --- merging


def instances(*rows):
    """Detections from (score, label, mask as rows of digits)."""
    masks = [[[digit == "1" for digit in row] for row in mask.split()] for _, _, mask in rows]
    return {
        "scores": torch.tensor([score for score, _, _ in rows]),
        "labels": torch.tensor([label for _, label, _ in rows]),
        "masks": torch.tensor(masks),
    }


def merged(detections, size, **settings):
    settings = PanopticConfig(**{"min_stuff_area": 0, **settings})
    ids, segments = merge_panoptic(detections, size=size, categories=CATEGORIES, settings=settings)
    assert ids.dtype == np.int32 and ids.shape == size
    return ["".join(map(str, row)) for row in ids.tolist()], {s["id"]: s["category_id"] for s in segments}


def test_instances_are_painted_by_score():
    detections = instances((0.9, 0, "11100 11100"), (0.8, 1, "00111 00111"), (0.4, 2, "11111 11111"))
    assert merged(detections, (2, 5)) == (["11122", "11122"], {1: CAT, 2: DOG})
    turned = instances((0.8, 1, "00111 00111"), (0.9, 0, "11100 11100"))  # whatever their order
    assert merged(turned, (2, 5)) == (["11122", "11122"], {1: CAT, 2: DOG})


def test_scores_equal_to_the_threshold_are_kept():
    detections = instances((0.5, 0, "10"), (0.25, 1, "01"))
    assert merged(detections, (1, 2), score_threshold=0.5) == (["10"], {1: CAT})
    assert merged(detections, (1, 2), score_threshold=0.25) == (["12"], {1: CAT, 2: DOG})
    assert merged(detections, (1, 2), score_threshold=1.0) == (["00"], {})


def test_instances_that_are_mostly_covered_are_dropped():
    first = (0.9, 0, "11100000")
    assert merged(instances(first, (0.8, 1, "01111000")), (1, 8)) == (["11122000"], {1: CAT, 2: DOG})  # exactly half
    assert merged(instances(first, (0.8, 1, "11110000")), (1, 8)) == (["11100000"], {1: CAT})  # 3 of 4
    strict = merged(instances(first, (0.8, 1, "01111000")), (1, 8), overlap_threshold=0.25)
    assert strict == (["11100000"], {1: CAT})
    # a dropped instance covers no pixels of the next one
    after = instances(first, (0.8, 1, "11110000"), (0.7, 0, "00011000"))
    assert merged(after, (1, 8)) == (["11122000"], {1: CAT, 2: CAT})
    hidden = instances(first, (0.8, 1, "11100000"))
    assert merged(hidden, (1, 8), overlap_threshold=1.0) == (["11100000"], {1: CAT})  # no pixel, no segment
    assert merged(instances((0.9, 0, "0000")), (1, 4)) == (["0000"], {})


def test_stuff_of_one_class_is_one_segment():
    detections = instances((0.9, 2, "110000"), (0.8, 3, "000011"), (0.7, 2, "111100"), (0.6, 2, "000110"))
    # the third has half of its pixels in its own segment and none in others; half of the fourth is covered by the sea
    assert merged(detections, (1, 6)) == (["111122"], {1: SKY, 2: SEA})
    own = instances((0.9, 2, "111000"), (0.8, 2, "111100"))  # 3 of 4 are covered, but by its own segment
    assert merged(own, (1, 6)) == (["111100"], {1: SKY})
    things = instances((0.9, 0, "1100"), (0.8, 0, "0011"))
    assert merged(things, (1, 4)) == (["1122"], {1: CAT, 2: CAT})


def test_small_stuff_becomes_void_but_small_things_stay():
    detections = instances((0.9, 0, "10000000"), (0.8, 2, "01100000"), (0.7, 3, "00011100"), (0.6, 2, "00000010"))
    assert merged(detections, (1, 8), min_stuff_area=3) == (["12233320"], {1: CAT, 2: SKY, 3: SEA})  # sky is 2 + 1
    assert merged(detections, (1, 8), min_stuff_area=4) == (["10000000"], {1: CAT})


def test_merging_has_the_usual_defaults_and_accepts_no_detections():
    assert PanopticConfig() == PanopticConfig(score_threshold=0.5, overlap_threshold=0.5, min_stuff_area=4096)
    none = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 2, 3).bool()}
    assert merged(none, (2, 3)) == (["000", "000"], {})


def test_merging_raises_on_invalid_input():
    detections = instances((0.9, 0, "11"))
    with pytest.raises(ValueError, match="for an image of"):
        merged(detections, (2, 2))
    with pytest.raises(ValueError, match="labels 4 to 4 for 4 categories"):
        merged(instances((0.9, 4, "11")), (1, 2))
    with pytest.raises(ValueError, match="without masks"):
        merged({"scores": detections["scores"], "labels": detections["labels"]}, (1, 2))
    with pytest.raises(ValueError, match="score_threshold"):
        PanopticConfig(score_threshold=50)
    with pytest.raises(ValueError, match="min_stuff_area"):
        PanopticConfig(min_stuff_area=-1)


def test_a_merged_result_is_written_and_scored(tmp_path):
    detections = instances((0.9, 0, "111000 111000"), (0.8, 3, "001111 001111"))
    settings = PanopticConfig(min_stuff_area=4)
    merged_image = merge_panoptic(detections, size=(2, 6), categories=CATEGORIES, settings=settings)
    result = write_set(tmp_path, {1: merged_image}, name="merged")
    ground_truth = write_set(tmp_path, {1: panoptic("110222 110222", _1=CAT, _2=SEA)}, name="ground_truth")
    # cat: 6 pixels of which 2 are void; sea: 3 + 3 exactly
    assert panoptic_quality(result, ground_truth)["all"] == {**PERFECT, "n": 2}
