"""Files in folders that several processes share: locks, atomic writes, what dead processes leave behind, fingerprints.

Whoever may write into such a folder may put links there, so the names of temporary files cannot be predicted, and
neither they nor locks follow links.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cassl_lib.errors import DiskFull

WITHOUT_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # of file systems that do not support locks
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)  # of a store of somebody else, or one that is kept safe
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ABANDONED_AFTER = 24 * 3600  # seconds, of a temporary file of another host, whose processes cannot be asked for
TEMPORARY = re.compile(r"(?P<writer>\..+)\.(?P<process>\d+)\.(?:[0-9a-f]{16}|\d+)\.tmp")  # digits: of version 0.1.0

logger = logging.getLogger(__name__)
_said: set[Path] = set()  # folders on which this process has said that locks do not work
_instead: dict[Path, Path] = {}  # temporary folders of this process, by the folder that cannot be written
_swept: set[Path] = set()  # folders that this process has cleared of leftovers


# ---- locks ----


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file; yields whether this process holds the lock. The system releases it when the holder dies.

    On a file system without locks, every process is told that it holds the lock, and this is logged.

    Args:
        wait: block until the lock is free; otherwise yield False if another process holds it.
    """
    with open_own(path, "rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            say_without_locks(path.parent)
        yield True


@contextlib.contextmanager
def alone(folder: Path, *, say: bool = True) -> Iterator[None]:
    """Lock a folder, after waiting for the process that holds it. Logs that it waits, unless `say` is False."""
    with locked(folder / ".lock", wait=False) as held:
        if held:
            yield
            return
    if say:
        logger.info("%s: locked by another process; waiting for it to finish", folder)
    with locked(folder / ".lock", wait=True):
        yield


def say_without_locks(folder: Path) -> None:
    """Warn, once per folder, that processes cannot wait for each other there."""
    if folder not in _said:
        _said.add(folder)
        logger.warning(
            "%s: its file system does not support locks. Start one process at a time there; several would do the "
            "same work, each in files of its own.",
            folder,
        )


def open_own(path: Path, mode: str) -> IO[bytes]:
    """Open a file of a shared folder in a binary mode, created if needed. A link in its place raises OSError."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666))


# ---- atomic writes ----


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file such that readers see either the old or the new content, even after a crash.

    Raises:
        DiskFull: the partial file is deleted.
        OSError: the file cannot be written; the partial file is deleted.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file that replaces the one at `path` at the end; after an error it is deleted.

    Raises:
        DiskFull: the disk is full.
    """
    sweep_once(path.parent)
    temporary = _unused_name(path)
    try:
        with explained(path):
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`, which is deleted at the end with what is left in it.

    Raises:
        DiskFull: the disk is full.
    """
    sweep_once(path.parent)
    temporary = _unused_name(path)
    try:
        with explained(path):
            temporary.mkdir()
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that names the file, the free space and the remedy.

    Raises:
        DiskFull: instead of the system's error.
    """
    try:
        yield
    except DiskFull:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFull(error.errno, f"{path} cannot be written: {_reason(error, path.parent)}") from error


def _reason(error: OSError, folder: Path) -> str:
    """Why a full disk ended the work, as the end of a message: reason, free space, remedy."""
    free = shutil.disk_usage(folder).free / 1e6 if folder.is_dir() else 0
    why = {errno.EDQUOT: "quota exceeded", errno.EFBIG: "larger than files may be here"}.get(error.errno, "disk full")
    return f"{why}, {free:,.0f} MB free on {folder}. Free disk space and rerun the same command to resume."


# ---- stores that cannot be written ----


@contextlib.contextmanager
def where_writable(path: Path) -> Iterator[None]:
    """Write what is only kept for next time: where the store is read-only this is logged, and nothing is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        logger.info("%s: not kept, %s", path, (error.strerror or "no permission").lower())


def writable(folder: Path) -> Path:
    """`folder`, created if needed; where the store is read-only, a folder that is deleted when this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_own(folder / ".lock", "rb+"):
            return folder
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
    if folder not in _instead:
        _instead[folder] = Path(tempfile.mkdtemp(prefix="cassl-"))
        atexit.register(shutil.rmtree, _instead[folder], ignore_errors=True)
        logger.info("%s cannot be written; using %s until this process ends", folder, _instead[folder])
    return _instead[folder]


# ---- what dead processes leave behind ----


def sweep(folder: Path, stem: str = "") -> None:
    """Delete the temporary files and folders in `folder` whose processes have died.

    On this host a process can be asked for; what was written by another host has to be a day old.

    Args:
        stem: the beginning of the names of the files that they were to replace.
    """
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(f".{stem}") and _abandoned(entry):
                logger.debug("%s: deleted, its process has died", entry.path)
                shutil.rmtree(entry.path, True) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def sweep_once(folder: Path) -> None:
    """Sweep a folder before this process first writes into it."""
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def _unused_name(path: Path) -> Path:
    """A hidden name beside `path` that nobody can predict and that tells who writes: host and process."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


def _abandoned(entry: os.DirEntry) -> bool:
    """Whether this is a temporary file of ours whose process has died, or may be assumed to have."""
    named = TEMPORARY.fullmatch(entry.name)
    if not named:
        return False
    try:
        if not named["writer"].endswith(f".{platform.node()}"):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_AFTER
        os.kill(int(named["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's process, or the file is gone
        return False
    return False


def file_fingerprint(path: Path) -> str:
    """Hash of a file's content: 16 hexadecimal digits of its SHA-256."""
    return sha256(path)[:16]


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
