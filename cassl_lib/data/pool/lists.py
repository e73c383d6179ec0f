"""The images of published lists: COCO JSON, Open Images CSV, Places365 text."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from cassl_lib import paths
from cassl_lib.data.coco import locate
from cassl_lib.data.image_files import ENDINGS, inside
from cassl_lib.data.pool.folders import Listed
from cassl_lib.errors import DataError

PLACES = ("data_large", "data_256", "val_large", "val_256", "test_large", "test_256", "train", "val", "images", "")


def list_coco(part: str) -> Listed:
    """The images of a COCO JSON, such as image_info_unlabeled2017.json, by name."""
    path, images = locate(part)
    prefix = paths.portable_prefix(images)
    try:
        entries = [(i["file_name"], i["id"], i["height"], i["width"]) for i in json.loads(path.read_bytes())["images"]]
    except UnicodeDecodeError as error:  # whose repr has the whole file
        raise DataError(f"{path} is not valid JSON: the file is not UTF-8 text ({error}); give a COCO JSON") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a COCO image_info file ({error!r}); give a COCO JSON") from error
    known: dict[int, str] = {}  # names by id
    for name, *facts in entries:
        if not isinstance(name, str):
            raise DataError(f"{path}: file_name {name!r} is not a string; correct this entry")
        whole = all(type(fact) is int for fact in facts)  # true is not a number
        if not whole or abs(facts[0]) >= 2**63 or not all(1 <= side < 2**31 for side in facts[1:]):
            raise DataError(f"{path}: {name}: id, height and width must be integers in range, got {facts}")
        if (other := known.setdefault(facts[0], name)) is not name:
            raise DataError(f"{path}: {other} and {name} have the same id {facts[0]}; give each its own id")
    for name, *facts in sorted(entries):
        yield _joined(images, prefix, name, path), 0, *facts


def list_open_images(part: str) -> Listed:
    """The images of an Open Images CSV: FOLDER/Subset/ImageID.jpg or, if that folder is missing, FOLDER/ImageID.jpg."""
    path, images = _list_and_folder(part)
    # Titles are quoted and may have line breaks; ids such as 000595fe6fee6369 or 12e4567890123456 must stay strings.
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    _check_quotes(path)
    with _csv_errors(path):
        names = pa.csv.open_csv(path, parse_options=parsing).schema.names
    if "ImageID" not in names or "LabelName" in names:
        raise DataError(
            f"{path} is not a list of Open Images' images (columns {', '.join(names)}); give one such as "
            "train-images-boxable-with-rotation.csv"
        )
    columns = [name for name in ("ImageID", "Subset") if name in names]
    converting = pa.csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
    folders: dict[str, tuple[Path, str]] = {}  # by subset, with the prefix of portable names
    for batch in _batches(path, parsing, converting):
        ids = batch.column(0).to_pylist()
        subsets = batch.column(1).to_pylist() if len(columns) > 1 else itertools.repeat("", len(ids))
        for image_id, subset in zip(ids, subsets, strict=True):
            if subset not in folders:
                inside(images or path.parent, subset, listed_in=path)
                images = images or _find_folder(path, ("", "images"), [subset or f"{image_id}.jpg"])
                folder = images / subset if (images / subset).is_dir() else images
                folders[subset] = folder, paths.portable_prefix(folder)
            yield _joined(*folders[subset], f"{image_id}.jpg", path), 0, None, None, None


def _batches(path: Path, parsing, converting) -> Iterator[pa.RecordBatch]:
    with _csv_errors(path):
        yield from pa.csv.open_csv(path, parse_options=parsing, convert_options=converting)


@contextlib.contextmanager
def _csv_errors(path: Path):
    try:
        yield
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as a CSV: {error}; download it again") from error


def _check_quotes(path: Path) -> None:
    """Raise DataError if a quote is not closed: the parser would take all lines after it for one title."""
    with path.open("rb") as file:
        if sum(block.count(b'"') for block in iter(lambda: file.read(1 << 24), b"")) % 2:
            raise DataError(f"{path} is damaged: a quote is not closed; download it again")


def list_places(part: str) -> Listed:
    """The images of a Places365 list, one "/a/airfield/00000001.jpg 0" per line; the class is ignored."""
    path, images = _list_and_folder(part)
    names = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a Places365 list: it is not UTF-8 ({error}); save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(" ")
        name = name if label.isdigit() else line.strip()
        if name and not name.lower().endswith(ENDINGS):
            raise DataError(f"{path}, line {number}: {line!r} names no image file; use {' '.join(ENDINGS)}")
        names.append(name.lstrip("/"))
    names = [name for name in names if name]
    if names:
        images = images or _find_folder(path, PLACES, names[:20])
        prefix = paths.portable_prefix(images)
        for name in names:
            yield _joined(images, prefix, name, path), 0, None, None, None


def _list_and_folder(part: str) -> tuple[Path, Path | None]:
    """The paths of LIST:FOLDER; the folder is None if not given."""
    name, images = paths.file_and_folder(part)
    if images is not None and not Path(images).expanduser().is_dir():
        raise DataError(f"{images}: no such image folder (from {part!r}); give the folder of the images")
    return Path(name).expanduser(), Path(images).expanduser() if images is not None else None


def _find_folder(path: Path, candidates: tuple[str, ...], names: list[str]) -> Path:
    """The candidate folder, beside a list or one level up, in which any of `names` exists."""
    for base in (path.parent, path.parent.parent):
        for candidate in candidates:
            if any((base / candidate / name).exists() for name in names):
                return base / candidate
    raise DataError(
        f"{path}: {', '.join(names[:2])}, ... not found near it; give the image folder as {path}{os.pathsep}FOLDER"
    )


def _joined(folder: Path, prefix: str, name: str, listed_in: Path) -> str:
    """The portable name of a file in a folder with this `paths.portable_prefix`; see `inside`."""
    name = os.path.normpath(inside(folder, name, listed_in=listed_in))
    leads_out = os.path.isabs(name) or name.startswith(os.pardir)
    return paths.portable(folder / name) if leads_out else prefix + name
