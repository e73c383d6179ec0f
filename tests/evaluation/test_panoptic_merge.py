"""Merging detections into panoptic segments, by hand."""

import numpy as np
import pytest
import torch
from small_panoptic import CAT, CATEGORIES, DOG, PERFECT, SEA, SKY, panoptic, write_set

from cassl_lib.config import PanopticConfig
from cassl_lib.evaluation.panoptic_merge import merge_panoptic
from cassl_lib.evaluation.panoptic_quality import panoptic_quality


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
