"""Figures: they show what they are given, their texts do not lie on each other, and they leave no global state."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from cassl_lib import inspection, plotting


def images(*sizes):
    return [torch.full((3, height, width), 40, dtype=torch.uint8) for height, width in sizes]


def text_boxes(panel):
    """Extents on the page, in pixels, of every text of the figure that is drawn."""
    panel.draw_without_rendering()
    texts = [text for axis in panel.axes for text in (*axis.texts, axis.title, axis._left_title, axis._right_title)]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


def assert_apart(panel):
    boxes = text_boxes(panel)
    for n, (name, box) in enumerate(boxes):
        for other_name, other in boxes[:n]:
            assert not box.overlaps(other), f"{name!r} lies on {other_name!r}"
        assert (
            panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 and panel.bbox.y0 <= box.y0 and box.y1 <= panel.bbox.y1
        )


def drawn(axis):
    """The pixels that an axes shows."""
    return axis.images[0].get_array()


def test_a_grid_shows_every_image_with_its_instances():
    boxes = [np.array([[10, 20, 40, 60], [50, 5, 90, 30]]), np.zeros((0, 4)), np.array([[0, 0, 100, 100]])]
    panel = plotting.show_images(
        images((100, 100), (100, 100), (100, 100)), boxes=boxes, titles=["a", "b", "c"], columns=2
    )
    assert len(panel.axes) == 4 and [len(axis.images) for axis in panel.axes] == [1, 1, 1, 0]
    assert [len(axis.patches) for axis in panel.axes[:3]] == [2, 0, 1]
    first = panel.axes[0].patches[0]
    assert (*first.get_xy(), first.get_width(), first.get_height()) == (10, 20, 30, 40)
    assert [axis.get_title() for axis in panel.axes[:3]] == ["a", "b", "c"]
    assert np.array_equal(drawn(panel.axes[1]), np.full((100, 100, 3), 40))


def test_masks_are_painted_where_they_are_and_small_ones_stay_visible():
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 20:30, 20:30] = True
    masks[1, 10:50, 10:70] = True  # larger, over the first
    axis = plotting.show_images(images((60, 80)), masks=[torch.tensor(masks)]).axes[0]
    blue, orange = (np.array([int(c[at : at + 2], 16) for at in (1, 3, 5)]) for c in plotting.COLORS[:2])
    pixels = drawn(axis).astype(int)
    np.testing.assert_allclose(pixels[25, 25], (40 + blue) / 2, atol=1)
    np.testing.assert_allclose(pixels[12, 12], (40 + orange) / 2, atol=1)
    assert (pixels[5, 5] == 40).all()


def test_masks_have_borders_where_what_shows_changes():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :, :4] = True
    masks[1, 1:3, 3:5] = True  # on the right border of the first
    (borders,) = plotting.show_images(images((4, 6)), masks=[masks]).axes[0].collections
    lines = {tuple(map(tuple, line.tolist())) for line in borders.get_segments()}
    assert lines == {
        ((2.5, 0.5), (4.5, 0.5)),  # above and below the second, across the first and the image beside it
        ((2.5, 2.5), (4.5, 2.5)),
        ((2.5, 0.5), (2.5, 2.5)),  # left and right of the second
        ((4.5, 0.5), (4.5, 2.5)),
        ((3.5, -0.5), (3.5, 0.5)),  # right of the first, where the second does not hide it
        ((3.5, 2.5), (3.5, 3.5)),
    }
    assert not plotting.show_images(images((4, 6)), boxes=[[[0, 0, 2, 2]]]).axes[0].collections


def test_crowded_labels_do_not_lie_on_each_other():
    rng = np.random.default_rng(0)
    corners = rng.uniform(20, 70, (25, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1)
    given = {"boxes": [boxes], "scores": [rng.random(25)], "labels": [rng.integers(0, 2, 25)]}
    panel = plotting.show_images(images((128, 128)), **given, names=["potted plant", "bus"], columns=1)
    assert 5 <= len(panel.axes[0].texts) <= 25
    assert_apart(panel)
    best = f"{given['scores'][0].max():.2f}"
    assert any(text.get_text().endswith(best) for text in panel.axes[0].texts)  # the highest score is never left out


def test_truth_and_prediction_lie_side_by_side():
    truth = [{"boxes": [[1, 1, 9, 9]], "labels": [0]}, {"boxes": [], "labels": []}]
    prediction = [
        {"boxes": [], "labels": [], "scores": []},
        {"boxes": [[2, 2, 30, 30]], "labels": [1], "scores": [0.5]},
    ]
    panel = plotting.label_panel(images((40, 40), (60, 40)), truth, prediction, names=["cat", "dog"])
    assert [axis.get_title() for axis in panel.axes] == ["truth", "prediction"] * 2
    assert [[text.get_text() for text in axis.texts] for axis in panel.axes] == [["cat"], [], [], ["dog 0.50"]]
    assert [drawn(axis).shape[0] for axis in panel.axes] == [40, 40, 60, 60]


def test_instances_may_lack_any_part():
    found = [{"boxes": [[2, 2, 30, 30]], "labels": [1]}, {"masks": np.ones((1, 40, 40), bool), "size": (40, 40)}, {}]
    panel = plotting.show_instances(images((40, 40), (40, 40), (40, 40)), found, names=["cat", "dog"], columns=3)
    assert [[text.get_text() for text in axis.texts] for axis in panel.axes] == [["dog"], [], []]
    assert [len(axis.patches) for axis in panel.axes] == [1, 0, 0]
    assert [int(drawn(axis).max()) > 40 for axis in panel.axes] == [False, True, False]


def test_runs_are_shown_in_rows_over_the_same_images():
    box = {"boxes": [[2, 2, 30, 30]], "labels": [0]}
    panel = plotting.side_by_side(images((40, 40), (40, 60)), {"truth": [box, {}], "mine": [{}, box]}, names=["cat"])
    assert [axis.get_title() for axis in panel.axes] == ["truth", "", "mine", ""]
    assert [len(axis.patches) for axis in panel.axes] == [1, 0, 0, 1]
    assert [drawn(axis).shape[1] for axis in panel.axes] == [40, 60, 40, 60]
    single = plotting.side_by_side(images((40, 40)), {"truth": [box], "mine": [box]})
    assert [axis.get_subplotspec().rowspan.start for axis in single.axes] == [0, 0]  # in one row


ENTITIES = np.repeat(np.repeat(np.arange(15).reshape(3, 5), 20, 0), 20, 1)  # (60, 100), 15 squares of 20 pixels


def test_many_entities_differ_in_color_and_hide_nothing():
    found = {"masks": ENTITIES == np.arange(15)[:, None, None], "boxes": np.zeros((15, 4)), "labels": np.arange(15)}
    panel = plotting.show_entities(images((60, 100)), {"truth": [found], "found": [{"size": (60, 100)}]})
    assert [axis.get_title() for axis in panel.axes] == ["truth", "found"]
    full, empty = (drawn(axis) for axis in panel.axes)
    assert len({tuple(full[row, column]) for row in (10, 30, 50) for column in range(10, 100, 20)}) == 15
    assert (empty == 40).all() and [len(axis.collections) for axis in panel.axes] == [1, 0]
    assert [(len(axis.patches), len(axis.texts)) for axis in panel.axes] == [(0, 0)] * 2  # no boxes, no texts


def test_entities_are_named_where_they_have_room():
    masks = np.array([ENTITIES >= 5, ENTITIES == 4])  # 100 x 40 and 20 x 20 pixels
    found = {"masks": masks, "labels": [0, 1], "scores": [0.876, 0.5]}
    panel = plotting.show_entities(images((60, 100)), {"found": [found]}, names=["ground", "toadstool of a kind " * 5])
    (text,) = panel.axes[0].texts
    assert text.get_text() == "ground 0.88"
    np.testing.assert_allclose(text.get_position(), (49.5, 39.5), atol=0.5)  # the middle of the first


CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "sky-other-merged", "isthing": 0},
    {"id": 5, "name": "grass", "isthing": 0},
]


def panoptic(*, thing=3, height=60):
    """Sky on 30 rows, then void on 10, two things of a class on 10, grass on 10: ids 900, 1, 2, 256."""
    ids = np.zeros((height, 80), np.int32)
    ids[:30], ids[40:50, :40], ids[40:50, 40:], ids[50:] = 900, 1, 2, 256
    kinds = {2: thing, 256: 5, 900: 7, 1: thing}
    return ids, [{"id": number, "category_id": kind} for number, kind in kinds.items()]


def test_panoptic_maps_lie_side_by_side_in_the_same_colors():
    panel = plotting.show_panoptic(
        images((60, 80)), {"truth": [panoptic()], "found": [panoptic(thing=7)]}, categories=CATEGORIES
    )
    assert [axis.get_title() for axis in panel.axes] == ["truth", "found"]
    truth, found = (drawn(axis).astype(int) for axis in panel.axes)
    for row in (10, 55):
        assert (truth[row] == truth[row, 0]).all() and (found[row] == truth[row, 0]).all()
    left, right, sky = truth[45, 10], truth[45, 70], truth[10, 0]
    assert len({tuple(color) for color in (left, right, sky, truth[55, 0])}) == 4  # shades of one class's things
    assert (found[45] == sky).all()  # segments of stuff have no shades
    assert np.ptp(truth[30:40], axis=-1).max() == 0  # void is gray
    assert len(np.unique(truth[30:40])) == 2 and np.array_equal(truth[30:40], found[30:40])  # and hatched
    bright = plotting.show_panoptic([np.full((3, 60, 80), 200)], {"truth": [panoptic()]}, categories=CATEGORIES)
    np.testing.assert_allclose(drawn(bright.axes[0])[10, 0] - truth[10, 0], 160 * 0.7 * 0.45, atol=1)  # shines through


def test_shades_go_from_left_to_right_whatever_the_ids():
    ids, segments = panoptic()
    swapped = np.select([ids == 1, ids == 2], [2, 1], ids)
    panel = plotting.show_panoptic(
        images((60, 80)), {"truth": [(ids, segments)], "found": [(swapped, segments)]}, categories=CATEGORIES
    )
    assert np.array_equal(*(drawn(axis) for axis in panel.axes))


def test_segments_are_named_where_they_have_room():
    panel = plotting.show_panoptic(images((60, 80)), {"truth": [panoptic()]}, categories=CATEGORIES, columns=4)
    axis = panel.axes[0]
    assert {text.get_text() for text in axis.texts} == {"sky-other", "cat", "grass"}
    panel = plotting.show_panoptic(
        images((60, 80)) * 12, {"truth": [panoptic()] * 12}, categories=CATEGORIES, columns=12
    )
    assert {text.get_text() for axis in panel.axes for text in axis.texts} == {"sky-other"}  # 10 rows are too few now
    assert_apart(panel)
    ids = panoptic()[0]
    for axis in panel.axes:
        (text,) = axis.texts
        corners = axis.transData.inverted().transform(text.get_window_extent().get_points())
        columns, rows = np.clip(np.round(corners).astype(int), 0, [79, 59]).T
        assert (ids[rows, columns] == 900).all()


def test_maps_without_segments_and_wrong_sizes():
    void = (np.zeros((60, 80), np.int32), [])
    axis = plotting.show_panoptic(images((60, 80)), {"found": [void]}, categories=[]).axes[0]
    assert not axis.texts and not axis.collections
    with pytest.raises(ValueError, match=r"\(60, 80\) pixels for an image of \(50, 80\)"):
        plotting.show_panoptic(images((50, 80)), {"found": [void]}, categories=[])
    with pytest.raises(ValueError, match="found has 1 entries for 2 images"):
        plotting.show_panoptic(images((60, 80)) * 2, {"found": [void]}, categories=[])


def test_rows_are_folded_at_four_images():
    void = (np.zeros((60, 80), np.int32), [])
    panel = plotting.show_panoptic(images((60, 80)) * 6, {"truth": [void] * 6, "found": [void] * 6}, categories=[])
    titles = [axis.get_title() for axis in panel.axes]
    assert titles == ["truth", "", "", "", "found", "", "", ""] * 2
    assert [len(axis.images) for axis in panel.axes] == [1] * 8 + [1, 1, 0, 0] * 2
    pair = plotting.show_panoptic(images((60, 80)) * 2, {"truth": [void] * 2, "found": [void] * 2}, categories=[])
    assert [axis.get_title() for axis in pair.axes] == ["truth", "found"] * 2  # what fits in one row stays in one


def test_errors_lie_beside_the_truth_in_the_colors_of_the_legend():
    assert tuple(plotting.MARK_LINES) == inspection.MARKS
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 20, 10, 30], [20, 20, 35, 35]])
    marked = {"boxes": boxes, "labels": np.arange(5)}
    truth = {"boxes": boxes[:2], "labels": [1, 0]}
    panel = plotting.show_errors(images((40, 60)), [marked], [truth], names=["cat", "dog"])
    true, errors = panel.axes
    assert (true.get_title(), errors.get_title()) == ("truth", "errors")
    assert [text.get_text() for text in true.texts] == ["dog", "cat"] and not errors.texts
    assert [patch.get_xy() for patch in true.patches] == [(0, 0), (20, 0)]
    # spurious boxes lie under those that are found, missed ones over all
    assert [patch.get_xy() for patch in errors.patches] == [(0, 20), (40, 0), (20, 0), (0, 0), (20, 20)]
    by_place = {patch.get_xy(): patch for patch in errors.patches}
    patches = [by_place[left, top] for left, top, _, _ in boxes.tolist()]
    drawn_as = [(to_hex(patch.get_edgecolor()), patch.get_linestyle()) for patch in patches]
    (legend,) = panel.legends
    assert [text.get_text() for text in legend.get_texts()] == list(inspection.MARKS)
    assert [to_hex(line.get_color()) for line in legend.get_lines()] == [color for color, _ in drawn_as]
    assert len({color for color, _ in drawn_as}) == 5 and [line == "-" for _, line in drawn_as] == [True] * 4 + [False]
    panel.draw_without_rendering()
    below = legend.get_window_extent()
    assert panel.bbox.y0 <= below.y0 and below.y1 <= min(axis.get_window_extent().y0 for axis in panel.axes)


def test_errors_of_runs_are_rows():
    box, none = {"boxes": [[2, 2, 30, 30]], "labels": [3]}, {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64)}
    rows = {"mine": [box] * 3, "other": [none] * 3}
    panel = plotting.show_errors(images((40, 40), (40, 60), (60, 40)), rows, [box, none, none])
    assert [axis.get_title() for axis in panel.axes] == ["truth", "", "", "mine", "", "", "other", "", ""]
    assert [len(axis.patches) for axis in panel.axes] == [1, 0, 0, 1, 1, 1, 0, 0, 0]
    assert_apart(panel)


@pytest.mark.parametrize(
    "empty",
    [
        lambda: plotting.show_errors([], [], []),
        lambda: plotting.show_entities([], {"truth": []}),
        lambda: plotting.show_panoptic([], {"truth": [], "found": []}, categories=[]),
    ],
)
def test_no_image_of_any_row_is_said_in_a_line(empty):
    assert [text.get_text() for text in empty().texts] == ["no image to show"]


def test_positives_are_dots_on_their_own_level_in_the_color_of_their_box():
    points = np.array([[4, 4], [12, 4], [8, 8]], float)
    facts = dict(points=points, matched=np.array([-1, 1, 0]), strides=np.array([8, 8, 16]))
    panel = plotting.show_positives(images((16, 16))[0], np.array([[0, 0, 16, 16], [8, 0, 16, 8]]), **facts)
    assert [axis.get_title() for axis in panel.axes] == ["stride 8", "stride 16"]
    dots = [axis.collections[0] for axis in panel.axes]
    assert [dot.get_offsets().tolist() for dot in dots] == [[[12, 4]], [[8, 8]]]
    assert [to_hex(dot.get_facecolor()[0]).upper() for dot in dots] == [plotting.COLORS[1], plotting.COLORS[0]]


def test_every_loss_has_its_panel():
    histories = {
        "a": [{"step": 1, "loss_cls": 2.0, "seconds": 3}],
        "b": [{"step": 1, "loss_cls": 1.0, "loss_mask": 5.0}],
    }
    panel = plotting.loss_curves(histories)
    assert [axis.get_title() for axis in panel.axes] == ["cls", "mask"]
    assert [[line.get_ydata()[0] for line in axis.lines if len(line.get_ydata())] for axis in panel.axes] == [
        [2, 1],
        [5],
    ]
    assert [text.get_text() for text in panel.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert len(plotting.loss_curves({"unfinished": []}).axes) == 1


def test_no_image_is_said_in_a_line():
    panel = plotting.show_images([])
    assert panel.get_figheight() < 1 and [text.get_text() for text in panel.texts] == ["no image to show"]


def test_curves_follow_the_records_that_have_the_key():
    histories = {
        "a": [{"step": 10, "loss": 3.0}, {"step": 15, "AP": 0.1}, {"step": 20, "loss": 1.0}],
        "b": [{"loss": 2.0}],
    }
    axis = plotting.curves(histories, "loss").axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines == {"a": [[10, 3], [20, 1]], "b": [[0, 2]]}


def test_a_long_curve_is_smoothed_in_place():
    history = [{"step": step, "loss": float(step)} for step in range(250)]
    raw, smooth = plotting.curves({"a": history}, "loss").axes[0].lines
    assert len(raw.get_xdata()) == 250
    np.testing.assert_allclose(smooth.get_ydata(), smooth.get_xdata())  # the mean of a straight line is the line


def test_score_histogram_states_what_a_threshold_keeps():
    scores = np.array([0.1, 0.2, 0.35, 0.358, 0.9], np.float32)
    panel = plotting.score_histogram(scores, 0.355)
    assert panel.axes[0].get_title(loc="right") == "above 0.355: 2 of 5 labels (40 %)"
    assert sum(bar.get_height() for bar in panel.axes[0].patches) == 5
    binned = plotting.score_histogram(np.array([3, 1]), 0.5, edges=np.array([0, 0.5, 1]))
    assert binned.axes[0].get_title(loc="right") == "above 0.5: 1 of 4 labels (25 %)"
    assert plotting.score_histogram([]).axes[0].get_title(loc="right") == ""


def test_threshold_curves_show_three_curves():
    panel = plotting.threshold_curves([0.1, 0.5], [0.4, 0.9], [0.8, 0.3], [20, 4], chosen=0.3)
    left, right = panel.axes
    assert [line.get_ydata()[-1] for line in left.lines[:2]] == [0.9, 0.3] and right.lines[0].get_ydata()[0] == 20
    assert left.lines[2].get_xdata()[0] == right.lines[1].get_xdata()[0] == 0.3


def test_rows_are_compared_with_the_paper():
    rows = [
        {"name": "ImageNet", "measured": 40.0, "paper": 46.8, "spread": 0.5},
        {"name": "Objects (P,A)", "measured": None, "paper": 48.1},
        {"name": "ours alone", "measured": 12.3, "paper": None},
    ]
    panel = plotting.compare_rows(rows, title="Table 2")
    axis = panel.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [40.0, 12.3]
    diamonds = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "D"]
    assert diamonds == [[[46.8, 0]], [[48.1, 1]]]
    assert [text for text, _ in text_boxes(panel)].count("not measured") == 1
    assert_apart(panel)


def test_the_pipeline_reads_clearly():
    panel = plotting.pipeline_figure()
    assert_apart(panel)
    texts = " ".join(text for text, _ in text_boxes(panel))
    assert all(stage in texts for stage in ("pseudo labeler", "warm-up", "finetuning"))


@pytest.mark.parametrize(
    "make", [plotting.pipeline_figure, lambda: plotting.show_images([]), lambda: plotting.curves({}, "loss")]
)
def test_a_notebook_can_show_it(make):
    png = make()._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert png == make()._repr_png_()  # byte for byte the same again


def test_pyplot_and_its_global_state_stay_unloaded():
    code = "import sys; from cassl_lib import plotting; plotting.pipeline_figure()._repr_png_(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in run.stdout.split() and "matplotlib.pyplot" not in run.stdout.split()
