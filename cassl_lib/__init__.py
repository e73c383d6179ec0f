"""CA-SSL: class-agnostic semi-supervised learning for detection and segmentation (Qi et al., ECCV 2022)."""

import logging
import os
import sys

# OpenMP threads wait for each other in a busy loop, by default for a whole time slice and longer. Two of them on one
# core, as soon as anything else runs, then make a step 30 to 100 times slower. 1,000 turns cost 3 % on a quiet machine.
# libgomp reads this when torch loads it, so before that; processes that are started here inherit it.
if "OMP_WAIT_POLICY" not in os.environ:  # the user's own choice
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"


class _Stderr(logging.Handler):
    """Plain lines to whatever sys.stderr is when they are written."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Print the library's messages to stderr as plain lines; shell and notebooks call it, scripts may."""
    logger = logging.getLogger(__name__)
    logger.handlers = [_Stderr()]
    logger.setLevel(level)
