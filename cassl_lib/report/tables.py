"""Sections of the report about the paper's tables: each table with its chart, the claims, what the runs cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cassl_lib.profiles import PROFILES
from cassl_lib.report.blocks import NOTHING, Block, Picture
from cassl_lib.tables import compare, results
from cassl_lib.tables.compare import Cell, Layout
from cassl_lib.tools.plan.cost import duration

FIGURES = "../figures"  # from reports/


def profiles() -> list[str]:
    """The profiles with recorded tables, the largest scale last."""
    return [profile for profile in PROFILES if profile != "smoke" and results.recorded(profile)]


def table(number: int | str) -> Sequence[Block]:
    """A table in the paper's layout and its chart, for every profile that has it."""
    blocks: list[Block] = []
    for profile in profiles():
        collected = results.recorded(profile).get(number)
        if collected is None:
            continue
        layout = compare.layout(collected)
        file = f"{FIGURES}/{results.file_stem(number, profile)}.png"
        both = "our numbers and the paper's" if layout.with_paper else "our numbers"
        title = f"{compare.heading(number)}, profile {profile}"
        blocks += [layout, Picture(file, f"Chart of the table above: {both}.", f"{title}: {both} on common axes.")]
    return blocks or NOTHING


def claims() -> Sequence[Block]:
    """The paper's claims, and for each profile the difference of the two cells and the verdict."""
    judged = {profile: compare.claims(results.recorded(profile)) for profile in profiles()}
    if not judged:
        return NOTHING
    groups = [Cell(), Cell(), Cell("paper"), *(Cell(f"ours, profile {profile}", span=2) for profile in judged)]
    names = [Cell("table"), Cell("claim"), Cell("difference"), *(Cell("difference"), Cell("verdict")) * len(judged)]
    body = []
    for lines in zip(*judged.values(), strict=True):
        theirs = "" if lines[0]["paper"] is None else f"{lines[0]['paper']:+.1f}"
        words = [str(lines[0]["table"]), lines[0]["claim"], theirs]
        for claim in lines:
            words += [difference(claim["differences"]), claim["verdict"]]
        body.append(tuple(map(Cell, words)))
    return [Layout("", (tuple(groups), tuple(names)), tuple(body))]


def difference(differences: Sequence[float]) -> str:
    """Mean and standard deviation of paired differences: `+0.9 ± 0.1`; empty without any."""
    if not differences:
        return ""
    std = f" ± {statistics.stdev(differences):.1f}" if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.1f}{std}"


def curves() -> Sequence[Block]:
    """One figure per profile: AP along the warm-up's length, the pool's size, the labeler's AP, the threshold."""
    caption = "AP along what Tables 3, 7 and 5 and the threshold vary, profile {}. The paper has no threshold curve."
    alt = "Four panels of AP over warm-up length, pool size, pseudo labeler AP and threshold, ours and the paper's."
    pictures = [Picture(f"{FIGURES}/curves_{name}.png", alt, caption.format(name)) for name in profiles()]
    return pictures or NOTHING


def cost() -> Sequence[Block]:
    """Runs, time, software and commits of every table. The last line counts a run that tables share once."""
    blocks: list[Block] = []
    for profile in profiles():
        everything: dict[str, dict] = {}
        body = []
        for number, collected in results.recorded(profile).items():
            runs = compare.runs_of(collected)
            everything |= runs
            body.append([compare.heading(number), *_facts(runs)])
        body.append(["all, shared runs counted once", *_facts(everything)])
        names = ["table", "runs", "time", "hardware", "threads", "torch", "dates", "commits"]
        blocks.append(compare.plain(f"Profile {profile}. Time is the sum over runs.", names, body))
    return blocks or NOTHING


def _facts(runs: Mapping[str, Mapping]) -> list[str]:
    names = ("device", "threads", "torch", "date", "commit")
    facts = [", ".join(sorted({run[name] for run in runs.values() if name in run})) for name in names]
    return [str(len(runs)), duration(sum(run["seconds"] for run in runs.values())), *facts]
