"""Main memory of a process that runs a detector."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
BLOCK_KEPT, FREE_KEPT = 2**30, 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Let the next step use what the last one freed, on Linux with glibc; elsewhere nothing.

    By default glibc maps every block above 32 MB anew and unmaps it when it is freed, so that the system fills the
    same feature maps with zeros at every step: a tenth of a training step on the CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # An older glibc refuses the first; the second alone would make things worse.
        if libc.mallopt(MMAP_THRESHOLD, BLOCK_KEPT):
            libc.mallopt(TRIM_THRESHOLD, FREE_KEPT)
