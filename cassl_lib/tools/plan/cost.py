"""The counting of a plan: what stages cost, from numbers of images and what `cassl_lib.pace` measured; and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from cassl_lib.config import Config
from cassl_lib.runs import environment
from cassl_lib.tools.plan.throughput import Labels, Pace
from cassl_lib.training import engine

INDEX_BYTES = 60  # of an image in the index of a pool


@dataclass(frozen=True)
class Row:
    """What one stage costs."""

    stage: str
    images: int  # that are trained on or labeled, repetitions counted
    steps: int  # 0 for labeling
    seconds: float  # of all of it
    evaluation: float  # seconds of it
    kept: int  # bytes that stay
    passing: int = 0  # bytes on top of them while it runs
    labels: int = 0  # in the store
    labels_used: int = 0  # of them above the threshold

    @property
    def hours(self) -> float:
        return self.seconds / 3600


@dataclass(frozen=True)
class Estimate:
    """The four stages and the baseline, and every assumption in words."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    folder: str  # of the runs
    free: int  # bytes there

    @property
    def needed(self) -> int:
        """Bytes of disk: what all stages keep and the most that one has on top."""
        return sum(row.kept for row in self.rows) + max(row.passing for row in self.rows)

    def to_json(self) -> dict:
        """JSON data, with the environment that it was measured in."""
        rows = [asdict(row) | {"hours": row.hours} for row in self.rows]
        return asdict(self) | {"rows": rows, "needed": self.needed, "environment": environment()}


def forecast(
    config: Config, images: dict[str, int], paces: dict[str, Pace], labels: Labels, *, devices: int
) -> list[Row]:
    """The cost of labeler, labels, warmup, finetune and baseline.

    Args:
        images: numbers of labeled, pool (what is to be labeled), warmup (what has labels then), val.
        paces: of labeler, warmup, finetune, labels, evaluation, of one device.
    """
    evaluation = images["val"] * paces["evaluation"].seconds / devices
    over = {"labeler": images["labeled"], "warmup": images["warmup"], "finetune": images["labeled"]}
    steps = {name: engine.number_of_steps(getattr(config, name), number) for name, number in over.items()}
    steps["baseline"] = steps["warmup"] + steps["finetune"]
    rows = {}
    for name, number in steps.items():
        stage = "finetune" if name == "baseline" else name
        pace, seen = paces[stage], number * getattr(config, stage).batch_size
        seconds = pace.start + seen * pace.seconds / devices + evaluation
        # A checkpoint replaces the one before it only when it is whole; both go when the stage is finished.
        rows[name] = Row(name, seen, number, seconds, evaluation, pace.weights, 2 * pace.checkpoint)
    rows["labels"] = _labels_row(config, images["pool"], paces["labels"], labels, devices)
    return [rows[name] for name in ("labeler", "labels", "warmup", "finetune", "baseline")]


def _labels_row(config: Config, pool: int, pace: Pace, labels: Labels, devices: int) -> Row:
    """A device labels whole shards, so that the time is that of the one with the most images."""
    shards = math.ceil(pool / config.label.shard_size)
    most = min(pool, math.ceil(shards / devices) * config.label.shard_size)
    kept = round(pool * (labels.bytes + INDEX_BYTES))
    stored, used = round(pool * labels.stored), round(pool * labels.used)
    return Row("labels", pool, 0, pace.start + most * pace.seconds, 0.0, kept, labels=stored, labels_used=used)


def table(found: Estimate) -> str:
    """The estimate as text: a line for every stage, the total of CA-SSL, disk, labels, and what was assumed."""
    lines = [found.title, "", f"{'stage':14}{'images':>14}{'steps':>12}{'time':>14}{'evaluation':>12}{'disk':>10}"]
    for row in found.rows:
        steps = f"{row.steps:,}" if row.steps else ""
        lines.append(
            f"{row.stage:14}{row.images:14,}{steps:>12}{duration(row.seconds):>14}"
            f"{duration(row.evaluation) if row.evaluation else '':>12}{size(row.kept):>10}"
        )
    ours = [row for row in found.rows if row.stage != "baseline"]
    total = f"{duration(sum(row.seconds for row in ours)):>40}{'':12}{size(sum(row.kept for row in ours)):>10}"
    labels = next(row for row in found.rows if row.stage == "labels")
    lines += [f"{'CA-SSL':14}{total}", ""]
    lines.append(f"labels: {labels.labels:,} in the store, {labels.labels_used:,} above the threshold")
    lines.append(f"disk: {size(found.needed)} needed at most, {size(found.free)} free in {found.folder}")
    if found.needed > found.free:
        short = size(found.needed - found.free)
        lines.append(
            f"NOT ENOUGH DISK: make room for {short} more in {found.folder}, or set CASSL_RUNS to another disk"
        )
    return "\n".join([*lines, "", "Measured and assumed:", *(f"- {note}" for note in found.notes)])


def duration(seconds: float) -> str:
    """In the unit that shows two digits or more: 45 s, 2.4 min, 12 min, 3.4 h, 1,234 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= step:
            return f"{count / step:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
