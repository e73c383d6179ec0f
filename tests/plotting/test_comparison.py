"""Detections compared on the same images: matches by hand, one color per object, marks for changes, names apart."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.path import Path as Outline
from test_plots import assert_apart, images

from cassl_lib import plotting
from cassl_lib.plotting import overlays
from cassl_lib.plotting.changes import judge

NAMES = ["cat", "dog"]
A, B, C, D = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]


def test_detections_are_correct_of_a_wrong_class_or_false_positives():
    """Objects: a cat in A, a dog in B, one without a class in C.

    The cat is detected twice: the box with its class is matched although the other has the higher score, which then
    is a false positive. B and C have a detection, but of a wrong class; nothing is in D.
    """
    ground_truth = {"boxes": [A, B, C], "labels": [0, 1, -1]}
    detections = {"boxes": [A, A, B, C, D], "labels": [1, 0, 0, 0, 1], "scores": [0.9, 0.6, 0.5, 0.5, 0.4]}
    judged = judge({part: np.array(values) for part, values in detections.items()}, ground_truth)
    assert judged.object_of.tolist() == [-1, 0, 1, 2, -1]
    assert judged.correct.tolist() == [False, True, False, False, False]
    assert judged.detected.tolist() == [True, False, False]


@pytest.mark.parametrize(("bottom", "expected"), [(5.0, 0), (4.9, -1)])
def test_matches_have_an_iou_of_at_least_one_half(bottom, expected):
    """A box of 10 by 5 inside one of 10 by 10: intersection 50, union 100."""
    judged = judge({"boxes": [[0, 0, 10, bottom]]}, {"boxes": [A]})
    assert judged.object_of.tolist() == [expected] and judged.correct.tolist() == [expected == 0]


def test_without_classes_every_match_is_correct_and_order_stands_for_scores():
    judged = judge({"boxes": torch.tensor([B, A, A])}, {"boxes": [A, B], "labels": [0, 1]})
    assert judged.object_of.tolist() == [1, 0, -1] and judged.detected.tolist() == [True, True]
    assert judge({}, {"boxes": [A]}).detected.tolist() == [False]
    assert judge({"boxes": [A]}, {}).object_of.tolist() == [-1]


GROUND_TRUTH = {"boxes": [[5, 10, 25, 40], [35, 10, 55, 40], [65, 10, 85, 40]], "labels": [0, 1, 1]}
BEFORE = {"boxes": [[5, 10, 25, 40], [35, 11, 55, 40]], "labels": [0, 1], "scores": [0.9, 0.8]}  # two of three
# the first is of a wrong class now, the second not detected, the third gained, and a false positive
AFTER = {"boxes": [[6, 10, 25, 40], [65, 10, 85, 41], [30, 60, 60, 80]], "labels": [1, 1, 0], "scores": [0.9, 0.8, 0.7]}
ROWS = {"ground truth": [GROUND_TRUTH], "baseline": [BEFORE], "CA-SSL": [AFTER]}


def marks(axis):
    """Kind and x, y of every mark."""
    return {(line.get_gid(), *np.round(line.get_xydata()[0], 1)) for line in axis.lines if line.get_gid()}


def outlines(axis):
    """Color and line style by left edge of every box that is not filled."""
    return {
        patch.get_x() + 0.5: (to_hex(patch.get_edgecolor()).upper(), patch.get_linestyle())
        for patch in axis.patches
        if not patch.get_fill()
    }


def test_the_last_row_marks_what_is_gained_lost_and_wrong():
    axes = plotting.compare_detections(images((96, 96)), ROWS, names=NAMES).axes
    assert [marks(axis) for axis in axes[:2]] == [set(), set()]
    # on the top right corners of the wrong class (x = 25), the missed object (55), the gained one (85), and at 60
    corners = {"lost": [(24.5, 9.5), (54.5, 9.5)], "gained": [(84.5, 9.5)], "false positive": [(59.5, 59.5)]}
    expected = sorted((kind, *corner) for kind, places in corners.items() for corner in places)
    found = sorted(marks(axes[2]))
    assert [kind for kind, *_ in found] == [kind for kind, *_ in expected]
    np.testing.assert_allclose([at for _, *at in found], [at for _, *at in expected], atol=0.1)


def test_a_false_positive_of_the_first_detector_is_marked_too():
    rows = ROWS | {"baseline": [{"boxes": [[30, 60, 60, 80]], "labels": [0]}]}
    axes = plotting.compare_detections(images((96, 96)), rows, names=NAMES).axes
    assert [kind for kind, *_ in marks(axes[1])] == ["false positive"]


def test_an_object_has_one_color_in_all_rows_and_a_false_positive_the_color_of_errors():
    axes = plotting.compare_detections(images((96, 96)), ROWS, names=NAMES).axes
    first, second, third = overlays.OBJECT_COLORS[:3]
    drawn = [outlines(axis) for axis in axes]
    assert drawn[0] == {5: (first, "-"), 35: (second, "-"), 65: (third, "-")}
    assert drawn[1] == {5: (first, "-"), 35: (second, "-")}
    assert {left: color for left, (color, _) in drawn[2].items()} == {
        6: first, 65: third, 30: overlays.ERROR, 35: "#202020",  # the missed object as a dashed outline
    }  # fmt: skip
    assert all((style == "-") == (left in (6, 65)) for left, (_, style) in drawn[2].items())
    assert overlays.ERROR not in overlays.OBJECT_COLORS


def test_names_of_wrong_classes_are_crossed_out():
    axes = plotting.compare_detections(images((96, 96)), ROWS, names=NAMES).axes
    texts = [sorted(text.get_text() for text in axis.texts) for axis in axes]
    assert texts == [["cat", "dog", "dog"], ["cat", "dog"], ["cat", "dog", "dog ✗"]]
    unnamed = {"boxes": [A], "labels": [-1]}
    rows = {"ground truth": [unnamed], "one": [{}], "two": [{"boxes": [A]}]}
    axes = plotting.compare_detections(images((96, 96)), rows, names=NAMES).axes
    assert [[text.get_text() for text in axis.texts] for axis in axes] == [["unnamed"], [], []]


def test_crowded_names_and_marks_do_not_overlap():
    rng = np.random.default_rng(0)
    corners = rng.uniform(5, 60, (30, 2))
    crowd = {"boxes": np.concatenate([corners, corners + 25], 1), "labels": rng.integers(0, 2, 30)}
    empty = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    rows = {"ground truth": [crowd] * 5, "baseline": [empty] * 5, "CA-SSL": [crowd] * 5}
    figure = plotting.compare_detections(images(*[(96, 96)] * 5), rows, names=["potted plant", "bus"])
    assert_apart(figure)
    axis = figure.axes[-1]
    assert 5 <= len(axis.texts) < 30  # some have no room
    spots = [text.get_window_extent() for text in axis.texts]
    for _, x, y in marks(axis):
        at = axis.transData.transform((x, y))
        assert not any(spot.contains(*at) for spot in spots)


def test_rows_have_their_name_beside_them_and_figures_the_size_of_pictures():
    figure = plotting.compare_detections(
        images(*[(96, 96)] * 4, (96, 84)), {n: r * 5 for n, r in ROWS.items()}, names=NAMES
    )
    assert [text.get_text() for text in figure.texts] == list(ROWS)
    assert figure.get_figwidth() * figure.dpi == 1600
    assert len(figure.axes) == 15
    scales = [axis.get_window_extent().width / (axis.get_xlim()[1] + 0.5) for axis in figure.axes]
    assert min(scales) * 1600 / figure.bbox.width >= 3  # image pixels are shown three times as large
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[:3] == ["correct only in CA-SSL", "correct only in baseline", "false positive"]
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= min(axis.get_window_extent().y0 for axis in figure.axes)
    assert figure.bbox.x0 <= legend.get_window_extent().x0 and legend.get_window_extent().x1 <= figure.bbox.x1


def test_a_comparison_without_images_says_so():
    figure = plotting.compare_detections([], {"ground truth": [], "one": []}, names=NAMES)
    assert [text.get_text() for text in figure.texts] == ["no image to show"]


def test_smooth_outlines_enclose_the_mask_where_it_is():
    """A square of 20 pixels has an area of 400 and its center at 39.5 (columns 30 to 49), 19.5 (rows 10 to 29)."""
    mask = np.zeros((60, 80), bool)
    mask[10:30, 30:50] = True
    axis = plotting.Figure().subplots()
    overlays.draw_mask(axis, mask, "#0072B2")
    (path,) = axis.collections[-1].get_paths()
    (points,) = path.to_polygons()
    x, y = points.T
    area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2  # shoelace formula
    assert 392 <= area <= 400  # corners are rounded
    np.testing.assert_allclose([x.min(), x.max(), y.min(), y.max()], [29.5, 49.5, 9.5, 29.5], atol=0.1)
    assert Outline(points).contains_point((39.5, 19.5))


def test_masks_at_the_border_reach_it_and_empty_ones_draw_nothing():
    axis = plotting.Figure().subplots()
    overlays.draw_mask(axis, np.ones((20, 30), bool), "#0072B2")
    filled = axis.collections[0].get_paths()[0].get_extents()
    assert filled.x0 <= -0.5 and filled.x1 >= 29.5 and filled.y0 <= -0.5 and filled.y1 >= 19.5
    empty = plotting.Figure().subplots()
    overlays.draw_mask(empty, np.zeros((20, 30), bool), "#0072B2")
    assert not empty.collections


def test_corners_are_on_the_mask_or_else_on_the_box():
    mask = np.zeros((30, 30), bool)
    mask[10:20, 14:16] = mask[14:16, 10:20] = True  # a plus: its ends are at the top, left, right and bottom
    corners = overlays.corners_of([10, 10, 20, 20], mask)
    assert all(mask[int(y), int(x)] for x, y in corners)
    assert corners.tolist() == [[14, 10], [15, 10], [14, 19], [15, 19]]
    box = [[9.5, 9.5], [19.5, 9.5], [9.5, 19.5], [19.5, 19.5]]
    assert overlays.corners_of([10, 10, 20, 20]).tolist() == box
    assert overlays.corners_of([10, 10, 20, 20], np.zeros((30, 30), bool)).tolist() == box


def test_the_demo_picture_adds_bars_of_the_aps():
    aps = {"baseline, 600 steps": 28.0, "baseline, 1,200 steps (chosen)": 31.5, "Objects (G,A)": 30.0, "CA-SSL": 35.0}
    rows = {name: row * 4 for name, row in ROWS.items()}
    figure = plotting.demo_picture(images(*[(96, 96)] * 4), rows, names=NAMES, aps=aps, title="box AP, seed 0")
    *_, bars = figure.axes
    assert [bar.get_width() for bar in bars.patches] == list(aps.values())
    colors = [to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert colors[0] == colors[1] and len(set(colors)) == 3
    assert [text.get_text().strip() for text in bars.texts] == ["28.0", "31.5", "30.0", "35.0"]
    assert_apart(figure)
    labels = [label.get_window_extent() for label in bars.get_yticklabels()]
    assert min(label.x0 for label in labels) >= 0
    (legend,) = figure.legends
    title = figure.texts[-1].get_window_extent()
    assert title.y1 <= legend.get_window_extent().y0 and bars.get_window_extent().y1 <= title.y0
