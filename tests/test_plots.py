"""Figures: they show what they are given, their texts do not lie on each other, and they leave no global state."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from cassl_lib import plots


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
    panel = plots.show_images(
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
    axis = plots.show_images(images((60, 80)), masks=[torch.tensor(masks)]).axes[0]
    blue, orange = (np.array([int(c[at : at + 2], 16) for at in (1, 3, 5)]) for c in plots.COLOURS[:2])
    pixels = drawn(axis).astype(int)
    np.testing.assert_allclose(pixels[25, 25], (40 + blue) / 2, atol=1)
    np.testing.assert_allclose(pixels[12, 12], (40 + orange) / 2, atol=1)
    assert (pixels[5, 5] == 40).all()


def test_crowded_labels_do_not_lie_on_each_other():
    rng = np.random.default_rng(0)
    corners = rng.uniform(20, 70, (25, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1)
    given = {"boxes": [boxes], "scores": [rng.random(25)], "labels": [rng.integers(0, 2, 25)]}
    panel = plots.show_images(images((128, 128)), **given, names=["potted plant", "bus"], columns=1)
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
    panel = plots.label_panel(images((40, 40), (60, 40)), truth, prediction, names=["cat", "dog"])
    assert [axis.get_title() for axis in panel.axes] == ["truth", "prediction"] * 2
    assert [[text.get_text() for text in axis.texts] for axis in panel.axes] == [["cat"], [], [], ["dog 0.50"]]
    assert [drawn(axis).shape[0] for axis in panel.axes] == [40, 40, 60, 60]


def test_instances_may_lack_any_part():
    found = [{"boxes": [[2, 2, 30, 30]], "labels": [1]}, {"masks": np.ones((1, 40, 40), bool), "size": (40, 40)}, {}]
    panel = plots.show_instances(images((40, 40), (40, 40), (40, 40)), found, names=["cat", "dog"], columns=3)
    assert [[text.get_text() for text in axis.texts] for axis in panel.axes] == [["dog"], [], []]
    assert [len(axis.patches) for axis in panel.axes] == [1, 0, 0]
    assert [int(drawn(axis).max()) > 40 for axis in panel.axes] == [False, True, False]


def test_runs_are_shown_in_rows_over_the_same_images():
    box = {"boxes": [[2, 2, 30, 30]], "labels": [0]}
    panel = plots.side_by_side(images((40, 40), (40, 60)), {"truth": [box, {}], "mine": [{}, box]}, names=["cat"])
    assert [axis.get_title() for axis in panel.axes] == ["truth", "", "mine", ""]
    assert [len(axis.patches) for axis in panel.axes] == [1, 0, 0, 1]
    assert [drawn(axis).shape[1] for axis in panel.axes] == [40, 60, 40, 60]
    single = plots.side_by_side(images((40, 40)), {"truth": [box], "mine": [box]})
    assert [axis.get_subplotspec().rowspan.start for axis in single.axes] == [0, 0]  # in one row


def test_positives_are_dots_on_their_own_level_in_the_colour_of_their_box():
    points = np.array([[4, 4], [12, 4], [8, 8]], float)
    facts = dict(points=points, matched=np.array([-1, 1, 0]), strides=np.array([8, 8, 16]))
    panel = plots.show_positives(images((16, 16))[0], np.array([[0, 0, 16, 16], [8, 0, 16, 8]]), **facts)
    assert [axis.get_title() for axis in panel.axes] == ["stride 8", "stride 16"]
    dots = [axis.collections[0] for axis in panel.axes]
    assert [dot.get_offsets().tolist() for dot in dots] == [[[12, 4]], [[8, 8]]]
    assert [to_hex(dot.get_facecolor()[0]).upper() for dot in dots] == [plots.COLOURS[1], plots.COLOURS[0]]


def test_every_loss_has_its_panel():
    histories = {
        "a": [{"step": 1, "loss_cls": 2.0, "seconds": 3}],
        "b": [{"step": 1, "loss_cls": 1.0, "loss_mask": 5.0}],
    }
    panel = plots.loss_curves(histories)
    assert [axis.get_title() for axis in panel.axes] == ["cls", "mask"]
    assert [[line.get_ydata()[0] for line in axis.lines if len(line.get_ydata())] for axis in panel.axes] == [
        [2, 1],
        [5],
    ]
    assert [text.get_text() for text in panel.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert len(plots.loss_curves({"unfinished": []}).axes) == 1


def test_no_image_is_said_in_a_line():
    panel = plots.show_images([])
    assert panel.get_figheight() < 1 and [text.get_text() for text in panel.texts] == ["no image to show"]


def test_curves_follow_the_records_that_have_the_key():
    histories = {
        "a": [{"step": 10, "loss": 3.0}, {"step": 15, "AP": 0.1}, {"step": 20, "loss": 1.0}],
        "b": [{"loss": 2.0}],
    }
    axis = plots.curves(histories, "loss").axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines == {"a": [[10, 3], [20, 1]], "b": [[0, 2]]}


def test_a_long_curve_is_smoothed_in_place():
    history = [{"step": step, "loss": float(step)} for step in range(250)]
    raw, smooth = plots.curves({"a": history}, "loss").axes[0].lines
    assert len(raw.get_xdata()) == 250
    np.testing.assert_allclose(smooth.get_ydata(), smooth.get_xdata())  # the mean of a straight line is the line


def test_score_histogram_states_what_a_threshold_keeps():
    scores = np.array([0.1, 0.2, 0.35, 0.358, 0.9], np.float32)
    panel = plots.score_histogram(scores, 0.355)
    assert panel.axes[0].get_title(loc="right") == "above 0.355: 2 of 5 labels (40 %)"
    assert sum(bar.get_height() for bar in panel.axes[0].patches) == 5
    binned = plots.score_histogram(np.array([3, 1]), 0.5, edges=np.array([0, 0.5, 1]))
    assert binned.axes[0].get_title(loc="right") == "above 0.5: 1 of 4 labels (25 %)"
    assert plots.score_histogram([]).axes[0].get_title(loc="right") == ""


def test_threshold_curves_show_three_curves():
    panel = plots.threshold_curves([0.1, 0.5], [0.4, 0.9], [0.8, 0.3], [20, 4], chosen=0.3)
    left, right = panel.axes
    assert [line.get_ydata()[-1] for line in left.lines[:2]] == [0.9, 0.3] and right.lines[0].get_ydata()[0] == 20
    assert left.lines[2].get_xdata()[0] == right.lines[1].get_xdata()[0] == 0.3


def test_rows_are_compared_with_the_paper():
    rows = [
        {"name": "ImageNet", "measured": 40.0, "paper": 46.8, "spread": 0.5},
        {"name": "Objects (P,A)", "measured": None, "paper": 48.1},
        {"name": "ours alone", "measured": 12.3, "paper": None},
    ]
    panel = plots.compare_rows(rows, title="Table 2")
    axis = panel.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [40.0, 12.3]
    diamonds = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "D"]
    assert diamonds == [[[46.8, 0]], [[48.1, 1]]]
    assert [text for text, _ in text_boxes(panel)].count("not measured") == 1
    assert_apart(panel)


def test_the_pipeline_reads_clearly():
    panel = plots.pipeline_figure()
    assert_apart(panel)
    texts = " ".join(text for text, _ in text_boxes(panel))
    assert all(stage in texts for stage in ("pseudo labeler", "warm-up", "finetuning"))


@pytest.mark.parametrize(
    "make", [plots.pipeline_figure, lambda: plots.show_images([]), lambda: plots.curves({}, "loss")]
)
def test_a_notebook_can_show_it(make):
    png = make()._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert png == make()._repr_png_()  # byte for byte the same again


def test_pyplot_and_its_global_state_stay_unloaded():
    code = "import sys; from cassl_lib import plots; plots.pipeline_figure()._repr_png_(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in run.stdout.split() and "matplotlib.pyplot" not in run.stdout.split()
