"""Pools of unlabeled images: one Parquet index (id, path, height, width, source), whatever the images came as.

What a pool may be given as is in `listings`. Every file's header is looked at once, in several processes: images that
are missing, damaged, of another size than listed or byte-identical to an earlier one are left out, and all of them
listed with the reason in `...left_out.csv` beside the index.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.image_files import ENDINGS, MEASURED, MEMBER, chunk_by_chunk, content_hash, measure
from cassl_lib.data.pool.formats import INDEX, listed, share_of
from cassl_lib.data.pool.index import (
    LEFT_OUT,
    REASONS,
    Pool,
    fingerprint_with,
    left_out_file,
    left_out_report,
    read_left_out,
    write_index,
)
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.files import alone

LISTED = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("id", pa.int64()), ("height", pa.int32()), ("width", pa.int32())]
)
SOURCE = r"^(?:.*(?:/|::))?([^/]+)(?:/|::\d+\+\d+::)[^/]*$"  # the folder that an image lies in, else its archive


def build_pool(parts: list[str], folder: Path, *, workers: int | None = None) -> tuple[Pool, LeftOut]:
    """Index the images of `parts` below `folder`; an index of the same files is found again.

    Killed and called again it goes on; a second process waits for the first. An index is made anew when an image that
    was missing or damaged has changed. A single FILE.parquet, an earlier index, is used as it is.

    Args:
        parts: each as `listings.listed` takes it.
        workers: processes, spawned; by default one a core.

    Returns:
        The pool, and what was left out, with examples.

    Raises:
        DataError: a part does not exist, or holds no image.
    """
    if len(parts) == 1 and parts[0].lower().endswith(".parquet") and Path(parts[0]).expanduser().is_file():
        pool = Pool(Path(parts[0]).expanduser())
        return pool, left_out_report(pool.index)
    images, counts = _list(parts, folder)
    listing = _fingerprint(images)
    named = hashlib.sha256(json.dumps([listing, *map(_portable, parts)]).encode()).hexdigest()[:16]
    index = folder / f"pool-{named}" / "pool.parquet"
    if not _current(index):
        index.parent.mkdir(parents=True, exist_ok=True)
        with alone(index.parent):
            if not _current(index):
                _build(images, list(zip(parts, counts, strict=True)), index, listing, workers)
                if (report := left_out_report(index)).counts:
                    print(f"{report}\nall that was left out: {left_out_file(index)}", file=sys.stderr)
    return Pool(index), left_out_report(index)


def _list(parts: list[str], folder: Path) -> tuple[pa.Table, list[int]]:
    """The images of all parts as a table of `LISTED`, and how many each part lists."""
    tables = []
    for part in parts:
        rows = iter(tqdm(listed(part, folder), desc=f"list {part}", unit="image", mininterval=1, disable=None))
        batches = []
        while batch := list(itertools.islice(rows, 100_000)):
            try:
                batches.append(pa.table([list(column) for column in zip(*batch, strict=True)], schema=LISTED))
            except UnicodeEncodeError as error:
                raise DataError(f"{part}: the name {error.object!r} is not UTF-8; rename this file") from error
        if not batches:
            share = float(share_of(part)[1])
            why = f"endings that count are {' '.join(ENDINGS)}" if share == 1 else f"a share of {share} takes none"
            raise DataError(f"{part}: no image in it; {why}")
        tables.append(pa.concat_tables(batches))
    return pa.concat_tables(tables), [len(table) for table in tables]


def _build(images: pa.Table, counts: list[tuple[str, int]], index: Path, listing: str, workers: int | None) -> None:
    chunks = index.parent / "headers"
    chunks.mkdir(exist_ok=True)
    names = images.column("path")
    asked = images.select(["path", "height", "width"])
    measured = chunk_by_chunk(measure, asked, MEASURED, chunks, title="read headers", workers=workers)
    reasons, details = measured.column("reason").to_pylist(), measured.column("detail").to_pylist()
    for later, earlier in _duplicates(names, measured.column("ends")).items():
        reasons[later], details[later] = "duplicate", f"of {names[earlier].as_py()}"
    shutil.rmtree(chunks)  # before a refusal, too: images that are missing may come
    parts = _count_parts(counts, reasons, names)
    kept = np.array([reason is None for reason in reasons])
    columns = [_ids(images), names, measured.column("found_height"), measured.column("found_width"), _sources(names)]
    lost = [names, pa.array(reasons, pa.string()), pa.array(details, pa.string()), measured.column("found_bytes")]
    left_out = pa.table(lost, schema=LEFT_OUT).filter(~kept)
    rows = pa.table(columns, schema=INDEX).filter(kept)
    write_index(rows, left_out, parts, fingerprint_with(listing, left_out), index)


def _duplicates(names: pa.ChunkedArray, ends: pa.ChunkedArray) -> dict[int, int]:
    """The place of each image that is byte-identical to an earlier one, with the place of that one."""
    usable = np.flatnonzero(ends.is_valid().to_numpy())
    _, group, sizes = np.unique(ends.drop_null().to_numpy(), return_inverse=True, return_counts=True)
    candidates = usable[sizes[group] > 1]
    first: dict[bytes, int] = {}
    found = {}
    for place in tqdm(candidates.tolist(), desc="compare alike files", unit="image", mininterval=1, disable=None):
        content = content_hash(paths.image(names[place].as_py()))
        if content in first:
            found[place] = first[content]
        else:
            first[content] = place
    return found


def _count_parts(counts: list[tuple[str, int]], reasons: list[str | None], names: pa.ChunkedArray) -> list[dict]:
    """`Pool.parts`. A part of which nothing is there is refused: its folder is wrong."""
    rows, start = [], 0
    for part, number in counts:
        found = Counter(reasons[start : start + number])
        if found["missing"] == number:
            example, name = paths.image(names[start].as_py()), paths.file_and_folder(share_of(part)[0])[0]
            remedy = f"give the folder that has them, as {name}{os.pathsep}FOLDER"
            if name.lower().endswith(".parquet"):
                remedy = f"bring them back, or set CASSL_DATASETS, now {paths.datasets()}"
            raise DataError(f"{part}: none of its {number} images is there, such as {example}; {remedy}")
        rows.append({"part": _portable(part), "listed": number, "images": found[None]})
        rows[-1] |= {reason: found[reason] for reason in REASONS}
        start += number
    if not any(row["images"] for row in rows):
        parts, endings = ", ".join(part for part, _ in counts), " ".join(ENDINGS)
        raise DataError(f"{parts}: no image in it that can be read; endings that count are {endings}")
    return rows


def _portable(part: str) -> str:
    """A part with its paths as indices write them."""
    whole, _ = share_of(part)
    places = [paths.portable(Path(place).expanduser()) for place in paths.file_and_folder(whole) if place is not None]
    return os.pathsep.join(places) + part.removeprefix(whole)


def _ids(images: pa.Table) -> pa.ChunkedArray | pa.Array:
    """COCO's if JSONs give every image one of its own, else places, from 1."""
    known = images.column("id")
    distinct = pc.count_distinct(known).as_py()
    if distinct == len(images):
        return known
    if not known.null_count:
        print(f"{len(images) - distinct:,} ids are given twice; the images get ids from 1 on instead", file=sys.stderr)
    return pa.array(np.arange(1, len(images) + 1))


def _sources(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(pc.binary_join_element_wise("datasets", names, "/"), SOURCE, r"\1")


def _fingerprint(images: pa.Table) -> str:
    """Hash of all that is listed."""
    digest = hashlib.sha256()
    for chunk in images.column("path").chunks:
        digest.update("\n".join([*chunk.to_pylist(), ""]).encode())
    for name in ("bytes", "id", "height", "width"):
        digest.update(images.column(name).fill_null(-1).to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _current(index: Path) -> bool:
    """Whether the index exists and no image that was left out for its state has changed since, come or gone."""
    if not index.exists():
        return False
    left_out = read_left_out(index).select(["path", "reason", "bytes"])
    for name, reason, size in zip(*(column.to_pylist() for column in left_out.columns), strict=True):
        path = paths.image(name)
        if reason in ("missing", "unreadable", "other size") and not MEMBER.match(name):
            if (path.stat().st_size if path.is_file() else -1) != size:
                return False
    return True
