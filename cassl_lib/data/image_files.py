"""Image files on disk and inside tar archives, and looking at millions of them in several processes."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.processes import cores, several
from cassl_lib.errors import DataError
from cassl_lib.files import replacing

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
MEMBER = re.compile(r"(.+?\.[tT][aA][rR])::(\d+)\+(\d+)::")  # archive, first byte, number of bytes
DAMAGED = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises
OF_ONE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
CHUNK = 10_000  # images, after which what is known of them is kept
WORTH_A_PROCESS = 2_000  # images, below which a process takes longer to start than to help
BLOCK = 4096  # bytes


def member(archive: str, offset: int, size: int, name: str) -> str:
    """What an image in a tar is called: `/data/a.tar::1536+20480::dir/b.jpg` has 20480 bytes from byte 1536 on."""
    return f"{archive}::{offset}+{size}::{os.path.normpath(name).lstrip('/')}"


def open_file(path: Path | str) -> IO[bytes]:
    """An image file, or one inside a tar as `member` calls it, for reading. Raises OSError."""
    found = MEMBER.match(str(path))
    if not found:
        return open(path, "rb")
    with open(found[1], "rb") as archive:
        archive.seek(int(found[2]))
        return io.BytesIO(archive.read(int(found[3])))


def own_fault(path: Path | str, error: Exception) -> str:
    """Why an image cannot be read, where that is its own fault and will be so the next time.

    Raises:
        DataError: it is not: its folder is gone, or a disk, a network or this process (too many open files) has failed.
    """
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error).partition(" <")[0]  # without a file object's address
    member_of = MEMBER.match(str(path))
    folder = member_of[1] if member_of else os.path.dirname(path)
    if number is None or (number in OF_ONE_FILE and _holds_something(folder)):
        return reason
    raise DataError(
        f"{path}: {reason}. That is no fault of this one image; mend it (is {folder} there?) and run the same command "
        "again, it goes on"
    )


def _holds_something(folder: str) -> bool:
    """Whether a folder with something in it, or an archive, is there; where a disk is not mounted it is empty."""
    try:
        return os.path.isfile(folder) or any(True for _ in os.scandir(folder))
    except OSError:
        return False


def eight_bits(image: Image.Image) -> Image.Image:
    """`image`, or of one with 16 bits a pixel the upper eight: `convert` would cut off all above 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))


MEASURED = pa.schema(
    [
        ("found_height", pa.int32()),
        ("found_width", pa.int32()),
        ("found_bytes", pa.int64()),  # -1 if there is no file
        ("ends", pa.int64()),  # hash of the size, the first and the last block
        ("reason", pa.string()),  # why the image cannot be used: missing, unreadable, other size; else null
        ("detail", pa.string()),
    ]
)


def measure(path: str, height: int | None, width: int | None) -> tuple:
    """A row of `MEASURED`, from the header alone; height and width are what the listing says, if it does."""
    size = -1
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            ends = _hash_of_ends(file, size)
            file.seek(0)
            with Image.open(file) as image:
                found = image.height, image.width
    except (FileNotFoundError, NotADirectoryError):
        return None, None, -1, None, "missing", ""
    except DAMAGED as error:
        size = os.path.getsize(path) if size < 0 and os.path.isfile(path) else size  # no permission to open it
        return None, None, size, None, "unreadable", own_fault(path, error)
    if height is not None and found != (height, width):
        return *found, size, ends, "other size", f"{found[0]}x{found[1]}, listed as {height}x{width}"
    return *found, size, ends, None, None


def _hash_of_ends(file: IO[bytes], size: int) -> int:
    file.seek(0)
    digest = hashlib.blake2b(b"%d|" % size + file.read(BLOCK), digest_size=8)
    if size > BLOCK:
        file.seek(max(BLOCK, size - BLOCK))
        digest.update(file.read(BLOCK))
    return int.from_bytes(digest.digest(), "little", signed=True)


def content_hash(path: str) -> bytes:
    """Hash of all bytes of an image file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def spread(length: int, count: int = 20) -> list[int]:
    """At most `count` places at even distances in a sequence: a look at some stands for all."""
    return [length * place // min(count, length) for place in range(min(count, length))]


def chunk_by_chunk(
    act: Callable, images: pa.Table, schema: pa.Schema, folder: Path, *, title: str, workers: int | None = None
) -> pa.Table:
    """`act(path, ...)` of every image, in processes, as a table; continues from the finished chunks in `folder`.

    Args:
        act: a function of a module; takes the file's path, then the other columns of `images`; returns a row.
        images: its first column has portable paths.
        schema: of the rows.
        workers: processes; by default one a core. They are spawned: a script of your own needs
            `if __name__ == "__main__"`.
    """
    starts = range(0, len(images), CHUNK)
    files = [folder / f"{start // CHUNK:06d}.parquet" for start in starts]
    todo = [(start, file) for start, file in zip(starts, files, strict=True) if not file.exists()]
    left = sum(min(CHUNK, len(images) - start) for start, _ in todo)
    workers = min(cores() if workers is None else workers, left // WORTH_A_PROCESS)
    bar = tqdm(total=left, desc=title, unit="image", mininterval=1, disable=None)
    with several(workers) as pool, bar:
        for start, file in todo:
            given = _arguments(images.slice(start, CHUNK))
            rows = []
            for row in pool.map(act, *given, chunksize=100) if pool else map(act, *given):
                rows.append(row)
                bar.update()
            columns = zip(*rows, strict=True)
            write_table(pa.table([list(column) for column in columns], schema=schema), file)
    return pa.concat_tables([pq.read_table(file, schema=schema) for file in files] or [schema.empty_table()])


def _arguments(images: pa.Table) -> list[list]:
    first, *others = (column.to_pylist() for column in images.columns)
    root = str(paths.datasets())  # once: finding it takes longer than reading a header
    return [[os.path.join(root, name) for name in first], *others]


def write_table(table: pa.Table, path: Path) -> None:
    """A Parquet file with row groups of `CHUNK` rows, there whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=CHUNK)
