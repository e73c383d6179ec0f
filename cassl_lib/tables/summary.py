"""The numbers of one chain in one place: the quality of its labels, and the rows that belong together."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.files import where_writable, write_atomically
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.paper import TABLE2
from cassl_lib.runs import Run
from cassl_lib.stages import choice, graph, requests
from cassl_lib.stages.pseudo_labels import judge, threshold_of
from cassl_lib.tables.runner import number


def chain_runs(config: Config) -> dict[str, Run]:
    """The finished runs of the whole chain, by the names of `requests.chain`, and the best `baseline` of them.

    Raises:
        MissingRun: one of them is missing; the message holds the command that makes it.
    """
    chain, runs = requests.chain(config), {}
    for request in requests.with_inputs(chain.values()):  # each once: to name a run its data are read
        runs[request] = graph.require(request.with_runs(runs.get))
    best = choice.best_of([runs[request] for request in requests.baselines(config)], config)
    return {name: runs[request] for name, request in chain.items()} | {"baseline": best}


def numbers_of(config: Config, runs: Mapping[str, Run]) -> dict[str, float | int | None]:
    """The summary; AP between 0 and 1, None where a run has no such number (boxes only, no hidden ground truth)."""
    labels_run = runs["pseudo_labels"]
    labels = judge(config, PseudoLabelStore(labels_run.store, threshold=threshold_of(config, labels_run)))
    baselines = [run for name, run in runs.items() if name.startswith("baseline_")]
    return {
        "labeler_agnostic_ap": number(runs["pseudo_labeler"], "box_agnostic", "AP"),
        "labeler_agnostic_ap75": number(runs["pseudo_labeler"], "box_agnostic", "AP75"),
        "warmup_agnostic_ap": number(runs["warmup"], "box_agnostic", "AP"),
        "warmup_agnostic_ap75": number(runs["warmup"], "box_agnostic", "AP75"),
        "baseline_ap": number(runs["baseline"], "box", "AP"),
        "baseline_steps": runs["baseline"].result["steps"],  # the best length on the held-out images
        "baseline_by_steps": {str(run.result["steps"]): number(run, "box", "AP") for run in baselines},
        "objects_ga_ap": number(runs["objects_ga"], "box", "AP"),
        "cassl_ap": number(runs["cassl"], "box", "AP"),
        "baseline_mask_ap": number(runs["baseline"], "mask", "AP"),
        "objects_ga_mask_ap": number(runs["objects_ga"], "mask", "AP"),
        "cassl_mask_ap": number(runs["cassl"], "mask", "AP"),
        "pseudo_labels": labels["labels"],
        "pseudo_threshold": labels["threshold"],
        "pseudo_precision": labels.get("precision"),
        "pseudo_recall": labels.get("recall"),
        "pseudo_recall_75": labels.get("recall_75"),
        "pseudo_recall_unnamed": labels.get("recall_unnamed"),
        "pseudo_edge_errors": labels.get("edge_errors"),
        "seconds": round(sum(run.result["seconds"] for run in {run.id: run for run in runs.values()}.values()), 1),
    }


def summarize(config: Config) -> tuple[dict, Path | None]:
    """Gather the chain's numbers, with where they come from, and write them to `summary.json` in the run store.

    Returns:
        The numbers, and the file; None where the store cannot be written.
    """
    runs = chain_runs(config)
    origin = {"profile": config.profile, "split": config.split, "seed": config.seed}
    whole = numbers_of(config, runs) | origin | {"runs": {name: run.id for name, run in runs.items()}}
    whole["environment"] = runs["cassl"].result["environment"]
    file = paths.runs() / "summary.json"
    with where_writable(file):
        write_atomically(file, (json.dumps(whole, indent=1) + "\n").encode())
        return whole, file
    return whole, None


def paragraph(numbers: Mapping, recorded: Sequence[Mapping]) -> str:
    """What this chain's numbers say and what they do not, beside the recorded chains of several seeds.

    Args:
        numbers: the summary of this chain.
        recorded: summaries of the same profile and pool, one per seed, see `results.chains`.
    """
    ap = {name: 100 * (numbers[f"{name}_ap"] or 0) for name in ("cassl", "baseline", "objects_ga")}
    lengths = ", ".join(f"{int(steps):,}" for steps in numbers["baseline_by_steps"])
    gain = ap["cassl"] - ap["baseline"]
    lead = f"{abs(gain):.1f} AP {'ahead of' if gain > 0 else 'behind'}" if round(gain, 1) else "level with"
    text = (
        f"Seed {numbers['seed']}: CA-SSL reaches {ap['cassl']:.1f} box AP, {lead} the best baseline "
        f"({ap['baseline']:.1f}, trained for {numbers['baseline_steps']:,} steps, chosen on held-out images from "
        f"{lengths}). Starting from the pseudo labeler instead, which has seen no unlabeled image, gives "
        f"{ap['objects_ga']:.1f}. One seed decides nothing."
    )
    gains = [100 * (each["cassl_ap"] - each["baseline_ap"]) for each in recorded]
    if len(gains) > 1:
        text += (
            f" Over the {len(gains)} recorded seeds the difference from the best baseline is "
            f"{statistics.mean(gains):+.1f} ± {statistics.stdev(gains):.1f} AP (mean ± std)."
        )
    text += " These are small drawn scenes and a small model; on COCO the paper reports 48.1 against 46.8."
    return textwrap.fill(text, 100)


PAPER = {row: TABLE2[row]["finetuned det AP"] for row in ("ImageNet", "Objects (G,A)", "Objects (P,A)")}
LINES = (  # what it is called, key of the summary, the paper's number (Table 2)
    ("pseudo labeler, class-agnostic", "labeler_agnostic_ap", None),
    ("warm-up, class-agnostic", "warmup_agnostic_ap", None),
    ("baseline, no warm-up", "baseline_ap", PAPER["ImageNet"]),
    ("finetuned from the pseudo labeler, Objects (G,A)", "objects_ga_ap", PAPER["Objects (G,A)"]),
    ("CA-SSL, Objects (P,A)", "cassl_ap", PAPER["Objects (P,A)"]),
    ("baseline, mask AP", "baseline_mask_ap", None),
    ("CA-SSL, mask AP", "cassl_mask_ap", None),
    ("pseudo labels, precision at IoU 0.5", "pseudo_precision", None),
    ("pseudo labels, recall at IoU 0.5", "pseudo_recall", None),
    ("pseudo labels, recall at IoU 0.75", "pseudo_recall_75", None),
    ("pseudo labels, recall of unnamed kinds", "pseudo_recall_unnamed", None),
)


def table(numbers: Mapping) -> str:
    """The numbers as text, beside the paper's Table 2 where it has them."""
    lines = [f"{'box AP x 100 on the validation set':50}{'here':>8}{'paper':>8}"]
    for name, key, printed in LINES:
        here = "" if numbers[key] is None else f"{100 * numbers[key]:.1f}"
        lines.append(f"{name:50}{here:>8}{'' if printed is None else f'{printed:.1f}':>8}".rstrip())
    lines.append(f"{'pseudo labels above the threshold':50}{numbers['pseudo_labels']:8,}")
    lines.append(f"{'seconds of training and labeling':50}{numbers['seconds']:8,.0f}")
    lines.append("Paper: COCO, Swin-T. Here: drawn scenes, a small model, one seed. The heights cannot be compared.")
    return "\n".join(lines)
