"""A time at which work in progress pauses, so that long work can be done in slices of minutes.

It holds for this process and those that it starts, as a Unix time in the environment variable `CASSL_DEADLINE`. At the
deadline training saves a checkpoint and raises `Stopped`, and no evaluation and no shard of labels is begun. Those in
progress have `GRACE` more seconds; after that they raise `Stopped` too, and start from scratch when they are resumed.
"""

from __future__ import annotations

import contextlib
import math
import os
import time

from cassl_lib.errors import Stopped

VARIABLE = "CASSL_DEADLINE"
GRACE = 8.0  # seconds
STATUS = 3  # exit status of a process that the deadline stopped


@contextlib.contextmanager
def within(minutes: float | None):
    """Set the deadline for the body, unless an earlier one is in force; None sets none."""
    before = os.environ.get(VARIABLE)
    if minutes is not None:
        os.environ[VARIABLE] = repr(min(_deadline(), time.time() + 60 * minutes))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def in_force() -> bool:
    return VARIABLE in os.environ


def seconds_left() -> float:
    """Seconds until the deadline, negative after it; infinite without one."""
    return _deadline() - time.time()


def passed() -> bool:
    return seconds_left() <= 0


def check(what: str, *, begun: bool = False) -> None:
    """Raise Stopped if the deadline has passed; for work that has `begun`, if it passed `GRACE` seconds ago."""
    if seconds_left() <= (-GRACE if begun else 0):
        raise Stopped(f"{what}: stopped at the deadline; rerun the same command to resume")


def _deadline() -> float:
    return float(os.environ.get(VARIABLE, math.inf))
