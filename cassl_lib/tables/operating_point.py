"""The operating point of a small profile, measured on pseudo labeler, baseline and Objects (G,A) alone.

The paper's effects appear only in a comparable regime: an imperfect pseudo labeler (41.9 class-agnostic AP), a baseline
whose class-aware and class-agnostic AP are close, and finetuning long enough to converge. These conditions are checked
on tuning scenes, which no table reports on, before any warm-up on pseudo labels is compared.

The entity labeler is evaluated twice: with overlapping and with non-overlapping masks. Three baselines show how much
longer training alone gains: as long as finetuning, as warm-up and finetuning, and longer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.errors import DataError
from cassl_lib.evaluation.detector import evaluate_detector
from cassl_lib.resolve import to_json
from cassl_lib.runs import Run, environment
from cassl_lib.stages import graph
from cassl_lib.stages.models import load_detector
from cassl_lib.stages.requests import Request, pseudo_labeler, with_inputs
from cassl_lib.tables import runner
from cassl_lib.tables.definitions import finetuned, lengths

ENTITIES = "pseudo labeler, entities"
NON_OVERLAPPING = f"{ENTITIES}, non-overlapping masks"
UNITS = (3, 6)  # lengths of finetuning; 3 is the profile's own, see `definitions.UNITS`


def requests_by_name(config: Config, units: Sequence[int] = UNITS) -> dict[str, Request]:
    """The runs that are measured."""
    plain = replace(config, annotation="objects", class_specific=False, target="instances")
    labeler = pseudo_labeler(plain)
    requests = {"pseudo labeler": labeler, ENTITIES: pseudo_labeler(replace(plain, annotation="entities"))}
    # A baseline is trained for warm-up and finetuning: halves of both make one as long as finetuning.
    half = replace(plain.finetune, steps=plain.finetune.steps // 2)
    requests[f"from scratch, {2 * half.steps} steps"] = finetuned(replace(plain, warmup=half, finetune=half))
    for unit in units:
        longer = lengths(plain, "finetune", unit)
        requests[f"(G,A), {longer.finetune.steps} steps"] = finetuned(longer, labeler)
        requests[f"from scratch, {longer.warmup.steps + longer.finetune.steps} steps"] = finetuned(longer)
    return requests


def measure(config: Config, *, jobs: int = 1, units: Sequence[int] = UNITS) -> dict:
    """Make the runs and evaluate them on the tuning scenes.

    Returns:
        `rows`: by name `specific` and `agnostic` box AP (None without classes), AP75, `ratio`, `steps` and `run`;
        `config`, `environment`.

    Raises:
        DataError: the profile has no scenes, or a run could not be made.
    """
    if config.val != "scenes":
        raise DataError(
            f"profile {config.profile} has no tuning scenes to measure the operating point on; use smoke, demo or gpu"
        )
    requests = requests_by_name(config, units)
    needed = with_inputs(requests.values())
    if failures := runner.make(needed, jobs=jobs):
        raise DataError(f"{failures[0].request.title} could not be made: {failures[0].reason}")
    found = graph.find_all(needed)
    rows = {}
    for name, request in requests.items():
        rows[name] = _row(request.config, found[request])
        if name == ENTITIES:
            rows[NON_OVERLAPPING] = _row(request.config, found[request], one_entity_per_pixel=True)
    return {"profile": config.profile, "rows": rows, "config": to_json(config), "environment": environment()}


def _row(config: Config, run: Run, **inference) -> dict:
    classes = len(run.result["classes"]) > 1
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate_detector(
            load_detector(run, **inference),
            datasets.tuning_set(config),
            augment=config.augment,
            training=config.finetune,
            classes=classes,
            folder=Path(folder),
        )
    agnostic, specific = metrics["box_agnostic"], metrics.get("box")
    row = {"agnostic": agnostic["AP"], "agnostic_75": agnostic["AP75"], "specific": specific and specific["AP"]}
    ratio = row["specific"] / row["agnostic"] if specific and row["agnostic"] else None
    return row | {"ratio": ratio, "steps": run.result["steps"], "run": run.id}


def cells(row: dict) -> list[str]:
    """Steps, specific and agnostic AP, agnostic AP75 (times 100) and ratio of a row; blank without classes."""
    specific = "" if row["specific"] is None else f"{100 * row['specific']:.1f}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [f"{row['steps']:,}", specific, f"{100 * row['agnostic']:.1f}", f"{100 * row['agnostic_75']:.1f}", ratio]


def text(measured: dict) -> str:
    """The rows as aligned text, AP times 100."""
    lines = [f"{'on the tuning scenes':46}{'steps':>7}{'specific':>10}{'agnostic':>10}{'AP75':>7}{'ratio':>7}"]
    for name, row in measured["rows"].items():
        lines.append("{:46}{:>7}{:>10}{:>10}{:>7}{:>7}".format(name, *cells(row)))
    return "\n".join(lines)
