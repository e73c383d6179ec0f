"""What a table still needs: its runs, which of them are finished, and what the missing ones will cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.runs import Run
from cassl_lib.stages import graph
from cassl_lib.stages.requests import Request, describe
from cassl_lib.tables.definitions import ROWS, applicable
from cassl_lib.tools.plan import estimate
from cassl_lib.tools.plan.cost import duration
from cassl_lib.tools.plan.pace import pace
from cassl_lib.training.optimizer import number_of_steps


def tables_named(words: Sequence[str], config: Config) -> list[int | str]:
    """The tables that command-line arguments name: numbers, names, or "all" that make sense for the configuration."""
    return applicable(config) if list(words) == ["all"] else [table_named(word) for word in words]


def table_named(word: int | str) -> int | str:
    """The key of one table in `ROWS`."""
    named = {str(table): table for table in ROWS}
    if str(word) not in named:
        raise ConfigError(f"table {str(word)!r} is not implemented; use all, or one of: {', '.join(named)}")
    return named[str(word)]


def check_no_store(config: Config) -> None:
    """Raise ConfigError if a store is given: a table's labels come from its own pseudo labelers."""
    if config.store:
        raise ConfigError(f"store={config.store!r}: a table's labels come from its own pseudo labelers; leave it out")


def seeds_of(config: Config, count: int | None = None) -> range:
    """`count` seeds, starting from the configuration's; None is the profile's number."""
    count = PROFILES[config.profile]["seeds"] if count is None else count
    if count < 1:
        raise ConfigError(f"seeds={count} is out of range; use 1 or more")
    return range(config.seed, config.seed + count)


def listing(needed: Sequence[Request], config: Config) -> str:
    """One line per run: finished with its name, or missing with its estimated cost; and the total cost."""
    found = graph.find_all(needed)
    missing = [request for request in needed if not found[request]]
    costs = cost_of(missing, [run for run in found.values() if run])
    lines = []
    for request in needed:
        run = found[request]
        state = f"finished {run.id}" if run else f"missing  {duration(costs[request])}"
        lines.append(f"{request.title:28}{state:40}{describe(request)}, seed {request.config.seed}")
    lines.append(f"{len(needed)} runs, {len(missing)} missing: {duration(sum(costs.values()))} one after the other")
    return "\n".join(lines)


def cost_of(missing: Sequence[Request], finished: Iterable[Run]) -> dict[Request, float]:
    """Seconds of each missing run: its steps, or images to label, at the rate of finished runs or a measured one."""
    seen: dict[str, list[float]] = {}
    for result in (run.result for run in finished):
        amount = max(result.get("steps") or result.get("images", 1), 1)
        seen.setdefault(result["stage"], []).append(result["seconds"] / amount)
    rates = {stage: statistics.mean(values) for stage, values in seen.items()}
    if any(request.stage not in rates for request in missing):
        for stage, seconds in pace(missing[0].config).items():
            rates.setdefault(stage, seconds)
    counts: dict[tuple, Mapping[str, int]] = {}
    costs = {}
    for request in missing:
        data = (request.config.split, request.config.annotation, request.config.target)
        if data not in counts:
            counts[data] = estimate.survey(request.config).images
        costs[request] = work_of(request, counts[data]) * rates[request.stage]
    return costs


def work_of(request: Request, images: Mapping[str, int]) -> int:
    """Training steps of a request, or the number of images it labels.

    Args:
        images: numbers of images of labeled, pool and warmup, as `estimate.survey` counts them.
    """
    if request.stage == "pseudo_labels":
        return images["pool"]
    over = {"pseudo_labeler": images["labeled"], "warmup": images["warmup"], "finetune": images["labeled"]}
    return number_of_steps(getattr(request.config, request.stage), over[request.stage])
