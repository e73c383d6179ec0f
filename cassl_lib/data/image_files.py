"""Image files on disk and inside tar archives: names, opening them, and which read errors are their own."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
from pathlib import Path
from typing import IO

from PIL import Image

from cassl_lib import paths
from cassl_lib.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
MEMBER = re.compile(r"(.+?\.[tT][aA][rR])::(\d+)\+(\d+)::")  # archive, offset and size in bytes
DAMAGED = (  # what Pillow raises, at times from the depth of a parser
    *(OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError),
    *(TypeError, LookupError, OverflowError, struct.error),
)
MOST_PIXELS = 2**26  # 67 megapixels, 200 MB as RGB: a file of a few kB may claim billions, and take all memory
OF_ONE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def member_name(archive: str, offset: int, size: int, name: str) -> str:
    """The path of an image in a tar: `/data/a.tar::1536+20480::dir/b.jpg` has 20480 bytes, starting at byte 1536."""
    return f"{archive}::{offset}+{size}::{os.path.normpath(name).lstrip('/')}"


def open_file(path: Path | str) -> IO[bytes]:
    """Open an image file, or one inside a tar (see `member_name`), for reading.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device, which could block for ever.
    """
    member = MEMBER.match(str(path))
    if not member:
        return _open_regular(path)
    with _open_regular(member[1]) as archive:
        archive.seek(int(member[2]))
        return io.BytesIO(archive.read(int(member[3])))


def _open_regular(path: Path | str) -> IO[bytes]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    return open(path, "rb")


def inside(folder: Path | str, name: str, *, listed_in: Path | str) -> str:
    """`name`, the path of a file in `folder`, after a check that it does not lead out of it.

    An annotation file from elsewhere must not make this program read, and record, other files of its user. Links in
    the folder are followed: whoever made them has access to it.

    Args:
        listed_in: the file that has the name, for the message.

    Raises:
        DataError: the name is absolute, or leads above the folder, and `paths.allow_outside()` is False.
    """
    if "\0" in name:
        raise DataError(f"{listed_in}: the file name {name!r} has a null character; correct this entry")
    leads_out = os.path.isabs(name) or (".." in name and os.path.normpath(name).split(os.sep)[0] == os.pardir)
    if leads_out and not paths.allow_outside():
        raise DataError(
            f"{listed_in}: the file name {name!r} leads out of {folder}, and a file from elsewhere must not make this "
            "program read other files; correct it or, if you trust the file, use --allow-outside "
            "(CASSL_ALLOW_OUTSIDE=1)"
        )
    return name


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


def spread(length: int, count: int = 20) -> list[int]:
    """At most `count` evenly spaced indices of a sequence, beginning with 0, ascending and distinct."""
    return [length * place // min(count, length) for place in range(min(count, length))]
