"""Image files on disk and inside tar archives: names, opening them, and which read errors are their own."""

from __future__ import annotations

import errno
import io
import os
import re
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from cassl_lib.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
MEMBER = re.compile(r"(.+?\.[tT][aA][rR])::(\d+)\+(\d+)::")  # archive, offset and size in bytes
DAMAGED = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises
OF_ONE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def member_name(archive: str, offset: int, size: int, name: str) -> str:
    """The path of an image in a tar: `/data/a.tar::1536+20480::dir/b.jpg` has 20480 bytes, starting at byte 1536."""
    return f"{archive}::{offset}+{size}::{os.path.normpath(name).lstrip('/')}"


def open_file(path: Path | str) -> IO[bytes]:
    """Open an image file, or one inside a tar (see `member_name`), for reading. Raises OSError."""
    member = MEMBER.match(str(path))
    if not member:
        return open(path, "rb")
    with open(member[1], "rb") as archive:
        archive.seek(int(member[2]))
        return io.BytesIO(archive.read(int(member[3])))


def describe_damage(path: Path | str, error: Exception) -> str:
    """Why an image cannot be read, if the image itself is damaged or missing, so that skipping it is right.

    Raises:
        DataError: the cause lies elsewhere and may go away: the folder is not mounted, a disk or network fails, or the
            process has too many open files. Skipping the image would lose it for good.
    """
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error).partition(" <")[0]  # without the file object's address
    member = MEMBER.match(str(path))
    folder = member[1] if member else os.path.dirname(path)
    if number is None or (number in OF_ONE_FILE and _has_content(folder)):
        return reason
    raise DataError(
        f"{path}: {reason}. This is a storage or system error, not a damaged image. Check that {folder} is mounted, "
        "then rerun the same command to resume"
    )


def _has_content(folder: str) -> bool:
    """Whether an archive, or a folder that is not empty, exists; the folder of an unmounted disk is empty."""
    try:
        return os.path.isfile(folder) or any(True for _ in os.scandir(folder))
    except OSError:
        return False


def to_8bit(image: Image.Image) -> Image.Image:
    """The upper eight bits of a 16-bit image; others unchanged. Pillow's `convert` would clip all above 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))


def spread(length: int, count: int = 20) -> list[int]:
    """At most `count` evenly spaced indices of a sequence, beginning with 0, ascending and distinct."""
    return [length * place // min(count, length) for place in range(min(count, length))]
