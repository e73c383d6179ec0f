"""Precision, recall and scores of detections, compared with counts by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cassl_lib import plotting
from cassl_lib.evaluation.matching import label_quality


def square(left, side=10):
    return [left, 0, left + side, 10]


# Two images. By descending score: correct, correct, false positive (no object), false positive (a duplicate of the
# first object), correct at IoU 0.6.
DETECTIONS = [
    {"boxes": np.array([square(0), square(0), square(70)]), "scores": np.array([0.91, 0.61, 0.71])},
    {"boxes": np.array([square(20, 6), square(40)]), "scores": np.array([0.51, 0.81])},
]
GROUND_TRUTH = [{"boxes": np.array([square(0)])}, {"boxes": np.array([square(20), square(40), square(60)])}]


def test_match_curve_equals_the_curve_computed_by_hand():
    recall, precision = plotting.match_curve(DETECTIONS, GROUND_TRUTH)
    np.testing.assert_allclose(recall, [1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 2 / 4, 3 / 5])


def test_envelope_is_the_highest_precision_at_that_recall_or_above():
    recall, precision = plotting.match_curve(DETECTIONS, GROUND_TRUTH, envelope=True)
    np.testing.assert_allclose(recall, [1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 3 / 5, 3 / 5])


def test_a_higher_iou_threshold_matches_fewer_boxes():
    recall, precision = plotting.match_curve(DETECTIONS, GROUND_TRUTH, 0.75)
    assert recall[-1] == 2 / 4 and precision[-1] == 2 / 5


def test_the_last_point_of_the_curve_equals_label_quality():
    rng = np.random.default_rng(0)
    ground_truth = [{"boxes": np.concatenate([corner, corner + 30], 1)} for corner in rng.uniform(0, 90, (6, 8, 2))]
    detections = [{"boxes": each["boxes"] + rng.normal(0, 5, (8, 4)), "scores": rng.random(8)} for each in ground_truth]
    recall, precision = plotting.match_curve(detections, ground_truth)
    counts = label_quality(dict(enumerate(detections)), {n: each["boxes"] for n, each in enumerate(ground_truth)})
    assert 0 < counts["matched"] < 48
    assert (recall[-1], precision[-1]) == (counts["recall"], counts["precision"])


@pytest.mark.parametrize("envelope", [False, True])
def test_match_curve_without_images_detections_or_objects(envelope):
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}
    for detections, ground_truth in (([], []), ([nothing], GROUND_TRUTH[:1])):
        recall, precision = plotting.match_curve(detections, ground_truth, envelope=envelope)
        assert recall.shape == precision.shape == (0,)
    recall, precision = plotting.match_curve(DETECTIONS[:1], [nothing], envelope=envelope)
    assert recall.tolist() == precision.tolist() == [0, 0, 0]


def test_tensors_give_the_same_curve_as_arrays():
    detections = [{name: torch.tensor(value) for name, value in each.items()} for each in DETECTIONS]
    np.testing.assert_array_equal(
        plotting.match_curve(detections, GROUND_TRUTH), plotting.match_curve(DETECTIONS, GROUND_TRUTH)
    )


def test_match_curve_raises_if_the_numbers_of_images_differ():
    with pytest.raises(ValueError, match="shorter"):
        plotting.match_curve(DETECTIONS, GROUND_TRUTH[:1])


def test_precision_recall_draws_the_given_curves():
    curves = {
        "mine": plotting.match_curve(DETECTIONS, GROUND_TRUTH),
        "other": ([0.1, 0.2], [1.0, 0.5]),
        "none": ([], []),
    }
    axis = plotting.precision_recall(curves).axes[0]
    assert {line.get_label(): len(line.get_xdata()) for line in axis.lines} == {"mine": 5, "other": 2, "none": 0}
    assert axis.lines[1].get_xydata().tolist() == [[0.1, 1], [0.2, 0.5]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("recall", "precision")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["mine", "other", "none"]
    assert plotting.precision_recall({}).axes[0].get_legend() is None


def test_scores_of_true_and_false_positives_are_drawn_in_one_histogram():
    figure = plotting.scores_by_match(DETECTIONS, GROUND_TRUTH, threshold=0.65)
    axis = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true positives: 3", "false positives: 2"]
    assert axis.get_title(loc="right") == "score > 0.65: 2 true and 1 false positives"
    true, _, false, _ = (patch.get_data() for patch in axis.patches)  # filled, then outlined
    assert true.values.sum() == 3 and false.values.sum() == 2
    assert true.values[[25, 40, 45]].tolist() == [1, 1, 1]  # bins of 0.02: from 0.5, 0.8, 0.9
    assert false.values[[30, 35]].tolist() == [1, 1]
    assert plotting.scores_by_match([], []).axes[0].get_title(loc="right") == ""


def test_drawing_histograms_does_not_import_pyplot():
    code = (
        "import sys; from cassl_lib import plotting; plotting.scores_by_match([], [])._repr_png_(); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in run.stdout.split() and "matplotlib.pyplot" not in run.stdout.split()
