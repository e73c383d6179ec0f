"""Panoptic quality: hand-counted cases, a plain-loop derivation, files, several processes, real images."""

import json
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from PIL import Image
from small_panoptic import (
    CAT,
    CATEGORIES,
    DOG,
    GROUND_TRUTH,
    PERFECT,
    SEA,
    SKY,
    agrees,
    as_lists,
    disturbed,
    panoptic,
    random_panoptic,
    write_set,
)

from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.data.panoptic_writer import write_image, write_json
from cassl_lib.errors import DataError
from cassl_lib.evaluation.panoptic_quality import count_images, image_counts, panoptic_quality, quality


def counts_of(predicted, ground_truth):
    """{category: (sum of IoU, TP, FP, FN)} of one image by the code under test, without categories that are all 0."""
    ids = [category["id"] for category in CATEGORIES]
    rows = image_counts(predicted, ground_truth, category_ids=ids)
    return {category: tuple(row) for category, row in zip(ids, rows.tolist(), strict=True) if any(row)}


def score(*images):
    ids = [category["id"] for category in CATEGORIES]
    return quality(sum(image_counts(p, t, category_ids=ids) for p, t in images), CATEGORIES)


# --- the definition, by hand


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


@pytest.mark.parametrize("seed", range(6))
def test_random_maps_agree_with_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    ground_truths = [random_panoptic(rng, crowd_share=0.25) for _ in range(20)]
    pairs = [(disturbed(rng, *ground_truth), ground_truth) for ground_truth in ground_truths]
    measured = score(*pairs)
    assert 0.1 < measured["all"]["PQ"] < 0.9
    agrees(measured, [as_lists(pair) for pair in pairs], CATEGORIES)


# --- files


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
