"""Files of a folder that several processes share: locks, atomic writes, fingerprints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import sys
import threading
from pathlib import Path

WITHOUT_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool):
    """Hold a lock on a file; yields whether it is held. The system frees it when its holder dies.

    On a file system without locks everybody holds it.
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
    """Hold a folder against other processes; they say so and wait."""
    with locked(folder / ".lock", wait=False) as held:
        if held:
            yield
            return
    if say:
        print(f"another process works in {folder}; waiting for it", file=sys.stderr)
    with locked(folder / ".lock", wait=True):
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        OSError: such as a full disk; what was written of it is removed.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a file beside `path` to be written, which takes its place at the end; after an OSError it is removed."""
    writer = f"{platform.node()}.{os.getpid()}.{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def file_fingerprint(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]
