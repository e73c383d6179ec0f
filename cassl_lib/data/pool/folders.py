"""The images in folders and in tar archives."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.image_files import ENDINGS, member_name
from cassl_lib.data.pool.chunks import write_table
from cassl_lib.errors import DataError

PACKED = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar")
SHOWN = 8  # endings of files that are not images
# (path, bytes, id, height, width); bytes is -1 for a broken link
Listed = Iterator[tuple[str, int, int | None, int | None, int | None]]

logger = logging.getLogger(__name__)


def list_folder(path: Path, cache: Path) -> Listed:
    """Every image below a folder, by path; or, if the folder has .tar files instead, every image in these."""
    skipped: Counter[str] = Counter()
    files = _walk(str(path), paths.portable_prefix(path), (), skipped)
    first = next(files, ("", 0))
    are_tars = first[0].lower().endswith(".tar")
    for name, size in itertools.chain([first] if first[0] else [], files):
        if name.lower().endswith(".tar") != are_tars:
            raise DataError(
                f"{path} has both images and .tar files, such as {first[0]} and {name}; give those you want as parts"
            )
        if are_tars:
            yield from list_tar(paths.image(name), cache)
        else:
            yield name, size, None, None, None
    if skipped:
        logger.warning("%s: skipped %s", path, _counts(skipped))


def _counts(skipped: Counter[str]) -> str:
    """Kinds of skipped files in one line, the most frequent first."""
    shown = [f"{count:,} {what}" for what, count in skipped.most_common(SHOWN)]
    others = skipped.total() - sum(count for _, count in skipped.most_common(SHOWN))
    return ", ".join([*shown, f"{others:,} others"] if others else shown)


def _walk(path: str, prefix: str, above: tuple, skipped: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yield (portable name, bytes) of the images and .tar files below a folder, sorted by name.

    Args:
        above: device and inode of the folders above, to detect links that form a cycle.
        skipped: receives counts of files that are not images, by ending; hidden files are not counted.
    """
    state = os.stat(path)
    if (here := (state.st_dev, state.st_ino)) in above:
        skipped["links to a folder above themselves"] += 1
        return
    listing = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                listing.append((entry.name + "/", 0))
            elif entry.name.lower().endswith((*ENDINGS, ".tar")):
                if entry.is_file():
                    listing.append((entry.name, entry.stat().st_size))
                elif os.path.exists(entry):
                    skipped["pipes or devices"] += 1
                else:
                    listing.append((entry.name, -1))
            elif not entry.name.startswith("."):
                skipped[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
    for name, size in sorted(listing):
        if name.endswith("/"):
            yield from _walk(os.path.join(path, name), prefix + name, (*above, here), skipped)
        else:
            yield prefix + name, size


def list_tar(path: Path, cache: Path) -> Listed:
    """The images in a tar archive. Its headers are read once and cached by its path, size and date."""
    state = path.stat()
    identity = f"{os.path.abspath(path)}|{state.st_size}|{state.st_mtime_ns}"
    cached = cache / f"tar-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"
    if not cached.exists():
        rows = _members(path, state.st_size)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        cache.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("offset", pa.int64()), ("size", pa.int64()), ("name", pa.string())])
        try:
            write_table(pa.table(columns, schema=schema), cached)
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}: the name {error.object!r} is not UTF-8; rename the file and pack again"
            ) from error
    archive = paths.portable_prefix(path.parent) + path.name
    columns = [column.to_pylist() for column in pq.read_table(cached).columns]
    for offset, size, name in zip(*columns, strict=True):
        yield member_name(archive, offset, size, name), size, None, None, None


def _members(path: Path, size: int) -> list[tuple[int, int, str]]:
    """(offset, bytes, name) of each image in an archive of `size` bytes."""
    rows = []
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, mininterval=1, disable=None)
    try:
        with tarfile.open(path, "r:") as archive, bar:
            while entry := archive.next():
                if entry.isreg() and not entry.issparse() and entry.name.lower().endswith(ENDINGS):
                    rows.append((entry.offset_data, entry.size, entry.name))
                archive.members = []  # tarfile would keep all of them in memory
                bar.update(archive.offset - bar.n)
            _check_end(path, archive.offset, len(rows))
    except tarfile.TarError as error:
        raise DataError(f"{path} cannot be read as a tar ({error}); download it again, or gunzip a .tar.gz") from error
    return rows


def _check_end(path: Path, at: int, images: int) -> None:
    """Raise DataError if reading stopped at byte `at` before the end: tarfile takes any damaged header for the end."""
    with path.open("rb") as file:
        file.seek(at)
        header = file.read(tarfile.BLOCKSIZE)
        if header.strip(b"\0"):
            raise DataError(f"{path} is damaged at byte {at:,}, after {images:,} images; download it again")
        if any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b"")):
            raise DataError(f"{path}: more data follows its end at byte {at:,}; give joined archives one by one")
    if not header:
        logger.warning("%s: no end mark after its %s images; it may be truncated", path, f"{images:,}")
