"""The paper's claims about its tables, and whether our numbers support them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from cassl_lib import paper
from cassl_lib.tables.compare.cells import DET, WARM, printed

# table, claim, the row and column that is said to be higher, the row and column that is said to be lower
CLAIMS = (
    (1, "class-agnostic pseudo labels have a smaller quality gap than class-specific ones", None, None),
    (
        2,
        "warm-up on class-agnostic pseudo labels improves box AP over ImageNet pretraining",
        ("Objects (P,A)", DET),
        ("ImageNet", DET),
    ),
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
    (
        2,
        "entities are a better warm-up than objects, in PQ",
        ("Entities (P,A)", "finetuned PQ"),
        ("Objects (P,A)", "finetuned PQ"),
    ),
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
    (9, "initializing the backbone alone improves over ImageNet pretraining", ("backbone", "AP"), ("nothing", "AP")),
    (
        9,
        "initializing neck and head adds to initializing the backbone",
        ("backbone, neck, head", "AP"),
        ("backbone", "AP"),
    ),
)
# Two-sided 95% quantiles of Student's t by degrees of freedom: three seeds have two.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def paired(rows: Mapping, higher: tuple[str, str], lower: tuple[str, str]) -> dict[str, float]:
    """Differences of two cells in percent, for each seed that has both. A cell is a row and a column."""
    first, second = (rows.get(row, {}).get(column, {}) for row, column in (higher, lower))
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    return {seed: 100 * (first[seed] - second[seed]) for seed in seeds}


def verdict(differences: list[float]) -> str:
    """Whether paired differences support "the first cell is higher": holds, does not hold, undecided, not measured.

    A claim holds, or does not, if the 95% confidence interval of the mean difference excludes 0. One seed decides
    nothing.
    """
    if not differences:
        return "not measured"
    if len(differences) == 1:
        return "undecided: one seed"
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    if abs(mean) <= STUDENT[min(len(differences) - 1, 9)] * error:
        return "undecided"
    return "holds" if mean > 0 else "does not hold"


def claims(collected: Mapping[int, Mapping], only: int | None = None) -> list[dict]:
    """The paper's claims, or those about one table, with the paired differences of the collected tables.

    Args:
        collected: the collected tables, by number.
    Returns:
        Dicts `table`, `claim`, `differences` (by seed, in percent), `verdict`, `paper` (its difference, or None).
    """
    judged = []
    for table, claim, higher, lower in CLAIMS:
        if only not in (None, table):
            continue
        rows = collected.get(table, {}).get("rows", {})
        differences = list((paired(rows, higher, lower) if higher else gap_differences(rows)).values())
        line = {"table": table, "claim": claim, "differences": differences, "verdict": verdict(differences)}
        judged.append(line | {"paper": _papers_difference(table, higher, lower)})
    return judged


def gap_differences(rows: Mapping) -> dict[str, float]:
    """Table 1, by seed: the class-specific gap minus the class-agnostic gap."""
    human, pseudo = paper.TABLE1
    columns = ("class-specific AP", "class-agnostic AP")
    specific, agnostic = (paired(rows, (human, column), (pseudo, column)) for column in columns)
    return {seed: specific[seed] - agnostic[seed] for seed in specific if seed in agnostic}


def claims_text(judged: list[dict]) -> str:
    """One line per claim: the verdict at this scale, our mean difference and its seeds, the paper's difference."""
    lines = []
    for claim in judged:
        differences, theirs = claim["differences"], claim["paper"]
        seeds = "1 seed" if len(differences) == 1 else f"{len(differences)} seeds"
        ours = f"{statistics.mean(differences):+.1f} over {seeds}" if differences else "not measured"
        shown = "no number" if theirs is None else f"{theirs:+.1f}"
        lines.append(f"Table {claim['table']}: {claim['claim']}: {claim['verdict']} (ours {ours}, paper {shown})")
    return "\n".join(lines) or "The paper makes no claim here that two rows could decide."


def _papers_difference(table: int, higher: tuple[str, str] | None, lower: tuple[str, str] | None) -> float | None:
    if higher is None:
        return paper.TEXT["table 1, class-specific gap"] - paper.TEXT["table 1, class-agnostic gap"]
    first, second = printed(table, *higher), printed(table, *lower)
    return None if first is None or second is None else first - second
