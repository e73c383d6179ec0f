"""The chain's honest numbers in one place: the quality of the labels, and the four rows that belong together."""

from __future__ import annotations

import json
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.files import write_atomically
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.paper import TABLE2
from cassl_lib.runs import Run
from cassl_lib.stages import all_stages as stages


def chain(config: Config) -> dict[str, Run]:
    """The finished runs of the whole chain by name; raises MissingRun, with the command, where one is missing."""
    return {
        "labeler": stages.train_labeler(config, existing=True),
        "labels": stages.label(config, existing=True),
        "warmup": stages.warm_up(config, existing=True),
        "baseline": stages.finetune(config, start="scratch", existing=True),
        "objects_ga": stages.finetune(config, start="labeler", existing=True),
        "cassl": stages.finetune(config, existing=True),
    }


def numbers_of(config: Config, runs: dict[str, Run]) -> dict[str, float | int | None]:
    """The summary's keys; AP between 0 and 1, None where a run has no such number (box-only, no hidden truth)."""
    metrics = {name: run.result["metrics"] for name, run in runs.items()}
    store = PseudoLabelStore(runs["labels"].folder / "store", threshold=config.label.threshold)
    labels = stages.judge(config, store)

    def ap(name: str, kind: str, key: str = "AP") -> float | None:
        return _value(metrics[name], kind, key)

    return {
        "labeler_agnostic_ap": ap("labeler", "box_agnostic"),
        "labeler_agnostic_ap75": ap("labeler", "box_agnostic", "AP75"),
        "warmup_agnostic_ap": ap("warmup", "box_agnostic"),
        "warmup_agnostic_ap75": ap("warmup", "box_agnostic", "AP75"),
        "baseline_ap": ap("baseline", "box"),
        "objects_ga_ap": ap("objects_ga", "box"),
        "cassl_ap": ap("cassl", "box"),
        "baseline_mask_ap": ap("baseline", "mask"),
        "objects_ga_mask_ap": ap("objects_ga", "mask"),
        "cassl_mask_ap": ap("cassl", "mask"),
        "pseudo_labels": labels["labels"],
        "pseudo_precision": labels.get("precision"),
        "pseudo_recall": labels.get("recall"),
        "pseudo_recall_75": labels.get("recall_75"),
        "pseudo_recall_unnamed": labels.get("recall_unnamed"),
        "pseudo_edge_errors": labels.get("edge_errors"),
        "seconds": round(sum(run.result["seconds"] for run in runs.values()), 1),
    }


def _value(metrics: dict, kind: str, key: str) -> float | None:
    """None where it was not measured, or (-1) where there was nothing to find."""
    value = metrics.get(kind, {}).get(key)
    return None if value is None or value < 0 else value


def summarize(config: Config) -> tuple[dict, Path]:
    """Gather the chain's numbers, with where they come from, and write them to `summary.json` in the run store."""
    runs = chain(config)
    numbers = numbers_of(config, runs)
    origin = {"profile": config.profile, "split": config.split, "seed": config.seed}
    whole = numbers | origin | {"runs": {name: run.id for name, run in runs.items()}}
    whole["environment"] = runs["cassl"].result["environment"]
    file = paths.runs() / "summary.json"
    write_atomically(file, (json.dumps(whole, indent=1) + "\n").encode())
    return whole, file


def table(numbers: dict) -> str:
    """The numbers as a text table, the paper's Table 2 beside the rows it has."""
    paper = {row: TABLE2[row]["finetuned det AP"] for row in ("ImageNet", "Objects (G,A)", "Objects (P,A)")}
    rows = [
        ("pseudo labeler, class-agnostic", "labeler_agnostic_ap", None),
        ("warmed-up detector, class-agnostic", "warmup_agnostic_ap", None),
        ("baseline, no warm-up", "baseline_ap", paper["ImageNet"]),
        ("finetuned from the labeler, Objects (G,A)", "objects_ga_ap", paper["Objects (G,A)"]),
        ("CA-SSL, Objects (P,A)", "cassl_ap", paper["Objects (P,A)"]),
    ]
    lines = [f"{'box AP x 100 on the validation set':44}{'here':>8}{'paper':>8}"]
    for name, key, printed in rows:
        lines.append(f"{name:44}{_hundred(numbers[key])}{'' if printed is None else f'{printed:8.1f}'}")
    for name, key in (("baseline, mask AP", "baseline_mask_ap"), ("CA-SSL, mask AP", "cassl_mask_ap")):
        lines.append(f"{name:44}{_hundred(numbers[key])}")
    lines.append("pseudo labels" + f"{numbers['pseudo_labels']:39d}")
    for name, key in (
        ("  precision at IoU 0.5", "pseudo_precision"),
        ("  recall at IoU 0.5", "pseudo_recall"),
        ("  recall at IoU 0.75", "pseudo_recall_75"),
        ("  recall on kinds no label names", "pseudo_recall_unnamed"),
    ):
        lines.append(f"{name:44}{_hundred(numbers[key])}")
    lines.append(f"{'seconds of training and labeling':44}{numbers['seconds']:8.0f}")
    lines.append("The paper: COCO, Swin-T. Here: drawn scenes, a small model, one seed. Not comparable in size.")
    return "\n".join(lines)


def _hundred(value: float | None) -> str:
    return " " * 8 if value is None else f"{100 * value:8.1f}"
