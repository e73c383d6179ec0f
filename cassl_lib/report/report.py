"""Everything that is generated from `reports/results/`: `python -m cassl_lib report`.

Prose is written by hand in the Markdown files; every number between their markers comes from the results. The output is
the same on every machine.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping
from pathlib import Path

from cassl_lib import paths
from cassl_lib.files import write_atomically
from cassl_lib.report import blocks, chain, claims, markers, pictures, readme, tables
from cassl_lib.tables import compare, results

REPORT = "reports/report.md"


def _table(number: int | str):
    return lambda: tables.table(number)


GENERATED: dict[str, markers.Sections] = {
    "README.md": {
        "opening": claims.short,
        "picture": readme.picture,
        "results": chain.summary,
        "tables": readme.paper_tables,
    },
    "docs/scale.md": {"plan": readme.plan, "store": readme.store},
    "docs/weights.md": {"speed": readme.speed},
    REPORT: {
        "opening": claims.opening,
        "regime": tables.regime,
        "claims": claims.table,
        "joint training": pictures.joint_training,
        "pipeline": pictures.pipeline,
        "entities": pictures.entities,
        "chain": chain.seeds,
        "lengths": tables.baseline_lengths,
        **{f"table {table}" if isinstance(table, int) else table: _table(table) for table in compare.LAYOUTS},
        "curves": tables.curves,
        "pictures": pictures.comparisons,
        "operating point": chain.operating_point,
        "pseudo labels": chain.pseudo_labels,
        "cost": tables.cost,
    },
}
"""By file, relative to the repository, the sections between its markers."""


def renew() -> list[Path]:
    """Regenerate README, docs, report, HTML, CSVs and figures; delete CSVs and figures that belong to no result.

    Returns:
        The written files.
    Raises:
        DataError: the markers of a file are incomplete or in disorder.
    """
    written = []
    for name, sections in GENERATED.items():
        file = paths.REPOSITORY / name
        if file.exists():
            markers.renew(file, sections)
            written.append(file)
    texts = {"reports/report.html": html_page(), **csv_files()}
    for name, text in texts.items():
        file = paths.REPOSITORY / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())
        written.append(file)
    written += pictures.save(figures(), paths.REPOSITORY / "figures")
    tracked = {*(paths.REPOSITORY / "reports/tables").glob("*.csv"), *(paths.REPOSITORY / "figures").glob("*.png")}
    for stale in tracked - {*written}:
        stale.unlink()
    return written


def html_page() -> str:
    """The HTML of the report, with the tables in the paper's layout."""
    from cassl_lib.report.page import page  # needs mistune, which the other commands do not

    sections = {name: blocks.html(make()) for name, make in GENERATED[REPORT].items()}
    return page((paths.REPOSITORY / REPORT).read_text(), sections)


def csv_files() -> dict[str, str]:
    """The text of the CSV of every recorded table, by file."""
    return {
        f"reports/tables/{results.file_stem(table, profile)}.csv": csv_text(collected)
        for profile in tables.profiles()
        for table, collected in results.recorded(profile).items()
    }


def csv_text(collected: Mapping) -> str:
    """A line per cell: row, column, the paper's number, our mean and std, the number of seeds, each seed's number.

    A cell that the paper does not have and the profile leaves out has no line.
    """
    seeds = [str(seed) for seed in collected["seeds"]]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["row", "column", "paper", "mean", "std", "seeds", *(f"seed {seed}" for seed in seeds)])
    for row, cells in collected["rows"].items():
        for column in compare.columns(collected["table"], collected["rows"]):
            cell = cells.get(column, {})
            ours, theirs = compare.values(cell), compare.printed(collected["table"], row, column)
            if theirs is None and not cell:
                continue
            mean = f"{statistics.mean(ours):.2f}" if ours else ""
            std = f"{statistics.stdev(ours):.2f}" if len(ours) > 1 else ""
            each = ["" if cell.get(seed) is None else f"{100 * cell[seed]:.2f}" for seed in seeds]
            writer.writerow([row, column, "" if theirs is None else theirs, mean, std, len(ours), *each])
    return sink.getvalue()


def figures() -> dict:
    """Every figure of the report, by name: Figs. 1 to 3 of the paper, curves, tables, detections on the same images."""
    from cassl_lib import plotting

    drawn = pictures.paper_figures()
    for profile in tables.profiles():
        recorded = results.recorded(profile)
        drawn[f"curves_{profile}"] = plotting.table_curves(compare.curves(recorded))
        for table, collected in recorded.items():
            drawn[results.file_stem(table, profile)] = plotting.table_chart(*compare.chart_data(collected))
    for profile, name in tables.length_names().items():
        drawn[name] = pictures.length_figure(results.recorded(profile)[2])
    for file in pictures.recorded():
        drawn |= pictures.draw(results.read(file))
    return drawn
