"""Near-duplicates: the search on hand-made bits, the hash on drawn pictures and on real photographs."""

import io

import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from cassl_lib.cli.main import main
from cassl_lib.data.pool import near_duplicates as near
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.index import Pool
from cassl_lib.errors import DataError


def scene(seed):
    """A random picture of a few soft spots."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A pool of four pictures, and validation images that resemble the second and the fourth."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    for folder in ("pool", "val"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        scene(number).save(tmp_path / f"pool/{number}.jpg")
    scene(1).resize((160, 120)).save(tmp_path / "val/small.jpg", quality=50)
    scene(3).convert("L").save(tmp_path / "val/gray.png")
    scene(9).save(tmp_path / "val/other.jpg")
    return tmp_path


@pytest.fixture
def pool(files):
    return build_pool([str(files / "pool")], files / "index")


def val(files):
    return sorted((files / "val").iterdir())


def test_search_finds_every_pair_within_the_distance(monkeypatch):
    monkeypatch.setattr(near, "BLOCK", 2)
    hashes = np.array([0b0000, 0b0111, 2**64 - 1, 0b1000_0000], np.uint64)
    wanted = np.array([0b0001, 2**63 + 0b0111], np.uint64)
    # bits that differ from 1: 1, 2, 63, 2; from 2**63 + 7: 4, 1, 60, 5
    assert near.search(hashes, wanted, 2).tolist() == [[0, 0, 1], [1, 0, 2], [1, 1, 1], [3, 0, 2]]
    assert near.search(hashes, wanted, 0).shape == near.search(hashes[:0], wanted, 9).shape == (0, 3)


def test_edited_versions_match_and_other_pictures_do_not(files, pool):
    pairs = near.near_duplicates(pool, val(files), distance=8)
    assert [(pair.place, pair.path, pair.like) for pair in pairs] == [
        (1, str(files / "pool/1.jpg"), str(files / "val/small.jpg")),
        (3, str(files / "pool/3.jpg"), str(files / "val/gray.png")),
    ]
    assert all(pair.distance <= 8 for pair in pairs)


def test_an_image_that_cannot_be_decoded_matches_nothing(files):
    whole = (files / "pool/0.jpg").read_bytes()
    (files / "val/cut.jpg").write_bytes(whole[: len(whole) // 4])
    assert (
        near.image_hash(str(files / "val/cut.jpg"))
        == near.image_hash(str(files / "val/gone.jpg"))
        == (near.UNREADABLE,)
    )
    assert near.image_hash(str(files / "pool/0.jpg"))[0].bit_count() <= 32  # so no hash is within 31 bits of UNREADABLE
    both = np.array([5, near.UNREADABLE], np.uint64)
    assert near.search(both, both, 31).tolist() == [[0, 0, 0]]  # nor do two of them match


def test_hashes_are_cached_and_depend_on_the_images(files, pool, monkeypatch):
    first = near.near_duplicates(pool, val(files))
    monkeypatch.setattr(near, "image_hash", None)
    assert near.near_duplicates(pool, val(files)) == first
    (files / "val/small.jpg").unlink()
    with pytest.raises(TypeError):  # other images to compare with must be hashed, which is disabled here
        near.near_duplicates(pool, val(files))


def test_an_unreadable_image_is_counted_and_tried_again(files, pool, caplog):
    hidden = (files / "pool/1.jpg").rename(files / "pool/1.hidden")
    assert [pair.place for pair in near.near_duplicates(pool, val(files))] == [3]
    expected = f"1 of 4 images cannot be read and are not compared, such as {files / 'pool/1.jpg'}"
    assert expected in caplog.messages
    caplog.clear()
    hidden.rename(files / "pool/1.jpg")
    assert [pair.place for pair in near.near_duplicates(pool, val(files))] == [1, 3]
    assert "not compared" not in caplog.text


def test_hashes_are_not_cached_if_the_folder_is_missing(files, pool):
    (files / "pool").rename(files / "away")
    with pytest.raises(DataError, match="not a damaged image"):
        near.near_duplicates(pool, val(files))
    (files / "away").rename(files / "pool")
    assert [pair.place for pair in near.near_duplicates(pool, val(files))] == [1, 3]


def test_excluding_all_images_raises(files, pool):
    with pytest.raises(DataError, match="all of its 4 images resemble one of those to keep out"):
        near.exclude(pool, [near.Near(place, "a", "b", 0) for place in range(4)], files / "clean.parquet")


def test_a_changed_image_to_compare_with_is_hashed_again(files, pool):
    near.near_duplicates(pool, val(files))
    scene(2).save(files / "val/other.jpg", quality=60)
    assert [pair.place for pair in near.near_duplicates(pool, val(files))] == [1, 2, 3]


def test_exclusion_writes_an_index_that_lists_the_reasons(files, pool):
    pairs = near.near_duplicates(pool, val(files))
    clean = near.exclude(pool, pairs, files / "clean.parquet")
    assert [clean.image_id(place) for place in range(len(clean))] == [1, 3]
    assert clean.fingerprint != pool.fingerprint and len(pool) == 4
    rows = pyarrow.csv.read_csv(files / "clean.left_out.csv").to_pylist()
    assert [(row["path"][-5:], row["reason"]) for row in rows] == [
        ("1.jpg", "near duplicate"),
        ("3.jpg", "near duplicate"),
    ]
    assert rows[1]["detail"] == f"{pairs[1].distance} bits from {files / 'val/gray.png'}"
    (part,) = clean.parts
    assert (part["listed"], part["near duplicate"], part["images"]) == (4, 2, 2)
    again = near.exclude(pool, pairs, files / "again.parquet")
    assert again.fingerprint == clean.fingerprint


def test_exclusions_are_counted_per_part(files):
    (files / "more").mkdir()
    scene(9).save(files / "more/a.jpg", quality=60)
    scene(10).save(files / "more/b.jpg")
    both = build_pool([str(files / "pool"), str(files / "more")], files / "index")
    clean = near.exclude(both, near.near_duplicates(both, val(files)), files / "clean.parquet")
    assert [(part["images"], part["near duplicate"]) for part in clean.parts] == [(2, 2), (1, 1)]


def test_the_command_reports_or_excludes(files, capsys):
    out = files / "pool.parquet"
    arguments = ["pool", str(files / "pool"), "--out", str(out), "--against", str(files / "val")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 images within 8 bits" in said and "use --near exclude to leave them out" in said and len(Pool(out)) == 4
    rows = pyarrow.csv.read_csv(files / "pool.near.csv").to_pylist()
    assert [row["like"] for row in rows] == [str(files / "val/small.jpg"), str(files / "val/gray.png")]
    assert main([*arguments, "--near", "exclude"]) == 0 and len(Pool(out)) == 2
    assert main([*arguments, "--distance", "32"]) == 2
    assert "--distance 32 is out of range; use 0 to 31" in capsys.readouterr().err


def test_real_photographs(shared_data):
    """The measurement behind the default distance, on every tenth photograph."""
    files = sorted((shared_data / "coco_subset/images").iterdir())[::10]
    hashes = np.array([near.image_hash(str(file))[0] for file in files], np.uint64)
    different = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(len(files), 1)]
    assert different.min() > near.DISTANCE
    for change in (lambda image: image.resize((256, 256)), lambda image: image.convert("L")):
        changed = [_hash_of(change(Image.open(file))) for file in files]
        assert np.bitwise_count(hashes ^ np.array(changed, np.uint64)).max() <= near.DISTANCE


def _hash_of(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "open_file", lambda path: io.BytesIO(file.getvalue()))
        return near.image_hash("changed")[0]
