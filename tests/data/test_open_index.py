"""Indices and lists that would lose images are refused, by the row or the name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_sets import DATA, image_entry, write_coco

from cassl_lib.data.coco import CocoImages
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.index import LEFT_OUT, Pool, left_out_file, write_index
from cassl_lib.data.pool.open_index import INDEX
from cassl_lib.errors import DataError
from cassl_lib.labels.coco import from_coco

SIZE = 25_000  # rows, in three groups


def columns(**changes):
    """Columns of an index; `changes` maps a column to {row: value}."""
    values = {
        "id": list(range(SIZE)),
        "path": [f"pool/{number}.jpg" for number in range(SIZE)],
        "height": [8] * SIZE,
        "width": [8] * SIZE,
        "source": ["pool"] * SIZE,
    }
    for name, rows in changes.items():
        for row, value in rows.items():
            values[name][row] = value
    return values


def written(folder, table):
    write_index(table, LEFT_OUT.empty_table(), [], "f" * 16, folder / "pool.parquet")
    return folder / "pool.parquet"


def test_an_ordinary_index_is_opened(tmp_path):
    assert len(Pool(written(tmp_path, pa.table(columns(), schema=INDEX)))) == SIZE
    assert len(Pool(written(tmp_path, INDEX.empty_table()))) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": {20_007: 3}}, "rows 3 and 20007 have the same id, 3"),
        ({"path": {20_007: "pool/3.jpg"}}, "rows 3 and 20007 have the same path, 'pool/3.jpg'"),
        ({"path": {24_999: "pool/24998.jpg"}}, "rows 24998 and 24999 have the same path, 'pool/24998.jpg'"),
        ({"id": {10_001: None}}, "row 10001 has no id"),
        ({"path": {12_345: None}}, "row 12345 has no path"),
        ({"height": {2: None}}, "row 2 has no height"),
        ({"width": {2: 0}}, "row 2 has width 0, not 1 or more"),
        ({"height": {24_999: -5}}, "row 24999 has height -5, not 1 or more"),
        ({"path": {7: "pool/../../a.jpg"}}, "the path of row 7, 'pool/../../a.jpg', leads out of its folder"),
        ({"path": {7: "a\0.jpg"}}, "the path of row 7, .* leads out of its folder"),
    ],
)
def test_rows_that_cannot_be_used_are_named(changes, message, tmp_path):
    index = written(tmp_path, pa.table(columns(**changes), schema=INDEX))
    for use in (Pool, lambda index: build_pool([f"{index}@0.5"], tmp_path / "index")):
        with pytest.raises(DataError, match=f"pool.parquet: {message}; build the index again"):
            use(index)


def test_names_with_two_dots_are_ordinary(tmp_path):
    rows = columns(path={3: "pool/a..b.jpg", 4: "/elsewhere/..c.jpg", 5: "a.tar::512+100::x/../y.jpg"})
    assert len(Pool(written(tmp_path, pa.table(rows, schema=INDEX)))) == SIZE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("height"), "its column height is missing, not int32"),
        (lambda table: table.set_column(0, "id", table["id"].cast(pa.string())), "its column id is string, not int64"),
        (lambda table: table.append_column("path", table["path"]), "its column path is missing, not string"),
        (lambda table: table.append_column("extra", table["id"]), "its columns are id, .* extra"),
    ],
)
def test_other_columns_are_named(change, message, tmp_path):
    index = written(tmp_path, change(pa.table(columns(), schema=INDEX)))
    with pytest.raises(DataError, match=f"pool.parquet is not a pool index: {message}; make one with"):
        Pool(index)


@pytest.mark.parametrize("metadata", [{"fingerprint": b"\xff"}, {"parts": "{"}, {"parts": '[{"part": 1}]'}])
def test_damaged_metadata_is_one_line(metadata, tmp_path):
    index = written(tmp_path, pa.table(columns(), schema=INDEX))
    known = {"fingerprint": "f" * 16, "parts": "[]"} | metadata
    pq.write_table(pq.read_table(index).replace_schema_metadata(known), index)
    with pytest.raises(DataError, match=r"pool.parquet: its metadata .*; build the index again"):
        Pool(index)


def test_a_changed_byte_is_noticed(tmp_path):
    index = written(tmp_path, pa.table(columns(), schema=INDEX))
    content, unnoticed = index.read_bytes(), 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        index.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            assert len(Pool(index)) == SIZE  # a statistic or a version, which nothing reads
            unnoticed += 1
        except DataError as error:
            assert "pool.parquet" in str(error) and "\n" not in str(error)
    assert unnoticed < 10


@pytest.mark.parametrize(
    "content", ["path,reason\na.jpg,missing\n", 'path,reason,detail,bytes\na.jpg,lost,"",3\n', '"']
)
def test_a_damaged_list_of_what_was_left_out_is_one_line(content, tmp_path):
    pool = Pool(written(tmp_path, pa.table(columns(), schema=INDEX)))
    left_out_file(pool.index).write_text(content)
    with pytest.raises(DataError, match=r"pool.left_out.csv.*; build the index again"):
        str(pool.left_out)


# ---- lists ----


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 6), (ord(name), 0, 0)).save(tmp_path / f"{name}.jpg")
    return tmp_path


def entries(*names):
    return json.dumps(
        {"images": [dict(zip(("id", "file_name", "height", "width"), entry, strict=True)) for entry in names]}
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", "a.jpg\nb.jpg\nsub/../a.jpg\n", "lists .*a.jpg twice, as images 1 and 3; list it once"),
        ("list.csv", "ImageID\nc\na\nc\n", "lists .*c.jpg twice, as images 1 and 3; list it once"),
        ("list.json", entries((1, "a.jpg", 6, 8), (2, "a.jpg", 6, 8)), "lists .*a.jpg twice"),
        ("list.json", entries((1, "a.jpg", 6, 8), (1, "b.jpg", 6, 8)), "a.jpg and b.jpg have the same id 1"),
        ("list.json", entries((True, "a.jpg", 6, 8)), "id, height and width must be integers in range"),
        ("list.json", entries((1, "a.jpg", 0, 8)), "id, height and width must be integers in range"),
        ("list.json", entries((1.0, "a.jpg", 6, 8)), "id, height and width must be integers in range"),
    ],
)
def test_a_list_that_contradicts_itself_is_refused(name, content, message, images):
    (images / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        build_pool([f"{images / name}:{images}"], images / "index")


OUTSIDE = ["../secret.jpg", "x/../../secret.jpg", "/etc/secret.jpg"]


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("kind", ["json", "txt", "csv"])
def test_a_list_does_not_lead_out_of_its_folder(kind, outside, images, monkeypatch):
    folder = images / "images"
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / "a.jpg")
    Image.new("RGB", (8, 6), (9, 9, 9)).save(images / "secret.jpg")
    content = {
        "json": entries((1, "a.jpg", 6, 8), (2, outside, 6, 8)),
        "txt": f"a.jpg\n{outside}\n",
        "csv": f"ImageID\na\n{outside.removesuffix('.jpg')}\n",
    }
    (images / f"list.{kind}").write_text(content[kind])
    part = f"{images / f'list.{kind}'}:{folder}"
    if kind == "txt" and outside.startswith("/"):  # names of Places365 begin with a slash
        assert len(build_pool([part], images / "index")) == 1
        return
    with pytest.raises(
        DataError, match=rf"list.{kind}: the file name '{outside}' leads out of .*images.* --allow-outside"
    ):
        build_pool([part], images / "index")
    monkeypatch.setenv("CASSL_ALLOW_OUTSIDE", "1")
    assert len(build_pool([part], images / "index")) == (1 if outside.startswith("/") else 2)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_labels_do_not_lead_out_of_their_image_folder(outside, tmp_path, monkeypatch):
    """A labeled set, and labels of another model, whose images are elsewhere."""
    path = write_coco(tmp_path, DATA | {"images": [*DATA["images"], image_entry(12, outside)]})

    def imported():
        return from_coco(path, tmp_path / "store", images=tmp_path / "images")

    for read in (lambda: CocoImages(path, tmp_path / "images"), imported):
        with pytest.raises(
            DataError, match=f"instances.json: the file name '{outside}' leads out of .*images, and a f"
        ):
            read()
    assert not (tmp_path / "store").exists()
    monkeypatch.setenv("CASSL_ALLOW_OUTSIDE", "1")
    assert len(CocoImages(path, tmp_path / "images")) == 3


@pytest.mark.parametrize("subset", ["../x", "/etc"])
def test_a_subset_does_not_lead_out_of_its_folder(subset, images):
    (images / "list.csv").write_text(f"ImageID,Subset\na,{subset}\n")
    with pytest.raises(DataError, match=f"list.csv: the file name '{subset}' leads out of"):
        build_pool([f"{images / 'list.csv'}:{images}"], images / "index")
