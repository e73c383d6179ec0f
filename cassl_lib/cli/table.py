"""The verb `table`: what a table of the paper needs, making it, and its numbers beside the paper's."""

from __future__ import annotations

import argparse
import sys

from cassl_lib.cli.options import config_of
from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.resolve import resolve, to_json


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tables", nargs="+", metavar="N", help="1 to 7, 9, threshold, or all")
    parser.add_argument("--seeds", type=int, help="how many, starting from --seed (the profile's number)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side on this machine")
    parser.add_argument("--devices", type=int, default=1, help="processes per run; more than one starts torchrun")
    parser.add_argument(
        "--minutes",
        type=float,
        help="work for so many minutes, stop at checkpoints and show the results so far; it ends within half a minute "
        "more. The exit status is 3 if work is left (the same command resumes it), 1 if only runs that failed are "
        "missing, 0 if all is done",
    )
    parser.add_argument("--dry-run", action="store_true", help="list finished and missing runs, with their cost")
    parser.add_argument(
        "--record",
        action="store_true",
        help="keep the numbers under reports/results/; those that are kept there already are not made again",
    )
    parser.set_defaults(annotation="entities")  # Tables 3 to 7 and 9 are of entities (Sec. 4); 1 and 2 set their own


def act(parsed: argparse.Namespace) -> int:
    """Make what is missing (or list it) and print the tables; 3 if work is left, 1 if only failed runs are missing."""
    from cassl_lib import deadline
    from cassl_lib.tables import archive, runner, status
    from cassl_lib.tables.definitions import requests_of

    config = config_of(parsed)
    status.check_no_store(config)
    if parsed.record:
        check_usual(config)
    tables, seeds = status.tables_named(parsed.tables, config), status.seeds_of(config, parsed.seeds)
    rows = [row for table in tables for row in runner.rows_of(table, config, seeds)]
    needed = archive.unfinished(rows, config.profile) if parsed.record else requests_of(rows)
    if parsed.dry_run:
        print(status.listing(needed, config))
        return 0
    with deadline.within(parsed.minutes):  # of choosing the best lengths too
        missing = runner.make(needed, jobs=parsed.jobs, devices=parsed.devices)
        left = sum(each.left for each in missing)
        if parsed.record:
            archive.keep(config.profile, archive.finished(rows))
        for table in tables:
            collected = runner.collect(table, config, seeds, kept=parsed.record)
            left += runner.undecided(collected)
            _show(collected, record=parsed.record, partial=bool(left))
    for failure in missing:
        if not failure.left:
            print(f"FAILED: {failure.request.title}: {failure.reason}", file=sys.stderr)
    if left:
        print("work is left; rerun the same command to resume", file=sys.stderr)
        return deadline.STATUS
    return 1 if missing else 0


def _show(collected: dict, *, record: bool, partial: bool) -> None:
    """Print a table, and record it; a partial one does not replace a recorded one with more numbers."""
    from cassl_lib.tables import compare, results

    print(compare.text(collected), end="\n\n")
    if not record:
        return
    try:
        print(results.record_table(collected), end="\n\n")
    except ConfigError as error:
        if not partial:
            raise
        print(f"not recorded yet: {error}", file=sys.stderr)


def check_usual(config: Config) -> None:
    """Raise ConfigError unless this is an unchanged profile: recorded tables must belong together."""
    usual = to_json(resolve(profile=config.profile, seed=config.seed, annotation="entities"))
    if odd := [name for name, value in to_json(config).items() if value != usual[name]]:
        raise ConfigError(
            f"--record is for tables of an unchanged profile; leave out --record, or what sets {', '.join(odd)}"
        )
