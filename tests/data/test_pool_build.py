"""Building pools: folders, COCO JSONs and mixtures of them as one index, and what is left out of it."""

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cassl_lib.cli.main import main
from cassl_lib.data import datasets
from cassl_lib.data.pool import build as pool_build
from cassl_lib.data.pool import chunks, headers
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.index import INDEX, LEFT_OUT, Pool, save, write_index
from cassl_lib.errors import DataError
from cassl_lib.resolve import resolve

COLORS = count(1)


def draw(path, width=30, height=20, mode="RGB"):
    """Write an image in a unique color, because a pool leaves out byte-identical images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    step = next(COLORS)
    color = (step % 16 * 16, step // 16 % 16 * 16, step // 256 * 16)  # far enough apart for JPEG to keep them distinct
    Image.new(mode, (width, height), color[0] if mode == "L" else color).save(path, quality=100)
    return path


def write_json(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries}))
    return path


def entry(image_id, name, height=20, width=30):
    return {"id": image_id, "file_name": name, "height": height, "width": width}


@pytest.fixture
def build(tmp_path):
    return lambda *parts, **options: build_pool([str(part) for part in parts], tmp_path / "index", **options)


@pytest.fixture
def images(tmp_path):
    """a.png, b.png, c.png of 20x30, where `locate` searches for the images of one.json."""
    for name in "abc":
        draw(tmp_path / f"images/{name}.png")
    return tmp_path / "images"


def names(pool):
    return [pool.image_path(index).name for index in range(len(pool))]


def ids(pool):
    return [pool.image_id(index) for index in range(len(pool))]


def left_out(pool):
    """(file name, reason, detail) of the CSV beside the index."""
    rows = pa.csv.read_csv(pool.index.with_suffix(".left_out.csv")).to_pylist()
    return [(row["path"].rpartition("/")[2], row["reason"], row["detail"]) for row in rows]


def test_a_nested_folder(tmp_path, build):
    draw(tmp_path / "pool/b.jpg", 30, 20)
    draw(tmp_path / "pool/deep/er/a.PNG", 7, 9, "L")
    draw(tmp_path / "pool/deep/c.webp", 5, 6)
    (tmp_path / "pool/notes.txt").write_text("no image")
    pool = build(tmp_path / "pool")
    rows = [pool.row(index) for index in range(len(pool))]
    assert [(row["id"], row["height"], row["width"], row["source"]) for row in rows] == [
        (1, 20, 30, "pool"),
        (2, 6, 5, "deep"),
        (3, 9, 7, "er"),
    ]
    assert names(pool) == ["b.jpg", "c.webp", "a.PNG"] and not pool.left_out.counts and not left_out(pool)
    assert pool.image_path(0) == tmp_path / "pool/b.jpg" and pool.image_id(2) == 3
    assert pool.annotations(0)["boxes"].shape == (0, 4) and pool.annotations(0)["labels"].dtype == np.int64
    with pytest.raises(IndexError, match="image 3 of 3"):
        pool.row(3)


def test_unusable_images_are_counted_and_listed_with_the_reason(tmp_path, build, images, caplog):
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:20])
    shutil.copy(images / "a.png", images / "again.png")
    listed = [entry(number, f"{name}.png") for number, name in enumerate(["a", "again", "broken", "gone", "c"], 1)]
    part = write_json(tmp_path / "one.json", [*listed, entry(6, "b.png", height=21)])
    pool = build(part)
    assert names(pool) == ["a.png", "c.png"] and ids(pool) == [1, 5]
    assert {(name, reason) for name, reason, _ in left_out(pool)} == {
        ("again.png", "duplicate"),
        ("broken.png", "unreadable"),
        ("gone.png", "missing"),
        ("b.png", "other size"),
    }
    details = {name: detail for name, _, detail in left_out(pool)}
    assert details["again.png"] == f"of {images / 'a.png'}" and details["b.png"] == "20x30, listed as 21x30"
    counts = pool.left_out.counts
    assert set(counts.values()) == {1} and len(counts) == 4
    (message,) = caplog.messages
    assert str(pool.left_out) in message and "pool.left_out.csv" in message
    caplog.clear()
    assert build(part).left_out.counts == counts and not caplog.messages
    expected = {"missing": 1, "unreadable": 1, "other size": 1, "duplicate": 1, "near duplicate": 0}
    assert pool.parts == [{"part": str(part), "listed": 6, "images": 2} | expected]


def test_files_with_equal_ends_are_compared_whole(tmp_path, build):
    header = draw(tmp_path / "pool/a.bmp", 64, 64).read_bytes()[:54]
    contents = [bytes(12_288), bytes(12_288), bytes(6_000) + b"\1" + bytes(6_287)]
    for name, content in zip("abc", contents, strict=True):
        (tmp_path / f"pool/{name}.bmp").write_bytes(header + content)
    pool = build(tmp_path / "pool")
    assert names(pool) == ["a.bmp", "c.bmp"]
    assert left_out(pool) == [("b.bmp", "duplicate", f"of {tmp_path / 'pool/a.bmp'}")]


def test_only_files_of_equal_size_and_ends_are_compared(tmp_path):
    start, end = draw(tmp_path / "a.bmp", 64, 64).read_bytes()[:8192], bytes(4096)
    ends = {}
    for name, content in {
        "whole": start + end,
        "other middle": start[:8000] + b"\7" + start[8001:] + end,
        "other end": start + end[:-1] + b"\7",
        "other start": start[:60] + b"\7" + start[61:] + end,
        "longer": start + bytes(1) + end,
    }.items():
        (tmp_path / name).write_bytes(content)
        ends[name] = headers.read_header(str(tmp_path / name), None, None)[3]
    assert ends["other middle"] == ends["whole"] and len(set(ends.values())) == 4


def test_an_index_is_rebuilt_when_a_missing_or_damaged_image_appears(tmp_path, build, images):
    part = write_json(tmp_path / "one.json", [entry(1, "a.png"), entry(2, "late.png"), entry(3, "cut.png")])
    (images / "cut.png").write_bytes(b"half")
    first = build(part)
    assert names(first) == ["a.png"] and build(part).fingerprint == first.fingerprint
    draw(images / "late.png")
    second = build(part)
    assert names(second) == ["a.png", "late.png"] and second.fingerprint != first.fingerprint
    draw(images / "cut.png")
    assert sorted(names(build(part))) == ["a.png", "cut.png", "late.png"]


def test_ids_and_sizes_come_from_the_json(tmp_path, build):
    json_path = write_json(tmp_path / "annotations/image_info_test.json", [entry(70, "b.jpg", 8), entry(5, "a.jpg", 9)])
    draw(tmp_path / "test/a.jpg", height=9)
    draw(tmp_path / "test/b.jpg", height=8)
    pool = build(json_path)
    assert [(pool.image_id(i), pool.row(i)["height"], pool.image_path(i)) for i in range(2)] == [
        (5, 9, tmp_path / "test/a.jpg"),
        (70, 8, tmp_path / "test/b.jpg"),
    ]


def test_several_jsons_keep_ids_that_differ(tmp_path, build, images):
    first = write_json(tmp_path / "one.json", [entry(1, "a.png"), entry(2, "b.png")])
    second = write_json(tmp_path / "two.json", [entry(9, "c.png")])
    assert ids(build(first, second)) == [1, 2, 9]


def test_images_are_renumbered_if_ids_repeat(tmp_path, build, images):
    """Labels are stored by image id, so ids must be unique."""
    draw(tmp_path / "pool/x.jpg")
    first = write_json(tmp_path / "one.json", [entry(2, "a.png"), entry(7, "b.png")])
    second = write_json(tmp_path / "two.json", [entry(7, "c.png")])
    for parts in ([first, second], [first, tmp_path / "pool"], [tmp_path / "pool", second]):
        pool = build(*parts)
        assert ids(pool) == list(range(1, len(pool) + 1))


def test_a_share_is_evenly_spaced(tmp_path, build):
    for number in range(10):
        draw(tmp_path / f"pool/{number}.jpg", 4, 4)
    # (i + 1) * 3 // 10 increases at the fourth, seventh and last image
    assert names(build(f"{tmp_path / 'pool'}@0.3")) == ["3.jpg", "6.jpg", "9.jpg"]
    assert names(build(f"{tmp_path / 'pool'}@0.5")) == ["1.jpg", "3.jpg", "5.jpg", "7.jpg", "9.jpg"]
    part = write_json(tmp_path / "one.json", [entry(number, f"{number}.jpg", 4, 4) for number in range(10)])
    assert ids(build(f"{part}:{tmp_path / 'pool'}@.3")) == [3, 6, 9]


def test_a_folder_name_may_contain_an_at_sign(tmp_path, build):
    draw(tmp_path / "me@home/a.jpg")
    draw(tmp_path / "half@0.5/a.jpg")
    assert names(build(tmp_path / "me@home")) == ["a.jpg"]
    assert names(build(tmp_path / "half@0.5")) == ["a.jpg"]


def test_an_index_is_reused_for_the_same_files_only(tmp_path, build):
    draw(tmp_path / "pool/a.jpg")
    pool = build(tmp_path / "pool")
    written = pool.index.stat().st_ino
    again = build(tmp_path / "pool")
    assert again.fingerprint == pool.fingerprint and again.index.stat().st_ino == written
    assert Pool(pool.index).fingerprint == pool.fingerprint != ""
    draw(tmp_path / "pool/b.jpg")
    more = build(tmp_path / "pool")
    assert more.fingerprint != pool.fingerprint and len(more) == 2
    draw(tmp_path / "pool/b.jpg", 200, 100)
    assert build(tmp_path / "pool").row(1)["width"] == 200


def test_parts_are_recorded_as_given(tmp_path, build):
    """The same images in other parts have the same fingerprint and other counts."""
    for name in "ab":
        draw(tmp_path / f"pool/{name}/{name}.jpg", 20 + len(name), 30)
    whole = build(tmp_path / "pool")
    halves = build(tmp_path / "pool/a", tmp_path / "pool/b")
    assert [Path(part["part"]).name for part in whole.parts] == ["pool"]
    assert [(Path(part["part"]).name, part["images"]) for part in halves.parts] == [("a", 1), ("b", 1)]
    assert whole.fingerprint == halves.fingerprint


def test_a_corrected_json_gives_a_new_index(tmp_path, build, images):
    path = write_json(tmp_path / "info.json", [entry(1, "a.png"), entry(2, "b.png", height=19)])
    first = build(path)
    write_json(path, [entry(1, "a.png"), entry(2, "b.png", height=20)])
    second = build(path)
    assert names(first) == ["a.png"] and names(second) == ["a.png", "b.png"]
    assert second.fingerprint != first.fingerprint


def test_a_part_that_is_not_a_pool_is_named_in_the_error(tmp_path, build):
    with pytest.raises(DataError, match="nowhere: no such folder or JSON"):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image in it; image files end in .jpg"):
        build(tmp_path / "empty")
    draw(tmp_path / "one/a.jpg")
    with pytest.raises(DataError, match="one@0.3: no image in it; a share of 0.3 takes none"):
        build(f"{tmp_path / 'one'}@0.3")
    (tmp_path / "images").mkdir()
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="list.json is not a COCO image_info file"):
        build(tmp_path / "list.json")
    write_json(tmp_path / "sizeless.json", [{"id": 1, "file_name": "a.jpg"}])
    with pytest.raises(DataError, match="sizeless.json is not a COCO image_info file"):
        build(tmp_path / "sizeless.json")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("text")
    with pytest.raises(DataError, match="bad: no image in it can be read; give images that end in .jpg"):
        build(tmp_path / "bad")


def test_a_part_without_any_existing_image_raises_until_one_appears(tmp_path, build, images):
    draw(tmp_path / "pool/x.jpg")
    part = write_json(tmp_path / "one.json", [entry(1, "y.png"), entry(2, "z.png")])
    with pytest.raises(DataError, match="one.json: none of its 2 images exists, such as .*images/y.png; give"):
        build(tmp_path / "pool", part)
    draw(images / "z.png")
    assert names(build(tmp_path / "pool", part)) == ["x.jpg", "z.png"]


def test_an_index_is_valid_after_moving_the_data_root(tmp_path, monkeypatch):
    def built(root):
        monkeypatch.setenv("CASSL_DATASETS", str(root))
        return build_pool([str(root / "mine")], tmp_path / f"index of {root.name}")

    draw(tmp_path / "here/mine/a.jpg")
    first = built(tmp_path / "here")
    assert first.row(0)["path"] == "mine/a.jpg" and first.parts[0]["part"] == "mine"
    shutil.move(tmp_path / "here", tmp_path / "there")
    second = built(tmp_path / "there")
    assert second.fingerprint == first.fingerprint
    assert Pool(first.index).image_path(0) == tmp_path / "there/mine/a.jpg"


def numbered(index, size):
    """An index of images 1 to `size`, in several row groups."""
    sides = pa.array(np.full(size, 8, np.int32))
    paths = [f"/pool/{number}.jpg" for number in range(1, size + 1)]
    rows = pa.table([pa.array(np.arange(1, size + 1)), paths, sides, sides, ["pool"] * size], schema=INDEX)
    write_index(rows, LEFT_OUT.empty_table(), [], "f" * 16, index)
    return Pool(index)


def _ids_of(pool):
    return [pool.image_id(index) for index in (0, 9_999, 10_000, 74_999)]


def test_a_pool_caches_a_few_row_groups_and_works_in_other_processes(tmp_path):
    pool = numbered(tmp_path / "pool.parquet", 75_000)
    sizes = pq.ParquetFile(pool.index).metadata
    assert [sizes.row_group(n).num_rows for n in range(sizes.num_row_groups)] == [10_000] * 7 + [5_000]
    assert [pool.image_id(index) for index in range(0, 75_000, 5_000)] == list(range(1, 75_001, 5_000))
    assert len(pool._groups) == 4
    expected = [1, 10_000, 10_001, 75_000]
    assert _ids_of(pickle.loads(pickle.dumps(pool))) == expected and len(pickle.dumps(pool)) < 1000
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(_ids_of, [pool, pool]) == [expected, expected]


def test_a_killed_build_resumes_with_the_missing_chunks(tmp_path, build, monkeypatch):
    for number in range(5):
        draw(tmp_path / f"pool/{number}.jpg")
    measured, real = [], pool_build.read_header

    def read_header(path, *listed):
        if path.endswith("4.jpg") and len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(path[-5])
        return real(path, *listed)

    monkeypatch.setattr(chunks, "CHUNK", 2)
    monkeypatch.setattr(pool_build, "read_header", read_header)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "pool", workers=1)
    measured.append("killed")
    pool = build(tmp_path / "pool", workers=1)
    assert measured == ["0", "1", "2", "3", "killed", "4"]
    assert names(pool) == [f"{number}.jpg" for number in range(5)]
    assert sorted(path.name for path in pool.index.parent.iterdir()) == [".lock", "pool.left_out.csv", "pool.parquet"]


def _built(parts, folder):
    return build_pool(parts, folder, workers=1).fingerprint


def test_two_processes_can_build_the_same_pool(tmp_path, build):
    for number in range(100):
        draw(tmp_path / f"pool/{number}.jpg")
    given = [str(tmp_path / "pool")], tmp_path / "index"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as processes:
        first, second = [processes.submit(_built, *given) for _ in range(2)]
        assert first.result() == second.result()
    pool = build(tmp_path / "pool")
    assert len(pool) == 100 and pool.fingerprint == first.result() and len(list((tmp_path / "index").iterdir())) == 1


def test_a_process_that_waited_uses_the_index_of_the_other(tmp_path, build, monkeypatch):
    draw(tmp_path / "pool/a.jpg")
    pool = build(tmp_path / "pool")
    answers = iter([False, True])  # before and after waiting
    monkeypatch.setattr(pool_build, "_is_current", lambda index: next(answers))
    monkeypatch.setattr(pool_build, "_build", None)
    assert build(tmp_path / "pool").fingerprint == pool.fingerprint


def test_several_processes_give_the_same_index_as_one(tmp_path, build, monkeypatch):
    monkeypatch.setattr(chunks, "MIN_IMAGES_PER_PROCESS", 2)
    for number in range(6):
        draw(tmp_path / f"pool/{number}.jpg", 10 + number)
    (tmp_path / "pool/bad.jpg").write_text("text")
    pool = build(tmp_path / "pool", workers=2)
    assert [pool.row(index)["width"] for index in range(6)] == [10, 11, 12, 13, 14, 15]
    assert left_out(pool)[0][:2] == ("bad.jpg", "unreadable")


def test_an_index_can_be_a_part(tmp_path, build, images):
    pool = build(images)
    (tmp_path / "mine").mkdir()
    saved = save(pool, tmp_path / "mine/pool.parquet")
    assert (saved.fingerprint, saved.parts) == (pool.fingerprint, pool.parts)
    again = build(saved.index)
    assert again.index == saved.index and again.fingerprint == pool.fingerprint
    draw(tmp_path / "pool/x.jpg")
    assert names(build(saved.index, tmp_path / "pool")) == ["a.png", "b.png", "c.png", "x.jpg"]
    assert names(build(f"{saved.index}@0.5")) == ["b.png"]


def test_the_images_of_a_split_are_compared_with_the_published_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path))
    for number in range(10):
        draw(tmp_path / f"places365/data_large/a/{number}.jpg")
    part = write_json(
        tmp_path / "coco/annotations/image_info_unlabeled2017.json", [entry(1, "a.jpg"), entry(2, "b.jpg")]
    )
    draw(tmp_path / "coco/unlabeled2017/a.jpg")
    pool = build_pool(datasets.paper_parts("small"), tmp_path / "index")
    coco, places, whole = datasets.split_counts(pool)
    assert (coco["expected"], coco["listed"], coco["missing"], coco["images"]) == (123_403, 2, 1, 1)
    assert coco["part"] == str(part.relative_to(tmp_path)) and coco["duplicate"] == 0
    assert coco["why"] == "123,401 fewer listed than published, 1 missing"
    assert places["part"] == "places365/data_large@0.3" and (places["expected"], places["images"]) == (541_038, 3)
    assert (whole["part"], whole["expected"], whole["listed"], whole["images"]) == ("all", 664_441, 5, 4)
    with pytest.raises(DataError, match="split='base': missing data: .*openimages/train; unpack train_0.tar.gz"):
        datasets.paper_parts("base")
    (tmp_path / "openimages").mkdir()
    listing = tmp_path / "openimages/train-images-boxable-with-rotation.csv"
    listing.write_text("ImageID,Subset\n")
    assert datasets.paper_parts("base") == [str(listing)]


def test_no_number_is_expected_of_own_images(tmp_path, build, images):
    (row,) = datasets.split_counts(build(images))
    assert row["expected"] is None and row["images"] == 3 and row["why"] == ""


def test_the_command_writes_an_index_and_prints_how_to_use_it(tmp_path, images, capsys):
    out = tmp_path / "made/pool.parquet"
    shutil.copy(images / "a.png", images / "z.png")
    assert main(["pool", str(images), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"-p unlabeled {out}" in said and "3 images" in said and str(out.with_suffix(".left_out.csv")) in said
    assert names(Pool(out)) == ["a.png", "b.png", "c.png"] and left_out(Pool(out))[0][1] == "duplicate"
    assert main(["pool", str(images), "--out", str(tmp_path / "pool.csv")]) == 2
    assert "pool.csv.parquet" in capsys.readouterr().err
    assert main(["pool", str(images), "--out", str(out.parent.with_suffix(".parquet"))]) == 0
    (tmp_path / "folder.parquet").mkdir()
    assert main(["pool", str(images), "--out", str(tmp_path / "folder.parquet")]) == 2
    assert "folder.parquet is a folder; name a file in it" in capsys.readouterr().err
    for arguments in ([], [str(images), "--split", "tiny"]):
        assert main(["pool", *arguments, "--out", str(out)]) == 2
        assert "give the parts of the pool, or --split" in capsys.readouterr().err


def test_an_existing_part_is_taken_whole_even_with_a_comma_in_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    for name in ("my, images/a.png", "my, images/b.png", "more/c.png"):
        draw(tmp_path / name)
    info = write_json(tmp_path / "a, b.json", [entry(7, "a.png"), entry(8, "b.png")])
    plain = write_json(tmp_path / "plain.json", [entry(7, "c.png")])
    folder, with_folder = tmp_path / "my, images", f"{info}:{tmp_path / 'my, images'}"

    def images(unlabeled):
        return names(datasets.pool(resolve(unlabeled=str(unlabeled))))

    assert images(folder) == images(with_folder) == ["a.png", "b.png"]
    assert images(f"{folder}@0.5") == images(f"{with_folder}@0.5") == ["b.png"]
    # Several parts are still separated by commas.
    (tmp_path / "second").mkdir()
    draw(tmp_path / "second/d.png")
    assert images(f"{tmp_path / 'more'}, {tmp_path / 'second'}") == ["c.png", "d.png"]
    assert images(f"{plain}:{tmp_path / 'more'},{tmp_path / 'second'}") == ["c.png", "d.png"]


def test_a_pool_shows_its_parts(build, images):
    """Names from a folder may hold anything: they are escaped."""
    odd = images.parent / "<b>odd"
    images.rename(odd)
    (odd / "broken.png").write_bytes(b"not an image")
    pool = build(odd)
    shown = pool._repr_html_()
    assert "3 unlabeled images" in shown and "<th>unreadable</th>" in shown and "<td>1</td>" in shown
    assert "&lt;b&gt;odd" in shown and "<b>" not in shown
    assert repr(pool).startswith("Pool of 3 images from ")
