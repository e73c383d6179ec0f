"""Sections about the paper's claims: what holds, in words, and a table with every difference and its interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cassl_lib.profiles import PROFILES
from cassl_lib.report.blocks import NOTHING, Block, Items, Words
from cassl_lib.tables import compare, results
from cassl_lib.tables.compare import Claim
from cassl_lib.tables.compare.layouts import commits_of, listed

VERDICTS = {  # how a verdict begins: what one claim does, what several do, heading of their list
    "holds": ("holds", "hold", "Holds"),
    "does not hold": ("does not hold", "do not hold", "Does not hold"),
    "undecided": ("is undecided", "are undecided", "Undecided"),
    "not measured": ("is not measured", "are not measured", ""),
}


def judged() -> dict[str, list[Claim]]:
    """All claims, by profile with any recorded table or chain; the largest scale last."""
    every = {}
    for name, profile in PROFILES.items():
        tables, chains = results.recorded(name), results.chains(name, profile["split"])
        if name != "smoke" and (tables or chains):
            every[name] = compare.claims(tables) + compare.chain_claims(chains, profile["split"])
    return every


def table() -> Sequence[Block]:
    """For each profile, every claim with its seeds, mean difference, standard deviation, interval and verdict."""
    blocks = []
    for profile, claims in judged().items():
        body = [[str(claim.table), *claim.cells] for claim in claims]
        caption = f"Profile {profile}, differences in percent."
        blocks.append(compare.plain(caption, ["table", *compare.CLAIM_COLUMNS], body))
    return blocks or NOTHING


def opening(named: Sequence[str] = tuple(VERDICTS)) -> Sequence[Block]:
    """What holds, what does not and what is undecided, in words, with the main chain's numbers; none if unrecorded.

    Args:
        named: the verdicts whose claims are listed; the others are only counted.
    """
    blocks: list[Block] = []
    for profile, claims in judged().items():
        blocks.append(Words(f"{_scale(profile)} Of {len(claims)} claims, {_counts(claims)}."))
        chains = results.chains(profile, PROFILES[profile]["split"])
        blocks += [Words(_main_chain(chains))] if chains else []
        for verdict in named:
            heading = VERDICTS[verdict][2]
            lines = [_line(claim) for claim in claims if heading and claim.verdict.startswith(verdict)]
            if lines:
                blocks.append(Items(f"{heading}:", tuple(lines)))
    return blocks


def short() -> Sequence[Block]:
    """The same for the README: counts, the main chain, and the claims that do not hold."""
    return opening(("does not hold",))


def _scale(profile: str) -> str:
    if PROFILES[profile]["scenes"] is None:
        return f"Results of the profile {profile}."
    scale = f"Small-scale results (profile {profile}: drawn scenes, a small model)"
    return f"{scale}: only the order of rows can be compared with the paper."


def _counts(claims: Sequence[Claim]) -> str:
    """`9 hold, 1 does not hold, 4 are undecided and 2 are not measured`."""
    parts = []
    for verdict, (one, several, _) in VERDICTS.items():
        count = sum(claim.verdict.startswith(verdict) for claim in claims)
        parts += [f"{count} {one if count == 1 else several}"] if count else []
    return listed(parts)


def _line(claim: Claim) -> str:
    """A claim with its place, mean difference, interval, seeds, and the paper's difference."""
    place = "main chain" if claim.table == "chain" else f"Table {claim.table}"
    seeds = "1 seed" if len(claim.by_seed) == 1 else f"{len(claim.by_seed)} seeds"
    ends = "" if claim.interval is None else f", 95% interval {claim.interval_text}"
    theirs = "" if claim.paper is None else f"; paper {claim.paper:+.1f}"
    return f"{claim.text} ({place}: {claim.mean_text}{ends}, {seeds}{theirs})"


def _main_chain(chains: Sequence[Mapping]) -> str:
    """The main chain's box AP, and student and pseudo labeler beside each other."""

    def shown(key: str) -> str:
        return _mean([100 * chain[key] for chain in chains if chain[key] is not None])

    seeds = f"{'seed' if len(chains) == 1 else 'seeds'} {listed([chain['seed'] for chain in chains])}"
    return (
        f"Main chain, pool {chains[0]['split']}, {seeds}. Box AP after finetuning: CA-SSL {shown('cassl_ap')}, "
        f"the best of the baselines trained for 1 and 4 times as long {shown('baseline_ap')}, "
        f"Objects (G,A) {shown('objects_ga_ap')}. "
        f"Class-agnostic box AP before finetuning: warmed-up model {shown('warmup_agnostic_ap')}, "
        f"its pseudo labeler {shown('labeler_agnostic_ap')}.{commits_of([chain['environment'] for chain in chains])}"
    )


def _mean(numbers: Sequence[float]) -> str:
    std = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{std}" if numbers else "not measured"
