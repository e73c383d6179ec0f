"""Main memory of a process that runs a detector."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
BLOCK_KEPT, FREE_KEPT = 2**30, 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Make the process reuse freed memory from step to step (Linux with glibc; no effect elsewhere).

    By default glibc maps every block above 32 MB from the system and unmaps it when it is freed. The system then
    zero-fills the same feature maps at every step, which takes a tenth of a training step on the CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # An older glibc rejects the first call; the second alone would make things worse.
        if libc.mallopt(MMAP_THRESHOLD, BLOCK_KEPT):
            libc.mallopt(TRIM_THRESHOLD, FREE_KEPT)
