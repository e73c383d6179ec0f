"""Figures from recorded detections: the same images in rows, the stages, the demo's picture, AP over the length."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from cassl_lib.data import scenes
from cassl_lib.data.scenes.scene import SceneSpec
from cassl_lib.plotting.overlays import OBJECT_COLORS
from cassl_lib.profiles import DEMO_SCENES
from cassl_lib.report import blocks, pictures
from cassl_lib.report.gather import _packed
from cassl_lib.tables import results


@pytest.fixture
def no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)


def picture(unit, rows):
    """The first two scenes of a unit, each row with their ground truth."""
    ids = [pictures._scene_id(unit, index) for index in range(2)]
    spec = SceneSpec(**DEMO_SCENES)
    instances = [_packed(pictures.ground_truth(scenes.redraw(spec, each), pictures.CLASSES)) for each in ids]
    names = [f"scenes/images/{unit}/{each:012d}.jpg" for each in ids]
    return {"images": names, "scenes": dict(DEMO_SCENES), "rows": {row: instances for row in rows}}


def gathered():
    compared = ("ground truth", "baseline", "CA-SSL")
    return {
        "classes": list(pictures.CLASSES),
        "profile": "demo",
        "split": "large",
        "seed": 0,
        "pictures": {
            "labeled": picture("train", ("ground truth",)),
            "stages": picture("pool_0", (*compared[:1], "pseudo labels", *compared[1:])),
            "detections": picture("val", compared),
        },
    }


def texts_of(axis):
    return [text.get_text() for text in axis.texts]


def test_recorded_instances_are_drawn_on_the_redrawn_scenes():
    figures = pictures.draw(gathered())
    assert list(figures) == ["stages", "detections"]
    assert [text.get_text() for text in figures["detections"].texts] == ["ground truth", "baseline", "CA-SSL"]
    assert len(figures["stages"].axes) == 8 and len(figures["detections"].axes) == 6
    scene = scenes.redraw(SceneSpec(**DEMO_SCENES), pictures._scene_id("val", 0))
    names = [thing.kind.name for thing in scene.things]
    for axis in figures["detections"].axes[::2]:
        assert sorted(texts_of(axis)) == sorted(names)
        assert not [line for line in axis.lines if line.get_gid()]  # all rows are equal: nothing to mark


def test_the_stages_are_drawn_from_ground_truth_when_nothing_is_recorded(no_result):
    assert pictures.recorded() == []
    figures = pictures.paper_figures()
    assert list(figures) == ["joint_training", "pipeline", "entities"]
    assert "ground truth" in blocks.markdown(pictures.pipeline())
    assert pictures.comparisons() == blocks.NOTHING
    _, labeled, bare, pseudo_labeled, finetuning, result = figures["pipeline"].axes
    assert [bool(axis.collections) for axis in (labeled, bare, pseudo_labeled, finetuning, result)] == [
        True, False, True, True, True,
    ]  # fmt: skip
    assert not texts_of(labeled) and texts_of(finetuning)


def test_the_stages_show_the_first_images_with_instances():
    recorded = gathered()
    empty = {"boxes": [], "masks": [], "size": [96, 96], "labels": []}
    rows = recorded["pictures"]["stages"]["rows"]
    rows["pseudo labels"] = [empty, rows["pseudo labels"][1]]
    example = pictures._first(recorded["pictures"]["stages"], "pseudo labels")
    assert np.array_equal(example.image, pictures.images_of(recorded["pictures"]["stages"])[1].numpy())
    rows["pseudo labels"] = [empty, empty]
    example = pictures._first(recorded["pictures"]["stages"], "pseudo labels")
    assert len(example.instances["boxes"]) == 0
    pictures.pipeline_figure(recorded)  # without an instance


def test_entities_are_one_object_and_four_kinds_of_stuff():
    left, right = pictures.entities_figure().axes
    assert len(texts_of(left)) == 1 and len(texts_of(right)) == 5
    assert set(texts_of(left)) < set(texts_of(right))


def test_things_of_unnamed_kinds_have_no_label():
    spec = SceneSpec(**DEMO_SCENES | {"unnamed": (1.0, 1.0, 1.0, 1.0)})
    instances = pictures.ground_truth(scenes.redraw(spec, pictures._scene_id("pool_0", 0)), pictures.CLASSES)
    assert len(instances["boxes"]) >= 2 and set(instances["labels"]) == {-1}


NUMBERS = {
    "baseline_by_steps": {"1200": 0.31, "600": 0.28, "2400": None},
    "baseline_steps": 1200,
    "objects_ga_ap": 0.30,
    "cassl_ap": 0.354,
}


def test_the_demo_picture_has_the_aps_of_its_seed():
    figure = pictures.demo_picture(gathered(), NUMBERS)
    bars = figure.axes[-1]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], [28, 31, 30, 35.4])
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == ["baseline, 600 steps", "baseline, 1,200 steps (chosen)", "Objects (G,A)", "CA-SSL"]


COLUMN = "finetuned det AP"
COLLECTED = {
    "config": {"finetune": {"steps": 1200}, "warmup": {"steps": 2400}, "pseudo_labeler": {"steps": 1600}},
    "lengths": {
        f"ImageNet, {COLUMN}": {"steps": {"1200": {"0": 0.30, "1": 0.32}, "2400": {"0": 0.33}, "4 epochs": {"0": None}}}
    },
    "rows": {"Objects (G,A)": {COLUMN: {"0": 0.31, "1": None}}, "Objects (P,A)": {COLUMN: {"0": 0.35, "1": 0.36}}},
}


def test_the_length_chart_shows_table_2():
    axis = pictures.length_figure(COLLECTED).axes[0]
    curves = [each[0].get_xydata() for each in axis.containers if isinstance(each, ErrorbarContainer)]
    for curve, expected in zip(curves, ([[1200, 31], [2400, 33]], [[1200, 31]], [[1200, 35.5]]), strict=True):
        np.testing.assert_allclose(curve, expected)
    assert "1,200 steps after 2,400 of warm-up" in texts_of(axis)


def test_there_is_no_length_chart_before_every_row_is_measured():
    missing = COLLECTED | {"rows": COLLECTED["rows"] | {"Objects (P,A)": {COLUMN: {"0": None}}}}
    assert pictures.length_figure(missing) is None
    assert pictures.length_figure(COLLECTED | {"lengths": {}, "rows": {}}) is None


def test_objects_have_more_colors_than_a_demo_scene_has_objects():
    assert len(set(OBJECT_COLORS)) >= DEMO_SCENES["objects"][1]
