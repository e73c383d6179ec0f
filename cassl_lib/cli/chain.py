"""The whole chain from the shell: `cassl chain` makes its runs, `cassl summary` prints their numbers and pictures."""

from __future__ import annotations

import argparse
import sys

from cassl_lib.cli.options import config_of
from cassl_lib.errors import CasslError


def add_verbs(verb) -> None:
    """
    Args:
        verb: function of name, function and help that adds a verb to the shell and returns its parser.
    """
    chain = verb("chain", _chain, "make every run of the chain: all stages, the baselines and Objects (G,A)")
    chain.add_argument("--jobs", type=int, help="runs side by side (two on a CPU with two cores or more, else one)")
    summary = verb("summary", _summary, "the numbers of a finished chain, also as runs/summary.json, and its pictures")
    summary.add_argument("--record", action="store_true", help="keep them under reports/results/ too")


def _chain(parsed: argparse.Namespace) -> int:
    from cassl_lib.data.processes import cores
    from cassl_lib.stages import checks, requests
    from cassl_lib.tables import runner
    from cassl_lib.training.distributed import device_of_process

    config = config_of(parsed)
    jobs = parsed.jobs or (min(2, cores()) if device_of_process().type == "cpu" else 1)
    wanted = requests.chain(config)
    if words := checks.unmatched_baseline(config):
        print(f"warning: {words}", file=sys.stderr)
    needed = requests.with_inputs(wanted.values())
    if failures := runner.make(needed, jobs=jobs):
        raise CasslError("\n".join(f"{failure.request.title}: {failure.reason}" for failure in failures))
    return 0


def _summary(parsed: argparse.Namespace) -> None:
    from cassl_lib import paths
    from cassl_lib.files import where_writable
    from cassl_lib.report import pictures
    from cassl_lib.report.gather import gather
    from cassl_lib.tables import results
    from cassl_lib.tables.summary import paragraph, summarize, table

    config = config_of(parsed)
    numbers, file = summarize(config)
    print(table(numbers))
    if file:
        print(file)
    if parsed.record:  # before the pictures, so that an unreadable image cannot cost the numbers
        print(results.record(config, numbers))
    gathered = gather(config)
    if parsed.record:
        print(results.record(config, gathered, "pictures"))
    drawn = pictures.draw(gathered) | {"demo": pictures.demo_picture(gathered, numbers)}
    folder = paths.runs() / "pictures"
    with where_writable(folder):
        for file in pictures.save(drawn, folder):
            print(file)
    print()
    print(paragraph(numbers, results.chains(config.profile, config.split)))
