"""The report: what stands between the markers of `reports/report.md`, its HTML, CSVs and figures, from results alone.

Prose is written by hand in `reports/report.md`; numbers never are. `python -m cassl_lib report` renews them from
`reports/results/*.json`, the same on every machine.
"""

from __future__ import annotations

import csv
import html
import io
import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from cassl_lib import paths
from cassl_lib.cli.table import recorded
from cassl_lib.profiles import PROFILES
from cassl_lib.report import pictures, readme
from cassl_lib.tables import compare, operating_point
from cassl_lib.tables.definitions import ROWS, file_stem
from cassl_lib.tools.plan.cost import duration

REPORT = paths.REPOSITORY / "reports" / "report.md"
NOTHING = readme.NOTHING


def tables_of(profile: str) -> dict[int, dict]:
    """The tracked tables of a profile, by number."""
    return recorded(readme.RESULTS, profile)


def profiles() -> list[str]:
    """The profiles of which tables are tracked, the largest scale last."""
    return [profile for profile in PROFILES if profile != "smoke" and tables_of(profile)]


def where(collected: Mapping) -> str:
    """Hardware, versions, dates, commits and seconds of a table's runs, in a sentence."""
    runs = compare.runs_of(collected)
    if not runs:
        return "No run of it is there."
    names = ("device", "threads", "torch", "date", "commit")
    facts = {name: ", ".join(sorted({run[name] for run in runs.values() if name in run})) for name in names}
    on_cpu = f" (threads of a run: {facts['threads']})" if "CPU" in facts["device"] else ""
    seconds = duration(sum(run["seconds"] for run in runs.values()))
    where = f"{facts['device']}{on_cpu}, torch {facts['torch']}, {facts['date']}, commit {facts['commit']}"
    seeds = ("seeds " if len(collected["seeds"]) > 1 else "seed ") + ", ".join(map(str, collected["seeds"]))
    return f"Profile {collected['profile']}, {seeds}; {len(runs)} runs, {seconds} one after the other on {where}."


def table_section(table: int | str) -> str:
    """A table at every profile that has it: paper, ours, gap, row by row."""
    parts = []
    for profile in profiles():
        collected = tables_of(profile).get(table)
        if collected is None:
            continue
        lines = [where(collected), "", "| row | column | paper | here | gap |", "|---|---|---:|---:|---:|"]
        lines += ["| " + " | ".join(line) + " |" for line in compare.lines(collected)]
        picture = f"![{compare.heading(table)}, profile {profile}](../figures/{file_stem(table, profile)}.png)"
        parts.append("\n".join([*lines, "", picture]))
    return "\n\n".join(parts) or NOTHING


def claims_section() -> str:
    """Each claim of the paper and what is found of it, a column a profile."""
    found = {profile: compare.claims(tables_of(profile)) for profile in profiles()}
    if not found:
        return NOTHING
    lines = ["| table | claim | paper | " + " | ".join(found) + " |", "|---|---|---:|" + "---|" * len(found)]
    for place, claim in enumerate(next(iter(found.values()))):
        cells = [verdict_text(claims[place]) for claims in found.values()]
        theirs = "" if claim["paper"] is None else f"{claim['paper']:+.1f}"
        lines.append(f"| {claim['table']} | {claim['claim']} | {theirs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def labels_section() -> str:
    """The pseudo labels of each profile's tables against the hidden truth of their images, which no stage sees."""
    parts = []
    for profile in profiles():
        found = {}
        for collected in tables_of(profile).values():
            for seed, runs in collected["runs"].items():
                found |= {(run["what"], seed): run["labels"] for run in runs.values() if "labels" in run}
        thresholds = sorted({quality["threshold"] for quality in found.values()})
        heads = (
            "labels of",
            "seed",
            "images",
            "labels an image",
            "precision",
            "recall",
            "recall at 0.75",
            "of unnamed kinds",
        )
        lines = [f"Profile {profile}, labels above {', '.join(map(str, thresholds))}; things alone count.", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        for (what, seed), quality in sorted(found.items()):
            shares = (quality.get(name) for name in ("precision", "recall", "recall_75", "recall_unnamed"))
            cells = [what, seed, f"{quality['images']:,}", f"{quality['labels'] / max(quality['images'], 1):.1f}"]
            cells += ["" if share is None else f"{100 * share:.1f}" for share in shares]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOTHING


def curves_section() -> str:
    """A figure a profile: AP along the length of the warm-up, the pool, the labeler's AP, the threshold."""
    names = {profile: f"../figures/curves_{profile}.png" for profile in profiles()}
    return "\n\n".join(f"![Curves, profile {name}]({file})" for name, file in names.items()) or NOTHING


def pictures_section() -> str:
    """What each stage says of the same images, by profile."""
    parts = []
    for file in picture_files():
        found = json.loads(file.read_text())
        parts.append(
            f"Profile {found['profile']}, split {found['split']}, seed {found['seed']}; {_made(found, file)}.\n\n"
            "![Truth, labeler, pseudo labels, baseline and CA-SSL](../figures/stages.png)\n\n"
            "![Truth, baseline and CA-SSL](../figures/detections.png)"
        )
    return "\n\n".join(parts) or NOTHING


def _made(found: Mapping, file: Path) -> str:
    """Where, with what and when a result was made, and its file."""
    place = found["environment"]
    made = f"{place['device']}, torch {place['torch']}, {place['date']}, commit {place['commit']}"
    return f"{made} (`reports/results/{file.name}`)"


def picture_files() -> list[Path]:
    """The tracked pictures: those of the demo."""
    return sorted(readme.RESULTS.glob("pictures_demo_tiny_seed0.json"))


def regime_section() -> str:
    """The operating point of each profile, on its tuning scenes."""
    parts = []
    for file in sorted(readme.RESULTS.glob("regime_*.json")):
        found = json.loads(file.read_text())
        lines = [
            f"Profile {found['profile']}, seed {found['config']['seed']}, on the tuning scenes; {_made(found, file)}.",
            "",
            "| | steps | specific AP | agnostic AP | agnostic AP75 | ratio |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, row in found["rows"].items():
            lines.append("| " + " | ".join([name, *operating_point.cells(row)]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOTHING


def verdict_text(claim: Mapping) -> str:
    differences = claim["differences"]
    if not differences:
        return ""
    spread = f" ± {statistics.stdev(differences):.1f}" if len(differences) > 1 else ""
    return f"{claim['verdict']} ({statistics.mean(differences):+.1f}{spread})"


def cost_section() -> str:
    """Runs and time of every table; a run that several tables share is counted in each, and once in the sum."""
    parts = []
    for profile in profiles():
        whole: dict[str, float] = {}
        lines = [f"Profile {profile}:", "", "| table | runs | time |", "|---|---:|---:|"]
        for table, collected in tables_of(profile).items():
            runs = {name: run["seconds"] for name, run in compare.runs_of(collected).items()}
            whole |= runs
            lines.append(f"| {compare.heading(table)} | {len(runs)} | {duration(sum(runs.values()))} |")
        lines.append(f"| all, each run once | {len(whole)} | {duration(sum(whole.values()))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOTHING


def csv_text(collected: Mapping) -> str:
    """A line a cell: row, column, the paper's number, our mean and spread, the number of seeds, each seed's number."""
    seeds = [str(seed) for seed in collected["seeds"]]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["row", "column", "paper", "mean", "spread", "seeds", *(f"seed {seed}" for seed in seeds)])
    for row, cells in collected["rows"].items():
        for column in compare.columns(collected["table"], collected["rows"]):
            cell = cells.get(column, {})
            found, theirs = compare.values(cell), compare.printed(collected["table"], row, column)
            if theirs is None and not cell:
                continue
            mean = f"{statistics.mean(found):.2f}" if found else ""
            spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
            each = ["" if cell.get(seed) is None else f"{100 * cell[seed]:.2f}" for seed in seeds]
            writer.writerow([row, column, "" if theirs is None else theirs, mean, spread, len(found), *each])
    return sink.getvalue()


GENERATED = {
    f"table {table}" if isinstance(table, int) else table: lambda table=table: table_section(table) for table in ROWS
}
GENERATED |= {"claims": claims_section, "cost": cost_section, "regime": regime_section}
GENERATED |= {"curves": curves_section, "pictures": pictures_section, "labels": labels_section}


def files() -> dict[Path, str]:
    """The text files of the report beside `report.md` and what is in them."""
    found = {}
    for profile in profiles():
        for table, collected in tables_of(profile).items():
            found[REPORT.parent / "tables" / f"{file_stem(table, profile)}.csv"] = csv_text(collected)
    return found


def renew() -> list[Path]:
    """Renew report, HTML, CSVs and figures; returns what was written. Figures and CSVs of no result are deleted."""
    readme.renew(REPORT, GENERATED)
    written = [REPORT, REPORT.with_suffix(".html")]
    written[1].write_text(page(REPORT.read_text()))
    for file, text in files().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        written.append(file)
    written += pictures.save(drawn(), paths.REPOSITORY / "figures")
    for stale in {*(REPORT.parent / "tables").glob("*.csv"), *(paths.REPOSITORY / "figures").glob("*.png")} - {
        *written
    }:
        stale.unlink()
    return written


def drawn() -> dict:
    """Every figure of the report by name: tables, curves, the three stages, and what they say of the same images."""
    from cassl_lib import plotting

    found = {"pipeline": plotting.pipeline_figure()}
    for profile in profiles():
        tables = tables_of(profile)
        found[f"curves_{profile}"] = plotting.table_curves(compare.curves(tables))
        for table, collected in tables.items():
            found[file_stem(table, profile)] = plotting.table_chart(*compare.chart_data(collected))
    for file in picture_files():
        found |= pictures.draw(json.loads(file.read_text()))
    return found


def page(text: str) -> str:
    """The report as one HTML page."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    style = "body{font-family:sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .6em;border:1px solid #ccc}"
    style += "table{border-collapse:collapse}img{max-width:100%}"
    title = html.escape(text.splitlines()[0].lstrip("# "))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f"{head}\n{markdown2html_mistune(text)}\n</html>\n"
