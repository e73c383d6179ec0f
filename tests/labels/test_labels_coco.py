"""Labels to COCO JSON and back, other models' results as a store, and the commands for both."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from cassl_lib import paths
from cassl_lib.cli.main import main
from cassl_lib.errors import DataError
from cassl_lib.labels.coco import from_coco, to_coco
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore

BOXES = [[1, 2, 5, 6], [7.5, 3, 9, 10]]


def rle(left, top, right, bottom):
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    return mask_api.encode(mask)


def row(image_id, scores, boxes, rles):
    image = {"image_id": image_id, "file_name": f"pool/{image_id}.png", "height": 20, "width": 30}
    return image | {"scores": scores, "boxes": boxes, "rles": rles}


@pytest.fixture
def store(tmp_path):
    """Three images with two, zero and one label, and their files under the data root."""
    rows = [row(11, [0.9, 0.4], BOXES, [rle(1, 2, 5, 6), rle(7, 3, 9, 10)]), row(12, [], [], [])]
    write_shard(tmp_path / "store", 0, rows, "labeler-1", unreadable=["pool/13.png (damaged)"])
    write_shard(tmp_path / "store", 1, [row(2**40, [0.2], BOXES[:1], [rle(1, 2, 5, 6)])], "labeler-1")
    finish(tmp_path / "store", labeler="labeler-1", pool="pool-1")
    for name in (11, 12, 2**40):
        (paths.datasets() / "pool").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (90, 120, 90)).save(paths.datasets() / "pool" / f"{name}.png")
    return PseudoLabelStore(tmp_path / "store", threshold=0.1)


def test_labels_round_trip_through_coco(store, tmp_path):
    coco = to_coco(store)
    assert [image["id"] for image in coco["images"]] == [11, 12, 2**40]
    assert [entry["image_id"] for entry in coco["annotations"]] == [11, 11, 2**40]
    assert coco["annotations"][1]["bbox"] == [7.5, 3, 1.5, 7] and coco["annotations"][1]["area"] == 14
    coco = json.loads(json.dumps(coco))
    back = from_coco(coco, tmp_path / "back", labeler="labeler-1", shard_size=2)
    assert len(back.manifest["shards"]) == 2
    assert to_coco(back.at(0.1)) == coco


def test_ground_truth_of_coco_becomes_a_store(tmp_path):
    """Polygons, uncompressed RLE, a crowd region, an image without annotations, category ids with gaps."""
    image = {"height": 20, "width": 30}
    common = {"image_id": 3, "iscrowd": 0}
    coco = {
        "images": [{"id": 3, "file_name": "a.jpg", **image}, {"id": 4, "file_name": "b.jpg", **image}],
        "categories": [{"id": 90, "name": "brush"}, {"id": 5, "name": "plane"}],
        "annotations": [
            common | {"id": 1, "category_id": 90, "bbox": [2, 3, 6, 4], "segmentation": [[2, 3, 8, 3, 8, 7, 2, 7]]},
            common
            | {
                "id": 2,
                "category_id": 5,
                "bbox": [0, 0, 1, 20],
                "segmentation": {"size": [20, 30], "counts": [0, 20, 580]},
            },
            common | {"id": 4, "category_id": 5, "bbox": [4, 4, 0, 9], "segmentation": []},
            common | {"id": 3, "category_id": 5, "bbox": [0, 0, 9, 9], "iscrowd": 1, "segmentation": []},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    labels = from_coco(tmp_path / "instances.json", tmp_path / "store")
    item = labels[0]
    assert item["labels"].tolist() == [1, 0] and item["scores"].tolist() == [1, 1]
    assert item["boxes"].tolist() == [[2, 3, 8, 7], [0, 0, 1, 20]]
    assert item["areas"].tolist() == [24, 20]
    masks = mask_api.decode(item["rles"])
    assert masks[3:7, 2:8, 0].all() and masks[:, 0, 1].all() and masks.sum() == 44
    assert len(labels[1]["scores"]) == 0
    assert [entry["category_id"] for entry in to_coco(labels)["annotations"]] == [90, 5]
    assert labels.manifest["pool"] != from_coco(coco | {"images": coco["images"][:1]}, tmp_path / "b").manifest["pool"]


def test_a_range_of_images_can_be_exported(store):
    assert [entry["image_id"] for entry in to_coco(store, range(1, 3))["annotations"]] == [2**40]
    assert len(to_coco(store.at(0.5))["annotations"]) == 1


def test_results_of_another_model_become_a_store(tmp_path):
    """Box detections on two of three images, from a results file and an image_info JSON without categories."""
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 20, "width": 30} for n in (4, 5, 6)]
    detections = [
        {"image_id": 6, "category_id": 17, "bbox": [1, 2, 3, 4], "score": 0.25},
        {"image_id": 4, "category_id": 3, "bbox": [0, 0, 30, 20], "score": 0.5},
        {"image_id": 6, "category_id": 3, "bbox": [5, 5, 2, 2], "score": 0.75},
    ]
    (tmp_path / "info.json").write_text(json.dumps({"images": images}))
    (tmp_path / "results.json").write_text(json.dumps(detections))
    labels = from_coco(
        tmp_path / "info.json",
        tmp_path / "store",
        results=tmp_path / "results.json",
        images=tmp_path / "pictures",
        labeler="theirs",
        shard_size=2,
    )
    assert [labels.image_id(n) for n in range(3)] == [4, 5, 6] and labels.labeler == "theirs"
    assert [category["id"] for category in labels.categories] == [3, 17]
    last = labels.at(0.0)[2]
    assert last["labels"].tolist() == [1, 0] and last["boxes"].tolist() == [[1, 2, 4, 6], [5, 5, 7, 7]]
    assert last["areas"].tolist() == [12, 4] and last["rles"] == [] and not labels.has_masks
    assert paths.image(last["file_name"]) == tmp_path / "pictures" / "6.jpg"


@pytest.mark.parametrize(
    "results, message",
    [
        (
            [{"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}],
            "has the image_id 9, which the JSON does not list",
        ),
        (
            [{"image_id": 4, "category_id": 8, "bbox": [0, 0, 1, 1], "score": 1}],
            "has the category_id 8, which the JSON does not",
        ),
        ({"annotations": []}, "expected a list, got an object; give a COCO results JSON \\(a list\\)"),
        ("no JSON at all", "results.json is not JSON .* give a COCO results JSON"),
    ],
)
def test_results_that_do_not_fit_the_images_raise(results, message, tmp_path):
    coco = {
        "images": [{"id": 4, "file_name": "4.jpg", "height": 9, "width": 9}],
        "categories": [{"id": 3, "name": "a"}],
    }
    (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    with pytest.raises(DataError, match=message):
        from_coco(coco, tmp_path / "store", results=tmp_path / "results.json")
    assert not (tmp_path / "store").exists()


RESULT = {"image_id": 4, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5}
IMAGE = {"id": 4, "file_name": "4.jpg", "height": 9, "width": 9}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"score": 7}, r"\[0\].score \(image_id 4\): expected a number <= 1.0"),
        ({"score": None}, "score .*: expected a number, got null"),
        ({"bbox": [1, 2, 3]}, "bbox .*: expected a list of length 4"),
        ({"bbox": [0, 0, float("nan"), 1]}, r"\[0\].bbox\[2\] \(image_id 4\): nan is not a number"),
        ({"bbox": "wide"}, "expected a list or null, got a string"),
        ({"segmentation": {"size": [9, 9], "counts": "!"}}, "the counts of its RLE are malformed"),
        ({"segmentation": [[1, 2]]}, r"\[0\] \(id None, image_id 4\): its polygons have fewer than three points"),
        ({"segmentation": [[]]}, "its polygons have fewer than three points"),
        ({"segmentation": "abc"}, "segmentation: expected an object or a list or null, got a string"),
        ({"area": "x"}, "area .*: expected a number or null, got a string"),
        ({"area": float("nan")}, "area .*: nan is not a number"),
        ({"category_id": "x"}, "category_id .*: expected an integer, got a string"),
        ({"category_id": 3.5}, "category_id .*: expected an integer, got a number"),
    ],
)
def test_an_invalid_label_raises(change, message, tmp_path):
    coco = {"images": [IMAGE], "categories": [{"id": 3, "name": "a"}]}
    with pytest.raises(DataError, match=message):
        from_coco(coco, tmp_path / "store", results=[RESULT | change])


@pytest.mark.parametrize("missing", ["image_id", "category_id", "score", "bbox"])
def test_a_label_with_a_missing_field_raises(missing, tmp_path):
    result = {key: value for key, value in RESULT.items() if key != missing}
    with pytest.raises(DataError, match=missing):
        from_coco({"images": [IMAGE], "categories": [{"id": 3, "name": "a"}]}, tmp_path / "store", results=[result])


@pytest.mark.parametrize(
    "images, message",
    [
        ([IMAGE, IMAGE | {"file_name": "5.jpg"}], "2 images have the id 4, such as '5.jpg'"),
        ([{"id": 4, "file_name": "4.jpg"}], "lacks height"),
        ([IMAGE | {"height": -10}], r"images\[0\].height \(id 4\): expected an integer >= 1"),
        ([IMAGE | {"id": "four"}], "expected an integer, got a string"),
        ([IMAGE | {"id": 2**70}], "expected an integer <= 9223372036854775807"),
        ([IMAGE | {"height": 2**40}], "expected an integer <= 2147483647"),
        ([IMAGE | {"file_name": 7}], r"images\[0\].file_name \(id 4\): expected a string, got an integer"),
    ],
)
def test_invalid_images_raise(images, message, tmp_path):
    with pytest.raises(DataError, match=message):
        from_coco({"images": images, "categories": []}, tmp_path / "store")


@pytest.mark.parametrize(
    "categories, message",
    [
        ([{"id": 3, "name": "a"}, {"id": 3, "name": "b"}], "two categories have the id 3: 'a' \\(id 3\\) and 'b'"),
        ([{"id": 3}], r"categories\[0\]: lacks name"),
        ([{"name": "a"}], r"categories\[0\]: lacks id"),
    ],
)
def test_invalid_categories_raise(categories, message, tmp_path):
    (tmp_path / "all.json").write_text(json.dumps({"images": [IMAGE], "categories": categories}))
    with pytest.raises(DataError, match=f"all.json: .*{message}"):
        from_coco(tmp_path / "all.json", tmp_path / "store")


def test_boxes_are_clipped_and_those_outside_their_image_are_counted(tmp_path, caplog):
    coco = {"images": [IMAGE], "categories": [{"id": 3, "name": "a"}]}
    boxes = [[-5, 2, 100, 4], [20, 0, 5, 5], [-9, -9, 9, 9], [1, 1, 0, 5], [1, 1, 2, 2]]
    labels = from_coco(coco, tmp_path / "store", results=[RESULT | {"bbox": box} for box in boxes])
    assert labels.at(0.0)[0]["boxes"].tolist() == [[0, 2, 9, 6], [1, 1, 3, 3]]
    assert "3 labels have no area in their image: [20.0, 0.0, 5.0, 5.0] of image 4, " in caplog.text


def test_results_with_masks_alone_get_the_boxes_of_the_masks(tmp_path):
    mask = rle(2, 3, 8, 7)
    result = {"image_id": 4, "category_id": 3, "score": 0.5, "segmentation": mask | {"counts": mask["counts"].decode()}}
    coco = {"images": [IMAGE | {"height": 20, "width": 30}], "categories": [{"id": 3, "name": "a"}]}
    item = from_coco(coco, tmp_path / "store", results=[result]).at(0.0)[0]
    assert item["boxes"].tolist() == [[2, 3, 8, 7]] and item["rles"] == [mask]


# ---- commands ----


def test_the_labels_command_describes_draws_and_exports(store, tmp_path, capsys):
    picture, exported = tmp_path / "seen" / "labels.png", tmp_path / "part.json"
    wanted = ["--threshold", "0.3", "--images", "0:2", "--picture", str(picture), "--export", str(exported)]
    assert main(["labels", str(store.folder), *wanted]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 images, 1 more were unreadable" in lines[0] and "2 shards" in lines[1] and "by labeler-1" in lines[1]
    assert lines[3].split() == ["all", "3", "1.00", "2"] and lines[5].split() == ["0.40", "1", "0.33", "1"]
    with Image.open(picture) as image:
        assert min(image.size) > 100
    assert [entry["score"] for entry in json.loads(exported.read_text())["annotations"]] == pytest.approx([0.9, 0.4])


def test_an_export_can_be_imported_again(store, tmp_path, capsys):
    exported = tmp_path / "all.json"
    assert main(["labels", str(store.folder), "--threshold", "0.1", "--export", str(exported)]) == 0
    given = f"{exported}{os.pathsep}{paths.datasets()}"
    assert main(["import-labels", given, "--out", str(tmp_path / "again"), "--labeler", "mine"]) == 0
    again = PseudoLabelStore(tmp_path / "again", threshold=0.1)
    assert again.labeler == "mine" and [again.file_name(n) for n in range(3)] == [store.file_name(n) for n in range(3)]
    assert all(a["rles"] == b["rles"] for a, b in zip(again, store, strict=True))
    (tmp_path / "elsewhere").mkdir()
    lost = f"{exported}{os.pathsep}{tmp_path / 'elsewhere'}"
    assert main(["import-labels", lost, "--out", str(tmp_path / "lost")]) == 2
    assert f"its images are not in {tmp_path / 'elsewhere'}, such as" in capsys.readouterr().err
    assert not (tmp_path / "lost").exists()
    assert main(["import-labels", given, "--out", str(tmp_path / "again")]) == 2
    assert "was begun with labeler mine, not imported. Import into another folder" in capsys.readouterr().err
    assert main(["import-labels", given, "--out", str(tmp_path)]) == 2
    assert "is not a store and not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--images", "3"], "--images '3' is not START:STOP"),
        (["--images", "a:b"], "--images 'a:b' is not START:STOP"),
        (["--images", "3:4"], "--images '3:4' selects no image (the store has 3)"),
        (["--threshold", "7"], "--threshold 7.0 is out of range; use 0 to 1"),
        (["--threshold", "nan"], "--threshold nan is out of range"),
        (["--picture", "a.xyz"], "--picture a.xyz is not a picture file; use one of .png"),
    ],
)
def test_invalid_arguments_end_with_a_message(wrong, message, store, capsys):
    assert main(["labels", str(store.folder), *wrong]) == 2
    assert message in capsys.readouterr().err


def test_file_errors_are_printed_without_a_traceback(store, tmp_path, capsys):
    exported = tmp_path / "new" / "part.json"
    assert main(["labels", str(store.folder), "--export", str(exported)]) == 0 and exported.is_file()
    assert main(["labels", str(store.folder), "--export", str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder; name a file in it" in capsys.readouterr().err
    assert main(["labels", str(exported)]) == 2
    error = capsys.readouterr().err
    assert (
        "error: " in error
        and "is a file. Give the folder of a pseudo-label store" in error
        and "Traceback" not in error
    )


def test_a_missing_store_is_named(tmp_path, capsys):
    assert main(["labels", str(tmp_path / "nothing")]) == 2
    assert "nothing/manifest.json is missing (no such folder)" in capsys.readouterr().err
