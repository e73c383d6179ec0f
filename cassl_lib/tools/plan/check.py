"""Whether a plan is right: the chain is made, and the time of each stage put beside what was said before."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run, environment
from cassl_lib.stages import all_stages as stages
from cassl_lib.tools.plan import cost, estimate

STAGES: dict[str, Callable[[Config], Run]] = {
    "labeler": stages.train_labeler,
    "labels": stages.label,
    "warmup": stages.warm_up,
    "finetune": stages.finetune,
    "baseline": functools.partial(stages.finetune, start="scratch"),
}


@dataclass(frozen=True)
class Comparison:
    """A stage's seconds, or another quantity of it, as planned and as they were."""

    name: str
    planned: float
    real: float

    @property
    def off(self) -> float | None:
        """The plan's error as a share of the real value; None of nothing."""
        return self.planned / self.real - 1 if self.real else None


def check(config: Config) -> list[Comparison]:
    """Plan, make the chain and the baseline in this process, and compare.

    The labeling is planned again once there is a labeler: what was said without one are upper bounds.

    Raises:
        ConfigError: a stage has a finished run, whose time cannot be taken any more.
    """
    for name, make in STAGES.items():
        if estimate.finished(functools.partial(make, config, existing=True)):
            raise ConfigError(f"{name} is finished already; check in another run store: CASSL_RUNS=FOLDER")
    planned, found = _planned(config), []
    for name, make in STAGES.items():
        if name == "labels":
            planned["labels"] = _planned(config)["labels"]
        started = time.monotonic()
        run = make(config)
        found.append(Comparison(f"{name}, seconds", planned[name].seconds, time.monotonic() - started))
        if name == "labels":
            found += _of_store(planned["labels"], PseudoLabelStore(run.folder / "store", config.label.threshold))
    return found


def _planned(config: Config) -> dict[str, cost.Row]:
    return {row.stage: row for row in estimate.estimate(config).rows}


def _of_store(row: cost.Row, store: PseudoLabelStore) -> list[Comparison]:
    counts, size = store.manifest["labels"], sum(entry["bytes"] for entry in store.manifest["shards"])
    above = int(store.statistics([store.threshold])["labels"][0])
    index = len(store) * cost.INDEX_BYTES
    return [
        Comparison("labels in the store", row.labels, counts),
        Comparison("labels above the threshold", row.labels_used, above),
        Comparison("bytes of the store", row.kept - index, size),
    ]


def table(found: list[Comparison]) -> str:
    """The comparison as text."""
    lines = [f"{'':28}{'planned':>12}{'real':>12}{'off':>8}"]
    for each in found:
        off = "" if each.off is None else f"{each.off:+.0%}"
        lines.append(f"{each.name:28}{each.planned:12,.1f}{each.real:12,.1f}{off:>8}")
    return "\n".join(lines)


def to_json(config: Config, found: list[Comparison]) -> dict:
    """JSON data, with the environment that it was measured in."""
    rows = [{"name": c.name, "planned": round(c.planned, 2), "real": round(c.real, 2)} for c in found]
    return {"profile": config.profile, "split": config.split, "rows": rows, "environment": environment()}
