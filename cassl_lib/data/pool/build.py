"""Building a pool: folders, lists and archives, in any mixture, become one Parquet index of images.

formats.py describes what a pool can be built from. The header of every file is read once, in several processes. Images
that are missing, damaged, of another size than listed, or byte-identical to an earlier one are left out; a CSV beside
the index lists them with the reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.image_contents import contents_fingerprint, covered
from cassl_lib.data.image_files import ENDINGS, MEMBER
from cassl_lib.data.pool.chunks import map_in_chunks
from cassl_lib.data.pool.formats import list_images, share_of
from cassl_lib.data.pool.headers import HEADER, content_hash, read_header
from cassl_lib.data.pool.index import (
    INDEX,
    LEFT_OUT,
    REASONS,
    Pool,
    fingerprint_with,
    left_out_file,
    read_left_out,
    write_index,
)
from cassl_lib.data.pool.open_index import first_repeated
from cassl_lib.errors import DataError
from cassl_lib.files import alone, writable

LISTING = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("id", pa.int64()), ("height", pa.int32()), ("width", pa.int32())]
)
SOURCE = r"^(?:.*(?:/|::))?([^/]+)(?:/|::\d+\+\d+::)[^/]*$"  # name of an image's folder, or of its archive

logger = logging.getLogger(__name__)


def build_pool(parts: list[str], folder: Path, *, workers: int | None = None, own: bool = True) -> Pool:
    """Index the images of `parts`; an existing index of the same files is reused.

    A build that was killed resumes, and a second process waits for the first. The index is rebuilt when an image that
    was missing or damaged has changed since. A single FILE.parquet, an earlier index, is used as it is.

    Args:
        parts: each as `formats.list_images` takes it.
        folder: for indices of all pools, each in a folder of its own.
        workers: number of processes, by default one per core. They are spawned, so scripts need the
            `if __name__ == "__main__"` guard.
        own: whether the images are the user's own, so that the fingerprint covers their contents, as image_contents.py
            promises; those of the embedded scenes follow from a seed.

    Returns:
        The pool; its `left_out` counts the images that cannot be used.

    Raises:
        DataError: a part does not exist, is invalid or has no usable image, or a storage error occurs.
    """
    if len(parts) == 1 and parts[0].lower().endswith(".parquet") and Path(parts[0]).expanduser().is_file():
        return Pool(Path(parts[0]).expanduser())
    images, counts = _list(parts, folder)
    listing = _fingerprint(images, contents=own)
    identity = hashlib.sha256(json.dumps([listing, *map(_portable, parts)]).encode()).hexdigest()[:16]
    index = folder / f"pool-{identity}" / "pool.parquet"
    if not _is_current(index):
        index = writable(index.parent) / index.name
        with alone(index.parent):
            if not _is_current(index):
                _build(images, list(zip(parts, counts, strict=True)), index, listing, workers)
                if left_out := str(Pool(index).left_out):
                    logger.warning("%s\nall that was left out: %s", left_out, left_out_file(index))
    return Pool(index)


def _list(parts: list[str], folder: Path) -> tuple[pa.Table, list[int]]:
    """The images of all parts as a table of `LISTING`, and how many each part lists."""
    tables = []
    for part in parts:
        rows = iter(tqdm(list_images(part, folder), desc=f"list {part}", unit="image", mininterval=1, disable=None))
        batches = []
        while batch := list(itertools.islice(rows, 100_000)):
            try:
                batches.append(pa.table([list(column) for column in zip(*batch, strict=True)], schema=LISTING))
            except UnicodeEncodeError as error:
                raise DataError(f"{part}: the name {error.object!r} is not UTF-8; rename this file") from error
        if not batches:
            share = float(share_of(part)[1])
            why = (
                f"image files end in {' '.join(ENDINGS)}" if share == 1 else f"a share of {share} takes none; raise it"
            )
            raise DataError(f"{part}: no image in it; {why}")
        tables.append(pa.concat_tables(batches))
        if repeated := first_repeated(tables[-1].column("path")):
            name = tables[-1].column("path")[repeated[0]].as_py()
            raise DataError(
                f"{part}: lists {name} twice, as images {repeated[0] + 1} and {repeated[1] + 1}; list it once"
            )
    return pa.concat_tables(tables), [len(table) for table in tables]


def _build(images: pa.Table, counts: list[tuple[str, int]], index: Path, listing: str, workers: int | None) -> None:
    """Write the index of `images`.

    Args:
        images: a table of `LISTING`.
        counts: parts with the number of images that each lists, in the order of `images`.
        listing: the fingerprint of `images`.
    """
    # Read the headers.
    chunks = index.parent / "headers"
    chunks.mkdir(exist_ok=True)
    names = images.column("path")
    asked = images.select(["path", "height", "width"])
    headers = map_in_chunks(read_header, asked, HEADER, chunks, title="read headers", workers=workers)
    # Decide which images to leave out.
    reasons, details = headers.column("reason").to_pylist(), headers.column("detail").to_pylist()
    for later, earlier in _duplicates(names, headers.column("ends")).items():
        reasons[later], details[later] = "duplicate", f"of {names[earlier].as_py()}"
    shutil.rmtree(chunks)  # also before an error: the next call must look for missing images again
    parts = _count_parts(counts, reasons, names)
    kept = np.array([reason is None for reason in reasons])
    # Write the rest.
    columns = [_ids(images), names, headers.column("found_height"), headers.column("found_width"), _sources(names)]
    lost = [names, pa.array(reasons, pa.string()), pa.array(details, pa.string()), headers.column("found_bytes")]
    left_out = pa.table(lost, schema=LEFT_OUT).filter(~kept)
    rows = pa.table(columns, schema=INDEX).filter(kept)
    write_index(rows, left_out, parts, fingerprint_with(listing, left_out), index)


def _duplicates(names: pa.ChunkedArray, ends: pa.ChunkedArray) -> dict[int, int]:
    """For each image that is byte-identical to an earlier one, the index of that one.

    Args:
        names: portable paths.
        ends: hashes of file size, first and last block; only files with equal ones are read whole.
    """
    usable = np.flatnonzero(ends.is_valid().to_numpy())
    _, group, sizes = np.unique(ends.drop_null().to_numpy(), return_inverse=True, return_counts=True)
    candidates = usable[sizes[group] > 1]
    first: dict[bytes, int] = {}
    earlier = {}
    for place in tqdm(candidates.tolist(), desc="compare similar files", unit="image", mininterval=1, disable=None):
        content = content_hash(paths.image(names[place].as_py()))
        if content in first:
            earlier[place] = first[content]
        else:
            first[content] = place
    return earlier


def _count_parts(counts: list[tuple[str, int]], reasons: list[str | None], names: pa.ChunkedArray) -> list[dict]:
    """`Pool.parts`. Raises DataError if no image of a part exists: its folder is wrong."""
    rows, start = [], 0
    for part, number in counts:
        by_reason = Counter(reasons[start : start + number])
        if by_reason["missing"] == number:
            example, name = paths.image(names[start].as_py()), paths.file_and_folder(share_of(part)[0])[0]
            remedy = f"give their folder as {name}{os.pathsep}FOLDER"
            if name.lower().endswith(".parquet"):
                remedy = f"restore them, or set CASSL_DATASETS, now {paths.datasets()}"
            raise DataError(f"{part}: none of its {number} images exists, such as {example}; {remedy}")
        rows.append({"part": _portable(part), "listed": number, "images": by_reason[None]})
        rows[-1] |= {reason: by_reason[reason] for reason in REASONS}
        start += number
    if not any(row["images"] for row in rows):
        parts, endings = ", ".join(part for part, _ in counts), " ".join(ENDINGS)
        raise DataError(f"{parts}: no image in it can be read; give images that end in {endings}")
    return rows


def _portable(part: str) -> str:
    """A part with portable paths."""
    whole, _ = share_of(part)
    places = [paths.portable(Path(place).expanduser()) for place in paths.file_and_folder(whole) if place is not None]
    return os.pathsep.join(places) + part.removeprefix(whole)


def _ids(images: pa.Table) -> pa.ChunkedArray | pa.Array:
    """The ids of the JSONs if all images have one and they differ; else 1, 2, ..."""
    known = images.column("id")
    distinct = pc.count_distinct(known).as_py()
    if distinct == len(images):
        return known
    if not known.null_count:
        logger.warning("%s image ids are not unique; all images get new ids, from 1", f"{len(images) - distinct:,}")
    return pa.array(np.arange(1, len(images) + 1))


def _sources(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name of each image's folder or archive."""
    return pc.replace_substring_regex(pc.binary_join_element_wise("datasets", names, "/"), SOURCE, r"\1")


def _fingerprint(images: pa.Table, *, contents: bool) -> str:
    """Hash of a table of `LISTING` and, if `contents`, of those of its images."""
    digest = hashlib.sha256()
    for chunk in images.column("path").chunks:
        digest.update("\n".join([*chunk.to_pylist(), ""]).encode())
    for name in ("bytes", "id", "height", "width"):
        digest.update(images.column(name).fill_null(-1).to_numpy().astype("<i8").tobytes())
    if contents:
        names = images.column("path").take(covered(len(images))).to_pylist()
        digest.update(contents_fingerprint(map(paths.image, names)).encode())
    return digest.hexdigest()[:16]


def _is_current(index: Path) -> bool:
    """Whether the index exists, and no image that was missing or damaged has appeared or changed its size since."""
    if not index.exists():
        return False
    left_out = read_left_out(index).select(["path", "reason", "bytes"])
    for name, reason, size in zip(*(column.to_pylist() for column in left_out.columns), strict=True):
        path = paths.image(name)
        if reason in ("missing", "unreadable", "other size") and not MEMBER.match(name):
            if (path.stat().st_size if path.is_file() else -1) != size:
                return False
    return True
