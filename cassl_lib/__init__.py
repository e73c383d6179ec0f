"""CA-SSL: class-agnostic semi-supervised learning for detection and segmentation (Qi et al., ECCV 2022)."""

import logging
import sys

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
