"""A collected table beside the paper's: mean and spread over seeds, gaps, claims; blank where a number is missing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from cassl_lib import paper

TITLES = {
    1: "Quality gap of pseudo labels",
    2: "Data of the warm-up",
    3: "Epochs of the warm-up",
    4: "Epochs of warm-up (columns) and finetuning (rows), in units of 12",
    5: "Strength of the pseudo labeler",
    6: "Weak and strong augmentation",
    7: "Scale of the unlabelled images",
    9: "Parts initialised from the warmed-up model",
}
# (table, name, the row and column that claims to be ahead, those it claims to beat): what the paper says
CLAIMS = (
    (1, "the gap is smaller without classes", None, None),
    (2, "a warm-up on objects (P,A) beats ImageNet", ("Objects (P,A)", "ImageNet"), "finetuned det AP"),
    (2, "pseudo labels beat ground truth as warm-up", ("Objects (P,A)", "Objects (G,A)"), "finetuned det AP"),
    (2, "labels without classes beat labels with them", ("Objects (P,A)", "Objects (P,S)"), "finetuned det AP"),
    (2, "entities beat objects in box AP", ("Entities (P,A)", "Objects (P,A)"), "finetuned det AP"),
    (2, "entities beat objects in PQ", ("Entities (P,A)", "Objects (P,A)"), "finetuned PQ"),
    (3, "a warm-up of 60 epochs beats one of 12", ("60 (5x)", "12 (1x)"), "AP"),
    (7, "the largest pool beats the smallest, after finetuning", ("Large", "Tiny"), "finetuned det AP"),
    (7, "the largest pool beats the smallest, warmed up", ("Large", "Tiny"), "warm-up entity AP"),
    (9, "the backbone alone beats nothing", ("backbone", "nothing"), "AP"),
    (9, "neck and head add to the backbone", ("backbone, neck, head", "backbone"), "AP"),
)
# Two-sided 95 % points of Student's t, by degrees of freedom: three seeds have two.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def printed(table: int, row: str, column: str) -> float | None:
    """The paper's number, in percent; None where it prints none."""
    whole = {1: paper.TABLE1, 2: paper.TABLE2, 3: paper.TABLE3, 4: paper.TABLE4, 7: paper.TABLE7, 9: paper.TABLE9}
    if table == 5:
        return paper.TABLE5[row][int(column) - 1]
    if table == 6:
        warming, _, number = column.partition(", ")
        return paper.TABLE6[row][warming][number]
    return whole[table][row].get(column)


def columns(table: int, rows: Mapping[str, Mapping]) -> list[str]:
    """The columns in which the paper or any row has a number, the paper's first."""
    whole = {2: paper.TABLE2_COLUMNS, 3: paper.TABLE3["12 (1x)"], 4: paper.TABLE4["1x"], 5: "12345"}
    ours = (column for cells in rows.values() for column in cells)
    return list(dict.fromkeys([*whole.get(table, ()), *ours]))


def values(cell: Mapping[str, float | None]) -> list[float]:
    """The seeds' numbers that are there, times 100."""
    return [100 * value for value in cell.values() if value is not None]


def cell_text(cell: Mapping[str, float | None] | None) -> str:
    """`43.2 ± 0.4 (3)`: mean, standard deviation and number of seeds; blank without any."""
    found = values(cell or {})
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}" + (f" ({len(found)})" if len(found) > 1 else "")


def lines(collected: Mapping) -> list[list[str]]:
    """A line for each row and column: row, column, the paper's number, ours, the gap. Blank cells where none is."""
    found = []
    for row, cells in collected["rows"].items():
        for column in columns(collected["table"], collected["rows"]):
            theirs, ours = printed(collected["table"], row, column), values(cells.get(column, {}))
            gap = f"{statistics.mean(ours) - theirs:+.1f}" if ours and theirs is not None else ""
            if theirs is not None or ours:
                shown = "" if theirs is None else f"{theirs:.1f}"
                found.append([row, column, shown, cell_text(cells.get(column)), gap])
    return found


def runs_of(collected: Mapping) -> dict[str, dict]:
    """What is known of each run of a table, by its name, whichever seed it is of."""
    return {name: run for runs in collected["runs"].values() for name, run in runs.items()}


def text(collected: Mapping) -> str:
    """The table as aligned text for a shell or a notebook."""
    head = ["row", "column", "paper", "here", "gap"]
    body = lines(collected)
    widths = [max(map(len, each)) for each in zip(head, *body, strict=True)]
    form = "  ".join(f"{{:{'<' if place < 2 else '>'}{width}}}" for place, width in enumerate(widths))
    title = f"Table {collected['table']}, {TITLES[collected['table']]}: profile {collected['profile']}"
    runs = runs_of(collected)
    cost = f"{len(runs)} runs, {sum(run['seconds'] for run in runs.values()) / 3600:.2f} h of this machine"
    shown = [title, cost, form.format(*head), *(form.format(*line) for line in body)]
    return "\n".join(line.rstrip() for line in shown)


def paired(rows: Mapping, ahead: str, behind: str, column: str) -> list[float]:
    """Differences times 100 of two rows, seed by seed."""
    first, second = (rows.get(name, {}).get(column, {}) for name in (ahead, behind))
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    return [100 * (first[seed] - second[seed]) for seed in seeds]


def verdict(differences: list[float]) -> str:
    """What paired differences say of "the first row is ahead": holds, does not hold, undecided, or not measured.

    It holds, or does not, where the 95 % interval of the mean lies on one side of 0; one seed decides nothing.
    """
    if not differences:
        return "not measured"
    if len(differences) == 1:
        return "undecided: one seed"
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    reach = STUDENT[min(len(differences) - 1, 9)] * error
    if abs(mean) <= reach:
        return "undecided"
    return "holds" if mean > 0 else "does not hold"


def claims(collected: Mapping[int, Mapping], only: int | None = None) -> list[dict]:
    """The paper's claims, or those of one table, with the paired differences of the collected tables, by number."""
    found = []
    for table, claim, pair, column in CLAIMS:
        if only not in (None, table):
            continue
        rows = collected.get(table, {}).get("rows", {})
        differences = _gap_difference(rows) if pair is None else paired(rows, *pair, column)
        line = {"table": table, "claim": claim, "differences": differences, "verdict": verdict(differences)}
        found.append(line | {"paper": _claimed(table, pair, column)})
    return found


def _claimed(table: int, pair: tuple | None, column: str | None) -> float | None:
    if pair is None:
        return paper.TEXT["table 1, class-specific gap"] - paper.TEXT["table 1, class-agnostic gap"]
    ahead, behind = (printed(table, name, column) for name in pair)
    return None if ahead is None or behind is None else ahead - behind


def _gap_difference(rows: Mapping) -> list[float]:
    """Of Table 1, seed by seed: the gap with classes minus the gap without."""
    specific = paired(rows, "COCO train2017", "COCO unlabeled", "class-specific AP")
    agnostic = paired(rows, "COCO train2017", "COCO unlabeled", "class-agnostic AP")
    return [first - second for first, second in zip(specific, agnostic, strict=False)]


def chart_data(collected: Mapping) -> tuple[dict, dict]:
    """What `charts.table_chart` draws: by row and column our numbers times 100, and the paper's."""
    table, rows = collected["table"], collected["rows"]
    names = columns(table, rows)
    ours = {row: {name: values(cells.get(name, {})) for name in names} for row, cells in rows.items()}
    return ours, {row: {name: printed(table, row, name) for name in names} for row in rows}


def _seeds(differences: list[float]) -> str:
    return "1 seed" if len(differences) == 1 else f"{len(differences)} seeds"


def claims_text(found: list[dict]) -> str:
    """A line a claim: the verdict at this scale, the mean difference with its seeds, the paper's."""
    said = []
    for claim in found:
        differences, theirs = claim["differences"], claim["paper"]
        ours = f"{statistics.mean(differences):+.1f} over {_seeds(differences)}" if differences else "blank"
        paper_says = f"{theirs:+.1f}" if theirs is not None else "no number"
        said.append(f"Table {claim['table']}: {claim['claim']}: {claim['verdict']} (here {ours}, paper {paper_says})")
    return "\n".join(said) or "The paper claims nothing here that two rows could decide."
