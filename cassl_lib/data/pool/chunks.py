"""A function of each of millions of images, in several processes and in chunks that survive a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.processes import cores, process_pool
from cassl_lib.files import replacing

CHUNK = 10_000  # images whose rows are written together
MIN_IMAGES_PER_PROCESS = 2_000  # with fewer, starting a process takes longer than it saves


def map_in_chunks(
    function: Callable, images: pa.Table, schema: pa.Schema, folder: Path, *, title: str, workers: int | None = None
) -> pa.Table:
    """A table with the row `function(path, ...)` of every image, in order. Resumes from finished chunks in `folder`.

    Args:
        function: defined in a module, so that it can be pickled; takes the image's path, then the values of the other
            columns of `images`; returns a row.
        images: the first column has portable paths.
        schema: of the rows.
        folder: for the chunks, one Parquet file each; the caller deletes it.
        title: of the progress bar.
        workers: number of processes, by default one per core. They are spawned, so scripts need the
            `if __name__ == "__main__"` guard.
    """
    # Find the chunks that are missing.
    starts = range(0, len(images), CHUNK)
    files = [folder / f"{start // CHUNK:06d}.parquet" for start in starts]
    missing = [(start, file) for start, file in zip(starts, files, strict=True) if not file.exists()]
    left = sum(min(CHUNK, len(images) - start) for start, _ in missing)
    # Compute them; the processes share each chunk.
    workers = min(cores() if workers is None else workers, left // MIN_IMAGES_PER_PROCESS)
    bar = tqdm(total=left, desc=title, unit="image", mininterval=1, disable=None)
    with process_pool(workers) as pool, bar:
        for start, file in missing:
            arguments = _arguments(images.slice(start, CHUNK))
            rows = []
            for row in pool.map(function, *arguments, chunksize=100) if pool else map(function, *arguments):
                rows.append(row)
                bar.update()
            columns = zip(*rows, strict=True)
            write_table(pa.table([list(column) for column in columns], schema=schema), file)
    return pa.concat_tables([pq.read_table(file, schema=schema) for file in files] or [schema.empty_table()])


def _arguments(images: pa.Table) -> list[list]:
    """The columns as lists, with portable paths made absolute."""
    first, *others = (column.to_pylist() for column in images.columns)
    root = str(paths.datasets())  # only once: looking it up takes longer than reading a header
    return [[os.path.join(root, name) for name in first], *others]


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file with row groups of `CHUNK` rows and checksums of its pages, atomically."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=CHUNK, write_page_checksum=True)
