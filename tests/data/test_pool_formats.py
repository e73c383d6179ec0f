"""The formats of a pool's parts: a small case of each, in its published layout, and the errors."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cassl_lib import paths
from cassl_lib.data.image_files import open_file
from cassl_lib.data.loader import read_image
from cassl_lib.data.pool.chunks import write_table
from cassl_lib.data.pool.formats import list_images
from cassl_lib.data.pool.index import INDEX
from cassl_lib.errors import DataError


def touch(path, content=b"image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def names(tmp_path):
    """A function that lists the paths of a part, relative to the test's folder."""

    def of(part):
        return [image[0].removeprefix(f"{tmp_path}/") for image in list_images(str(part), tmp_path / "cache")]

    return of


def shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((3, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_folder_is_listed_by_path_with_file_sizes(tmp_path):
    for name in ("b.jpg", "b/z.JPEG", "a.png", "b-1.jpg", "notes.txt"):
        touch(tmp_path / "pool" / name, b"12345")
    (tmp_path / "pool/gone.jpg").symlink_to(tmp_path / "nowhere")
    rows = list(list_images(str(tmp_path / "pool"), tmp_path))
    paths_of_rows = [row[0].removeprefix(f"{tmp_path}/pool/") for row in rows]
    assert paths_of_rows == ["a.png", "b-1.jpg", "b.jpg", "b/z.JPEG", "gone.jpg"] == sorted(paths_of_rows)
    assert [row[1:] for row in rows] == [(5, None, None, None)] * 4 + [(-1, None, None, None)]


def test_open_images_are_in_the_folder_of_their_subset(tmp_path, names):
    header = "ImageID,Subset,OriginalURL,Title,Rotation\n"
    rows = '000595fe6fee6369,train,u,"A ""long"", title\nof two lines",0.0\n1234567890123456,train,u,,0.0\n'
    rows += "12e4567890123456,validation,u,x,90.0\n"
    csv = touch(tmp_path / "train-images-boxable-with-rotation.csv", (header + rows).encode())
    for folder in ("train", "validation", "elsewhere"):
        (tmp_path / folder).mkdir()
    ids = ["000595fe6fee6369.jpg", "1234567890123456.jpg", "12e4567890123456.jpg"]
    assert names(csv) == [f"train/{ids[0]}", f"train/{ids[1]}", f"validation/{ids[2]}"]
    assert names(f"{csv}:{tmp_path / 'elsewhere'}") == [f"elsewhere/{name}" for name in ids]
    (tmp_path / "elsewhere/train").mkdir()
    assert names(f"{csv}:{tmp_path / 'elsewhere'}")[0] == f"elsewhere/train/{ids[0]}"
    assert names(f"{csv}@0.5") == [f"train/{ids[1]}"]


def test_open_images_without_subsets_are_beside_the_list(tmp_path, names):
    csv = touch(tmp_path / "list.csv", b"ImageID,Title\naa,x\nbb,y\n")
    for name in ("aa", "bb"):
        touch(tmp_path / "images" / f"{name}.jpg", b"")
    assert names(csv) == ["images/aa.jpg", "images/bb.jpg"]


def test_an_absolute_name_in_a_json_is_kept_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_ALLOW_OUTSIDE", "1")
    image = tmp_path / "far" / "a.jpg"
    (tmp_path / "images").mkdir()
    entry = {"id": 7, "file_name": str(image), "height": 3, "width": 4}
    (tmp_path / "info.json").write_text(json.dumps({"images": [entry]}))
    assert [row[0] for row in list_images(str(tmp_path / "info.json"), tmp_path)] == [paths.portable(image)]


def test_numeric_ids_stay_strings_and_titles_may_be_long(tmp_path, names):
    """Titles with line breaks, longer than a parser block: 40 of 60,000 characters are 2.4 MB."""
    (tmp_path / "train").mkdir()
    rows = "".join(f'{number:016d},train,"{60_000 * chr(10)}"\n' for number in range(40))
    csv = touch(tmp_path / "list.csv", f"ImageID,Subset,Title\n{rows}".encode())
    assert names(csv) == [f"train/{number:016d}.jpg" for number in range(40)]


def test_another_csv_raises(tmp_path, names):
    boxes = touch(tmp_path / "validation-annotations-bbox.csv", b"ImageID,Source,LabelName\n0001eeaf4aed83f9,x,/m/0\n")
    with pytest.raises(DataError, match="bbox.csv is not a list of Open Images' images .*LabelName.*boxable-with"):
        names(boxes)
    lost = touch(tmp_path / "away/images.csv", b"ImageID,Subset\n0001eeaf4aed83f9,train\n")
    with pytest.raises(
        DataError, match="images.csv: train, ... not found near it; give the image folder as .*images.csv:FOLDER"
    ):
        names(lost)


@pytest.mark.parametrize("folder", ["data_large", "data_256", "train", "images", "."])
def test_the_leading_slash_of_places_names_is_ignored(tmp_path, names, folder):
    text = "/a/airfield/00000001.jpg 0\n\n/b/bar/outdoor/00000002.jpg 38\n"
    file = touch(tmp_path / "places365_train_standard.txt", text.encode())
    touch(tmp_path / folder / "b/bar/outdoor/00000002.jpg")
    below = "" if folder == "." else f"{folder}/"
    assert names(file) == [f"{below}a/airfield/00000001.jpg", f"{below}b/bar/outdoor/00000002.jpg"]


def test_a_places_validation_list_and_one_without_classes(tmp_path, names):
    file = touch(tmp_path / "lists/places365_val.txt", b"Places365_val_00000001.jpg 165\nmy holiday 2.jpg\n")
    touch(tmp_path / "val_256/Places365_val_00000001.jpg")
    assert names(file) == ["val_256/Places365_val_00000001.jpg", "val_256/my holiday 2.jpg"]
    (tmp_path / "mine").mkdir()
    assert names(f"{file}:{tmp_path / 'mine'}")[0] == "mine/Places365_val_00000001.jpg"
    classes = touch(tmp_path / "categories_places365.txt", b"/a/airfield 0\n")
    with pytest.raises(
        DataError, match="categories_places365.txt, line 1: '/a/airfield 0' names no image file; use .jpg"
    ):
        names(classes)


def test_images_are_read_inside_tars(tmp_path):
    files = {f"./dir/{value}.png": png(value) for value in (7, 200)}
    shard(tmp_path / "shards/00001.tar", files | {"dir/7.json": b"{}"})
    shard(tmp_path / "shards/00000.tar", {"/x.png": png(9)})
    rows = list(list_images(str(tmp_path / "shards"), tmp_path / "cache"))
    assert [row[0].split("/shards/")[1].split("::") for row in rows] == [
        ["00000.tar", f"512+{len(png(9))}", "x.png"],  # a header has 512 bytes, contents are padded to a multiple
        ["00001.tar", f"512+{len(png(7))}", "dir/7.png"],
        ["00001.tar", f"1536+{len(png(200))}", "dir/200.png"],
    ]
    for row, value in zip(rows, (9, 7, 200), strict=True):
        path = Path(row[0])
        assert str(path) == row[0] and row[1] == len(png(value))
        assert read_image(path).unique().tolist() == [value] and read_image(path).shape == (3, 3, 5)
        with open_file(path) as file:
            assert file.read() == png(value)
    assert rows == list(list_images(str(tmp_path / "shards"), tmp_path / "cache"))  # from the cached headers


def test_a_changed_tar_is_listed_again(tmp_path, names):
    archive = shard(tmp_path / "a.tar", {"x.png": png(9)})
    assert len(names(archive)) == 1
    shard(archive, {"x.png": png(9), "y.png": png(8)})
    assert len(names(archive)) == 2


def test_a_damaged_tar_and_a_mixed_folder_raise(tmp_path, names):
    archive = shard(tmp_path / "pool/a.tar", {"x.png": png(9), "y.png": bytes(30_000)})
    touch(tmp_path / "cut.tar", archive.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut.tar cannot be read as a tar"):
        names(tmp_path / "cut.tar")
    touch(tmp_path / "pool/b.jpg")
    with pytest.raises(DataError, match="pool has both images and .tar files, such as .*a.tar and .*b.jpg; give those"):
        names(tmp_path / "pool")


def test_a_tar_that_is_not_read_to_its_end_raises(tmp_path, names, caplog):
    """tarfile takes any header that it cannot read for the end of the archive."""
    three = {f"{value}.png": png(value) for value in (1, 2, 3)}
    whole = shard(tmp_path / "whole.tar", three).read_bytes()
    assert len(png(1)) < 512  # so that the second header is at 1024
    touch(tmp_path / "damaged.tar", whole[:1024] + b"x" * 512 + whole[1536:])
    touch(tmp_path / "cut.tar", whole[:1100])
    for name in ("damaged", "cut"):
        with pytest.raises(DataError, match=f"{name}.tar is damaged at byte 1,024, after 1 images"):
            names(tmp_path / f"{name}.tar")
    touch(tmp_path / "joined.tar", whole + whole)
    with pytest.raises(DataError, match="joined.tar: more data follows its end at byte 3,072; give joined"):
        names(tmp_path / "joined.tar")
    assert not caplog.messages
    assert len(names(touch(tmp_path / "open.tar", whole[:2048]))) == 2  # some programs write no end mark
    assert f"{tmp_path / 'open.tar'}: no end mark after its 2 images; it may be truncated" in caplog.messages


def test_a_name_in_a_tar_that_is_not_utf8_raises(tmp_path, names):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        archive.addfile(tarfile.TarInfo("caf\udce9.jpg"))
    with pytest.raises(DataError, match="a.tar: the name .* is not UTF-8"):
        names(tmp_path / "a.tar")


def test_endings_may_be_in_capitals(tmp_path, names):
    shard(tmp_path / "shards/A.TAR", {"x.PNG": png(9)})
    (name,) = names(tmp_path / "shards")
    assert name == f"shards/A.TAR::512+{len(png(9))}::x.PNG"
    with open_file(tmp_path / name) as file:
        assert file.read() == png(9)
    touch(tmp_path / "a.jpg")
    assert names(touch(tmp_path / "LIST.TXT", b"a.jpg 3\n")) == ["a.jpg"]
    assert names(touch(tmp_path / "LIST.CSV", b"ImageID\na\n")) == ["a.jpg"]


@pytest.mark.parametrize("ending", ["tar.gz", "TGZ", "zip"])
def test_compressed_files_raise_and_are_skipped_and_counted_in_folders(ending, tmp_path, names, caplog):
    with pytest.raises(DataError, match="is compressed; unpack it"):
        names(touch(tmp_path / f"a.{ending}"))
    touch(tmp_path / "pool/a.jpg")
    for number in range(3):
        touch(tmp_path / f"pool/{number}.heic")
    touch(tmp_path / f"pool/b.{ending}")
    assert names(tmp_path / "pool") == ["pool/a.jpg"]
    last = ending.rpartition(".")[2].lower()
    (message,) = caplog.messages
    assert set(message.partition("skipped ")[2].split(", ")) == {f"1 .{last}", "3 .heic"}


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path, names, caplog):
    touch(tmp_path / "pool/a/b.jpg")
    (tmp_path / "pool/a/again").symlink_to(tmp_path / "pool")
    assert names(tmp_path / "pool") == ["pool/a/b.jpg"]
    assert "skipped 1 links to a folder above themselves" in caplog.text


def test_existing_names_may_contain_a_colon(tmp_path, names):
    for folder in ("pool", "pool:2"):
        touch(tmp_path / folder / f"{folder[-1]}.jpg")
    assert names(tmp_path / "pool:2") == ["pool:2/2.jpg"]
    assert names(f"{touch(tmp_path / 'my:list.txt', b'2.jpg')}:{tmp_path / 'pool:2'}") == ["pool:2/2.jpg"]
    touch(tmp_path / "holiday.jpg/1.jpg")
    assert names(tmp_path / "holiday.jpg") == ["holiday.jpg/1.jpg"]
    with pytest.raises(DataError, match="a folder takes no :FOLDER; give .*pool alone"):
        names(f"{tmp_path / 'pool'}:{tmp_path}")
    for empty in ("", " "):
        with pytest.raises(DataError, match="a part of the pool is empty"):
            names(empty)
    with pytest.raises(DataError, match="no such folder .* or a share of one as FOLDER@0.3"):
        names(f"{tmp_path / 'pool'}@1.5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a CSV"),
        (b"ImageID,Subset\na\n", "cannot be read as a CSV"),
        (b"ImageID\n\xff\xfe\n", "cannot be read as a CSV"),
        (b'ImageID,Title\na,"open\nb,x\nc,x\n', "a quote is not closed"),
    ],
)
def test_a_damaged_csv_raises(content, message, tmp_path, names):
    touch(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=f"list.csv.* {message}"):
        names(touch(tmp_path / "list.csv", content))


def test_lists_must_be_utf8_and_may_have_a_byte_order_mark(tmp_path, names):
    touch(tmp_path / "a.jpg")
    assert names(touch(tmp_path / "marked.txt", b"\xef\xbb\xbfa.jpg 0\r\n")) == ["a.jpg"]
    with pytest.raises(DataError, match="latin.txt is not a Places365 list: it is not UTF-8"):
        names(touch(tmp_path / "latin.txt", b"caf\xe9.jpg 0\n"))


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08" * 1000, b"[" * 100_000])
def test_the_error_of_an_invalid_json_is_short(content, tmp_path, names):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError) as caught:
        names(touch(tmp_path / "info.json", content))
    assert str(tmp_path / "info.json") in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))


def test_paths_below_the_data_root_are_relative_even_through_links(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "data"))
    touch(tmp_path / "data/mine/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for folder in ("data/mine", "link/mine"):
        assert [row[0] for row in list_images(str(tmp_path / folder), tmp_path)] == ["mine/a.jpg"]
    assert [row[0] for row in list_images(str(tmp_path / "data"), tmp_path)] == ["mine/a.jpg"]
    assert paths.image("mine/a.jpg") == tmp_path / "data/mine/a.jpg"
    assert paths.portable(tmp_path / "data/mine/a.jpg") == "mine/a.jpg"
    assert paths.portable(tmp_path / "database/a.jpg") == str(tmp_path / "database/a.jpg")
    assert paths.image(str(tmp_path / "other/a.jpg")) == tmp_path / "other/a.jpg"


def test_a_single_image_raises(tmp_path, names):
    image = touch(tmp_path / "a.JPG", b"")
    with pytest.raises(DataError, match=f"a.JPG is a single image; give its folder, {tmp_path}"):
        names(image)


def test_ids_and_sizes_in_a_json_must_be_integers_in_range(tmp_path, names):
    (tmp_path / "images").mkdir()
    entry = {"id": "7", "file_name": "a.jpg", "height": 3, "width": 4}
    touch(tmp_path / "info.json", json.dumps({"images": [entry]}).encode())
    with pytest.raises(
        DataError, match="info.json: a.jpg: id, height and width must be integers in range, got .'7', 3, 4."
    ):
        names(tmp_path / "info.json")
    touch(tmp_path / "info.json", json.dumps({"images": [entry | {"id": 7, "height": 3_000_000_000}]}).encode())
    with pytest.raises(DataError, match="a.jpg: id, height and width must be integers in range"):
        names(tmp_path / "info.json")


def test_a_parquet_file_that_is_not_an_index_raises(tmp_path, names):
    touch(tmp_path / "text.parquet", b"nothing")
    with pytest.raises(DataError, match="text.parquet cannot be read as Parquet"):
        names(tmp_path / "text.parquet")
    write_table(INDEX.empty_table(), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="other.parquet is not a pool index; make one with: python -m cassl_lib pool"):
        names(tmp_path / "other.parquet")


def test_a_missing_image_folder_raises(tmp_path, names):
    file = touch(tmp_path / "list.txt", b"a.jpg\n")
    with pytest.raises(DataError, match="gone: no such image folder"):
        names(f"{file}:{tmp_path / 'gone'}")


def test_the_published_excerpts(shared_data, tmp_path):
    published = shared_data / "formats"
    (tmp_path / "train").mkdir()
    rows = list_images(f"{published / 'open_images/train-images-boxable-with-rotation.csv'}:{tmp_path}", tmp_path)
    assert [row[0] for row in rows] == [
        f"{tmp_path}/train/4fa8054781a4c382.jpg",
        f"{tmp_path}/train/b37f763ae67d0888.jpg",
    ]
    (first, *_) = list_images(f"{published / 'places365/places365_train_standard.txt'}:{tmp_path}", tmp_path)
    assert first[0] == f"{tmp_path}/a/airfield/00000001.jpg"
    assert len(list(list_images(f"{published / 'places365/places365_val.txt'}:{tmp_path}", tmp_path))) == 8
