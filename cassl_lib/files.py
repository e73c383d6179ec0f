"""Files in folders that several processes share: locks, atomic writes, fingerprints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import platform
import threading
from pathlib import Path

WITHOUT_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # of file systems that do not support locks

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool):
    """Lock a file; yields whether this process holds the lock. The system releases it when the holder dies.

    On a file system without locks, every process is told that it holds the lock.

    Args:
        wait: block until the lock is free; otherwise yield False if another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield True


@contextlib.contextmanager
def alone(folder: Path, *, say: bool = True):
    """Lock a folder, after waiting for the process that holds it. Logs that it waits, unless `say` is False."""
    with locked(folder / ".lock", wait=False) as held:
        if held:
            yield
            return
    if say:
        logger.info("%s: locked by another process; waiting for it to finish", folder)
    with locked(folder / ".lock", wait=True):
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file such that readers see either the old or the new content, even after a crash.

    Raises:
        OSError: the file cannot be written, e.g. the disk is full; the partial file is deleted.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a temporary path beside `path`; it replaces `path` at the end, and is deleted after an OSError."""
    writer = f"{platform.node()}.{os.getpid()}.{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def file_fingerprint(path: Path) -> str:
    """Hash of a file's content: 16 hexadecimal digits of its SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]
