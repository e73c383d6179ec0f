"""The progress of a labeling that any number of processes share: images per second, time left, room on the disk."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path

from tqdm import tqdm

from cassl_lib.labels.shards import finished_shards
from cassl_lib.training import distributed

SECONDS_BETWEEN_LINES = 60.0  # of a log without a progress bar

logger = logging.getLogger(__name__)


class LabelingProgress:
    """A progress bar in a terminal or notebook; elsewhere, such as in the log of a batch job, a line after each shard.

    Args:
        store: folder of the store, in which other processes finish shards too.
        images: number of images in the pool.
        labeler: identity of the pseudo labeler.
    """

    def __init__(self, store: Path, images: int, labeler: str):
        self.store, self.images, self.labeler = store, images, labeler
        self.done_before, self.started, self.own = self._finished(), time.monotonic(), 0
        self.warned, self.last_line = False, self.started
        hidden = distributed.quiet(distributed.rank_and_world()[0])
        self.bar = tqdm(
            total=images, initial=self.done_before, desc="labeling", unit="image", disable=hidden, mininterval=1
        )

    def _finished(self) -> int:
        """Images in finished shards, of all processes."""
        entries = finished_shards(self.store, self.labeler).values()
        return sum(entry["rows"] + len(entry["unreadable"]) for entry in entries)

    def image_done(self) -> None:
        """Count an image of this process."""
        self.own += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._log_rate("labeling", self.done_before + self.own)

    def shard_done(self, entry: dict) -> None:
        """Count the shards that others have finished meanwhile, and check the space left on the disk.

        Args:
            entry: of this process's finished shard.
        """
        done = self._finished()
        left, self.bar.n = self.images - done, max(done, self.bar.n)
        self.bar.refresh()
        if self.bar.disable:
            self._log_rate(entry["file"], done)
        needed, free = left * entry["bytes"] / max(entry["rows"], 1), shutil.disk_usage(self.store).free
        if needed > free and not self.warned:
            self.warned = True
            self._tell(
                f"{self.store} needs {needed / 1e9:.1f} GB more, but only {free / 1e9:.1f} GB are free on its disk. "
                "Labeling stops when the disk is full, and resumes once there is room.",
                logging.WARNING,
            )

    def waiting(self, shards: int) -> None:
        """Tell that all unfinished shards are claimed by other processes."""
        self._tell(f"{shards} shards are being labeled by other processes; waiting for them", logging.INFO)

    def _log_rate(self, what: str, done: int) -> None:
        """Log how many of all images are labeled, at which rate, and the time left."""
        self.last_line = time.monotonic()
        rate = (done - self.done_before) / (self.last_line - self.started)
        left = tqdm.format_interval((self.images - done) / rate) if rate else "?"
        logger.info("%s: %s of %s images, %.1f images/s, %s left", what, f"{done:,}", f"{self.images:,}", rate, left)

    def _tell(self, line: str, level: int) -> None:
        """Log a line, or write it above the progress bar if one is shown."""
        if self.bar.disable:
            logger.log(level, line)
        else:
            self.bar.write(f"warning: {line}" if level >= logging.WARNING else line, sys.stderr)

    def __enter__(self) -> LabelingProgress:
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.bar.n = self.images
            self.bar.refresh()
        self.bar.close()
