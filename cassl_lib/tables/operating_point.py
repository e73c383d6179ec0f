"""The operating point of a small profile: measured on labeler, baseline and (G,A) alone, on scenes of their own.

The claims of the paper can only show where things are as there: a labeler far from perfect (41.9 AP without classes), a
baseline that is as good with classes as without, and a finetuning long enough to learn the classes. This is looked at
before any warm-up on pseudo labels is compared, on the tuning scenes, which no table reports on. The entities' labeler
is looked at twice: with entities that may share pixels, and with one entity a pixel. Three baselines tell how much is
gained by training for longer alone: as long as finetuning, as long as warm-up and finetuning, and longer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.errors import DataError
from cassl_lib.evaluation.detector import evaluate_model
from cassl_lib.resolve import to_json
from cassl_lib.runs import Run, environment
from cassl_lib.stages import all_stages as stages
from cassl_lib.tables import runner
from cassl_lib.tables.definitions import Want, finetuned, labeler, lengths, wants_of

ENTITIES = "labeler, entities"
ALONE = f"{ENTITIES}, one a pixel"
UNITS = (3, 6)  # of finetuning, 3 is the profile's own; the baseline is trained for as long as labeler and finetuning


def asked(config: Config, units: Sequence[int] = UNITS) -> dict[str, Want]:
    """The runs that are looked at, by name."""
    plain = replace(config, annotation="objects", class_specific=False, target="instances")
    teacher = labeler(plain)
    found = {"labeler": teacher, ENTITIES: labeler(replace(plain, annotation="entities"))}
    half = replace(plain.finetune, steps=plain.finetune.steps // 2)  # a baseline is trained for warm-up and finetuning
    found[f"from nothing, {2 * half.steps} steps"] = finetuned(replace(plain, warmup=half, finetune=half))
    for unit in units:
        longer = lengths(plain, "finetune", unit)
        found[f"(G,A), {longer.finetune.steps} steps"] = finetuned(longer, teacher)
        total = longer.warmup.steps + longer.finetune.steps
        found[f"from nothing, {total} steps"] = finetuned(longer)
    return found


def look(config: Config, *, jobs: int = 1, units: Sequence[int] = UNITS) -> dict:
    """Make the runs and evaluate them on the tuning scenes.

    Returns:
        `rows`: by name `specific` and `agnostic` box AP (None without classes), AP75, `ratio`, `steps` and `run`;
        `config`, `environment`.

    Raises:
        DataError: the profile has no scenes, or a run could not be made.
    """
    if config.val != "scenes":
        raise DataError("the operating point is looked at on tuning scenes; use the profile smoke, demo or gpu")
    names = asked(config, units)
    needed = wants_of(names.values())
    if failures := runner.make(needed, jobs=jobs):
        raise DataError(f"{failures[0].want.verb} could not be made: {failures[0].reason}")
    found = runner.find(needed)
    rows = {}
    for name, want in names.items():
        rows[name] = _row(want.config, found[want])
        if name == ENTITIES:
            rows[ALONE] = _row(want.config, found[want], one_a_pixel=True)
    return {"profile": config.profile, "rows": rows, "config": to_json(config), "environment": environment()}


def _row(config: Config, run: Run, *, one_a_pixel: bool = False) -> dict:
    model = stages.load_model(run)
    if one_a_pixel:
        model.config = replace(model.config, one_entity_per_pixel=True)
    classes = len(run.result["classes"]) > 1
    how = {"augment": config.augment, "training": config.finetune, "classes": classes}
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate_model(model, datasets.tuning_set(config), folder=Path(folder), **how)
    agnostic, specific = metrics["box_agnostic"], metrics.get("box")
    row = {"agnostic": agnostic["AP"], "agnostic_75": agnostic["AP75"], "specific": specific and specific["AP"]}
    ratio = row["specific"] / row["agnostic"] if specific and row["agnostic"] else None
    return row | {"ratio": ratio, "steps": run.result["steps"], "run": run.id}


def cells(row: dict) -> list[str]:
    """Steps, specific and agnostic AP, agnostic AP75 (times 100) and ratio of a row; blank without classes."""
    specific = "" if row["specific"] is None else f"{100 * row['specific']:.1f}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [f"{row['steps']:,}", specific, f"{100 * row['agnostic']:.1f}", f"{100 * row['agnostic_75']:.1f}", ratio]


def text(found: dict) -> str:
    """The rows as aligned text, AP times 100."""
    lines = [f"{'on the tuning scenes':32}{'steps':>7}{'specific':>10}{'agnostic':>10}{'AP75':>7}{'ratio':>7}"]
    for name, row in found["rows"].items():
        lines.append("{:32}{:>7}{:>10}{:>10}{:>7}{:>7}".format(name, *cells(row)))
    return "\n".join(lines)
