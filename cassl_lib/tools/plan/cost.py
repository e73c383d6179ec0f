"""The arithmetic of a plan: what each stage costs, from numbers of images and measured rates; and the plan as text."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass

from cassl_lib.config import TRAINING_SECTIONS, Config
from cassl_lib.runs import environment
from cassl_lib.stages.registry import STAGES
from cassl_lib.tools.plan.throughput import LabelCounts, Rate
from cassl_lib.training.optimizer import number_of_steps

INDEX_BYTES = 60  # per image in the index of a pool
ROWS = (*STAGES, "baseline")  # of a plan, in this order


@dataclass(frozen=True)
class Row:
    """What one stage, or the baseline, costs."""

    stage: str  # a name of the registry, or "baseline"
    images: int  # trained on or labeled, repetitions counted
    steps: int  # 0 for the pseudo labels
    seconds: float
    evaluation: float  # seconds of it
    kept: int  # bytes that stay on disk
    temporary: int = 0  # bytes on top of them while it runs
    labels: int = 0  # in the store
    labels_used: int = 0  # of them above the threshold

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def title(self) -> str:
        return STAGES[self.stage].title if self.stage in STAGES else self.stage


@dataclass(frozen=True)
class Plan:
    """The cost of every stage and the baseline, and every assumption in words."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    folder: str  # of the runs
    free: int  # bytes there

    @property
    def needed(self) -> int:
        """Bytes of disk: what all stages keep, and the most that one needs on top."""
        return sum(row.kept for row in self.rows) + max(row.temporary for row in self.rows)

    def to_json(self) -> dict:
        """JSON data, with the environment that it was measured in."""
        rows = [asdict(row) | {"hours": row.hours} for row in self.rows]
        return asdict(self) | {"rows": rows, "needed": self.needed, "environment": environment()}

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEAD)
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for name, *cells in lines(self)
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<p>{html.escape(self.title)}</p><table><tr>{head}</tr>{body}</table>"
            f"<p>{'<br>'.join(map(html.escape, disk(self)))}</p>"
            f"<details><summary>measured and assumed</summary><ul>{notes}</ul></details>"
        )


def rows_of(
    config: Config, images: dict[str, int], rates: dict[str, Rate], labels: LabelCounts, *, devices: int
) -> list[Row]:
    """The cost of each stage and of the baselines, in the order of `ROWS`.

    Args:
        images: numbers of images of labeled, pool (to be labeled), warmup (with labels), val.
        rates: of pseudo_labeler, pseudo_labels, warmup, finetune and evaluation, on one device.
    """
    evaluation = images["val"] * rates["evaluation"].seconds / devices
    over = {"pseudo_labeler": images["labeled"], "warmup": images["warmup"], "finetune": images["labeled"]}
    steps = {name: number_of_steps(getattr(config, name), over[name]) for name in TRAINING_SECTIONS}
    steps["baseline"] = round(sum(config.baseline_lengths) * steps["finetune"])  # all lengths together
    rows = {"pseudo_labels": _labels_row(config, images["pool"], rates["pseudo_labels"], labels, devices)}
    for name, number in steps.items():
        section = "finetune" if name == "baseline" else name
        rate, seen = rates[section], number * getattr(config, section).batch_size
        seconds = rate.start + seen * rate.seconds / devices + evaluation
        # A checkpoint replaces the previous one only when it is whole; both are deleted when the stage is finished.
        rows[name] = Row(name, seen, number, seconds, evaluation, rate.weights, 2 * rate.checkpoint)
    return [rows[name] for name in ROWS]


def _labels_row(config: Config, pool: int, rate: Rate, labels: LabelCounts, devices: int) -> Row:
    """A device labels whole shards, so the time is that of the device with the most images."""
    size = config.pseudo_labels.shard_size
    most = min(pool, math.ceil(math.ceil(pool / size) / devices) * size)
    return Row(
        "pseudo_labels",
        images=pool,
        steps=0,
        seconds=rate.start + most * rate.seconds,
        evaluation=0.0,
        kept=round(pool * (labels.bytes + INDEX_BYTES)),
        labels=round(pool * labels.stored),
        labels_used=round(pool * labels.used),
    )


HEAD = ("stage", "images", "steps", "time", "evaluation", "disk")


def lines(plan: Plan) -> list[list[str]]:
    """The cells of the plan's table: one line per stage, and CA-SSL as the sum of all but the baseline."""
    cells = []
    for row in plan.rows:
        steps, evaluation = f"{row.steps:,}" if row.steps else "", duration(row.evaluation) if row.evaluation else ""
        cells.append([row.title, f"{row.images:,}", steps, duration(row.seconds), evaluation, size(row.kept)])
    ours = [row for row in plan.rows if row.stage != "baseline"]
    total, kept = sum(row.seconds for row in ours), sum(row.kept for row in ours)
    return [*cells, ["CA-SSL", "", "", duration(total), "", size(kept)]]


def disk(plan: Plan) -> list[str]:
    """Labels and disk space in words, with a warning if it does not suffice."""
    labels = next(row for row in plan.rows if row.stage == "pseudo_labels")
    words = [
        f"labels: {labels.labels:,} in the store, {labels.labels_used:,} above the threshold",
        f"disk: {size(plan.needed)} needed at most, {size(plan.free)} free in {plan.folder}",
    ]
    if plan.needed > plan.free:
        short = size(plan.needed - plan.free)
        words.append(f"NOT ENOUGH DISK: free {short} more in {plan.folder}, or set CASSL_RUNS to another disk")
    return words


def table(plan: Plan) -> str:
    """The plan as text: one line per stage, the total of CA-SSL, disk, labels, and what was assumed."""
    rows = [list(HEAD), *lines(plan)]
    body = [
        f"{name:16}{images:>14}{steps:>12}{time:>14}{ev:>12}{kept:>10}" for name, images, steps, time, ev, kept in rows
    ]
    notes = ["", "Measured and assumed:", *(f"- {note}" for note in plan.notes)]
    return "\n".join([plan.title, "", *body, "", *disk(plan), *notes])


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
