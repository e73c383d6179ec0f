"""Sections of the report about the paper's tables: the regime, each table with its chart, what the runs cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cassl_lib.data.scenes.scene import SceneSpec
from cassl_lib.profiles import PROFILES
from cassl_lib.report.blocks import NOTHING, Block, Picture
from cassl_lib.report.pictures import length_figure
from cassl_lib.stages.registry import STAGES
from cassl_lib.tables import compare, results
from cassl_lib.tools.plan.cost import duration

FIGURES = "../figures"  # from reports/


def profiles() -> list[str]:
    """The profiles with recorded tables, the largest scale last."""
    return [profile for profile in PROFILES if profile != "smoke" and results.recorded(profile)]


def regime() -> Sequence[Block]:
    """The numbers of scenes and the lengths of training of the profiles of scenes."""
    scenes = {name: SceneSpec(**profile["scenes"]) for name, profile in PROFILES.items() if profile["scenes"]}
    names = [name for name in scenes if name != "smoke"]
    body = [
        ["labeled", *(f"{PROFILES[name]['labeled_images'] or scenes[name].train:,}" for name in names)],
        *(
            [f"pool {split}", *(f"{sum(scenes[name].pool[: place + 1]):,}" for name in names)]
            for place, split in enumerate(("tiny", "small", "base", "large"))
        ),
        ["pools that look different, each", *(f"{scenes[name].places:,}" for name in names)],
        ["validation", *(f"{scenes[name].val:,}" for name in names)],
        ["tuning", *(f"{scenes[name].tune:,}" for name in names)],
        ["pixels, long side", *(str(scenes[name].size) for name in names)],
    ]
    for stage in ("pseudo_labeler", "warmup", "finetune"):
        body.append([f"steps, {STAGES[stage].title}", *(f"{PROFILES[name][stage]['steps']:,}" for name in names)])
    lengths = [", ".join(f"{each:g}" for each in PROFILES[name]["baseline_lengths"]) for name in names]
    body.append(["baselines, in lengths of finetuning", *lengths])
    return [compare.plain("", ["", *(f"profile {name}" for name in names)], body)]


def table(number: int | str) -> Sequence[Block]:
    """A table in the paper's layout, its lengths of training and its chart, for every profile that has it."""
    blocks: list[Block] = []
    for profile in profiles():
        collected = results.recorded(profile).get(number)
        if collected is None:
            continue
        layout = compare.layout(collected)
        file = f"{FIGURES}/{results.file_stem(number, profile)}.png"
        both = "our numbers and the paper's" if layout.with_paper else "our numbers"
        title = f"{compare.heading(number)}, profile {profile}"
        chart = Picture(file, f"Chart of the table above: {both}.", f"{title}: {both} on common axes.")
        blocks += [layout, *compare.lengths(collected), chart]
    return blocks or NOTHING


def curves() -> Sequence[Block]:
    """One figure per profile: AP along the warm-up's length, the pool's size, the labeler's AP, the threshold."""
    caption = "AP along what Tables 3, 7 and 5 and the threshold vary, profile {}. The paper has no threshold curve."
    alt = "Four panels of AP over warm-up length, pool size, pseudo labeler AP and threshold, ours and the paper's."
    pictures = [Picture(f"{FIGURES}/curves_{name}.png", alt, caption.format(name)) for name in profiles()]
    return pictures or NOTHING


def baseline_lengths() -> Sequence[Block]:
    """One figure per profile: the baseline over its length, beside the detectors that were warmed up."""
    alt = "AP of the baseline over its number of training steps, with lines for Objects (G,A) and CA-SSL."
    caption = "Box AP over the length of training, profile {}: mean ± std over seeds (Table 2)."
    return [
        Picture(f"{FIGURES}/{name}.png", alt, caption.format(profile)) for profile, name in length_names().items()
    ] or NOTHING


def length_names() -> dict[str, str]:
    """By profile, the name of that figure; without profiles whose Table 2 is not complete enough for it."""
    tables = {profile: results.recorded(profile).get(2) for profile in profiles()}
    return {
        profile: f"lengths_{profile}" for profile, collected in tables.items() if collected and length_figure(collected)
    }


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
