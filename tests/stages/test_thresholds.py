"""Choosing the threshold of the pseudo labels: quality counted by hand, proposals with a reason, numbers per class."""

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from cassl_lib.config import THRESHOLD
from cassl_lib.data import datasets
from cassl_lib.data.coco import CocoImages
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import resolve
from cassl_lib.stages import pseudo_labels, requests, warmup
from cassl_lib.stages.graph import obtain
from cassl_lib.stages.thresholds import by_class, propose_by_count, propose_threshold, quality_at, recall_by_class

CLASSES = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}, {"id": 9, "name": "eel"}]


def square(place: int) -> list[float]:
    """Boxes at different places do not touch."""
    return [20 * place, 0, 20 * place + 10, 10]


@pytest.fixture
def images(tmp_path) -> CocoImages:
    """Image 1: cats at 0, 1, 2 and a dog at 3. Image 2: a cat at 0. No eel."""
    (tmp_path / "images").mkdir()
    objects = [(1, 0, 3), (1, 1, 3), (1, 2, 3), (1, 3, 8), (2, 0, 3)]
    annotations = [
        {"id": n, "image_id": image, "category_id": kind, "bbox": [20 * place, 0, 10, 10], "area": 100, "iscrowd": 0}
        for n, (image, place, kind) in enumerate(objects, start=1)
    ]
    listed = [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 100} for number in (1, 2)]
    for image in listed:
        Image.new("RGB", (100, 20)).save(tmp_path / "images" / image["file_name"])
    coco = {"images": listed, "annotations": annotations, "categories": CLASSES}
    (tmp_path / "ground_truth.json").write_text(json.dumps(coco))
    return CocoImages(tmp_path / "ground_truth.json", tmp_path / "images")


@pytest.fixture
def labels(tmp_path) -> PseudoLabelStore:
    """Image 1: cats detected at 0 (0.9) and 1 (0.6), the dog at 3 (0.35), a false cat at 4 (0.5). Image 2: nothing."""
    boxes, scores, kinds = [square(n) for n in (0, 1, 3, 4)], [0.9, 0.6, 0.35, 0.5], [0, 0, 1, 0]
    rows = [
        {
            "image_id": 1,
            "file_name": "1",
            "height": 20,
            "width": 100,
            "boxes": boxes,
            "scores": scores,
            "labels": kinds,
        },
        {"image_id": 2, "file_name": "2", "height": 20, "width": 100, "boxes": [], "scores": []},
    ]
    write_shard(tmp_path / "store", 0, rows, "m")
    finish(tmp_path / "store", labeler="m", pool="p", categories=CLASSES)
    return PseudoLabelStore(tmp_path / "store")


def test_quality_matches_hand_counts(labels, images):
    low, middle, high = quality_at(labels, images, (0.3, 0.55, 0.7))
    # above 0.3: four labels, three of them correct, five objects
    assert (low["precision"], low["recall"], low["labels_per_image"]) == (3 / 4, 3 / 5, 2)
    assert low["f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert (middle["precision"], middle["recall"]) == (1, 2 / 5)
    assert (high["precision"], high["recall"], high["labels_per_image"]) == (1, 1 / 5, 0.5)


def test_the_proposal_has_the_best_f1_and_a_reason(labels, images):
    proposal = propose_threshold(quality_at(labels, images, (0.3, 0.34, 0.55, 0.7, 0.95)))
    assert proposal.threshold == 0.3
    assert "0.667 (precision 0.750, recall 0.600, 2.0 labels per image)" in proposal.reason
    assert "from 0.3 to 0.34" in proposal.reason  # equally good
    assert str(proposal) == f"threshold 0.3: {proposal.reason}"


def test_no_labels_at_all_are_not_a_division_by_zero(labels, images):
    (row,) = quality_at(labels, images, (0.95,))
    assert (row["precision"], row["recall"], row["f1"], row["labels_per_image"]) == (0, 0, 0, 0)
    proposal = propose_threshold([row | {"threshold": 0.9}, row])
    assert proposal.threshold == 0.95 and "no label matches an object" in proposal.reason


def test_recall_by_class_ignores_the_labels_own_class(labels, images):
    """2 of 4 cats above 0.55, the dog only above 0.3; there is no eel."""
    rows = recall_by_class(labels, images, 0.55)
    counts = {row["name"]: (row["objects"], row["matched"], row["recall"]) for row in rows}
    assert counts == {"cat": (4, 2, 0.5), "dog": (1, 0, 0), "eel": (0, 0, None)}
    assert recall_by_class(labels, images, 0.3)[1] == {"name": "dog", "objects": 1, "matched": 1, "recall": 1}


def test_without_ground_truth_the_number_of_labels_per_image_decides(labels, images):
    proposal = propose_by_count(labels, images, (0.3, 0.4, 0.55, 0.7))  # 5 objects on 2 images; 2, 1.5, 1, 0.5 kept
    assert proposal.threshold == 0.3 and "2.0 labels per image, closest to the 2.5" in proposal.reason
    assert "heldout=" in proposal.reason


def test_each_class_has_its_own_best_threshold(labels, images):
    cat, dog, eel = by_class(labels, images, threshold=0.55, thresholds=(0.3, 0.4, 0.55, 0.7))
    # cats above 0.55: 2 labels, both correct, 4 objects: 2 * 2 / (2 + 4); above 0.4 there is a false one too
    assert cat == {"name": "cat", "objects": 4, "labels": 2, "f1": 2 / 3, "best_threshold": 0.55, "best_f1": 2 / 3}
    # the dog is lost at 0.55
    assert dog == {"name": "dog", "objects": 1, "labels": 0, "f1": 0, "best_threshold": 0.3, "best_f1": 1}
    assert eel == {"name": "eel", "objects": 0, "labels": 0, "f1": None, "best_threshold": None, "best_f1": None}


def test_labels_match_only_objects_of_their_class(labels, images, tmp_path):
    """With the dog's box labeled as a cat, it is a false cat and the dog is missed."""
    rows = [{**labels.at(0)[0], "labels": [0, 0, 0, 0]}, labels.at(0)[1]]
    write_shard(tmp_path / "other", 0, rows, "m")
    finish(tmp_path / "other", labeler="m", pool="p", categories=CLASSES)
    cat, dog, _ = by_class(PseudoLabelStore(tmp_path / "other"), images, threshold=0.3, thresholds=(0.3,))
    assert cat["labels"] == 4 and cat["f1"] == 2 * 2 / (4 + 4) and dog["f1"] == 0


def test_labels_of_other_classes_raise(labels, images):
    images.classes = ["dog"]
    with pytest.raises(DataError, match=r"its classes .*'cat'.* are not those of .*ground_truth.json"):
        by_class(labels, images, threshold=0.5)


def test_the_scenes_have_held_out_images_that_no_stage_sees():
    config = resolve(profile="smoke")
    run = obtain(requests.pseudo_labels(config))
    labels, images = pseudo_labels.heldout_labels(config, run)
    assert len(labels) == len(images) == 4 and images.path == datasets.tuning_set(config).path
    assert labels.labeler == run.inputs["pseudo_labeler"]
    assert {labels.image_id(n) for n in range(4)} == set(images.ids.tolist())
    entities = replace(config, annotation="entities")
    assert len(pseudo_labels.heldout_labels(entities, run)[1].boxes) > len(images.boxes)  # things and stuff


def test_class_specific_labels_must_have_the_class_of_the_object(labels, images, tmp_path):
    """The dog at 0.35 is labeled as a cat: of 3 labels above 0.3 that touch an object, 2 are right, of 5 objects."""
    rows = [{**labels.at(0)[0], "labels": [0, 0, 0, 0]}, labels.at(0)[1]]
    for name, categories in (("specific", CLASSES), ("agnostic", [{"id": 1, "name": "object"}])):
        write_shard(tmp_path / name, 0, rows, "m")
        finish(tmp_path / name, labeler="m", pool="p", categories=categories)
    specific, agnostic = (
        quality_at(PseudoLabelStore(tmp_path / name), images, (0.3,))[0] for name in ("specific", "agnostic")
    )
    assert (specific["precision"], specific["recall"]) == (2 / 4, 2 / 5)
    assert (agnostic["precision"], agnostic["recall"]) == (3 / 4, 3 / 5)
    assert specific["f1"] == pytest.approx(2 * 2 / (4 + 5)) and specific["labels_per_image"] == 2


def test_each_labeler_gets_the_threshold_that_is_best_on_held_out_images(monkeypatch):
    config = resolve(profile="smoke")
    run = obtain(requests.pseudo_labels(config))
    assert config.pseudo_labels.threshold is None
    best = propose_threshold(quality_at(*pseudo_labels.heldout_labels(config, run))).threshold
    assert pseudo_labels.threshold_of(config, run) == best == run.result["metrics"]["threshold"]
    monkeypatch.setattr(pseudo_labels, "quality_at", lambda *_: [{**FLAT, "threshold": 0.35}])
    assert warmup.store_of(requests.warmup(config, run)).threshold == 0.35  # what the warm-up reads
    given = resolve(profile="smoke", threshold=0.6)
    assert pseudo_labels.threshold_of(given, run) == 0.6
    assert pseudo_labels.threshold_of(replace(config, heldout=None), run) == THRESHOLD  # nothing to choose on
    assert pseudo_labels.threshold_of(config, None) == THRESHOLD  # a store from elsewhere


FLAT = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "labels_per_image": 1.0}


def test_heldout_images_may_not_be_trained_or_reported_on(images, tmp_path):
    labeled = datasets.labeled_set(resolve(profile="smoke"))
    val = datasets.validation_set(resolve(profile="smoke"))
    own = {name: f"{each.path}{os.pathsep}{each.folder}" for name, each in (("labeled", labeled), ("val", val))}
    for name, spec in own.items():
        with pytest.raises(ConfigError, match=f"^heldout=.* is also {name}"):
            resolve(profile="smoke", **own, heldout=spec)
    copy = tmp_path / "copy.json"
    copy.write_bytes(val.path.read_bytes())
    config = resolve(profile="smoke", **own, heldout=f"{copy}{os.pathsep}{val.folder}")
    with pytest.raises(DataError, match="12 of its images are also in val, such as .*jpg"):
        datasets.heldout_set(config)
    assert datasets.heldout_set(resolve(profile="smoke", **own)) is None
    apart = resolve(profile="smoke", **own, heldout=f"{images.path}{os.pathsep}{images.folder}")
    assert len(datasets.heldout_set(apart)) == 2
