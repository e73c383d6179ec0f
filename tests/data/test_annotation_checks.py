"""Labeled sets that cannot be trained on are named before training: boxes of other formats, nothing to learn from."""

import numpy as np
import pytest
from small_sets import DATA, HEIGHT, WIDTH, annotation, write_coco

from cassl_lib.data.annotation_checks import check_trainable, doubtful_boxes
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.instances import MOST_OBJECTS
from cassl_lib.errors import DataError

BOXES = [[2, 3, 5, 4], [20, 10, 8, 8], [1, 1, 28, 18], [12, 2, 9, 16]]


def labeled(folder, boxes, **extra):
    annotations = [annotation(n, 70, 90, [*box], **extra) for n, box in enumerate(boxes)]
    return CocoImages(write_coco(folder, DATA | {"annotations": annotations}), folder / "images")


def test_boxes_in_pixels_are_trainable(tmp_path):
    images = labeled(tmp_path, BOXES)
    check_trainable(images)
    assert images.doubt is None and images.left_out.counts == {
        "images of the JSON are not in the folder": 1,
        "classes have no instance": 2,
    }


def test_normalized_boxes_are_named(tmp_path):
    boxes = np.array(BOXES) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    with pytest.raises(DataError, match="instances.json: all 4 boxes lie between 0 and 1"):
        check_trainable(labeled(tmp_path, boxes.tolist()))


def test_boxes_of_corners_are_named(tmp_path):
    corners = [[x, y, x + w, y + h] for x, y, w, h in BOXES]
    with pytest.raises(DataError, match="seem to be x1, y1, x2, y2: 100% fit their image so, and 25% leave it by far"):
        check_trainable(labeled(tmp_path, corners))


def test_boxes_outside_their_image_are_left_out_or_clipped(tmp_path):
    images = labeled(tmp_path, [[31, 2, 5, 5], [25, 2, 9, 5], [29, 2, 1.5, 5], *BOXES])
    check_trainable(images)
    assert images.left_out.counts["boxes lie outside their image"] == 1
    assert images.left_out.counts["boxes are clipped to their image"] == 1
    assert images.boxes[0].tolist() == [25, 2, 30, 7]
    assert images.boxes[1].tolist() == [29, 2, 30.5, 7]  # by no more than a pixel


@pytest.mark.parametrize(
    ("boxes", "extra", "reason"),
    [
        ([], {}, "no object to learn from in 3 images"),
        (BOXES, {"iscrowd": 1}, "4 crowds are not trained on"),
        ([[100, 100, 5, 5], [-50, 3, 9, 9]], {}, "2 boxes lie outside their image"),
        ([[1, 1, 0, 5]], {}, "1 boxes have no area"),
    ],
)
def test_a_set_with_nothing_to_learn_from_is_named(tmp_path, boxes, extra, reason):
    with pytest.raises(DataError, match=reason) as caught:
        check_trainable(labeled(tmp_path, boxes, **extra))
    assert "\n" not in str(caught.value)


def test_of_very_many_objects_the_largest_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(0, 10, (3 * MOST_OBJECTS, 2)), rng.uniform(1, 10, (3 * MOST_OBJECTS, 2))])
    images = labeled(tmp_path, boxes.tolist())
    assert (
        images.left_out.counts[f"objects are not among the {MOST_OBJECTS:,} largest of their image"] == 2 * MOST_OBJECTS
    )
    largest = np.sort(boxes[:, 2:].prod(1))[-MOST_OBJECTS:]
    np.testing.assert_allclose(np.sort((images.boxes[:, 2:] - images.boxes[:, :2]).prod(1)), largest, rtol=1e-5)


@pytest.mark.parametrize("name", ["instances", "instances_from_panoptic", "keypoints"])
def test_real_annotations_raise_no_doubt_but_their_corners_do(shared_data, name):
    path = shared_data / f"coco_subset/{name}.json"
    images = CocoImages(path, shared_data / "coco_subset/images")
    check_trainable(images)
    sizes = np.repeat(np.stack([images.heights, images.widths], 1), np.diff(images.first), axis=0)
    assert "x1, y1, x2, y2" in doubtful_boxes(images.boxes.astype(float), sizes)
