"""The shell's verb `table`: what a table of the paper needs, making it, and the numbers beside the paper's."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.files import write_atomically
from cassl_lib.report import readme
from cassl_lib.resolve import resolve, to_json
from cassl_lib.tools.plan import estimate


def add_options(table: argparse.ArgumentParser) -> None:
    table.add_argument("tables", nargs="+", metavar="N", help="1 to 7, 9, threshold, or all")
    table.add_argument("--seeds", type=int, help="how many, from --seed on; the profile's number by default")
    table.add_argument("--jobs", type=int, default=1, help="runs side by side on this machine")
    table.add_argument("--devices", type=int, default=1, help="processes of each run; more than one starts torchrun")
    table.add_argument("--dry-run", action="store_true", help="list what is there, what is missing and its cost")
    table.add_argument("--record", action="store_true", help="keep the numbers under reports/results/")
    table.set_defaults(annotation="entities")  # Tables 3 to 7 and 9 are of entities (Sec. 4); 1 and 2 set their own


def act(parsed: argparse.Namespace, config: Config) -> int:
    """Make what is missing (or list it), show the tables; 1 if a run failed."""
    from cassl_lib.tables import compare, runner
    from cassl_lib.tables.definitions import file_stem, wants

    numbers, seeds = chosen(parsed.tables), list(seeds_of(config, parsed.seeds))
    rows = [row for number in numbers for row in runner.rows_of(number, config, seeds)]
    needed = wants(rows)
    if config.labels:
        raise ConfigError(
            f"labels={config.labels!r}: tables are of the labels that their own labelers make; leave it out"
        )
    if parsed.record:
        _check_usual(config)
    if parsed.dry_run:
        print(listing(needed, config))
        return 0
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs {parsed.jobs} is out of range; use 1 or more")
    failures = runner.make(needed, jobs=parsed.jobs, devices=parsed.devices)
    for number in numbers:
        collected = runner.collect(number, config, seeds)
        print(compare.text(collected), end="\n\n")
        if parsed.record:
            print(_keep(collected, readme.RESULTS / f"{file_stem(number, config.profile)}.json"), end="\n\n")
    for failure in failures:
        print(f"FAILED: {failure.want.verb}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def _check_usual(config: Config) -> None:
    """Recorded tables are a profile's as it is, so that they belong together."""
    usual = to_json(resolve(profile=config.profile, seed=config.seed, annotation="entities"))
    if odd := [name for name, value in to_json(config).items() if value != usual[name]]:
        raise ConfigError(
            f"--record keeps the tables of a profile as it is; leave it out, or do not set {', '.join(odd)}"
        )


def _keep(collected: dict, file: Path) -> Path:
    """Write a table's numbers, unless there are more already."""
    if file.exists() and (before := _count(json.loads(file.read_text()))) > (now := _count(collected)):
        raise ConfigError(f"{file} has {before} numbers, and there are {now} now; it is kept: delete it to replace it")
    write_atomically(file, (json.dumps(collected, indent=1) + "\n").encode())
    return file


def _count(collected: dict) -> int:
    return sum(
        value is not None for row in collected["rows"].values() for cell in row.values() for value in cell.values()
    )


def chosen(words: Sequence[str]) -> list[int | str]:
    """The tables that the shell's words name."""
    from cassl_lib.tables.definitions import ROWS

    if list(words) == ["all"]:
        return list(ROWS)
    named = {str(table): table for table in ROWS}
    for word in words:
        if word not in named:
            raise ConfigError(f"table {word!r} has no rows here; use all, or one of: {', '.join(named)}")
    return [named[word] for word in words]


def seeds_of(config: Config, count: int | None = None) -> range:
    """So many seeds of the whole chain, the profile's number by default, from the configuration's own on."""
    from cassl_lib.profiles import PROFILES

    count = PROFILES[config.profile]["seeds"] if count is None else count
    if count < 1:
        raise ConfigError(f"seeds={count} is out of range; use 1 or more")
    return range(config.seed, config.seed + count)


def states(needed: Sequence, found) -> str:
    """A line a run: its name, or that it is missing, and what it is."""
    from cassl_lib.tables.definitions import variation

    lines = []
    for want in needed:
        state = found[want].id if found[want] else "missing"
        lines.append(f"{want.verb:14}{state:24}{variation(want)}, seed {want.config.seed}")
    return "\n".join(lines)


def listing(needed: Sequence, config: Config) -> str:
    """A line a run: there with its name, or missing with what it will cost; and the sum of what is missing."""
    from cassl_lib.tables import runner
    from cassl_lib.tables.definitions import variation
    from cassl_lib.tools.plan.cost import duration

    found = runner.find(needed)
    missing = [want for want in needed if not found[want]]
    costs = _costs(missing, [found[want] for want in needed if found[want]])
    lines = []
    for want in needed:
        state = f"there    {found[want].id}" if found[want] else f"missing  {duration(costs[want.key])}"
        lines.append(f"{want.verb:14}{state:40}{variation(want)}, seed {want.config.seed}")
    lines.append(f"{len(needed)} runs, {len(missing)} missing: {duration(sum(costs.values()))} one after the other")
    return "\n".join(lines)


def _costs(missing: Sequence, finished: Sequence) -> dict[tuple, float]:
    """Seconds of each missing run: steps, or images to label, at the pace of finished runs, else at a measured one."""
    from cassl_lib.tables import runner

    names = {"labeler": "train_labeler", "labels": "label", "warmup": "warm_up", "finetune": "finetune"}
    seen: dict[str, list[float]] = {verb: [] for verb in names.values()}
    for result in (run.result for run in finished):
        seen[names[result["stage"]]].append(result["seconds"] / max(result.get("steps") or result.get("images", 1), 1))
    pace = {verb: statistics.mean(values) for verb, values in seen.items() if values}
    if any(want.verb not in pace for want in missing):
        for row in estimate.estimate(missing[0].config).rows:
            if row.stage in names:
                pace.setdefault(names[row.stage], row.seconds / max(row.steps or row.images, 1))
    images: dict[tuple, dict[str, int]] = {}
    costs = {}
    for want in missing:
        data = (want.config.split, want.config.annotation, want.config.target)
        if data not in images:
            images[data] = estimate.look(want.config).images
        costs[want.key] = runner.work_of(want, images[data]) * pace[want.verb]
    return costs


def recorded(folder: Path, profile: str) -> dict[int | str, dict]:
    """The tracked tables of a profile, by number."""
    from cassl_lib.tables.definitions import ROWS, file_stem

    files = {table: folder / f"{file_stem(table, profile)}.json" for table in ROWS}
    return {table: json.loads(file.read_text()) for table, file in files.items() if file.exists()}
