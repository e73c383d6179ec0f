"""A table of the paper as an object: its runs, making them, and its numbers over the paper's.

table = Table(2, config)
table.status        which runs are finished
table.make()        makes the missing ones
table               the numbers, over the paper's
table.chart()       the same as a figure
table.claims        the paper's claims, and whether our numbers support them
"""

from __future__ import annotations

from functools import cached_property

from cassl_lib.config import Config
from cassl_lib.stages.requests import Request, describe
from cassl_lib.tables import archive, compare, runner, status
from cassl_lib.tables.definitions import ROWS, Row, requests_of
from cassl_lib.tables.rows import Rows


class Table:
    """A table of the paper at one configuration, over several seeds.

    Attributes:
        number: of the paper's table, or "threshold" or "shift".
        seeds: of the whole chain, the configuration's own first.
    """

    def __init__(self, number: int | str, config: Config, *, seeds: int | None = None, recorded: bool = False):
        """
        Args:
            seeds: how many; None is the profile's number.
            recorded: show the numbers that are kept under `reports/results/`, and make no run.

        Raises:
            ConfigError: the table is not implemented, or the number of seeds is not positive.
        """
        status.check_no_store(config)
        self.number = status.table_named(number)
        self.config, self.seeds, self.recorded = config, status.seeds_of(config, seeds), recorded

    @property
    def rows(self) -> list[Row]:
        """The rows as data, for the first seed."""
        return ROWS[self.number](self.config)

    @cached_property
    def requests(self) -> list[Request]:
        """Every run that the table needs, over all seeds, each after those that it starts from."""
        return requests_of(runner.rows_of(self.number, self.config, self.seeds))

    @property
    def status(self) -> Rows:
        """One line per run: its stage, its name if it is finished, and what it is."""
        lines = []
        for request, run in runner.find_all(self.requests, self.config.profile, kept=self.recorded).items():
            state = "missing" if run is None else f"{run.id}{', recorded' * isinstance(run, archive.KeptRun)}"
            lines.append([request.title, state, describe(request), str(request.config.seed)])
        return Rows(["stage", "run", "settings", "seed"], lines)

    def make(self, *, jobs: int = 1, devices: int = 1) -> Rows:
        """Make the missing runs; returns those that failed, with the reason.

        Args:
            jobs: runs side by side on this machine.
            devices: processes per run; more than one starts torchrun.
        """
        if self.recorded:
            return Rows([], [], empty="The recorded numbers are shown; no run is made.")
        failures = runner.make(self.requests, jobs=jobs, devices=devices, separate_processes=False)
        self.__dict__.pop("collected", None)
        lines = [[each.request.title, describe(each.request), each.reason] for each in failures]
        return Rows(["failed", "settings", "reason"], lines, empty=f"All {len(self.requests)} runs are finished.")

    @cached_property
    def collected(self) -> dict:
        """The numbers, see `runner.collect`; recomputed after `make`."""
        return runner.collect(self.number, self.config, self.seeds, kept=self.recorded)

    @property
    def claims(self) -> Rows:
        """The paper's claims about this table, our paired differences over seeds, and the verdict at this scale."""
        lines = [claim.cells for claim in compare.claims({self.number: self.collected}, self.number)]
        return Rows(compare.CLAIM_COLUMNS, lines, empty="The paper makes no claim about this table.")

    def chart(self):
        """A figure of our numbers beside the paper's."""
        from cassl_lib import plotting

        return plotting.table_chart(*compare.chart_data(self.collected))

    def __repr__(self) -> str:
        return compare.text(self.collected)

    def _repr_html_(self) -> str:
        return compare.html(self.collected)
