"""CA-SSL: class-agnostic semi-supervised learning for detection and segmentation (Qi et al., ECCV 2022)."""

import logging
import sys

__version__ = "0.1.0"


def log_to_stderr(level: int = logging.INFO) -> None:
    """Print the library's messages to stderr as plain lines; shell and notebooks call it, scripts may."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(__name__)
    logger.handlers = [handler]
    logger.setLevel(level)
