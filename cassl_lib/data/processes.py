"""Process pools on this machine, for work per image."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def cores() -> int:
    """Number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_pool(workers: int) -> contextlib.AbstractContextManager[ProcessPoolExecutor | None]:
    """A context manager: an executor with `workers` processes, or None if one is enough, which is the caller.

    Processes are spawned, so scripts need the `if __name__ == "__main__"` guard.
    """
    if workers <= 1:
        return contextlib.nullcontext()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_exit_with_parent)


def _exit_with_parent() -> None:
    """Exit when the parent dies; otherwise workers of a killed parent would block forever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
