"""Evaluation of a detector: size ranges, panoptic quality, and its score threshold chosen on held-out images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_panoptic import CATEGORIES, disturbed, plain_quality, random_panoptic, write_set

from cassl_lib.config import AugmentConfig, PanopticConfig, TrainConfig
from cassl_lib.data.entities import EntityImages
from cassl_lib.evaluation import evaluate
from cassl_lib.evaluation.detector import choose_panoptic_threshold, coco_results, evaluate_detector
from cassl_lib.evaluation.panoptic_detections import THRESHOLDS, best_threshold
from cassl_lib.evaluation.panoptic_merge import merge_panoptic
from cassl_lib.training import distributed

SIZE = (28, 35)
SETTINGS = PanopticConfig(score_threshold=None, min_stuff_area=0)
OPTIONS = dict(augment=AugmentConfig(test_size=28, longest=35), training=TrainConfig(workers=0))


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))


class Replayed(torch.nn.Module):
    """Returns given detections by the gray value of the image, which is its id."""

    def __init__(self, detections):
        super().__init__()
        self.weight, self.config = torch.nn.Parameter(torch.ones(1)), SimpleNamespace(masks=True)
        self.detections, self.calls = detections, 0

    def predict(self, images, sizes):
        self.calls += len(images)
        return [self.detections[int(image.float().mean().round())] for image in images]


def random_detections(rng, ids, segments):
    """Disturbed ground truth with higher scores, and random squares of random classes with lower ones."""
    label_of = {category["id"]: label for label, category in enumerate(CATEGORIES)}
    moved, kept = disturbed(rng, ids, segments)
    masks = [moved == segment["id"] for segment in kept]
    labels = [label_of[segment["category_id"]] for segment in kept]
    scores = rng.uniform(0.3, 0.9, len(kept)).tolist()
    for _ in range(4):
        top, left = rng.integers(0, 20, 2)
        masks.append(np.zeros(SIZE, bool))
        masks[-1][top : top + 8, left : left + 12] = True
        labels.append(int(rng.integers(0, 4)))
        scores.append(float(rng.uniform(0.1, 0.6)))
    order = np.argsort(scores)[::-1]
    return {
        "boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(len(scores), 1),
        "scores": torch.tensor(scores)[order.copy()],
        "labels": torch.tensor(labels)[order.copy()],
        "masks": torch.from_numpy(np.stack(masks)[order]),
    }


def make_set(folder, rng, image_ids):
    """Panoptic images on disk, their ground truth by id, and a detector's detections of them by id."""
    ground_truth = {image_id: random_panoptic(rng, crowd_share=0.1) for image_id in image_ids}
    path = write_set(folder, ground_truth)
    (folder / "images").mkdir()
    for image_id in image_ids:
        Image.new("RGB", SIZE[::-1], (image_id,) * 3).save(folder / "images" / f"{image_id}.jpg")
    detections = {image_id: random_detections(rng, *pair) for image_id, pair in ground_truth.items()}
    return EntityImages(path, folder / "images"), ground_truth, detections


def qualities_by_loop(ground_truth, detections, thresholds):
    qualities = {}
    for threshold in thresholds:
        pairs = []
        for image_id, (ids, segments) in ground_truth.items():
            settings = replace(SETTINGS, score_threshold=threshold)
            merged = merge_panoptic(detections[image_id], size=SIZE, categories=CATEGORIES, settings=settings)
            pairs.append(((merged[0].ravel().tolist(), merged[1]), (ids.ravel().tolist(), segments)))
        qualities[threshold] = plain_quality(pairs, CATEGORIES)[0]["all"]["PQ"]
    return qualities


@pytest.mark.parametrize("seed", [0, 1])
def test_the_chosen_threshold_has_the_best_panoptic_quality(tmp_path, seed):
    heldout, ground_truth, detections = make_set(tmp_path / "set", np.random.default_rng(seed), range(1, 7))
    detector = Replayed(detections)
    chosen, qualities = choose_panoptic_threshold(
        detector, heldout, settings=SETTINGS, folder=tmp_path / "kept", **OPTIONS
    )
    assert detector.calls == len(heldout) == 6  # detected once, merged eleven times
    assert list(qualities) == list(THRESHOLDS) == pytest.approx([0.2 + 0.05 * step for step in range(11)])
    assert qualities == pytest.approx(qualities_by_loop(ground_truth, detections, THRESHOLDS), abs=1e-12)
    assert len(set(qualities.values())) > 5
    best = None
    for threshold in THRESHOLDS:
        if best is None or qualities[threshold] >= qualities[best]:
            best = threshold
    assert chosen == best and qualities[chosen] == max(qualities.values())
    assert not (tmp_path / "kept").exists()


def test_of_equally_good_thresholds_the_highest_is_chosen(tmp_path):
    assert best_threshold({0.2: 0.1, 0.3: 0.4, 0.4: 0.4, 0.5: 0.3}) == 0.4
    assert best_threshold({0.4: 0.4, 0.3: 0.4, 0.2: 0.1}) == 0.4
    heldout, _, detections = make_set(tmp_path / "set", np.random.default_rng(0), range(1, 3))
    certain = {image_id: each | {"scores": each["scores"] * 0 + 0.9} for image_id, each in detections.items()}
    options = OPTIONS | {"settings": SETTINGS, "folder": tmp_path / "kept"}
    chosen, qualities = choose_panoptic_threshold(Replayed(certain), heldout, **options)
    assert len(set(qualities.values())) == 1 and chosen == 0.7
    chosen, qualities = choose_panoptic_threshold(Replayed(certain), heldout, thresholds=(0.8, 0.3), **options)
    assert chosen == 0.8 and list(qualities) == [0.8, 0.3]


def test_a_detector_is_evaluated_at_the_threshold_chosen_on_held_out_images(tmp_path):
    rng = np.random.default_rng(3)
    val, _, detections = make_set(tmp_path / "val", rng, range(1, 5))
    heldout, _, others = make_set(tmp_path / "heldout", rng, range(5, 9))
    detector = Replayed(detections | others)
    chosen, _ = choose_panoptic_threshold(detector, heldout, settings=SETTINGS, folder=tmp_path / "kept", **OPTIONS)
    assert chosen != 0.5

    def evaluated(threshold, **options):
        settings = replace(SETTINGS, score_threshold=threshold)
        return evaluate_detector(
            detector, val, classes=True, panoptic=settings, folder=tmp_path / "run", **OPTIONS, **options
        )

    fixed, at_half = evaluated(chosen), evaluated(0.5)
    assert set(fixed["panoptic"]) == {"PQ", "SQ", "RQ"} and fixed["panoptic"] != at_half["panoptic"]
    for options, expected, threshold in (({"heldout": heldout}, fixed, chosen), ({}, at_half, 0.5)):
        measured = evaluated(None, **options)
        assert measured["panoptic"].pop("score_threshold") == threshold
        assert measured == expected
    assert evaluated(0.5, heldout=heldout) == at_half  # a given threshold is kept
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["panoptic", "panoptic.json"]


def test_all_processes_detect_and_the_first_one_chooses(tmp_path, monkeypatch):
    heldout, _, detections = make_set(tmp_path / "set", np.random.default_rng(0), range(1, 6))
    expected = choose_panoptic_threshold(
        Replayed(detections), heldout, settings=SETTINGS, folder=tmp_path / "one", **OPTIONS
    )
    monkeypatch.setattr(distributed, "of_all_processes", lambda value, world: [value] * world)
    counts = []
    for rank in (1, 0):
        monkeypatch.setattr(distributed, "rank_and_world", lambda rank=rank: (rank, 2))
        detector = Replayed(detections)
        chosen = choose_panoptic_threshold(detector, heldout, settings=SETTINGS, folder=tmp_path / "two", **OPTIONS)
        counts.append(detector.calls)
        assert chosen == (None if rank else expected)
    assert counts == [2, 3]


@pytest.mark.parametrize("side", [None, 128])
def test_all_of_a_detectors_numbers_use_the_size_ranges_of_the_side(tmp_path, side):
    """Entities of 28 x 35 pixels are all small by COCO's limits; at a side of 128 small ends at 6.4 pixels."""
    val, _, detections = make_set(tmp_path / "val", np.random.default_rng(4), range(1, 7))
    metrics = evaluate_detector(
        Replayed(detections), val, classes=True, folder=tmp_path / "run", **OPTIONS, **({"side": side} if side else {})
    )
    assert list(metrics) == ["box", "box_agnostic", "mask", "mask_agnostic"]
    results = [each for i in val.ids.tolist() for each in coco_results(i, detections[i], val.category_ids)]
    for name, iou_type in (("box", "bbox"), ("mask", "segm")):
        kept = [{k: v for k, v in result.items() if iou_type == "bbox" or k != "bbox"} for result in results]
        for kind, agnostic in ((name, False), (f"{name}_agnostic", True)):
            assert metrics[kind] == evaluate(kept, val.ground_truth(), iou_type, agnostic, side=side)
            assert (metrics[kind]["ARm"] >= 0) == (side is not None) and metrics[kind]["ARl"] == -1 or side
