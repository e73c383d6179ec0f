"""The tables in the paper's own layout, as data that Markdown, HTML and notebooks share.

Number   the seeds' numbers of one metric, and the paper's
Cell     a heading, words, or numbers
Layout   caption, header rows, body rows
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cassl_lib import paper
from cassl_lib.tables.compare.cells import DET, WARM, heading, printed, runs_of, values

MISSING = "—"
TICK = "✓"
NO_PART = "nothing"  # the row of Table 9 without any initialized part
LEGEND = "Upper numbers: ours, mean ± std over seeds. Lower numbers: the paper's."
PAIRS = " Pairs: AP after the warm-up, AP after finetuning."


@dataclass(frozen=True)
class Number:
    """One metric of a cell, in percent."""

    ours: tuple[float, ...] = ()  # one per seed; empty: not measured
    paper: float | None = None  # None: the paper does not print it


@dataclass(frozen=True)
class Cell:
    """A cell: words, or one or more numbers, which are shown as ours over the paper's."""

    text: str = ""
    numbers: tuple[Number, ...] = ()
    span: int = 1  # columns
    link: str = ""  # address, relative to the file that shows the table
    code: bool = False  # a name of a file or a run


@dataclass(frozen=True)
class Layout:
    """A table: the cells of its header rows and body rows, each row over the same number of columns."""

    caption: str
    header: tuple[tuple[Cell, ...], ...]
    body: tuple[tuple[Cell, ...], ...]
    named: int = 1  # columns on the left that name the row
    legend: str = ""  # how to read a cell

    @property
    def width(self) -> int:
        return sum(cell.span for cell in self.header[-1])

    @property
    def with_paper(self) -> bool:
        """Whether any cell has a number of the paper."""
        return any(number.paper is not None for row in self.body for cell in row for number in cell.numbers)


def plain(caption: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> Layout:
    """A table of words, with one header row."""
    rows = (header, *body)
    first, *rest = (tuple(Cell(text) for text in row) for row in rows)
    return Layout(caption, (first,), tuple(rest))


def layout(collected: Mapping) -> Layout:
    """A collected table as the paper lays it out, with our numbers over the paper's."""
    table = collected["table"]
    header, body, named = LAYOUTS[table](collected)
    return Layout(caption(collected), _cells(header), _cells(body), named, LEGEND + (PAIRS if table == 6 else ""))


def caption(collected: Mapping) -> str:
    """The table, the profile, its seeds, the hardware, when the runs were made; several commits, if so."""
    seeds = ("seed " if len(collected["seeds"]) == 1 else "seeds ") + listed(collected["seeds"])
    commits = commits_of(runs_of(collected).values())
    return f"{heading(collected['table'])}. Profile {collected['profile']}, {seeds}, {made(collected)}.{commits}"


def commits_of(runs: Iterable[Mapping]) -> str:
    """A sentence that lists the commits of runs if there are several: their numbers may not belong together."""
    commits = sorted({run["commit"] for run in runs if "commit" in run})
    return f" The runs are of {len(commits)} revisions of the code: {listed(commits)}." if len(commits) > 1 else ""


def made(collected: Mapping) -> str:
    """`on 2 CPU cores, 2026-11-21 to 2026-11-22`: where and when the runs of a table were made."""
    runs = runs_of(collected).values()
    if not runs:
        return "no finished runs"
    devices, days = (sorted({run[name] for run in runs}) for name in ("device", "date"))
    return f"on {listed(devices)}, {' to '.join(dict.fromkeys([days[0], days[-1]]))}"


def listed(names: Sequence) -> str:
    """`0, 1 and 2`."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def _cells(rows: Sequence[Sequence]) -> tuple[tuple[Cell, ...], ...]:
    """Strings become cells of words, pairs of a string and a number of columns headings of column groups."""
    return tuple(tuple(_cell(each) for each in row) for row in rows)


def _cell(content: Cell | str | tuple[str, int]) -> Cell:
    if isinstance(content, Cell):
        return content
    return Cell(content) if isinstance(content, str) else Cell(content[0], span=content[1])


def _number(collected: Mapping, row: str, column: str) -> Number:
    ours = values(collected["rows"].get(row, {}).get(column, {}))
    return Number(tuple(ours), printed(collected["table"], row, column))


def _numbers(collected: Mapping, row: str, columns: Sequence[str]) -> list[Cell]:
    return [Cell(numbers=(_number(collected, row, column),)) for column in columns]


def _rows(collected: Mapping, columns: Sequence[str], names: Mapping[str, str] | None = None) -> list[list]:
    """One row per row of the table; `names` are its display names."""
    return [[(names or {}).get(row, row), *_numbers(collected, row, columns)] for row in collected["rows"]]


def _table1(collected: Mapping) -> tuple:
    columns = ("class-specific AP", "class-agnostic AP")
    header = [["training set", "annotation", *columns]]
    body = [
        [row, paper.TABLE1.get(row, {}).get("annotation", ""), *_numbers(collected, row, columns)]
        for row in collected["rows"]
    ]
    return header, [*body, ["gap", "", *(Cell(numbers=(_gap(collected, column),)) for column in columns)]], 2


def _gap(collected: Mapping, column: str) -> Number:
    """Table 1: AP with ground truth minus AP with pseudo labels, by seed."""
    both = [collected["rows"].get(row, {}).get(column, {}) for row in paper.TABLE1]
    seeds = [seed for seed in both[0] if both[0][seed] is not None and both[1].get(seed) is not None]
    ours = tuple(100 * (both[0][seed] - both[1][seed]) for seed in seeds)
    theirs = [printed(1, row, column) for row in paper.TABLE1]
    return Number(ours, theirs[0] - theirs[1])


def _table2(collected: Mapping) -> tuple:
    groups = ["warm-up", ("warmed-up model", 4), ("finetuned model", 3)]
    names = [
        "training data",
        "object box AP",
        "object mask AP",
        "cls-specific AP",
        "entity AP",
        "box AP",
        "mask AP",
        "PQ",
    ]
    return [groups, names], _rows(collected, paper.TABLE2_COLUMNS), 1


def _table3(collected: Mapping) -> tuple:
    columns = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return [["epochs", *columns]], _rows(collected, columns), 1


def _table4(collected: Mapping) -> tuple:
    units = ("1x", "2x", "3x", "4x", "5x")
    header = [["", ("warm-up", len(units))], ["finetuning", *units]]
    return header, _rows(collected, units), 1


def _table5(collected: Mapping) -> tuple:
    places = ("1", "2", "3", "4", "5")
    names = {"pseudo labeler": "pseudo labeler (AP)", "warmed-up target detector": "warmed-up target detector (AP)"}
    return [["", "1 (weakest)", "2", "3", "4", "5 (strongest)"]], _rows(collected, places, names), 1


def _table6(collected: Mapping) -> tuple:
    kinds = ("weak", "strong")
    header = [["", ("warm-up augmentation", 2)], ["finetuning augmentation", *kinds]]
    body = []
    for row in collected["rows"]:
        pairs = [tuple(_number(collected, row, f"{kind}, {metric}") for metric in (WARM, DET)) for kind in kinds]
        body.append([row, *(Cell(numbers=pair) for pair in pairs)])
    return header, body, 1


def _table7(collected: Mapping) -> tuple:
    header = [["setting", "images (ours)", "images (paper)", "warm-up model (AP)", "finetuned model (AP)"]]
    pools = _pool_sizes(collected)
    body = []
    for row in collected["rows"]:
        theirs = paper.TABLE7.get(row, {}).get("images")
        sizes = [f"{size:,}" if size else MISSING for size in (pools.get(row.lower()), theirs)]
        body.append([row, *sizes, *_numbers(collected, row, (WARM, DET))])
    return header, body, 1


def _pool_sizes(collected: Mapping) -> dict[str, int]:
    """The number of images of each pool that was labeled, from the facts of the labeling runs."""
    labeled = [run for run in runs_of(collected).values() if "labels" in run]
    return {run["what"].split()[0]: run["labels"]["images"] for run in labeled}


def _table9(collected: Mapping) -> tuple:
    """Ticks for the parts; what else a row's name says, such as another learning rate, has a column of its own."""
    parts, columns = ("backbone", "neck", "head", "classifier"), ("AP", "AP50", "AP75")
    named = {row: row.split(", ") for row in collected["rows"]}
    others = {row: ", ".join(word for word in words if word not in (*parts, NO_PART)) for row, words in named.items()}
    with_others = any(others.values())
    body = []
    for row, words in named.items():
        ticks = [TICK if part in words else "" for part in parts]
        body.append([*ticks, *([others[row]] if with_others else []), *_numbers(collected, row, columns)])
    return [[*parts, *(["option"] if with_others else []), *columns]], body, 0


def _threshold(collected: Mapping) -> tuple:
    return [["threshold", "warm-up model (AP)", "finetuned model (AP)"]], _rows(collected, (WARM, DET)), 1


def _shift(collected: Mapping) -> tuple:
    return [["unlabeled images", "warm-up model (AP)", "finetuned model (AP)"]], _rows(collected, (WARM, DET)), 1


LAYOUTS: dict[int | str, Callable[[Mapping], tuple]] = {
    1: _table1,
    2: _table2,
    3: _table3,
    4: _table4,
    5: _table5,
    6: _table6,
    7: _table7,
    9: _table9,
    "threshold": _threshold,
    "shift": _shift,
}
"""Header rows, body rows and the number of row-naming columns of each table."""
