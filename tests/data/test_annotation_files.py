"""Fields of a wrong type, and instances files that contradict themselves, end in one line that says where."""

import copy
import json

import pytest
from small_sets import DATA, write_coco

from cassl_lib.data.coco import CocoImages
from cassl_lib.errors import DataError


def changed(place, value):
    """The small set with one value replaced: `changed("annotations.1.bbox.2", "3")`."""
    data = copy.deepcopy(DATA)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    entry = data
    for part in path:
        entry = entry[part]
    entry[last] = value
    return data


def error_of(folder, data):
    """The message that reading `data` ends with."""
    path = write_coco(folder, data)
    with pytest.raises(DataError) as caught:
        CocoImages(path, folder / "images")
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("images.1.id", "3", "images[1].id (id '3'): expected an integer, got a string"),
        ("images.1.id", 3.5, "images[1].id (id 3.5): expected an integer, got a number"),
        ("images.1.id", None, "images[1].id (id None): expected an integer, got null"),
        ("images.1.id", True, "expected an integer, got true or false"),
        ("images.1.file_name", 7, "images[1].file_name (id 3): expected a string"),
        ("images.1.height", 0, "images[1].height (id 3): expected an integer >= 1"),
        ("images.1.height", -20, "expected an integer >= 1"),
        ("images.1.width", 30.5, "images[1].width (id 3): expected an integer, got a number"),
        ("images.1.width", "30", "expected an integer, got a string"),
        ("images.1", [], "images[1]: expected an object, got a list"),
        ("annotations.1.image_id", "70", "annotations[1].image_id (id 2): expected an integer, got a string"),
        ("annotations.1.category_id", "90", "annotations[1].category_id (id 2): expected an integer, got a string"),
        ("annotations.1.category_id", 90.5, "annotations[1].category_id (id 2): expected an integer, got a number"),
        ("annotations.1.id", "two", "annotations[1].id (id 'two'): expected an integer or null"),
        ("annotations.1.bbox", "2 3 5 4", "annotations[1].bbox (id 2): expected a list, got a string"),
        ("annotations.1.bbox", [2, 3, 5], "annotations[1].bbox (id 2): expected a list of length 4"),
        ("annotations.1.bbox.2", None, "annotations[1].bbox[2] (id 2): expected a number, got null"),
        ("annotations.1.bbox.2", float("nan"), "annotations[1].bbox[2] (id 2): nan is not a number"),
        ("annotations.1.iscrowd", "no", "annotations[1].iscrowd (id 2): expected"),
        ("annotations.1.segmentation", 5, "annotations[1] (id 2): segmentation: expected"),
        ("annotations.1.segmentation.0.3", "3", "annotations[1] (id 2): segmentation[0][3]: expected a number"),
        ("annotations.1.segmentation.0.3", None, "annotations[1] (id 2): segmentation[0][3]: expected a number"),
        (
            "annotations.0.segmentation.size",
            [20],
            "annotations[0] (id 1): segmentation.size: expected a list of length 2",
        ),
        ("annotations.2.segmentation.counts", [1, -1], "annotations[2] (id 3): segmentation.counts[1]: expected"),
        ("categories.0.name", None, "categories[0].name (id 90): expected a string, got null"),
        ("categories.0.id", 9.5, "categories[0].id (id 9.5): expected an integer"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(tmp_path, place, value, message):
    assert message in error_of(tmp_path, changed(place, value))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("images.1.id", 70, "2 images have the id 70, such as 'b.jpg'; give each its own id"),
        ("images.1.file_name", "a.jpg", "the images 70 and 3 have the same file_name 'a.jpg'"),
        ("categories.1.id", 90, "two categories have the id 90: 'cat' (id 90) and 'dog' (id 90); give each its own id"),
        ("categories.1.name", "cat", "two categories have the name 'cat': 'cat' (id 90) and 'cat' (id 5)"),
        ("annotations.1.image_id", 999, "annotations[1] (id 2) has the image_id 999, which the JSON does not list"),
        ("annotations.1.category_id", 33, "annotations[1] (id 2) has the category_id 33, which the JSON does not list"),
    ],
)
def test_a_file_that_contradicts_itself_is_named(tmp_path, place, value, message):
    assert message in error_of(tmp_path, changed(place, value))


def test_other_encodings_are_read(tmp_path):
    path = write_coco(tmp_path, DATA)
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_text(json.dumps(DATA), encoding=encoding)
        assert len(CocoImages(path, tmp_path / "images")) == 3


def test_nested_beyond_all_measure_is_not_json(tmp_path):
    assert "is not JSON" in error_of(tmp_path, '{"info": ' + "[" * 100_000)
    assert "images[0]: expected an object, got a list" in error_of(tmp_path, '{"images": ' + "[" * 100_000)
