"""Training states on disk: torch's own format with a checksum at its end, read without executing code.

Other tools read such a file with `torch.load`, which ignores what follows its own content.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from pathlib import Path
from typing import IO

import numpy as np
import torch

from cassl_lib.errors import CheckpointError
from cassl_lib.files import replacing
from cassl_lib.models.weights.load import ARRAYS

MARK = b"cassl sha256 "
SEAL = len(MARK) + 64  # bytes: the mark and the SHA-256 of all before it, in hexadecimal digits
BLOCK = 1 << 22  # bytes, read at once
OLD = [*ARRAYS, type(np.dtype("u4"))]  # in the random states of version 0.1.0

logger = logging.getLogger(__name__)


def write(path: Path, content: dict, *, keeping: Path | None = None) -> None:
    """Replace a file atomically by `content`: tensors and plain types, in dicts, lists and tuples.

    Args:
        keeping: what the file that is replaced is renamed to. A crash may leave it as the only one.

    Raises:
        DiskFull: the old file is kept.
    """
    with replacing(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)
        except RuntimeError as error:
            raise hashing.error or error from error  # torch does not tell what the system said
        file.write(MARK + hashing.digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
        if keeping and path.exists():
            os.replace(path, keeping)


def read(path: Path) -> dict:
    """What `write` has written, on the CPU. A file without a checksum, of an earlier version, is warned of.

    Raises:
        CheckpointError: the file is damaged, or would execute code; the message names it, without a remedy.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        _verify(file, path)
        file.seek(0)
        try:
            with torch.serialization.safe_globals(OLD):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds a {type(content).__name__}, not a training state")
    return content


def first_line(error: Exception) -> str:
    """What an error says in one line; torch's have many."""
    return next(iter(str(error).splitlines()), repr(error))


class _Hashing:
    """A file that is only written to, the hash of what is written, and the system's error if that failed."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _verify(file: IO[bytes], path: Path) -> None:
    """Raise CheckpointError if the content of an open file does not have the checksum at its end."""
    left = os.fstat(file.fileno()).st_size - SEAL
    file.seek(max(left, 0))
    seal = file.read()
    if not seal.startswith(MARK):
        logger.warning("%s has no checksum: an earlier version wrote it, or it was cut short", path)
        return
    file.seek(0)
    digest = hashlib.sha256()
    while left and (block := file.read(min(left, BLOCK))):
        digest.update(block)
        left -= len(block)
    if MARK + digest.hexdigest().encode() != seal:
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum at its end")
