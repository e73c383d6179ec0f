"""COCO JSON as people write it: arrays, errors, and where the files are."""

import json

import numpy as np
import pytest
from PIL import Image
from small_sets import DATA, HEIGHT, WIDTH, annotation, filled, image_entry, write_coco

from cassl_lib.data.coco import CocoImages, locate
from cassl_lib.errors import DataError, LeftOut


def test_classes_are_sorted_by_id_even_with_gaps(coco):
    assert coco.classes == ["dog", "ghost", "cat"] and coco.category_ids.tolist() == [5, 17, 90]
    assert coco.ids.tolist() == [70, 3, 1000] and len(coco) == 3
    assert coco.image_id(2) == 1000 and coco.image_path(2).name == "c.jpg"


def test_annotations_are_those_of_the_image(coco):
    first = coco.annotations(0)
    assert first["boxes"].tolist() == [[2, 3, 7, 7], [10, 4, 12, 8]] and first["boxes"].dtype == np.float32
    assert first["labels"].tolist() == [2, 0] and first["labels"].dtype == np.int64
    np.testing.assert_array_equal(
        first["masks"][0], filled(2, 3, 7, 5) | filled(2, 6, 7, 7)
    )  # two polygons, one object
    np.testing.assert_array_equal(first["masks"][1], filled(10, 4, 12, 8))  # uncompressed counts
    third = coco.annotations(2)
    assert third["boxes"].tolist() == [[0, 0, 4, 2]] and third["labels"].tolist() == [2]
    np.testing.assert_array_equal(third["masks"][0], filled(0, 0, 4, 2))  # compressed counts
    assert "masks" not in coco.annotations(0, masks=False)


def test_an_image_without_objects_has_empty_arrays(coco):
    empty = coco.annotations(1)
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["masks"].shape == (0, 20, 30)


def test_skipped_images_and_annotations_are_counted_and_named(coco):
    assert coco.left_out.counts == {
        "images of the JSON are not in the folder": 1,
        "annotations belong to images that are left out": 1,
        "crowds are not trained on": 1,
        "boxes have no area": 2,
        "boxes lie outside their image": 1,
        "classes have no instance": 1,
    }
    text = str(coco.left_out)
    for part in ("gone.jpg", "annotation 4", "annotation 5 [4, 4, 0, 5]", "annotation 8", "ghost"):
        assert part in text
    assert "annotation 9 [31, 4, 2, 2]" in next(line for line in text.splitlines() if "outside" in line)


def test_left_out_counts_all_and_names_five():
    left_out = LeftOut()
    for number in range(7):
        left_out.add("things are odd", number)
    assert str(left_out) == "7 things are odd: 0, 1, 2, 3, 4, ..."
    assert str(LeftOut()) == ""


def test_an_annotation_without_mask_in_a_set_with_masks_is_named(tmp_path):
    data = DATA | {"annotations": [*DATA["annotations"], annotation(10, 3, 5, [1, 1, 4, 4])]}
    images = CocoImages(write_coco(tmp_path, data), tmp_path / "images")
    assert images.left_out.counts["annotations have no mask to train on"] == 1
    assert "annotation 10" in str(images.left_out)
    assert images.annotations(1)["masks"].sum() == 0 and len(images.annotations(1)["boxes"]) == 1


def test_a_set_with_boxes_only_can_be_read_without_masks(tmp_path):
    boxes_only = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in DATA["annotations"]]
    images = CocoImages(write_coco(tmp_path, DATA | {"annotations": boxes_only}), tmp_path / "images")
    assert images.annotations(0, masks=False)["boxes"].shape == (2, 4)
    assert "annotations have no mask to train on" not in images.left_out.counts
    with pytest.raises(DataError, match="instances.json holds boxes only, no segmentation; use masks=False"):
        images.annotations(0)


def test_a_set_without_annotations_is_valid(tmp_path):
    images = CocoImages(write_coco(tmp_path, DATA | {"annotations": []}), tmp_path / "images")
    assert len(images) == 3 and len(images.boxes) == 0 and images.annotations(0)["masks"].shape == (0, 20, 30)


def test_the_fingerprint_depends_on_the_annotations_and_on_which_images_exist(tmp_path):
    def fingerprint(data=DATA):
        return CocoImages(write_coco(tmp_path, data), tmp_path / "images").fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert fingerprint(DATA | {"annotations": DATA["annotations"][:-1]}) != first
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/gone.jpg")  # it was absent
    assert fingerprint() != first


def without(key, *names):
    return DATA | {key: [{k: v for k, v in item.items() if k not in names} for item in DATA[key]]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"images": [', "is not JSON"),
        (b"\xff\xd8\xff\xe0 a picture", "is not JSON"),
        ("", "is not JSON"),
        ([DATA], "expected an object, got a list; give a COCO instances file"),
        ({"images": DATA["images"]}, "lacks annotations; give a COCO instances file"),
        (DATA | {"annotations": {"1": 2}}, "annotations: expected a list, got an object"),
        (DATA | {"images": []}, "'images' is empty"),
        (DATA | {"categories": []}, "'categories' is empty"),
        (without("images", "file_name", "width"), "images[0] (id 70): lacks file_name"),
        (without("annotations", "bbox"), "annotations[0] (id 1): lacks bbox"),
        (without("annotations", "image_id"), "annotations[0] (id 1): lacks image_id"),
        (without("categories", "name"), "categories[0] (id 90): lacks name"),
        (
            DATA | {"images": [image_entry(1, "gone.jpg")], "annotations": []},
            "none of its 1 images (such as 'gone.jpg') is in",
        ),
    ],
)
def test_a_file_that_is_not_coco_instances_is_named_in_the_error(tmp_path, data, message):
    path = write_coco(tmp_path, DATA)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(DataError) as caught:
        CocoImages(path, tmp_path / "images")
    assert str(path) in str(caught.value) and message in str(caught.value)


# ---- locating files ----


def test_the_image_folder_is_found_in_coco_layouts(tmp_path):
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances_train2017.json"
    path.touch()
    with pytest.raises(DataError, match=f"{path}: no image folder found beside it; give it as {path}:FOLDER"):
        locate(str(path))
    (tmp_path / "images").mkdir()
    assert locate(str(path)) == (path, tmp_path / "images")
    (tmp_path / "annotations/images").mkdir()
    assert locate(str(path)) == (path, tmp_path / "annotations/images")
    (tmp_path / "annotations/images").rmdir()
    (tmp_path / "images").rmdir()
    (tmp_path / "train2017").mkdir()
    assert locate(str(path)) == (path, tmp_path / "train2017")
    (tmp_path / "elsewhere").mkdir()
    assert locate(f"{path}:{tmp_path / 'elsewhere'}") == (path, tmp_path / "elsewhere")


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="labels.json: no such annotation file; give a COCO JSON, or JSON:FOLDER"):
        locate(str(tmp_path / "labels.json"))
    (tmp_path / "labels.json").touch()
    with pytest.raises(DataError, match="pictures: no such image folder"):
        locate(f"{tmp_path / 'labels.json'}:{tmp_path / 'pictures'}")
