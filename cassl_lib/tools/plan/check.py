"""Whether a plan is right: the chain is run, and the time of each stage compared with its estimate."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import environment
from cassl_lib.stages import graph, requests
from cassl_lib.stages.pseudo_labels import threshold_of
from cassl_lib.stages.requests import Request
from cassl_lib.tools.plan import cost, estimate


@dataclass(frozen=True)
class Comparison:
    """A stage's seconds, or another quantity, as planned and as measured."""

    name: str
    planned: float
    real: float

    @property
    def off(self) -> float | None:
        """The plan's error as a share of the real value; None if that is 0."""
        return self.planned / self.real - 1 if self.real else None


def check(config: Config) -> list[Comparison]:
    """Plan, make the chain and the baselines in this process, and compare.

    Labeling is planned again once there is a pseudo labeler: the first estimate is an upper bound.

    Raises:
        ConfigError: a stage has a finished run, whose time cannot be measured any more.
    """
    wanted = _requests(config)
    for name, request in wanted.items():
        if graph.find(request):
            raise ConfigError(f"the {name} run is finished already; check in another run store: CASSL_RUNS=FOLDER")
    planned, compared = _planned(config), []
    for name, request in wanted.items():
        if name == "pseudo_labels":
            planned[name] = _planned(config)[name]
        started = time.monotonic()
        run = graph.obtain(request)
        compared.append(Comparison(f"{name}, seconds", planned[name].seconds, time.monotonic() - started))
        if name == "pseudo_labels":
            compared += _of_store(planned[name], PseudoLabelStore(run.store, threshold_of(config, run)))
    return compared


def _requests(config: Config) -> dict[str, Request]:
    """By the names of the plan's rows, in the order in which they are made."""
    chain = requests.chain(config)
    return {name: chain["cassl" if name == "finetune" else name] for name in cost.row_names(config)}


def _planned(config: Config) -> dict[str, cost.Row]:
    return {row.stage: row for row in estimate.estimate(config).rows}


def _of_store(row: cost.Row, store: PseudoLabelStore) -> list[Comparison]:
    count, size = store.manifest["labels"], sum(entry["bytes"] for entry in store.manifest["shards"])
    above = int(store.statistics([store.threshold])["labels"][0])
    return [
        Comparison("labels in the store", row.labels, count),
        Comparison("labels above the threshold", row.labels_used, above),
        Comparison("bytes of the store", row.kept - len(store) * cost.INDEX_BYTES, size),
    ]


def table(compared: list[Comparison]) -> str:
    """The comparison as text."""
    lines = [f"{'':28}{'planned':>12}{'real':>12}{'off':>8}"]
    for each in compared:
        off = "" if each.off is None else f"{each.off:+.0%}"
        lines.append(f"{each.name:28}{each.planned:12,.1f}{each.real:12,.1f}{off:>8}")
    return "\n".join(lines)


def to_json(config: Config, compared: list[Comparison]) -> dict:
    """JSON data, with the environment that it was measured in."""
    rows = [{"name": c.name, "planned": round(c.planned, 2), "real": round(c.real, 2)} for c in compared]
    return {"profile": config.profile, "split": config.split, "rows": rows, "environment": environment()}
