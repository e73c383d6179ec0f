"""The operating point of a small profile: every stage on tuning scenes, and the length of training that follows.

The paper's effects appear only in a comparable regime: an imperfect pseudo labeler (41.9 class-agnostic AP), a baseline
whose class-aware and class-agnostic AP are close, and finetuning long enough to converge. These conditions are checked
on tuning scenes, which no stage trains on and no table reports on. How long each row of Table 2 is finetuned is chosen
there too, once. The entity labeler is evaluated twice: with overlapping and with non-overlapping masks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.errors import DataError
from cassl_lib.evaluation.detector import evaluate_detector
from cassl_lib.resolve import to_json
from cassl_lib.runs import Run, environment
from cassl_lib.stages import choice, graph
from cassl_lib.stages.models import load_detector
from cassl_lib.stages.requests import Request, baseline, finetune, length, longer, pseudo_labeler, with_inputs
from cassl_lib.tables import runner
from cassl_lib.tables.definitions import warmed_up

ENTITIES = "pseudo labeler, entities"
NON_OVERLAPPING = f"{ENTITIES}, non-overlapping masks"
LENGTHS = (1, 2)  # of finetuning, in lengths of the profile's own
COLUMNS = ("steps", "class-specific AP", "class-agnostic AP", "class-agnostic AP75", "specific / agnostic")


@dataclass(frozen=True)
class Point:
    """A run that is measured.

    Attributes:
        row: the row of Table 2, if several lengths compete for it; "baseline" for the first one.
        length: of finetuning, in lengths of the profile's own.
    """

    request: Request
    row: str | None = None
    length: float | None = None


def points(config: Config, lengths: Sequence[float] = LENGTHS) -> dict[str, Point]:
    """The runs that are measured, by name."""
    plain = replace(config, annotation="objects", class_specific=False, target="instances")
    labeler, warmup = pseudo_labeler(plain), warmed_up(plain)
    measured = {
        "pseudo labeler": Point(labeler),
        ENTITIES: Point(pseudo_labeler(replace(plain, annotation="entities"))),
        "warmed-up model": Point(warmup),
    }
    for multiple in config.baseline_lengths:
        _add(measured, Point(baseline(plain, multiple), "baseline", multiple))
    classes = warmed_up(replace(plain, class_specific=True))
    for row, start in {"Objects (G,A)": labeler, "Objects (P,A)": warmup, "Objects (P,S)": classes}.items():
        for multiple in lengths:
            _add(measured, Point(finetune(longer(plain, "finetune", multiple), start), row, multiple))
    return measured


def _add(measured: dict[str, Point], point: Point) -> None:
    measured[f"{point.row}, {length(point.request.config.finetune)}"] = point


def measure(config: Config, *, jobs: int = 1, lengths: Sequence[float] = LENGTHS) -> dict:
    """Make the runs and evaluate them on the tuning scenes.

    Returns:
        `rows`: by name `specific` and `agnostic` box AP (None without classes), `agnostic_75`, `ratio`, `steps`, `run`,
        and `row` and `length`, see `Point`; `chosen`: see `chosen_lengths`; `profile`, `config`, `environment`.

    Raises:
        DataError: there are no tuning scenes, or a run could not be made.
    """
    if config.heldout is None:
        raise DataError(
            f"profile {config.profile} has no tuning scenes to measure the operating point on; use smoke, demo or gpu"
        )
    measured = points(config, lengths)
    needed = with_inputs(point.request for point in measured.values())
    if failures := runner.make(needed, jobs=jobs):
        raise DataError(f"{failures[0].request.title} could not be made: {failures[0].reason}")
    runs = graph.find_all(needed)
    rows = {}
    for name, point in measured.items():
        run = runs[point.request]
        rows[name] = _row(choice.heldout_metrics(run, point.request.config), run, point)
        if name == ENTITIES:
            rows[NON_OVERLAPPING] = _row(_without_overlap(point.request.config, run), run, point)
    whole = {"profile": config.profile, "rows": rows, "chosen": chosen_lengths(rows)}
    return whole | {"config": to_json(config), "environment": environment()}


def _without_overlap(config: Config, run: Run) -> dict:
    """The metrics on the tuning scenes if each pixel belongs to one entity; boxes are those of the masks."""
    with tempfile.TemporaryDirectory() as folder:
        return evaluate_detector(
            load_detector(run, one_entity_per_pixel=True),
            datasets.heldout_set(config),
            augment=config.augment,
            training=config.finetune,
            classes=False,
            folder=Path(folder),
            side=datasets.area_side(config),
        )


def _row(metrics: Mapping, run: Run, point: Point) -> dict:
    agnostic, specific = metrics["box_agnostic"], metrics.get("box")
    row = {"agnostic": agnostic["AP"], "agnostic_75": agnostic["AP75"], "specific": specific and specific["AP"]}
    ratio = row["specific"] / row["agnostic"] if specific and row["agnostic"] else None
    row |= {"ratio": ratio, "steps": run.result["steps"], "run": run.id}
    return row | {"row": point.row, "length": point.length}


def chosen_lengths(rows: Mapping[str, Mapping]) -> dict[str, dict]:
    """By row of Table 2, `length` and `steps` of the training with the best class-specific AP, the shorter if equal."""
    competing: dict[str, list[Mapping]] = {}
    for row in rows.values():
        if row["row"] is not None:
            competing.setdefault(row["row"], []).append(row)
    best = {name: max(those, key=lambda row: (row["specific"], -row["steps"])) for name, those in competing.items()}
    return {name: {"length": row["length"], "steps": row["steps"]} for name, row in best.items()}


def cells(row: Mapping) -> list[str]:
    """What `COLUMNS` hold of a row, AP times 100; blank without classes."""
    specific = "" if row["specific"] is None else f"{100 * row['specific']:.1f}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [f"{row['steps']:,}", specific, f"{100 * row['agnostic']:.1f}", f"{100 * row['agnostic_75']:.1f}", ratio]


def choice_text(chosen: Mapping[str, Mapping]) -> str:
    """The chosen lengths in one sentence."""
    parts = [f"{row} {each['length']:g}x ({each['steps']:,} steps)" for row, each in chosen.items()]
    return f"Length of finetuning with the best class-specific AP on the tuning scenes: {'; '.join(parts)}."


def text(measured: Mapping) -> str:
    """The rows as aligned text, AP times 100, and the choice that follows."""
    lines = [f"{'on the tuning scenes':50}{'steps':>7}{'specific':>10}{'agnostic':>10}{'AP75':>7}{'ratio':>7}"]
    for name, row in measured["rows"].items():
        lines.append("{:50}{:>7}{:>10}{:>10}{:>7}{:>7}".format(name, *cells(row)).rstrip())
    return "\n".join([*lines, choice_text(measured["chosen"])])
