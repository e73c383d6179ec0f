"""Precision, recall and scores of detections: counted by hand, drawn as counted."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cassl_lib import plotting
from cassl_lib.evaluation.matching import label_quality


def square(left, side=10):
    return [left, 0, left + side, 10]


# Two images; by falling score: right, right, wrong (alone), wrong (a second box of the first object), right at IoU 0.6.
FOUND = [
    {"boxes": np.array([square(0), square(0), square(70)]), "scores": np.array([0.91, 0.61, 0.71])},
    {"boxes": np.array([square(20, 6), square(40)]), "scores": np.array([0.51, 0.81])},
]
TRUTH = [{"boxes": np.array([square(0)])}, {"boxes": np.array([square(20), square(40), square(60)])}]


def test_the_curve_by_hand():
    recall, precision = plotting.match_curve(FOUND, TRUTH)
    np.testing.assert_allclose(recall, [1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 2 / 4, 3 / 5])


def test_the_envelope_is_the_best_precision_from_there_on():
    recall, precision = plotting.match_curve(FOUND, TRUTH, envelope=True)
    np.testing.assert_allclose(recall, [1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 3 / 5, 3 / 5])


def test_a_higher_iou_is_stricter():
    recall, precision = plotting.match_curve(FOUND, TRUTH, 0.75)
    assert recall[-1] == 2 / 4 and precision[-1] == 2 / 5


def test_the_end_of_the_curve_is_the_ratio_of_counts_of_the_same_matching():
    rng = np.random.default_rng(0)
    truth = [{"boxes": np.concatenate([corner, corner + 30], 1)} for corner in rng.uniform(0, 90, (6, 8, 2))]
    found = [{"boxes": each["boxes"] + rng.normal(0, 5, (8, 4)), "scores": rng.random(8)} for each in truth]
    recall, precision = plotting.match_curve(found, truth)
    counts = label_quality(dict(enumerate(found)), {n: each["boxes"] for n, each in enumerate(truth)})
    assert 0 < counts["matched"] < 48
    assert (recall[-1], precision[-1]) == (counts["recall"], counts["precision"])


@pytest.mark.parametrize("envelope", [False, True])
def test_curves_where_there_is_nothing(envelope):
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}
    for found, truth in (([], []), ([nothing], TRUTH[:1])):
        recall, precision = plotting.match_curve(found, truth, envelope=envelope)
        assert recall.shape == precision.shape == (0,)
    recall, precision = plotting.match_curve(FOUND[:1], [nothing], envelope=envelope)
    assert recall.tolist() == precision.tolist() == [0, 0, 0]


def test_tensors_count_as_arrays_do():
    found = [{name: torch.tensor(value) for name, value in each.items()} for each in FOUND]
    np.testing.assert_array_equal(plotting.match_curve(found, TRUTH), plotting.match_curve(FOUND, TRUTH))


def test_images_without_partner_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        plotting.match_curve(FOUND, TRUTH[:1])


def test_curves_are_drawn_as_given():
    curves = {"mine": plotting.match_curve(FOUND, TRUTH), "other": ([0.1, 0.2], [1.0, 0.5]), "none": ([], [])}
    axis = plotting.precision_recall(curves).axes[0]
    assert {line.get_label(): len(line.get_xdata()) for line in axis.lines} == {"mine": 5, "other": 2, "none": 0}
    assert axis.lines[1].get_xydata().tolist() == [[0.1, 1], [0.2, 0.5]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("recall", "precision")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["mine", "other", "none"]
    assert plotting.precision_recall({}).axes[0].get_legend() is None


def test_scores_of_right_and_wrong_lie_over_each_other():
    axis = plotting.scores_by_match(FOUND, TRUTH, threshold=0.65).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["right: 3", "wrong: 2"]
    assert axis.get_title(loc="right") == "above 0.65: 2 right, 1 wrong"
    right, _, wrong, _ = (patch.get_data() for patch in axis.patches)  # filled, then outlined
    assert right.values.sum() == 3 and wrong.values.sum() == 2
    assert right.values[[25, 40, 45]].tolist() == [1, 1, 1]  # bins of 0.02: from 0.5, 0.8, 0.9
    assert wrong.values[[30, 35]].tolist() == [1, 1]
    assert plotting.scores_by_match([], []).axes[0].get_title(loc="right") == ""


def test_pyplot_stays_unloaded():
    code = (
        "import sys; from cassl_lib import plotting; plotting.scores_by_match([], [])._repr_png_(); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in run.stdout.split() and "matplotlib.pyplot" not in run.stdout.split()
