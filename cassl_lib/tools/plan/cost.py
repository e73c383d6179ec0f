"""The arithmetic of a plan: what each stage costs, from numbers of images and measured rates; and the plan as text."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, replace

from cassl_lib.config import TRAINING_SECTIONS, Config, TrainConfig
from cassl_lib.paper import IMAGES
from cassl_lib.runs import environment
from cassl_lib.stages.registry import STAGES
from cassl_lib.stages.requests import longer
from cassl_lib.tools.plan.throughput import LabelCounts, Rate
from cassl_lib.training.optimizer import number_of_steps

INDEX_BYTES = 60  # per image in the index of a pool
BASELINE = "baseline_"  # what the names of the baselines' rows begin with


@dataclass(frozen=True)
class Row:
    """What one stage, or the baseline of one length, costs."""

    stage: str  # a name of the registry, or of the baseline as `requests.chain` names it, such as baseline_2x
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
        return STAGES[self.stage].title if self.stage in STAGES else self.stage.replace("_", " ")

    @property
    def is_baseline(self) -> bool:
        return self.stage.startswith(BASELINE)


@dataclass(frozen=True)
class Schedule:
    """A length of the warm-up that may be chosen, and its cost."""

    name: str
    steps: int
    seconds: float
    option: str  # that chooses it


@dataclass(frozen=True)
class Plan:
    """The cost of every stage and every baseline, and every assumption in words."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    folder: str  # of the runs
    free: int  # bytes there
    schedules: tuple[Schedule, ...] = ()  # of the warm-up, where the paper leaves its length open

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
            f"<p>{'<br>'.join(map(html.escape, [*disk(self), *alternatives(self)]))}</p>"
            f"<details><summary>measured and assumed</summary><ul>{notes}</ul></details>"
        )


def rows_of(
    config: Config, images: dict[str, int], rates: dict[str, Rate], labels: LabelCounts, *, devices: int
) -> list[Row]:
    """The cost of each stage and of the baselines, in the order of `row_names`.

    Args:
        images: numbers of images of labeled, pool (to be labeled), warmup (with labels), val and, where stages are
            evaluated during training, heldout.
        rates: of pseudo_labeler, pseudo_labels, warmup, finetune and evaluation, on one device.
    """
    over = {"pseudo_labeler": images["labeled"], "warmup": images["warmup"], "finetune": images["labeled"]}
    rows = {"pseudo_labels": _labels_row(config, images["pool"], rates["pseudo_labels"], labels, devices)}
    sections = {name: getattr(config, name) for name in TRAINING_SECTIONS}
    for length in config.baseline_lengths:
        sections[f"{BASELINE}{length:g}x"] = longer(config, "finetune", length).finetune
    for name, section in sections.items():
        stage = name if name in STAGES else "finetune"
        steps = number_of_steps(section, over[stage])
        rows[name] = _training_row(name, section, steps, images, rates[stage], rates["evaluation"], devices)
    return [rows[name] for name in row_names(config)]


def row_names(config: Config) -> tuple[str, ...]:
    """The stages in their order, then the baselines of all lengths."""
    return (*STAGES, *(f"{BASELINE}{length:g}x" for length in config.baseline_lengths))


def _training_row(
    name: str, section: TrainConfig, steps: int, images: dict[str, int], rate: Rate, detecting: Rate, devices: int
) -> Row:
    """A stage that trains; it is evaluated at its end and, on the held-out images, during training."""
    seen = steps * section.batch_size
    during = math.ceil(steps / section.evaluate_every) if section.evaluate_every else 0
    evaluation = (images["val"] + during * images.get("heldout", 0)) * detecting.seconds / devices
    seconds = rate.start + seen * rate.seconds / devices + evaluation
    # The newest checkpoint, the one before it, and the one being written; all are deleted when the stage is finished.
    return Row(name, seen, steps, seconds, evaluation, rate.weights, 3 * rate.checkpoint)


def schedules_of(
    config: Config, images: dict[str, int], rates: dict[str, Rate], *, devices: int
) -> tuple[Schedule, ...]:
    """The two lengths that a warm-up above tiny may have; none for pools up to tiny's size.

    The paper trains for 60 epochs of tiny, and does not state whether larger pools are trained for as many epochs or
    for as many steps.
    """
    if images["warmup"] <= IMAGES["tiny"]:
        return ()
    warmup, epochs = replace(config.warmup, steps=0), f"{config.warmup.epochs:g} epochs"
    of_pool, of_tiny = (number_of_steps(warmup, number) for number in (images["warmup"], IMAGES["tiny"]))
    named = {
        f"{epochs} of this pool": (of_pool, f"--stage warmup --epochs {warmup.epochs:g}"),
        f"as many steps as {epochs} of tiny": (of_tiny, f"--stage warmup --steps {of_tiny}"),
    }
    return tuple(
        Schedule(name, steps, _warmup_seconds(config, steps, images, rates, devices), option)
        for name, (steps, option) in named.items()
    )


def _warmup_seconds(config: Config, steps: int, images, rates: dict[str, Rate], devices: int) -> float:
    row = _training_row("warmup", config.warmup, steps, images, rates["warmup"], rates["evaluation"], devices)
    return row.seconds


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
    """The cells of the plan's table: one line per stage and baseline, and CA-SSL as the sum of its stages."""
    cells = []
    for row in plan.rows:
        steps, evaluation = f"{row.steps:,}" if row.steps else "", duration(row.evaluation) if row.evaluation else ""
        cells.append([row.title, f"{row.images:,}", steps, duration(row.seconds), evaluation, size(row.kept)])
    ours = [row for row in plan.rows if not row.is_baseline]
    total, kept = sum(row.seconds for row in ours), sum(row.kept for row in ours)
    return [*cells, ["CA-SSL", "", "", duration(total), "", size(kept)]]


def alternatives(plan: Plan) -> list[str]:
    """The lengths that the warm-up may have, in words; none where the paper states it."""
    if not plan.schedules:
        return []
    words = [
        f"- {each.name}: {each.steps:,} steps, {each.seconds / 3600:,.1f} h ({each.option})" for each in plan.schedules
    ]
    return ["The paper does not state how long it warms up on more images than tiny's:", *words]


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
    """The plan as text: stages, baselines, the total of CA-SSL, labels, disk, lengths to choose, assumptions."""
    rows = [list(HEAD), *lines(plan)]
    body = [
        f"{name:16}{images:>14}{steps:>12}{time:>14}{ev:>12}{kept:>10}" for name, images, steps, time, ev, kept in rows
    ]
    notes = ["", "Measured and assumed:", *(f"- {note}" for note in plan.notes)]
    choice = ["", *alternatives(plan)] if plan.schedules else []
    return "\n".join([plan.title, "", *body, "", *disk(plan), *choice, *notes])


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
