"""What the tests of tables share: rows and requests of a table, and runs that are finished without training."""

from collections import Counter
from dataclasses import replace

from cassl_lib.config import Config
from cassl_lib.runs import Run, open_run
from cassl_lib.stages import graph
from cassl_lib.stages.identity import identity
from cassl_lib.stages.requests import Request
from cassl_lib.tables import compare
from cassl_lib.tables.definitions import ROWS, Cell, requests_of


def cells_of(table: int | str, config: Config) -> dict[str, dict[str, Cell]]:
    """The cells of a table by row and column."""
    return {row.name: row.cells for row in ROWS[table](config)}


def needed(table: int | str, config: Config) -> list[Request]:
    """Every run that a table needs."""
    return requests_of(ROWS[table](config))


def runs_by_stage(table: int | str, config: Config) -> dict[str, int]:
    """How many runs of each stage a table needs; baselines are counted apart."""
    return dict(Counter("baseline" if each.is_baseline else each.stage for each in needed(table, config)))


def unprinted(table: int | str, config: Config) -> set[tuple[str, str]]:
    """The cells, by row and column, for which the paper prints no number."""
    cells = [(row.name, column) for row in ROWS[table](config) for column in row.cells]
    return {cell for cell in cells if compare.printed(table, *cell) is None}


def with_runs(request: Request) -> Request:
    """The same request with its inputs as the runs that they will be, finished or not; nothing is written."""
    inputs = (each if isinstance(each, Run) else graph.located(with_runs(each)) for each in request.inputs)
    return replace(request, inputs=tuple(inputs))


def finish(request: Request, **result) -> Run:
    """Finish the run of a request whose inputs are runs, without any work.

    Args:
        result: entries of the run's result that differ from those of an empty one.
    """
    run = open_run(identity(request))
    run.finish({"metrics": {}, "seconds": 1.0, "images": 1} | result)
    return run
