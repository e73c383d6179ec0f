"""What a part of a pool names: folder, COCO JSON, Open Images CSV, Places365 list, tar shards or an earlier index.

One parser for each format. All yield (path, bytes, id, height, width) in an order that depends on names alone: the path
as `paths.portable` writes it; bytes 0, the others None where the format does not say. No image is opened here.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.coco import locate
from cassl_lib.data.image_files import ENDINGS, member, write_table
from cassl_lib.errors import DataError

PACKED = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar")
OTHER_IMAGES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".svg")  # that people have, and that are not read here
SHARE = re.compile(r"0?\.\d+")  # what follows FOLDER@
INDEX = pa.schema(
    [("id", pa.int64()), ("path", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("source", pa.string())]
)
PLACES = ("data_large", "data_256", "val_large", "val_256", "test_large", "test_256", "train", "val", "images", "")
Images = Iterator[tuple[str, int, int | None, int | None, int | None]]


def listed(part: str, cache: Path) -> Images:
    """The images of a part; PART@0.3 takes an even 3 in 10. What tar archives hold is kept in the folder `cache`."""
    whole, share = share_of(part)
    images = _whole(whole, cache)
    if share == 1:
        return images
    taken, of = share.as_integer_ratio()
    return (image for place, image in enumerate(images) if (place + 1) * taken // of > place * taken // of)


def share_of(part: str) -> tuple[str, Fraction]:
    """A part without its share, and the share: 3/10 of FOLDER@0.3, else 1."""
    whole, _, share = part.rpartition("@")
    if whole and SHARE.fullmatch(share) and not Path(part).expanduser().exists():
        return whole, Fraction(share)
    return part, Fraction(1)


def _whole(part: str, cache: Path) -> Images:
    name, beside = paths.file_and_folder(part)
    path = Path(name).expanduser()
    if not part.strip():
        raise DataError("a part of the pool is empty; give a folder of images, a list, a .tar or an index")
    if not path.exists():
        raise DataError(
            f"{path}: no such folder or JSON, CSV, .txt list, .tar or .parquet index; give a folder of images, a list "
            f"as LIST{os.pathsep}FOLDER, or a share of one as FOLDER@0.3"
        )
    if path.is_file() and path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path} is one image; give its folder, {path.parent}")
    if path.is_file() and path.name.lower().endswith(PACKED):
        raise DataError(f"{path} is compressed; unpack it, to a .tar or a folder")
    ending = "folder" if path.is_dir() else path.suffix.lower()
    if ending in ("folder", ".tar", ".parquet"):
        if beside is not None:
            raise DataError(f"{part}: a {ending} takes no folder behind a {os.pathsep}; give {name} alone")
        return {"folder": folder, ".tar": tar, ".parquet": index}[ending](path, cache)
    return {".csv": open_images, ".txt": places}.get(ending, coco)(part)


def folder(path: Path, cache: Path) -> Images:
    """Every image below a folder, by path; or, if it holds .tar files instead, every image in these."""
    passed: Counter[str] = Counter()
    files = _walk(str(path), _prefix(path), (), passed)
    first = next(files, ("", 0))
    are_tars = first[0].lower().endswith(".tar")
    for name, size in itertools.chain([first] if first[0] else [], files):
        if name.lower().endswith(".tar") != are_tars:
            raise DataError(f"{path} holds images and .tar files, {first[0]} and {name}; name the ones that you mean")
        if are_tars:
            yield from tar(paths.image(name), cache)
        else:
            yield name, size, None, None, None
    if passed:
        counts = ", ".join(f"{count:,} {what}" for what, count in sorted(passed.items()))
        print(f"{path}: passed over {counts}", file=sys.stderr)


def _walk(path: str, prefix: str, above: tuple, passed: Counter[str]) -> Iterator[tuple[str, int]]:
    """Images and .tar files below a folder; `above` are the folders it lies in, `passed` counts what is not read."""
    state = os.stat(path)
    if (here := (state.st_dev, state.st_ino)) in above:
        passed["links to a folder that they lie in"] += 1
        return
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                found.append((entry.name + "/", 0))
            elif entry.name.lower().endswith((*ENDINGS, ".tar")):
                found.append((entry.name, entry.stat().st_size if os.path.exists(entry) else -1))
            elif entry.name.lower().endswith((*OTHER_IMAGES, *PACKED)):
                passed[os.path.splitext(entry.name)[1].lower()] += 1
    for name, size in sorted(found):
        if name.endswith("/"):
            yield from _walk(os.path.join(path, name), prefix + name, (*above, here), passed)
        else:
            yield prefix + name, size


def tar(path: Path, cache: Path) -> Images:
    """The images in an archive. Its headers are read once and kept under its path, size and date."""
    state = path.stat()
    identity = f"{os.path.abspath(path)}|{state.st_size}|{state.st_mtime_ns}"
    kept = cache / f"tar-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"
    if not kept.exists():
        rows = _members(path, state.st_size)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        cache.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("offset", pa.int64()), ("size", pa.int64()), ("name", pa.string())])
        try:
            write_table(pa.table(columns, schema=schema), kept)
        except UnicodeEncodeError as error:
            raise DataError(f"{path}: the name {error.object!r} is not UTF-8; pack it under another") from error
    archive = _prefix(path.parent) + path.name
    columns = [column.to_pylist() for column in pq.read_table(kept).columns]
    for offset, size, name in zip(*columns, strict=True):
        yield member(archive, offset, size, name), size, None, None, None


def _members(path: Path, size: int) -> list[tuple[int, int, str]]:
    rows = []
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, mininterval=1, disable=None)
    try:
        with tarfile.open(path, "r:") as archive, bar:
            while entry := archive.next():
                if entry.isreg() and not entry.issparse() and entry.name.lower().endswith(ENDINGS):
                    rows.append((entry.offset_data, entry.size, entry.name))
                archive.members = []  # else it keeps all of them
                bar.update(archive.offset - bar.n)
            _check_end(path, archive.offset, len(rows))
    except tarfile.TarError as error:
        raise DataError(f"{path} cannot be read as a tar ({error}); fetch it again, or gunzip a .tar.gz") from error
    return rows


def _check_end(path: Path, at: int, images: int) -> None:
    """Refuse an archive whose reading ended for another reason than its end: tarfile takes any bad header for one."""
    with path.open("rb") as file:
        file.seek(at)
        header = file.read(tarfile.BLOCKSIZE)
        if header.strip(b"\0"):
            raise DataError(f"{path} is damaged at byte {at:,}, behind {images:,} images; fetch it again")
        if any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b"")):
            raise DataError(f"{path}: more follows behind its end at byte {at:,}; give joined archives one by one")
    if not header:
        print(f"{path} has no end mark behind its {images:,} images: it may be cut", file=sys.stderr)


def coco(part: str) -> Images:
    """The images of a COCO JSON, such as image_info_unlabeled2017.json, by name."""
    path, images = locate(part)
    prefix = _prefix(images)
    try:
        entries = [(i["file_name"], i["id"], i["height"], i["width"]) for i in json.loads(path.read_bytes())["images"]]
    except UnicodeDecodeError as error:  # its repr has the whole file
        raise DataError(f"{path} is no JSON, but not text at all ({error})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a COCO image_info file ({error!r})") from error
    for name, *facts in entries:
        if not isinstance(name, str):
            raise DataError(f"{path}: file_name {name!r} is no text")
        if not all(isinstance(fact, int) for fact in facts) or abs(facts[0]) >= 2**63 or max(facts[1:]) >= 2**31:
            raise DataError(f"{path}: id, height or width of {name} is no whole number that can be: {facts}")
    for name, *facts in sorted(entries):
        yield _joined(prefix, name), 0, *facts


def open_images(part: str) -> Images:
    """The images of an Open Images list: FOLDER/Subset/ImageID.jpg or, where there is no such folder, FOLDER/...jpg."""
    path, images = _list_and_folder(part)
    # Titles are quoted and may hold line breaks; ids such as 000595fe6fee6369 or 12e4567890123456 are no numbers.
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    _check_quotes(path)
    with _csv_errors(path):
        names = pa.csv.open_csv(path, parse_options=parsing).schema.names
    if "ImageID" not in names or "LabelName" in names:
        raise DataError(
            f"{path}: not a list of Open Images' images (columns {', '.join(names)}); give one such as "
            "train-images-boxable-with-rotation.csv"
        )
    columns = [name for name in ("ImageID", "Subset") if name in names]
    converting = pa.csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
    places: dict[str, str] = {}
    for batch in _batches(path, parsing, converting):
        ids = batch.column(0).to_pylist()
        subsets = batch.column(1).to_pylist() if len(columns) > 1 else itertools.repeat("", len(ids))
        for image_id, subset in zip(ids, subsets, strict=True):
            if subset not in places:
                images = images or _guess(path, ("", "images"), [subset or f"{image_id}.jpg"])
                places[subset] = _prefix(images / subset if (images / subset).is_dir() else images)
            yield f"{places[subset]}{image_id}.jpg", 0, None, None, None


def _batches(path: Path, parsing, converting) -> Iterator[pa.RecordBatch]:
    with _csv_errors(path):
        yield from pa.csv.open_csv(path, parse_options=parsing, convert_options=converting)


@contextlib.contextmanager
def _csv_errors(path: Path):
    try:
        yield
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as a CSV: {error}") from error


def _check_quotes(path: Path) -> None:
    """A quote that is not closed makes one title of all lines after it."""
    with path.open("rb") as file:
        if sum(block.count(b'"') for block in iter(lambda: file.read(1 << 24), b"")) % 2:
            raise DataError(f"{path} is damaged: a quote is not closed; fetch it again")


def places(part: str) -> Images:
    """The images of a Places365 list, "/a/airfield/00000001.jpg 0" a line; the class is not needed."""
    path, images = _list_and_folder(part)
    names = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no list of Places365: not UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(" ")
        name = name if label.isdigit() else line.strip()
        if name and not name.lower().endswith(ENDINGS):
            raise DataError(f"{path}, line {number}: {line!r} names no image; endings that count: {' '.join(ENDINGS)}")
        names.append(name.lstrip("/"))
    names = [name for name in names if name]
    if names:
        prefix = _prefix(images or _guess(path, PLACES, names[:20]))
        yield from ((_joined(prefix, name), 0, None, None, None) for name in names)


def index(path: Path, cache: Path) -> Images:
    """The images of an index that was made earlier."""
    for batch in open_index(path).iter_batches(columns=["path", "id", "height", "width"]):
        columns = [column.to_pylist() for column in batch.columns]
        yield from ((name, 0, *facts) for name, *facts in zip(*columns, strict=True))


def open_index(path: Path) -> pq.ParquetFile:
    """The Parquet file of a pool's index; any other file is refused."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error})") from error
    known = file.schema_arrow.metadata or {}
    if b"fingerprint" not in known or not file.schema_arrow.remove_metadata().equals(INDEX):
        raise DataError(f"{path} is no index of a pool; make one with: python -m cassl_lib pool PART --out {path.name}")
    return file


def _list_and_folder(part: str) -> tuple[Path, Path | None]:
    name, images = paths.file_and_folder(part)
    if images is not None and not Path(images).expanduser().is_dir():
        raise DataError(f"{images}: no such image folder (from {part!r})")
    return Path(name).expanduser(), Path(images).expanduser() if images is not None else None


def _guess(path: Path, candidates: tuple[str, ...], names: list[str]) -> Path:
    """The folder, beside a list or one above, in which any of `names` exists."""
    for base in (path.parent, path.parent.parent):
        for candidate in candidates:
            if any((base / candidate / name).exists() for name in names):
                return base / candidate
    raise DataError(f"{path}: none of {', '.join(names[:2])}, ... found near it; give it as {path}{os.pathsep}FOLDER")


def _prefix(path: Path) -> str:
    """What the portable names of this folder's files begin with, also where a link leads below the data root."""
    absolute, root = Path(os.path.abspath(path)), paths.datasets()
    for place, base in itertools.product((absolute, absolute.resolve()), (root, root.resolve())):
        if place.is_relative_to(base):
            below = place.relative_to(base).as_posix()
            return "" if below == "." else f"{below}/"
    return f"{absolute}/"


def _joined(prefix: str, name: str) -> str:
    return paths.portable(name) if os.path.isabs(name) else prefix + os.path.normpath(name)
