"""The progress of runs that other processes make: one bar over the training steps of all of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from cassl_lib.runs import Run
from cassl_lib.stages.registry import STAGES
from cassl_lib.stages.requests import Request
from cassl_lib.training.distributed import quiet

EVERY = 2.0  # seconds between two looks at the logs
TAIL = 4096  # bytes at the end of a log that hold its last whole line


class StepBar:
    """A bar with rate and remaining time over the steps of requests that are to be made.

    Labeling, and stages whose length is given in epochs, count as nothing: their steps are not known here.
    """

    def __init__(self, todo: Sequence[Request], jobs: int):
        self.total = sum(map(steps_of, todo))
        self.ended = 0
        title = f"{len(todo)} runs" + (f", {jobs} side by side" if jobs > 1 else "")
        disabled = True if not self.total else quiet(0)
        self.bar = tqdm(total=self.total, desc=title, unit="step", disable=disabled, mininterval=1)

    def show(self, running: Iterable[tuple[Request, Run | None]]) -> None:
        """Set the bar to the steps of finished runs and those that the logs of running ones report."""
        running = list(running)
        done = self.ended + sum(min(last_step(run), steps_of(request)) for request, run in running if run)
        self.bar.set_postfix_str(", ".join(request.title for request, _ in running), refresh=False)
        self.bar.update(max(done - self.bar.n, 0))

    def end(self, request: Request) -> None:
        """Count a run that has ended, finished or not."""
        self.ended += steps_of(request)

    @contextlib.contextmanager
    def above(self):
        """Print messages above the bar instead of into it."""
        self.bar.clear()
        yield
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def steps_of(request: Request) -> int:
    """Training steps of a request, 0 if it trains nothing or its length is given in epochs."""
    return getattr(request.config, request.stage).steps if STAGES[request.stage].trains else 0


def last_step(run: Run) -> int:
    """The last logged step of a run that may be in progress."""
    log = run.folder / "log.jsonl"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line break is still being written
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, KeyError, ValueError):
        return 0
