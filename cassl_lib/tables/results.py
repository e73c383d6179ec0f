"""The tracked results under `reports/results/`: recording them, and reading them back.

File names say what the results are of: `table3_demo.json`, `chain_demo_large_seed0.json`. The report is generated from
these files alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cassl_lib import paths, recorded_files
from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.files import write_atomically
from cassl_lib.resolve import to_json
from cassl_lib.tables.compare import TITLES

RESULTS = paths.REPOSITORY / "reports" / "results"


def file_stem(table: int | str, profile: str) -> str:
    """`table3_demo` or `threshold_demo`: the file name of a table's JSON, CSV and figure, without the ending."""
    return f"{f'table{table}' if isinstance(table, int) else table}_{profile}"


def record(config: Config, content: Mapping, kind: str = "chain") -> Path:
    """Write a result of one configuration, such as the summary of a chain, together with the whole configuration.

    Args:
        kind: what the result is; the first part of the file name.
    """
    choices = (config.annotation, config.target, config.crowd)
    odd = [choice for choice in choices if choice not in ("objects", "instances", "background")]
    name = "_".join([kind, config.profile, config.split, *odd])
    return write({**content, "config": to_json(config)}, f"{name}_seed{config.seed}")


def record_table(collected: Mapping) -> Path:
    """Write a collected table.

    Raises:
        ConfigError: the recorded table has more numbers than this one.
    """
    stem = file_stem(collected["table"], collected["profile"])
    file = RESULTS / f"{stem}.json"
    if file.exists() and (before := _count(read(file))) > (now := _count(collected)):
        raise ConfigError(f"{file} has {before} numbers, and there are {now} now. Delete it to record fewer numbers.")
    return write(collected, stem)


def write(content: Mapping, stem: str) -> Path:
    """Write `STEM.json` under `reports/results/`, whole or not at all."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{stem}.json"
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
    return file


def read(file: Path) -> dict:
    """The content of a result file. Raises DataError if it is damaged, see `recorded_files`."""
    return recorded_files.read(file)


def recorded(profile: str) -> dict[int | str, dict]:
    """The recorded tables of a profile, by table number, in the paper's order."""
    files = {table: RESULTS / f"{file_stem(table, profile)}.json" for table in TITLES}
    return {table: read(file) for table, file in files.items() if file.exists()}


def chains(profile: str, split: str, kind: str = "chain") -> list[dict]:
    """The recorded summaries of a profile and a pool, sorted by seed."""
    return sorted(map(read, RESULTS.glob(f"{kind}_{profile}_{split}_seed*.json")), key=lambda chain: chain["seed"])


def _count(collected: Mapping) -> int:
    """How many numbers of a table are not missing."""
    cells = (cell for row in collected["rows"].values() for cell in row.values())
    return sum(value is not None for cell in cells for value in cell.values())
