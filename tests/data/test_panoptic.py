"""COCO's panoptic files: writing and reading them, and the errors."""

import json

import numpy as np
import pytest
from PIL import Image
from small_panoptic import CAT, CATEGORIES, GROUND_TRUTH, SKY, write_set

from cassl_lib.data.panoptic import PanopticFiles, read_ids
from cassl_lib.data.panoptic_writer import write_image, write_json
from cassl_lib.errors import DataError


def test_what_is_written_is_read_back(tmp_path):
    large = 256**3 - 1
    ids = np.array([[0, 7, 7], [256, 70_000, large]])
    segments = [{"id": segment, "category_id": CAT} for segment in (7, 256, 70_000, large)]
    segments[1] |= {"iscrowd": 1, "category_id": SKY}
    empty = np.zeros((2, 4), np.int32), []
    path = write_set(tmp_path, {31: (ids, segments), 4: empty})

    colors = np.asarray(Image.open(tmp_path / "panoptic" / "000000000031.png")).tolist()
    assert colors == [[[0, 0, 0], [7, 0, 0], [7, 0, 0]], [[0, 1, 0], [112, 17, 1], [255, 255, 255]]]  # 70000 = 112 ...
    files = PanopticFiles(path)
    read, infos = files.read(31)
    assert files.image_ids == [31, 4] and files.categories == CATEGORIES and len(files) == 2
    assert read.dtype == np.int32 and read.tolist() == ids.tolist()
    assert infos == [
        {"id": 7, "category_id": CAT, "iscrowd": 0, "area": 2, "bbox": [1, 0, 2, 1]},
        {"id": 256, "category_id": SKY, "iscrowd": 1, "area": 1, "bbox": [0, 1, 1, 1]},
        {"id": 70_000, "category_id": CAT, "iscrowd": 0, "area": 1, "bbox": [1, 1, 1, 1]},
        {"id": large, "category_id": CAT, "iscrowd": 0, "area": 1, "bbox": [2, 1, 1, 1]},
    ]
    assert files.read(4)[0].tolist() == [[0] * 4] * 2 and files.read(4)[1] == []
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == [
        "000000000004.png",
        "000000000031.png",
        "panoptic.json",
    ]


def test_the_ids_of_a_palette_png_are_its_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 3, 2, 1])
    image.save(tmp_path / "a.png")
    assert read_ids(tmp_path / "a.png").tolist() == [[0, 66051], [66051, 66051]]  # 3 + 2 * 256 + 65536


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def segments_of(data):
    return data["annotations"][0]["segments_info"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: segments_of(data).pop(), "pixels have the ids 3, which segments_info lacks"),
        (lambda data: segments_of(data).append({"id": 8, "category_id": CAT}), "lists the ids 8, which no pixel has"),
        (lambda data: segments_of(data).append({"id": 3, "category_id": CAT}), "lists an id twice"),
        (
            lambda data: segments_of(data)[0].pop("category_id"),
            r"annotations\[0\].segments_info\[0\] \(image_id 1\): lacks category_id",
        ),
        (lambda data: segments_of(data)[0].update(category_id=2), "category 2, which the JSON lacks"),
        (lambda data: segments_of(data)[0].update(id=0), "segment id 0 is out of range; use 1 to 16777215"),
        (lambda data: data["images"][0].update(width=5), "is 4 x 4 pixels, but .* says 5 x 4 for image 1"),
        (lambda data: data["annotations"].append(data["annotations"][0]), "image 1: the image has two annotations"),
        (lambda data: data["annotations"][0].update(file_name="no.png"), "no.png: no such PNG"),
        (lambda data: data["annotations"][0].pop("file_name"), r"annotations\[0\] \(image_id 1\): lacks file_name"),
        (lambda data: data["categories"][0].pop("isthing"), r"categories\[0\] \(id 1\): lacks isthing"),
        (lambda data: data["categories"][0].update(name="dog"), "same name"),
        (lambda data: data.pop("annotations"), "lacks annotations"),
        (lambda data: data.update(annotations=[{"image_id": 1, "bbox": [0, 0, 1, 1]}]), "is an instances file"),
    ],
)
def test_files_that_disagree_raise(tmp_path, change, message):
    path = write_set(tmp_path, {1: GROUND_TRUTH})
    edit(path, change)
    with pytest.raises(DataError, match=message) as raised:
        PanopticFiles(path).read(1)
    assert str(tmp_path) in str(raised.value)


def test_missing_or_damaged_files_raise(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        PanopticFiles(tmp_path / "panoptic.json")
    path = write_set(tmp_path, {1: GROUND_TRUTH})
    with pytest.raises(DataError, match="no such folder"):
        PanopticFiles(path, tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no annotation of image 2"):
        PanopticFiles(path).read(2)
    png = PanopticFiles(path).png(1)
    Image.fromarray(GROUND_TRUTH[0].astype(np.uint8)).save(png)
    with pytest.raises(DataError, match="is a 'L' image"):
        PanopticFiles(path).read(1)
    Image.effect_noise((40, 40), 90).convert("RGB").save(png)
    png.write_bytes(png.read_bytes()[: png.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        PanopticFiles(path).read(1)
    path.write_text("[")
    with pytest.raises(DataError, match="expected an object"):
        PanopticFiles(path)


@pytest.mark.parametrize(
    ("ids", "segments", "message"),
    [
        (np.array([[1.0]]), [{"id": 1, "category_id": CAT}], "not float64"),
        (np.array([[256**3]]), [{"id": 256**3, "category_id": CAT}], "are out of range; use 0 to 16777215"),
        (np.array([[-1]]), [{"id": -1, "category_id": CAT}], "ids -1 to -1 are out of range"),
        (np.array([[1]]), [], "segments_info lacks"),
        (np.array([[0]]), [{"id": 1, "category_id": CAT}], "no pixel has"),
    ],
)
def test_invalid_ids_are_not_written(tmp_path, ids, segments, message):
    with pytest.raises(DataError, match=message):
        write_image(tmp_path, 1, ids, segments)
    assert not list(tmp_path.iterdir())


def test_each_image_needs_exactly_one_annotation(tmp_path):
    annotation = write_image(tmp_path / "p", 1, *GROUND_TRUTH)
    for annotations, images, message in (
        ([annotation, annotation], [1], "written twice"),
        ([annotation], [1, 2], "images 2 were not written"),
        ([annotation], [], "images 1 were written but"),
    ):
        with pytest.raises(DataError, match=message):
            write_json(tmp_path / "p.json", annotations, images=[{"id": i} for i in images], categories=CATEGORIES)
    assert not (tmp_path / "p.json").exists()


def test_real_areas_and_boxes(shared_data, tmp_path):
    path, folder = shared_data / "coco_subset/panoptic.json", shared_data / "coco_subset/panoptic"
    data = json.loads(path.read_text())
    files = PanopticFiles(path, folder)
    for annotation in data["annotations"][::20]:
        ids, segments = files.read(annotation["image_id"])
        written = write_image(tmp_path, annotation["image_id"], ids, segments)["segments_info"]
        assert [segment["area"] for segment in written] == [segment["area"] for segment in segments]
        assert read_ids(tmp_path / annotation["file_name"]).tolist() == ids.tolist()
