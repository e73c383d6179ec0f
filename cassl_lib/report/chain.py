"""Sections about the chain of stages and its parts: results over seeds, pseudo labels, operating point."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cassl_lib import paper
from cassl_lib.report.blocks import NOTHING, Block, Words
from cassl_lib.report.tables import profiles
from cassl_lib.tables import compare, results
from cassl_lib.tables import operating_point as point
from cassl_lib.tables.compare import Cell, Layout, Number
from cassl_lib.tables.compare.layouts import commits_of, listed

CHAIN = (  # key of a summary, what the table calls it
    ("labeler_agnostic_ap", "pseudo labeler, class-agnostic box AP"),
    ("labeler_agnostic_ap75", "pseudo labeler, class-agnostic box AP75"),
    ("warmup_agnostic_ap", "warmed-up model, class-agnostic box AP"),
    ("warmup_agnostic_ap75", "warmed-up model, class-agnostic box AP75"),
    ("baseline_ap", "baseline of the best length, box AP"),
    ("objects_ga_ap", "Objects (G,A), box AP"),
    ("cassl_ap", "CA-SSL, Objects (P,A), box AP"),
    ("baseline_mask_ap", "baseline of the best length, mask AP"),
    ("objects_ga_mask_ap", "Objects (G,A), mask AP"),
    ("cassl_mask_ap", "CA-SSL, Objects (P,A), mask AP"),
    ("pseudo_precision", "pseudo labels, precision at IoU 0.5"),
    ("pseudo_recall", "pseudo labels, recall at IoU 0.5"),
    ("pseudo_recall_75", "pseudo labels, recall at IoU 0.75"),
    ("pseudo_recall_unnamed", "pseudo labels, recall of unnamed kinds"),
)
ROWS = (  # what the results table calls a row, the keys of its box and mask AP, the row of the paper's Table 2
    ("baseline, no warm-up, best length of training", "baseline_ap", "baseline_mask_ap", "ImageNet"),
    ("Objects (G,A): warm-up on ground truth", "objects_ga_ap", "objects_ga_mask_ap", "Objects (G,A)"),
    ("CA-SSL: warm-up on pseudo labels, Objects (P,A)", "cassl_ap", "cassl_mask_ap", "Objects (P,A)"),
)


def summary(profile: str = "demo", split: str = "large") -> Sequence[Block]:
    """The results table of the README: three rows of Table 2, box and mask AP, mean and std over seeds."""
    chains = results.chains(profile, split)
    if not chains:
        return NOTHING
    body = []
    for name, box, mask, row in ROWS:
        theirs = paper.TABLE2[row]
        numbers = [
            Number(tuple(100 * chain[key] for chain in chains if chain[key] is not None), theirs[column])
            for key, column in ((box, compare.DET), (mask, "finetuned mask AP"))
        ]
        body.append((Cell(name), *(Cell(numbers=(number,)) for number in numbers)))
    header = tuple(map(Cell, ("warm-up", "box AP", "mask AP")))
    caption = f"{_origin(chains)} Upper numbers: mean ± std over seeds. Lower numbers: the paper, on COCO."
    return [Layout(caption, (header,), tuple(body))]


def seeds(profile: str = "demo", split: str = "large") -> Sequence[Block]:
    """All numbers of the chain, by seed, with mean and standard deviation, and the baselines of every length."""
    chains = results.chains(profile, split)
    if len(chains) < 2:
        return NOTHING
    body = []
    for key, name in CHAIN:
        numbers = [100 * chain[key] for chain in chains if chain[key] is not None]
        if len(numbers) == len(chains):
            body.append([name, *_with_mean(numbers, "{:.1f}")])
    errors = [chain["pseudo_edge_errors"] for chain in chains if chain["pseudo_edge_errors"]]
    for edge in ("left", "top", "right", "bottom") if len(errors) == len(chains) else ():
        numbers = [error[edge] for error in errors]
        body.append([f"pseudo boxes, mean error of the {edge} edge, pixels", *_with_mean(numbers, "{:+.2f}")])
    thresholds = [chain["pseudo_threshold"] for chain in chains]
    body.append(["pseudo labels, score threshold", *_with_mean(thresholds, "{:.2f}")])
    names = ["", *(f"seed {chain['seed']}" for chain in chains), "mean", "std"]
    return [compare.plain(_origin(chains), names, body), *_baselines(chains)]


def _baselines(chains: Sequence[Mapping]) -> list[Layout]:
    """The baseline over its length of training, and how many seeds chose each length on the tuning scenes."""
    curve: dict[str, dict] = {"steps": {}, "chosen": {}}
    for chain in chains:
        seed = str(chain["seed"])
        for steps, value in chain["baseline_by_steps"].items():
            curve["steps"].setdefault(steps, {})[seed] = value
        curve["chosen"][seed] = str(chain["baseline_steps"])
    return compare.curve_layout({"baseline": curve}, chains[0].get("config", {}))


def _origin(chains: Sequence[Mapping]) -> str:
    """Profile, pool, seeds, hardware, torch and dates of summaries; several commits, if so."""
    places = sorted({f"{each['environment']['device']}, torch {each['environment']['torch']}" for each in chains})
    days = sorted({each["environment"]["date"] for each in chains})
    numbers = [each["seed"] for each in chains]
    which = f"{'seed' if len(numbers) == 1 else 'seeds'} {listed(numbers)}"
    commits = commits_of([each["environment"] for each in chains])
    place = f"on {listed(places)}, {listed(days)}.{commits}"
    return f"Profile {chains[0]['profile']}, pool {chains[0]['split']}, {which}, {place}"


def _with_mean(numbers: Sequence[float], form: str) -> list[str]:
    std = form.replace("+", "").format(statistics.stdev(numbers))
    return [*map(form.format, numbers), form.format(statistics.mean(numbers)), std]


def pseudo_labels() -> Sequence[Block]:
    """The pseudo labels of each profile's tables against the ground truth of their images, which no stage sees."""
    blocks = []
    names = ["pool", "pseudo labeler", "threshold", "seed", "images", "labels per image"]
    names += ["precision", "recall", "recall at 0.75", "recall, unnamed kinds"]
    for profile in profiles():
        labeled = {}
        for collected in results.recorded(profile).values():
            for seed, runs in collected["runs"].items():
                labeled |= {(run["what"], seed): run["labels"] for run in runs.values() if "labels" in run}
        if not labeled:
            continue
        body = []
        for (what, seed), quality in sorted(labeled.items(), key=lambda item: (item[1]["images"], *item[0])):
            shares = (quality.get(name) for name in ("precision", "recall", "recall_75", "recall_unnamed"))
            pool, _, labeler = what.partition(" by ")
            count = quality["labels"] / max(quality["images"], 1)
            line = [pool, labeler, f"{quality['threshold']:g}", seed, f"{quality['images']:,}", f"{count:.1f}"]
            body.append([*line, *("" if share is None else f"{100 * share:.1f}" for share in shares)])
        caption = f"Profile {profile}, labels with a score above the threshold of their pseudo labeler."
        blocks.append(compare.plain(caption, names, body))
    return blocks or NOTHING


def operating_point() -> Sequence[Block]:
    """Every stage of each profile on its tuning scenes, and the lengths of finetuning that follow."""
    blocks: list[Block] = []
    for file in sorted(results.RESULTS.glob("operating_point_*.json")):
        result = results.read(file)
        body = [[name, *point.cells(row)] for name, row in result["rows"].items()]
        caption = f"Profile {result['profile']}, seed {result['config']['seed']}, tuning scenes, {_made(result)}"
        blocks += [Words(caption, _name(file)), compare.plain("", ["", *point.COLUMNS], body)]
        blocks.append(Words(point.choice_text(result["chosen"])))
    return blocks or NOTHING


def _made(result: Mapping) -> str:
    """Where, with what and when a result was made."""
    place = result["environment"]
    return f"on {place['device']}, torch {place['torch']}, {place['date']}, commit {place['commit']}"


def _name(file) -> str:
    return f"reports/results/{file.name}"
