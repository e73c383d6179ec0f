"""Figs. 1 to 3 of the paper, and AP over the length of training."""

import numpy as np
from matplotlib.container import ErrorbarContainer
from test_plots import assert_apart, images, text_boxes

from cassl_lib import plotting

NAMES = ["cat", "dog"]
INSTANCES = {"boxes": [[10, 10, 40, 40], [50, 50, 90, 90]], "labels": [0, 1]}


def lines_of(figure):
    return " ".join(text.replace("\n", " ") for text, _ in text_boxes(figure))


def test_joint_training_is_beside_the_three_stages():
    figure = plotting.joint_training_figure()
    assert_apart(figure)
    texts = lines_of(figure)
    joint = ("teacher", "student", "labeled loss  +  weight × unlabeled loss")
    assert all(each in texts for each in (*joint, "1  pseudo labeler", "2  warm-up", "3  finetuning"))
    places = {text: box.x0 for text, box in text_boxes(figure)}
    assert places["student"] < places["1  pseudo labeler"] < places["2  warm-up"] < places["3  finetuning"]


def test_the_stages_show_classes_only_where_they_are_used():
    example = plotting.Example(images((96, 96))[0].numpy(), INSTANCES)
    figure = plotting.stages_figure(labeled=example, pseudo_labeled=example, result=example, names=NAMES)
    assert_apart(figure)
    _, labeled, bare, pseudo_labeled, finetuning, result = figure.axes
    named = [[text.get_text() for text in axis.texts] for axis in (labeled, bare, pseudo_labeled, finetuning, result)]
    assert named == [[], [], [], NAMES, NAMES]
    boxes = [[patch.get_edgecolor() for patch in axis.patches if not patch.get_fill()] for axis in figure.axes[1:]]
    assert [len(each) for each in boxes] == [2, 0, 2, 2, 2]
    assert [len(set(each)) for each in boxes] == [1, 0, 1, 2, 2]  # without classes all objects have one color
    assert "2 classes" in lines_of(figure)


def test_entities_fill_the_image_with_one_object_in_it():
    thing = np.zeros((96, 96), bool)
    thing[40:50, 40:50] = True
    sky = np.arange(96)[:, None] < 30
    sky = np.broadcast_to(sky, (96, 96))
    objects = {"masks": thing[None], "labels": [0]}
    entities = {"masks": np.stack([thing, sky, ~sky & ~thing]), "labels": [0, 1, 2]}
    figure = plotting.entities_figure(images((96, 96))[0], objects, entities, names=["car", "sky", "ground"])
    assert_apart(figure)
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["car"]
    assert {text.get_text() for text in right.texts} == {"car", "sky", "ground"}
    titles = [text.get_text() for text in figure.texts]
    assert titles[0].startswith("objects: 1 annotation,") and titles[1].startswith("entities: 3 masks")
    sky_text = next(text for text in right.texts if text.get_text() == "sky")
    assert abs(sky_text.get_position()[1] - 14.5) < 2  # inside, in the middle of rows 0 to 29


BASELINE = {600: [28.0, 30.0], 1200: [31.0, 33.0], 2400: [33.0, 34.0]}
OTHERS = {"Objects (G,A)": {600: [30.0, 31.0]}, "CA-SSL": {600: [35.0, 37.0]}}


def test_the_baseline_is_a_curve_and_the_others_lines_at_their_steps():
    """By hand: means 29, 32, 33.5 with deviations sqrt(2), sqrt(2), sqrt(0.5); CA-SSL 36 with sqrt(2)."""
    figure = plotting.length_chart(BASELINE, OTHERS, before={"CA-SSL": "1,200 of warm-up"})
    axis = figure.axes[0]
    curves = [each for each in axis.containers if isinstance(each, ErrorbarContainer)]
    assert [curve[0].get_xydata().tolist() for curve in curves] == [
        [[600, 29], [1200, 32], [2400, 33.5]],
        [[600, 30.5]],
        [[600, 36]],
    ]
    half = [np.diff(segment[:, 1])[0] / 2 for segment in curves[0][2][0].get_segments()]
    np.testing.assert_allclose(half, np.sqrt([2, 2, 0.5]))
    flat = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert flat == [30.5, 36]
    texts = [text for text, _ in text_boxes(figure)]
    assert "CA-SSL: 36.0 ± 1.4" in texts and "600 steps after 1,200 of warm-up" in texts
    assert "2,400 steps, best of 3" in texts


def test_texts_of_equal_aps_are_moved_apart():
    same = {600: [33.5]}
    figure = plotting.length_chart({600: [33.0], 1200: [33.5]}, {"Objects (G,A)": same, "CA-SSL": same})
    assert_apart(figure)
    assert "±" not in lines_of(figure)  # one seed
    assert_apart(plotting.length_chart({600: [30.0]}, {"CA-SSL": {600: [30.0]}}))
