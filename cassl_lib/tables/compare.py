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
    7: "Scale of the unlabeled images",
    9: "Parts initialized from the warmed-up model",
    "threshold": "Threshold of the pseudo labels",
}
# (table, name, the row and column said to be ahead, those said to be behind): what the paper says
DET, WARM = "finetuned det AP", "warm-up entity AP"
CLAIMS = (
    (1, "the gap is smaller without classes", None, None),
    (2, "a warm-up on objects (P,A) beats ImageNet", ("Objects (P,A)", DET), ("ImageNet", DET)),
    (2, "pseudo labels beat ground truth as warm-up", ("Objects (P,A)", DET), ("Objects (G,A)", DET)),
    (2, "labels without classes beat labels with them", ("Objects (P,A)", DET), ("Objects (P,S)", DET)),
    (2, "entities beat objects in box AP", ("Entities (P,A)", DET), ("Objects (P,A)", DET)),
    (2, "entities beat objects in PQ", ("Entities (P,A)", "finetuned PQ"), ("Objects (P,A)", "finetuned PQ")),
    (3, "a warm-up of 60 epochs beats one of 12", ("60 (5x)", "AP"), ("12 (1x)", "AP")),
    (4, "finetuned for 36 epochs, a warm-up of 60 beats one of 12", ("3x", "5x"), ("3x", "1x")),
    (5, "a stronger labeler warms up better", ("warmed-up target detector", "5"), ("warmed-up target detector", "1")),
    (6, "a strong augmentation helps the warm-up", ("weak", f"strong, {WARM}"), ("weak", f"weak, {WARM}")),
    (6, "strong in both stages beats weak in both", ("strong", f"strong, {DET}"), ("weak", f"weak, {DET}")),
    (7, "the largest pool beats the smallest, warmed up", ("Large", WARM), ("Tiny", WARM)),
    (7, "the largest pool beats the smallest, after finetuning", ("Large", DET), ("Tiny", DET)),
    (9, "the backbone alone beats nothing", ("backbone", "AP"), ("nothing", "AP")),
    (9, "neck and head add to the backbone", ("backbone, neck, head", "AP"), ("backbone", "AP")),
)
# Two-sided 95 % points of Student's t, by degrees of freedom: three seeds have two.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def heading(table: int | str) -> str:
    """`Table 3: Epochs of the warm-up`; what the paper has no table for stands by its own name."""
    return f"Table {table}: {TITLES[table]}" if isinstance(table, int) else TITLES[table]


def printed(table: int | str, row: str, column: str) -> float | None:
    """The paper's number, in percent; None where it prints none."""
    whole = {1: paper.TABLE1, 2: paper.TABLE2, 3: paper.TABLE3, 4: paper.TABLE4, 7: paper.TABLE7, 9: paper.TABLE9}
    if table == 5:
        return paper.TABLE5[row][int(column) - 1]
    if table == 6:
        warming, _, number = column.partition(", ")
        return paper.TABLE6[row][warming][number]
    return whole[table][row].get(column) if table in whole else None


def columns(table: int | str, rows: Mapping[str, Mapping]) -> list[str]:
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
    title = f"{heading(collected['table'])}; profile {collected['profile']}"
    runs = runs_of(collected)
    cost = f"{len(runs)} runs, {sum(run['seconds'] for run in runs.values()) / 3600:.2f} h one after the other"
    shown = [title, cost, form.format(*head), *(form.format(*line) for line in body)]
    return "\n".join(line.rstrip() for line in shown)


def paired(rows: Mapping, ahead: tuple[str, str], behind: tuple[str, str]) -> dict[str, float]:
    """Differences times 100 of two cells, each a row and a column, by the seeds that both have."""
    first, second = (rows.get(row, {}).get(column, {}) for row, column in (ahead, behind))
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    return {seed: 100 * (first[seed] - second[seed]) for seed in seeds}


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
    for table, claim, ahead, behind in CLAIMS:
        if only not in (None, table):
            continue
        rows = collected.get(table, {}).get("rows", {})
        differences = list((paired(rows, ahead, behind) if ahead else _gap_difference(rows)).values())
        line = {"table": table, "claim": claim, "differences": differences, "verdict": verdict(differences)}
        found.append(line | {"paper": _claimed(table, ahead, behind)})
    return found


def _claimed(table: int, ahead: tuple[str, str] | None, behind: tuple[str, str] | None) -> float | None:
    if ahead is None:
        return paper.TEXT["table 1, class-specific gap"] - paper.TEXT["table 1, class-agnostic gap"]
    first, second = printed(table, *ahead), printed(table, *behind)
    return None if first is None or second is None else first - second


def _gap_difference(rows: Mapping) -> dict[str, float]:
    """Of Table 1, seed by seed: the gap with classes minus the gap without."""
    truth, pseudo = "COCO train2017", "COCO unlabeled"
    names = ("class-specific AP", "class-agnostic AP")
    specific, agnostic = (paired(rows, (truth, name), (pseudo, name)) for name in names)
    return {seed: specific[seed] - agnostic[seed] for seed in specific if seed in agnostic}


CURVES = (  # title, what runs along the axis, and lines: table, row or None for all rows, column or None for all
    ("length of the warm-up", "epochs, the profile's own length as 60", (3, None, "AP")),
    ("scale of the pool", "images, those of tiny as 1", (7, None, WARM), (7, None, DET)),
    ("strength of the labeler", "AP of the labeler", (5, "warmed-up target detector", None)),
    ("threshold of the labels", "threshold", ("threshold", None, WARM), ("threshold", None, DET)),
)


def curves(tables: Mapping[int | str, Mapping]) -> list[dict]:
    """AP along what four tables vary.

    Returns:
        For each panel `title`, `along`, and `lines`: by name the points (x, AP) here and the paper's.
    """
    panels = []
    for title, along, *lines in CURVES:
        found = {}
        for table, row, column in lines:
            rows = tables.get(table, {}).get("rows", {})
            cells = [(name, column) for name in rows] if row is None else [(row, each) for each in columns(table, rows)]
            name = "warmed-up detector" if column in (None, "AP") else column
            places = {cell: _place(table, cell, rows) for cell in cells}
            ours = [(places[cell][0], values(rows.get(cell[0], {}).get(cell[1], {}))) for cell in cells]
            theirs = [(places[cell][1], printed(table, *cell)) for cell in cells]
            found[name] = {
                "here": [(x, statistics.mean(numbers)) for x, numbers in ours if numbers and x is not None],
                "paper": [(x, y) for x, y in theirs if x is not None and y is not None],
            }
        panels.append({"title": title, "along": along, "lines": found})
    return panels


def _place(table: int | str, cell: tuple[str, str], rows: Mapping) -> tuple[float | None, float | None]:
    """Where a cell stands along its axis, here and in the paper."""
    row, column = cell
    if table == 3:
        epochs = float(row.split()[0])
        return epochs, epochs
    if table == 5:
        strength = values(rows.get("pseudo labeler", {}).get(column, {}))
        return statistics.mean(strength) if strength else None, paper.TABLE5["pseudo labeler"][int(column) - 1]
    if table == 7:  # the scenes keep the ratios up to 7 %: 1 : 5.5 : 15 : 31
        size = paper.TABLE7[row]["images"] / paper.TABLE7["Tiny"]["images"]
        return size, size
    return float(row), None


def chart_data(collected: Mapping) -> tuple[dict, dict]:
    """What `plotting.table_chart` draws: by row and column our numbers times 100, and the paper's."""
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
