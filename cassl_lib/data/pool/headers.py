"""What a pool's index needs to know of an image file: size, readability, and a hash to detect identical files."""

from __future__ import annotations

import hashlib
import os
from typing import IO

import pyarrow as pa

from cassl_lib.data.image_files import DAMAGED, describe_damage, open_file
from cassl_lib.data.image_pixels import open_image, size_of

BLOCK = 4096  # bytes
HEADER = pa.schema(
    [
        ("found_height", pa.int32()),
        ("found_width", pa.int32()),
        ("found_bytes", pa.int64()),  # -1 if there is no file
        ("ends", pa.int64()),  # hash of the file size, the first and the last block
        ("reason", pa.string()),  # why the image cannot be used: missing, unreadable, other size; else null
        ("detail", pa.string()),
    ]
)


def read_header(path: str, height: int | None, width: int | None) -> tuple:
    """A row of `HEADER`, without decoding the image; sizes are of the image as displayed.

    Args:
        height, width: as listed; None if the listing does not say.

    Raises:
        DataError: a storage or system error, see `describe_damage`.
    """
    size = -1
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            ends = _hash_of_ends(file, size)
            file.seek(0)
            with open_image(file) as image:
                shape = size_of(image)
    except (FileNotFoundError, NotADirectoryError):
        return None, None, -1, None, "missing", ""
    except DAMAGED as error:
        size = os.path.getsize(path) if size < 0 and os.path.isfile(path) else size  # no permission to open it
        return None, None, size, None, "unreadable", describe_damage(path, error)
    if height is not None and shape != (height, width):
        return *shape, size, ends, "other size", f"{shape[0]}x{shape[1]}, listed as {height}x{width}"
    return *shape, size, ends, None, None


def _hash_of_ends(file: IO[bytes], size: int) -> int:
    file.seek(0)
    digest = hashlib.blake2b(b"%d|" % size + file.read(BLOCK), digest_size=8)
    if size > BLOCK:
        file.seek(max(BLOCK, size - BLOCK))
        digest.update(file.read(BLOCK))
    return int.from_bytes(digest.digest(), "little", signed=True)


def content_hash(path: str) -> bytes:
    """SHA-256 of an image file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()
