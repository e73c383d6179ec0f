"""Pools of unlabelled images: folders, COCO JSONs and mixtures of them as one index."""

import json

import numpy as np
import pytest
from PIL import Image

from cassl_lib.data.coco import DataError
from cassl_lib.data.unlabeled import Pool, build_pool


def draw(path, width=30, height=20, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)
    return path


def write_json(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries}))
    return path


def entry(image_id, name, height=20, width=30):
    return {"id": image_id, "file_name": name, "height": height, "width": width}


@pytest.fixture
def build(tmp_path):
    return lambda *parts: build_pool([str(part) for part in parts], tmp_path / "index")


def names(pool):
    return [pool.image_path(index).name for index in range(len(pool))]


def test_a_folder_with_folders_in_it(tmp_path, build):
    draw(tmp_path / "pool/b.jpg", 30, 20)
    draw(tmp_path / "pool/deep/er/a.PNG", 7, 9, "L")
    draw(tmp_path / "pool/deep/c.webp", 5, 6)
    (tmp_path / "pool/notes.txt").write_text("no image")
    pool, report = build(tmp_path / "pool")
    rows = [pool.row(index) for index in range(len(pool))]
    assert [(row["id"], row["height"], row["width"], row["source"]) for row in rows] == [
        (1, 20, 30, "pool"),
        (2, 6, 5, "deep"),
        (3, 9, 7, "er"),
    ]
    assert names(pool) == ["b.jpg", "c.webp", "a.PNG"] and not report.counts
    assert pool.paths() == {str(tmp_path / "pool/b.jpg"), *(row["path"] for row in rows[1:])}
    assert pool.image_id(2) == 3
    assert pool.annotations(0)["boxes"].shape == (0, 4) and pool.annotations(0)["labels"].dtype == np.int64


def test_a_file_that_is_no_image_is_left_out_and_named(tmp_path, build, capsys):
    draw(tmp_path / "pool/a.jpg")
    (tmp_path / "pool/b.jpg").write_text("not an image")
    (tmp_path / "pool/c.png").write_bytes(b"")
    pool, report = build(tmp_path / "pool")
    assert names(pool) == ["a.jpg"]
    assert report.counts == {"files cannot be read as images": 2}
    assert "b.jpg" in str(report) and "c.png" in str(report) and str(report) in capsys.readouterr().err


def test_a_json_gives_its_own_ids_and_sizes(tmp_path, build):
    json_path = write_json(tmp_path / "annotations/image_info_test.json", [entry(70, "b.jpg", 8), entry(5, "a.jpg", 9)])
    draw(tmp_path / "test/a.jpg")
    pool, _ = build(json_path)
    assert [(pool.image_id(i), pool.row(i)["height"], pool.image_path(i)) for i in range(2)] == [
        (5, 9, tmp_path / "test/a.jpg"),
        (70, 8, tmp_path / "test/b.jpg"),
    ]


def test_several_jsons_keep_their_ids_if_these_differ(tmp_path, build):
    (tmp_path / "images").mkdir()
    first = write_json(tmp_path / "one.json", [entry(1, "a.jpg"), entry(2, "b.jpg")])
    second = write_json(tmp_path / "two.json", [entry(9, "c.jpg")])
    pool, _ = build(first, second)
    assert [pool.image_id(index) for index in range(3)] == [1, 2, 9]


def test_images_of_equal_ids_are_numbered_anew(tmp_path, build):
    """Labels are stored by image id, so two images must not share one."""
    draw(tmp_path / "pool/x.jpg")
    (tmp_path / "images").mkdir()
    first = write_json(tmp_path / "one.json", [entry(2, "a.jpg"), entry(7, "b.jpg")])
    second = write_json(tmp_path / "two.json", [entry(7, "c.jpg")])
    for parts in ([first, second], [first, tmp_path / "pool"], [tmp_path / "pool", second]):
        pool, _ = build(*parts)
        assert [pool.image_id(index) for index in range(len(pool))] == list(range(1, len(pool) + 1))


def test_a_share_of_a_folder_is_spread_evenly(tmp_path, build):
    for number in range(10):
        draw(tmp_path / f"pool/{number}.jpg", 4, 4)
    # int((i + 1) * 0.3) passes a whole number at the fourth, seventh and last image
    assert names(build(f"{tmp_path / 'pool'}@0.3")[0]) == ["3.jpg", "6.jpg", "9.jpg"]
    assert names(build(f"{tmp_path / 'pool'}@0.5")[0]) == ["1.jpg", "3.jpg", "5.jpg", "7.jpg", "9.jpg"]


def test_a_folder_may_have_an_at_in_its_name(tmp_path, build):
    draw(tmp_path / "me@home/a.jpg")
    draw(tmp_path / "half@0.5/a.jpg")
    assert names(build(tmp_path / "me@home")[0]) == ["a.jpg"]
    assert names(build(tmp_path / "half@0.5")[0]) == ["a.jpg"]


def test_the_index_of_the_same_files_is_found_again_and_of_others_is_not(tmp_path, build):
    draw(tmp_path / "pool/a.jpg")
    pool, _ = build(tmp_path / "pool")
    written = pool.index.stat().st_ino
    again, _ = build(tmp_path / "pool")
    assert again.fingerprint == pool.fingerprint and again.index.stat().st_ino == written
    assert Pool(pool.index).fingerprint == pool.fingerprint != ""
    draw(tmp_path / "pool/b.jpg")
    more, _ = build(tmp_path / "pool")
    assert more.fingerprint != pool.fingerprint and len(more) == 2
    draw(tmp_path / "pool/b.jpg", 200, 100)
    assert build(tmp_path / "pool")[0].row(1)["width"] == 200


def test_a_corrected_json_makes_another_index(tmp_path, build):
    (tmp_path / "images").mkdir()
    path = write_json(tmp_path / "info.json", [entry(1, "a.jpg", height=20)])
    first, _ = build(path)
    write_json(path, [entry(1, "a.jpg", height=21)])
    second, _ = build(path)
    assert second.fingerprint != first.fingerprint and second.row(0)["height"] == 21


def test_what_is_no_pool_is_refused_by_name(tmp_path, build):
    with pytest.raises(DataError, match="nowhere: no such folder or JSON"):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image in it; endings that count are .jpg"):
        build(tmp_path / "empty")
    (tmp_path / "images").mkdir()
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="list.json is not a COCO image_info file"):
        build(tmp_path / "list.json")
    write_json(tmp_path / "sizeless.json", [{"id": 1, "file_name": "a.jpg"}])
    with pytest.raises(DataError, match="sizeless.json is not a COCO image_info file"):
        build(tmp_path / "sizeless.json")
