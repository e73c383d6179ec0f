"""Figures show what they are given, their texts do not overlap, and they leave no global state."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from cassl_lib import inspection, plotting


def images(*sizes):
    return [torch.full((3, height, width), 40, dtype=torch.uint8) for height, width in sizes]


def text_boxes(figure):
    """Text and extent in pixels of every text inside the axes of a figure."""
    figure.draw_without_rendering()
    texts = [text for axis in figure.axes for text in (*axis.texts, axis.title, axis._left_title, axis._right_title)]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


def assert_apart(figure):
    """No text overlaps another or is cut off at the edge of the figure."""
    boxes = text_boxes(figure)
    for n, (name, box) in enumerate(boxes):
        for other_name, other in boxes[:n]:
            assert not box.overlaps(other), f"{name!r} overlaps {other_name!r}"
        assert (
            figure.bbox.x0 <= box.x0
            and box.x1 <= figure.bbox.x1
            and figure.bbox.y0 <= box.y0
            and box.y1 <= figure.bbox.y1
        )


def drawn(axis):
    """The pixels that axes show."""
    return axis.images[0].get_array()


def test_a_grid_shows_every_image_with_its_instances():
    boxes = [np.array([[10, 20, 40, 60], [50, 5, 90, 30]]), np.zeros((0, 4)), np.array([[0, 0, 100, 100]])]
    figure = plotting.show_images(
        images((100, 100), (100, 100), (100, 100)), boxes=boxes, titles=["a", "b", "c"], columns=2
    )
    assert len(figure.axes) == 4 and [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0]
    assert [len(axis.patches) for axis in figure.axes[:3]] == [2, 0, 1]
    first = figure.axes[0].patches[0]
    assert (*first.get_xy(), first.get_width(), first.get_height()) == (10, 20, 30, 40)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "c"]
    assert np.array_equal(drawn(figure.axes[1]), np.full((100, 100, 3), 40))


def test_masks_are_blended_and_small_ones_stay_visible():
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 20:30, 20:30] = True
    masks[1, 10:50, 10:70] = True  # larger, over the first
    axis = plotting.show_images(images((60, 80)), masks=[torch.tensor(masks)]).axes[0]
    blue, orange = (np.array([int(c[at : at + 2], 16) for at in (1, 3, 5)]) for c in plotting.COLORS[:2])
    pixels = drawn(axis).astype(int)
    np.testing.assert_allclose(pixels[25, 25], (40 + blue) / 2, atol=1)
    np.testing.assert_allclose(pixels[12, 12], (40 + orange) / 2, atol=1)
    assert (pixels[5, 5] == 40).all()


def test_masks_have_borders_where_the_visible_mask_changes():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :, :4] = True
    masks[1, 1:3, 3:5] = True  # across the right border of the first
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


def test_crowded_labels_do_not_overlap():
    rng = np.random.default_rng(0)
    corners = rng.uniform(20, 70, (25, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1)
    given = {"boxes": [boxes], "scores": [rng.random(25)], "labels": [rng.integers(0, 2, 25)]}
    figure = plotting.show_images(images((128, 128)), **given, names=["potted plant", "bus"], columns=1)
    assert 5 <= len(figure.axes[0].texts) <= 25
    assert_apart(figure)
    best = f"{given['scores'][0].max():.2f}"
    assert any(text.get_text().endswith(best) for text in figure.axes[0].texts)  # the highest score is always shown


def test_ground_truth_and_prediction_are_side_by_side():
    ground_truth = [{"boxes": [[1, 1, 9, 9]], "labels": [0]}, {"boxes": [], "labels": []}]
    prediction = [
        {"boxes": [], "labels": [], "scores": []},
        {"boxes": [[2, 2, 30, 30]], "labels": [1], "scores": [0.5]},
    ]
    figure = plotting.label_panel(images((40, 40), (60, 40)), ground_truth, prediction, names=["cat", "dog"])
    assert [axis.get_title() for axis in figure.axes] == ["ground truth", "prediction"] * 2
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [["cat"], [], [], ["dog 0.50"]]
    assert [drawn(axis).shape[0] for axis in figure.axes] == [40, 40, 60, 60]


def test_instances_may_lack_any_part():
    instances = [
        {"boxes": [[2, 2, 30, 30]], "labels": [1]},
        {"masks": np.ones((1, 40, 40), bool), "size": (40, 40)},
        {},
    ]
    figure = plotting.show_instances(images((40, 40), (40, 40), (40, 40)), instances, names=["cat", "dog"], columns=3)
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [["dog"], [], []]
    assert [len(axis.patches) for axis in figure.axes] == [1, 0, 0]
    assert [int(drawn(axis).max()) > 40 for axis in figure.axes] == [False, True, False]


def test_runs_are_rows_over_the_same_images():
    box = {"boxes": [[2, 2, 30, 30]], "labels": [0]}
    rows = {"ground truth": [box, {}], "mine": [{}, box]}
    figure = plotting.side_by_side(images((40, 40), (40, 60)), rows, names=["cat"])
    assert [axis.get_title() for axis in figure.axes] == ["ground truth", "", "mine", ""]
    assert [len(axis.patches) for axis in figure.axes] == [1, 0, 0, 1]
    assert [drawn(axis).shape[1] for axis in figure.axes] == [40, 60, 40, 60]
    single = plotting.side_by_side(images((40, 40)), {"ground truth": [box], "mine": [box]})
    assert [axis.get_subplotspec().rowspan.start for axis in single.axes] == [0, 0]  # in one row


def test_an_object_has_the_same_color_in_every_row():
    left, right = [2, 2, 18, 30], [20, 2, 38, 30]
    rows = {
        "ground truth": [{"boxes": [left, right]}],
        "one": [{"boxes": [[21, 2, 38, 30], [0, 32, 10, 40]], "scores": [0.5, 0.9]}],
        "two": [{"boxes": [[1, 32, 10, 40], [2, 3, 18, 30], [3, 3, 18, 30]]}],
        "none": [{"boxes": np.zeros((0, 4))}],
    }
    figure = plotting.side_by_side(images((40, 40)), rows)
    drawn_in = [
        {patch.get_xy(): to_hex(patch.get_edgecolor()).upper() for patch in axis.patches} for axis in figure.axes
    ]
    blue, orange, green, red = plotting.COLORS[:4]
    assert drawn_in[0] == {(2, 2): blue, (20, 2): orange}
    assert drawn_in[1] == {(21, 2): orange, (0, 32): green}  # the second overlaps no object
    assert drawn_in[2] == {(1, 32): green, (2, 3): blue, (3, 3): red}  # the best match only
    assert drawn_in[3] == {}
    labeled = {name: [row[0] | {"labels": [1] * len(row[0]["boxes"])}] for name, row in rows.items()}
    figure = plotting.side_by_side(images((40, 40)), labeled, names=["cat", "dog"])
    colors = {to_hex(patch.get_edgecolor()).upper() for axis in figure.axes for patch in axis.patches}
    assert colors == {orange}  # the color of the class


ENTITIES = np.repeat(np.repeat(np.arange(15).reshape(3, 5), 20, 0), 20, 1)  # (60, 100), 15 squares of 20 pixels


def test_many_entities_have_distinct_colors_and_no_boxes():
    instances = {"masks": ENTITIES == np.arange(15)[:, None, None], "boxes": np.zeros((15, 4)), "labels": np.arange(15)}
    figure = plotting.show_entities(images((60, 100)), {"ground truth": [instances], "run": [{"size": (60, 100)}]})
    assert [axis.get_title() for axis in figure.axes] == ["ground truth", "run"]
    full, empty = (drawn(axis) for axis in figure.axes)
    assert len({tuple(full[row, column]) for row in (10, 30, 50) for column in range(10, 100, 20)}) == 15
    assert (empty == 40).all() and [len(axis.collections) for axis in figure.axes] == [1, 0]
    assert [(len(axis.patches), len(axis.texts)) for axis in figure.axes] == [(0, 0)] * 2  # no boxes, no texts


def test_an_entity_has_the_same_color_in_every_row():
    masks = ENTITIES == np.arange(15)[:, None, None]
    swapped = {"masks": np.concatenate([masks[:1] & (np.arange(100) < 8), masks[:0:-1]])}
    figure = plotting.show_entities(images((60, 100)), {"ground truth": [{"masks": masks}], "run": [swapped]})
    one, other = (drawn(axis) for axis in figure.axes)
    assert (one[20:] == other[20:]).all() and (one[:20, 20:] == other[:20, 20:]).all()
    assert (one[5, 5] != other[5, 5]).any()  # IoU 0.4 with the first entity


def test_entities_with_room_are_named():
    masks = np.array([ENTITIES >= 5, ENTITIES == 4])  # 100 x 40 and 20 x 20 pixels
    instances = {"masks": masks, "labels": [0, 1], "scores": [0.876, 0.5]}
    figure = plotting.show_entities(
        images((60, 100)), {"run": [instances]}, names=["ground", "toadstool of a kind " * 5]
    )
    (text,) = figure.axes[0].texts
    assert text.get_text() == "ground 0.88"
    np.testing.assert_allclose(text.get_position(), (49.5, 39.5), atol=0.5)  # the center of the first


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


def test_panoptic_maps_are_side_by_side_in_the_same_colors():
    figure = plotting.show_panoptic(
        images((60, 80)), {"ground truth": [panoptic()], "run": [panoptic(thing=7)]}, categories=CATEGORIES
    )
    assert [axis.get_title() for axis in figure.axes] == ["ground truth", "run"]
    annotated, predicted = (drawn(axis).astype(int) for axis in figure.axes)
    for row in (10, 55):
        assert (annotated[row] == annotated[row, 0]).all() and (predicted[row] == annotated[row, 0]).all()
    left, right, sky = annotated[45, 10], annotated[45, 70], annotated[10, 0]
    assert len({tuple(color) for color in (left, right, sky, annotated[55, 0])}) == 4  # shades of one class's things
    assert (predicted[45] == sky).all()  # segments of stuff have no shades
    assert np.ptp(annotated[30:40], axis=-1).max() == 0  # void is gray
    assert len(np.unique(annotated[30:40])) == 2 and np.array_equal(annotated[30:40], predicted[30:40])  # and hatched
    bright = plotting.show_panoptic([np.full((3, 60, 80), 200)], {"run": [panoptic()]}, categories=CATEGORIES)
    np.testing.assert_allclose(
        drawn(bright.axes[0])[10, 0] - annotated[10, 0], 160 * 0.7 * 0.45, atol=1
    )  # shines through


def test_shades_go_from_left_to_right_for_any_ids():
    ids, segments = panoptic()
    swapped = np.select([ids == 1, ids == 2], [2, 1], ids)
    figure = plotting.show_panoptic(
        images((60, 80)), {"ground truth": [(ids, segments)], "run": [(swapped, segments)]}, categories=CATEGORIES
    )
    assert np.array_equal(*(drawn(axis) for axis in figure.axes))


def test_segments_with_room_are_named():
    figure = plotting.show_panoptic(images((60, 80)), {"run": [panoptic()]}, categories=CATEGORIES, columns=4)
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.texts} == {"sky-other", "cat", "grass"}
    figure = plotting.show_panoptic(
        images((60, 80)) * 12, {"run": [panoptic()] * 12}, categories=CATEGORIES, columns=12
    )
    assert {text.get_text() for axis in figure.axes for text in axis.texts} == {"sky-other"}  # 10 rows are too few now
    assert_apart(figure)
    ids = panoptic()[0]
    for axis in figure.axes:
        (text,) = axis.texts
        corners = axis.transData.inverted().transform(text.get_window_extent().get_points())
        columns, rows = np.clip(np.round(corners).astype(int), 0, [79, 59]).T
        assert (ids[rows, columns] == 900).all()


def test_maps_without_segments_or_with_a_wrong_size():
    void = (np.zeros((60, 80), np.int32), [])
    axis = plotting.show_panoptic(images((60, 80)), {"run": [void]}, categories=[]).axes[0]
    assert not axis.texts and not axis.collections
    with pytest.raises(ValueError, match=r"shape \(60, 80\) does not match its image of shape \(50, 80\)"):
        plotting.show_panoptic(images((50, 80)), {"run": [void]}, categories=[])
    with pytest.raises(ValueError, match="row 'run' has 1 entries for 2 images"):
        plotting.show_panoptic(images((60, 80)) * 2, {"run": [void]}, categories=[])


def test_rows_wrap_after_four_images():
    void = (np.zeros((60, 80), np.int32), [])
    figure = plotting.show_panoptic(
        images((60, 80)) * 6, {"ground truth": [void] * 6, "run": [void] * 6}, categories=[]
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["ground truth", "", "", "", "run", "", "", ""] * 2
    assert [len(axis.images) for axis in figure.axes] == [1] * 8 + [1, 1, 0, 0] * 2
    pair = plotting.show_panoptic(images((60, 80)) * 2, {"ground truth": [void] * 2, "run": [void] * 2}, categories=[])
    assert [axis.get_title() for axis in pair.axes] == ["ground truth", "run"] * 2  # one row if all fits


def test_errors_are_beside_the_ground_truth_in_the_colors_of_the_legend():
    assert tuple(plotting.MARK_LINES) == inspection.MARKS
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 20, 10, 30], [20, 20, 35, 35]])
    marked = {"boxes": boxes, "labels": np.arange(5)}
    ground_truth = {"boxes": boxes[:2], "labels": [1, 0]}
    figure = plotting.show_errors(images((40, 60)), [marked], [ground_truth], names=["cat", "dog"])
    true, errors = figure.axes
    assert (true.get_title(), errors.get_title()) == ("ground truth", "errors")
    assert [text.get_text() for text in true.texts] == ["dog", "cat"] and not errors.texts
    assert [patch.get_xy() for patch in true.patches] == [(0, 0), (20, 0)]
    # false positives are drawn first, then correct boxes, and missed objects on top
    assert [patch.get_xy() for patch in errors.patches] == [(0, 20), (40, 0), (20, 0), (0, 0), (20, 20)]
    by_place = {patch.get_xy(): patch for patch in errors.patches}
    patches = [by_place[left, top] for left, top, _, _ in boxes.tolist()]
    drawn_as = [(to_hex(patch.get_edgecolor()), patch.get_linestyle()) for patch in patches]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(inspection.MARKS)
    assert [to_hex(line.get_color()) for line in legend.get_lines()] == [color for color, _ in drawn_as]
    assert len({color for color, _ in drawn_as}) == 5 and [line == "-" for _, line in drawn_as] == [True] * 4 + [False]
    figure.draw_without_rendering()
    below = legend.get_window_extent()
    assert figure.bbox.y0 <= below.y0 and below.y1 <= min(axis.get_window_extent().y0 for axis in figure.axes)


def test_errors_of_several_runs_are_rows():
    box, none = {"boxes": [[2, 2, 30, 30]], "labels": [3]}, {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64)}
    rows = {"mine": [box] * 3, "other": [none] * 3}
    figure = plotting.show_errors(images((40, 40), (40, 60), (60, 40)), rows, [box, none, none])
    assert [axis.get_title() for axis in figure.axes] == ["ground truth", "", "", "mine", "", "", "other", "", ""]
    assert [len(axis.patches) for axis in figure.axes] == [1, 0, 0, 1, 1, 1, 0, 0, 0]
    assert_apart(figure)


@pytest.mark.parametrize(
    "empty",
    [
        lambda: plotting.show_errors([], [], []),
        lambda: plotting.show_entities([], {"ground truth": []}),
        lambda: plotting.show_panoptic([], {"ground truth": [], "run": []}, categories=[]),
    ],
)
def test_rows_without_images_say_so_in_one_line(empty):
    assert [text.get_text() for text in empty().texts] == ["no image to show"]


def test_positive_locations_are_dots_on_their_level_in_the_color_of_their_box():
    points = np.array([[4, 4], [12, 4], [8, 8]], float)
    facts = dict(points=points, matched=np.array([-1, 1, 0]), strides=np.array([8, 8, 16]))
    figure = plotting.show_positives(images((16, 16))[0], np.array([[0, 0, 16, 16], [8, 0, 16, 8]]), **facts)
    assert [axis.get_title() for axis in figure.axes] == ["stride 8", "stride 16"]
    dots = [axis.collections[0] for axis in figure.axes]
    assert [dot.get_offsets().tolist() for dot in dots] == [[[12, 4]], [[8, 8]]]
    assert [to_hex(dot.get_facecolor()[0]).upper() for dot in dots] == [plotting.COLORS[1], plotting.COLORS[0]]


def test_every_loss_has_a_panel_and_the_figure_one_legend():
    histories = {
        "a": [{"step": 1, "loss_cls": 2.0, "seconds": 3}],
        "b": [{"step": 1, "loss_cls": 1.0, "loss_mask": 5.0}],
    }
    figure = plotting.loss_curves(histories)
    assert [axis.get_title() for axis in figure.axes] == ["cls", "mask"]
    assert [[line.get_ydata()[0] for line in axis.lines if len(line.get_ydata())] for axis in figure.axes] == [
        [2, 1],
        [5],
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert all(axis.get_legend() is None for axis in figure.axes)
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert len(plotting.loss_curves({"unfinished": []}).axes) == 1


def test_a_figure_without_images_says_so_in_one_line():
    figure = plotting.show_images([])
    assert figure.get_figheight() < 1 and [text.get_text() for text in figure.texts] == ["no image to show"]


def test_curves_skip_records_without_the_key():
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


def test_score_histogram_states_how_many_labels_a_threshold_keeps():
    scores = np.array([0.1, 0.2, 0.35, 0.358, 0.9], np.float32)
    figure = plotting.score_histogram(scores, 0.355)
    assert figure.axes[0].get_title(loc="right") == "score > 0.355: 2 of 5 labels (40%)"
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 5
    binned = plotting.score_histogram(np.array([3, 1]), 0.5, edges=np.array([0, 0.5, 1]))
    assert binned.axes[0].get_title(loc="right") == "score > 0.5: 1 of 4 labels (25%)"
    assert plotting.score_histogram([]).axes[0].get_title(loc="right") == ""


def test_threshold_curves_show_three_curves():
    figure = plotting.threshold_curves([0.1, 0.5], [0.4, 0.9], [0.8, 0.3], [20, 4], chosen=0.3)
    left, right = figure.axes
    assert [line.get_ydata()[-1] for line in left.lines[:2]] == [0.9, 0.3] and right.lines[0].get_ydata()[0] == 20
    assert left.lines[2].get_xdata()[0] == right.lines[1].get_xdata()[0] == 0.3


def test_measured_rows_are_bars_and_the_paper_a_diamond():
    rows = [
        {"name": "ImageNet", "measured": 40.0, "paper": 46.8, "std": 0.5},
        {"name": "Objects (P,A)", "measured": None, "paper": 48.1},
        {"name": "ours only", "measured": 12.3, "paper": None},
    ]
    figure = plotting.compare_rows(rows, title="Table 2")
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [40.0, 12.3]
    diamonds = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "D"]
    assert diamonds == [[[46.8, 0]], [[48.1, 1]]]
    assert [text for text, _ in text_boxes(figure)].count("not measured") == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this repo", "paper"]
    assert_apart(figure)


def test_the_pipeline_numbers_the_stages_of_the_paper():
    figure = plotting.pipeline_figure()
    assert_apart(figure)
    texts = " ".join(text for text, _ in text_boxes(figure))
    assert all(stage in texts for stage in ("1  pseudo labeler", "2  warm-up", "3  finetuning"))
    titles = {text: box.x0 for text, box in text_boxes(figure) if "\n" not in text}
    assert titles["1  pseudo labeler"] < titles["pseudo labels"] < titles["2  warm-up"] < titles["3  finetuning"]


@pytest.mark.parametrize(
    "make", [plotting.pipeline_figure, lambda: plotting.show_images([]), lambda: plotting.curves({}, "loss")]
)
def test_a_notebook_displays_a_figure_with_the_same_bytes_each_time(make):
    png = make()._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert png == make()._repr_png_()


def test_drawing_does_not_import_pyplot():
    code = "import sys; from cassl_lib import plotting; plotting.pipeline_figure()._repr_png_(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in run.stdout.split() and "matplotlib.pyplot" not in run.stdout.split()


HOSTILE = ["$x_{1^", "cost in $ and $", r"\\frac{1}{0} $\\alpha$", "a_b^c", "$$"]


def test_names_with_formula_characters_are_drawn_as_they_are():
    labels = np.arange(len(HOSTILE))
    boxes = np.array([[5, 5 + 30 * n, 90, 30 + 30 * n] for n in range(len(HOSTILE))])
    instances = [{"boxes": boxes, "labels": labels, "scores": np.full(len(HOSTILE), 0.9)}]
    figure = plotting.show_instances(images((160, 160)), instances, names=HOSTILE, titles=[HOSTILE[0]])
    assert figure._repr_png_()[:4] == b"\x89PNG"
    shown = {text.get_text() for axis in figure.axes for text in (*axis.texts, axis.title)}
    assert HOSTILE[0] in shown
    rows = {name: instances for name in ("ground truth", *HOSTILE[:2])}
    assert plotting.compare_detections(images((160, 160)), rows, names=HOSTILE)._repr_png_()
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert plotting.curves({name: history for name in HOSTILE}, "loss")._repr_png_()
