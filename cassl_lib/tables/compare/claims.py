"""The paper's claims, and whether our numbers support them: paired differences over seeds with a 95% interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cassl_lib import paper
from cassl_lib.tables.compare.cells import DET, WARM, printed
from cassl_lib.tables.compare.charts import written_out

MASK, PQ = "finetuned mask AP", "finetuned PQ"

# table, claim, the row and column that is said to be higher, the row and column that is said to be lower
CLAIMS = (
    (1, "class-agnostic pseudo labels have a smaller quality gap than class-specific ones", None, None),
    (2, "CA-SSL is better than the best baseline of several lengths", ("Objects (P,A)", DET), ("ImageNet", DET)),
    (2, "CA-SSL is better than the best baseline, in mask AP", ("Objects (P,A)", MASK), ("ImageNet", MASK)),
    (
        2,
        "pseudo labels on unlabeled images are a better warm-up than ground truth on labeled ones",
        ("Objects (P,A)", DET),
        ("Objects (G,A)", DET),
    ),
    (
        2,
        "class-agnostic pseudo labels are a better warm-up than class-specific ones",
        ("Objects (P,A)", DET),
        ("Objects (P,S)", DET),
    ),
    (2, "entities are a better warm-up than objects, in box AP", ("Entities (P,A)", DET), ("Objects (P,A)", DET)),
    (2, "entities are a better warm-up than objects, in PQ", ("Entities (P,A)", PQ), ("Objects (P,A)", PQ)),
    (3, "60 epochs of warm-up give a better warmed-up model than 12", ("60 (5x)", "AP"), ("12 (1x)", "AP")),
    (4, "before 36 epochs of finetuning, a warm-up of 60 epochs is better than one of 12", ("3x", "5x"), ("3x", "1x")),
    (
        5,
        "a stronger pseudo labeler leads to a stronger target detector",
        ("warmed-up target detector", "5"),
        ("warmed-up target detector", "1"),
    ),
    (6, "strong augmentation improves the warmed-up model", ("weak", f"strong, {WARM}"), ("weak", f"weak, {WARM}")),
    (
        6,
        "strong augmentation in both stages is better than weak augmentation in both",
        ("strong", f"strong, {DET}"),
        ("weak", f"weak, {DET}"),
    ),
    (7, "more unlabeled images (large against tiny) improve the warmed-up model", ("Large", WARM), ("Tiny", WARM)),
    (7, "more unlabeled images (large against tiny) improve the finetuned model", ("Large", DET), ("Tiny", DET)),
    (
        9,
        "initializing the backbone alone improves over the best baseline",
        ("backbone", "AP"),
        ("nothing", "AP"),
    ),
    (
        9,
        "initializing neck and head adds to initializing the backbone",
        ("backbone, neck, head", "AP"),
        ("backbone", "AP"),
    ),
)
STUDENT_CLAIM = "the warmed-up model is better than its pseudo labeler, in class-agnostic AP"
# Two-sided 95% quantiles of Student's t by degrees of freedom: five seeds have four.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what our seeds say about it.

    Attributes:
        table: its table; "chain" for the main chain, whose numbers are not in a table.
        compared: the two cells, `Objects (P,A) minus ImageNet, finetuned det AP`.
        by_seed: by seed, the difference in percent.
        paper: the paper's difference in percent; None if it prints none.
    """

    table: int | str
    text: str
    compared: str
    by_seed: Mapping[str, float] = field(default_factory=dict)
    paper: float | None = None

    @property
    def differences(self) -> list[float]:
        return list(self.by_seed.values())

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.differences) if self.by_seed else None

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.differences) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the mean difference; None with fewer than two seeds."""
        return interval(self.differences)

    @property
    def verdict(self) -> str:
        return verdict(self.differences)

    @property
    def mean_text(self) -> str:
        return _signed(self.mean)

    @property
    def interval_text(self) -> str:
        """`+0.02 to +1.87`: two decimals, so that an end next to zero shows its side."""
        return "" if self.interval is None else " to ".join(_signed(end, 2) for end in self.interval)

    @property
    def cells(self) -> list[str]:
        """What tables of claims show, see `CLAIM_COLUMNS`."""
        std = "" if self.std is None else f"{self.std:.1f}"
        numbers = [str(len(self.by_seed)), self.mean_text, std, self.interval_text, _signed(self.paper)]
        return [self.text, self.compared, *numbers, self.verdict]


CLAIM_COLUMNS = ["claim", "compared", "seeds", "mean", "std", "95% interval", "paper", "verdict"]


def paired(rows: Mapping, higher: tuple[str, str], lower: tuple[str, str]) -> dict[str, float]:
    """Differences of two cells in percent, for each seed that has both. A cell is a row and a column."""
    first, second = (rows.get(row, {}).get(column, {}) for row, column in (higher, lower))
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    return {seed: 100 * (first[seed] - second[seed]) for seed in seeds}


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95% confidence interval of the mean of paired differences, by Student's t; None with fewer than two.

    Beyond ten seeds the quantile of ten is used, which makes the interval slightly too wide.
    """
    if len(differences) < 2:
        return None
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    half = STUDENT[min(len(differences) - 1, 9)] * error
    return mean - half, mean + half


def verdict(differences: Sequence[float]) -> str:
    """Whether paired differences support "the first cell is higher": holds, does not hold, undecided, not measured.

    A claim holds, or does not, if the 95% confidence interval of the mean difference excludes 0. One seed decides
    nothing.
    """
    if not differences:
        return "not measured"
    if len(differences) == 1:
        return "undecided: one seed"
    low, high = interval(differences)
    if low <= 0 <= high:
        return "undecided"
    return "holds" if low > 0 else "does not hold"


def claims(collected: Mapping[int | str, Mapping], only: int | str | None = None) -> list[Claim]:
    """The paper's claims about all tables, or about one.

    Args:
        collected: the collected tables, by number.
    """
    judged = []
    for table, text, higher, lower in CLAIMS:
        if only in (None, table):
            rows = collected.get(table, {}).get("rows", {})
            differences = paired(rows, higher, lower) if higher else gap_differences(rows)
            theirs = _papers_difference(table, higher, lower)
            judged.append(Claim(table, text, _compared(table, higher, lower), differences, theirs))
    return judged


def chain_claims(chains: Sequence[Mapping], split: str) -> list[Claim]:
    """Claims about the main chain whose numbers are in no table.

    Args:
        chains: recorded summaries of one profile and pool, one per seed.
        split: the pool. The paper's difference is of entities: Table 7 minus the pseudo labeler of Table 5.
    """
    first, second = "warmup_agnostic_ap", "labeler_agnostic_ap"
    both = [chain for chain in chains if chain[first] is not None and chain[second] is not None]
    differences = {str(chain["seed"]): 100 * (chain[first] - chain[second]) for chain in both}
    theirs = paper.TABLE7.get(split.capitalize(), {}).get(WARM)
    gap = None if theirs is None else theirs - paper.TABLE5["pseudo labeler"][-1]
    compared = "warmed-up model minus pseudo labeler, class-agnostic AP"
    return [Claim("chain", STUDENT_CLAIM, compared, differences, gap)]


def gap_differences(rows: Mapping) -> dict[str, float]:
    """Table 1, by seed: the class-specific gap minus the class-agnostic gap."""
    human, pseudo = paper.TABLE1
    columns = ("class-specific AP", "class-agnostic AP")
    specific, agnostic = (paired(rows, (human, column), (pseudo, column)) for column in columns)
    return {seed: specific[seed] - agnostic[seed] for seed in specific if seed in agnostic}


def _signed(value: float | None, digits: int = 1) -> str:
    """`+0.4`; zero has a plus sign."""
    return "" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def _compared(table: int, higher: tuple[str, str] | None, lower: tuple[str, str] | None) -> str:
    """Two cells in words; a row or column that both share is named once."""
    if higher is None or lower is None:
        return "class-specific gap minus class-agnostic gap"
    (row, column), (other_row, other_column) = (written_out(table, *cell) for cell in (higher, lower))
    if column == other_column:
        return f"{row} minus {other_row}, {column}"
    if row == other_row:
        return f"{column} minus {other_column}, {row}"
    return f"{row}, {column}, minus {other_row}, {other_column}"


def _papers_difference(table: int, higher: tuple[str, str] | None, lower: tuple[str, str] | None) -> float | None:
    if higher is None or lower is None:
        return paper.TEXT["table 1, class-specific gap"] - paper.TEXT["table 1, class-agnostic gap"]
    first, second = printed(table, *higher), printed(table, *lower)
    return None if first is None or second is None else first - second
