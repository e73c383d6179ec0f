"""Fingerprints of image contents: what is other data, and what is the same. And images that cannot be used."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small_sets import DATA, HEIGHT, WIDTH, write_coco, write_panoptic

from cassl_lib.data import datasets, image_contents
from cassl_lib.data.image_contents import check_usable, files_fingerprint
from cassl_lib.data.pool.build import build_pool
from cassl_lib.errors import DataError
from cassl_lib.files import file_fingerprint
from cassl_lib.resolve import resolve


@pytest.fixture
def folder(tmp_path):
    """A JSON and its images."""
    write_coco(tmp_path, DATA)
    return tmp_path


@pytest.fixture(autouse=True)
def few_are_hashed(monkeypatch):
    """Of the names a, b and c, only a and b: the first and the one after 3 * 1 // 2."""
    monkeypatch.setattr(image_contents, "HASHED", 2)


def fingerprint(folder, images="images", **settings):
    datasets._read.cache_clear()
    return datasets.labeled_set(own(folder / "instances.json", folder / images, **settings)).fingerprint


def own(path, images, **settings):
    spec = f"{path}:{images}"
    return resolve(profile="smoke", labeled=spec, val=spec, unlabeled=str(images), **settings)


def change(path, *, size=0):
    """Change the last byte of a file or, with `size`, add that many."""
    content = path.read_bytes()
    path.write_bytes(content + bytes(size) if size else content[:-1] + bytes([content[-1] ^ 1]))


def test_the_same_json_with_other_images_is_other_data(folder):
    shutil.copytree(folder / "images", folder / "others")
    before = fingerprint(folder)
    assert fingerprint(folder, "others") == before  # a copy
    Image.new("RGB", (WIDTH, HEIGHT), (200, 0, 0)).save(folder / "others/a.jpg")
    assert fingerprint(folder, "others") != before


def test_times_of_modification_do_not_count(folder):
    before = fingerprint(folder)
    for path in (folder / "images").iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(folder) == before


def test_every_size_counts_and_some_contents(folder):
    before = fingerprint(folder)
    change(folder / "images/c.jpg")
    assert fingerprint(folder) == before  # the promise is not more than that
    change(folder / "images/c.jpg", size=1)
    larger = fingerprint(folder)
    change(folder / "images/a.jpg")
    assert len({before, larger, fingerprint(folder)}) == 3


def test_on_request_all_contents_count(folder, monkeypatch):
    some = fingerprint(folder)
    monkeypatch.setenv("CASSL_HASH_IMAGES", "1")
    before = fingerprint(folder)
    change(folder / "images/c.jpg")
    assert len({some, before, fingerprint(folder)}) == 3


def test_drawn_images_and_entities_are_covered(tmp_path, folder):
    datasets._read.cache_clear()
    drawn = fingerprint(folder, labeled_images=2)
    path, images = write_panoptic(tmp_path / "set", count=2)
    config = own(path, images, annotation="entities")
    entities = datasets.labeled_set(config).fingerprint
    for image in [*images.iterdir(), *(folder / "images").iterdir()]:
        change(image)
    datasets._read.cache_clear()
    assert datasets.labeled_set(config).fingerprint != entities and fingerprint(folder, labeled_images=2) != drawn


def test_contents_of_the_embedded_scenes_do_not_count():
    scenes = datasets.labeled_set(resolve(profile="smoke", labeled_images=0))
    assert scenes.fingerprint == file_fingerprint(scenes.path)


def test_missing_images_have_a_fingerprint(folder):
    names = ["a.jpg", "b.jpg", "c.jpg"]
    before = files_fingerprint(folder / "images", names)
    (folder / "images/a.jpg").unlink()
    assert files_fingerprint(folder / "images", names) != before


def test_a_pool_of_other_contents_is_another_pool(tmp_path):
    """Also where a list does not say how large the files are."""
    for number in range(3):
        path = tmp_path / f"pool/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), number, np.uint8)).save(path)
    (tmp_path / "list.txt").write_text("0.png\n1.png\n2.png\n")
    for part in (tmp_path / "pool", f"{tmp_path / 'list.txt'}:{tmp_path / 'pool'}"):
        before = build_pool([str(part)], tmp_path / "index")
        scenes = build_pool([str(part)], tmp_path / "index", own=False)
        change(tmp_path / "pool/0.png")
        after = build_pool([str(part)], tmp_path / "index")
        assert before.fingerprint != after.fingerprint and before.index != after.index
        assert build_pool([str(part)], tmp_path / "index", own=False).index == scenes.index


# ---- images that cannot be used ----


def test_a_labeled_set_of_unusable_images_is_refused_by_name(folder):
    assert fingerprint(folder)
    (folder / "images/b.jpg").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"instances.json: 1 of the 3 images that were looked at cannot be used, such as"
    ):
        fingerprint(folder)
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "images/b.jpg")
    with pytest.raises(DataError, match=r"b.jpg \(30x20 pixels, listed as 20x30, height and width swapped\); restore"):
        fingerprint(folder)


def test_a_tenth_of_the_images_may_be_unusable(tmp_path):
    for number in range(10):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(tmp_path / f"{number}.png")
    pool = build_pool([str(tmp_path)], tmp_path / "index")
    for number in range(2):
        check_usable(pool, "the pool")
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match="the pool: 2 of the 10 images"):
        check_usable(pool, "the pool")
