"""Made-up results as they are recorded under reports/results/."""

from __future__ import annotations

PLACE = {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-11-24", "commit": "74c46ab", "threads": "1"}
PLAN_CHECK = {
    "profile": "demo",
    "split": "tiny",
    "rows": [{"name": "labeler, seconds", "planned": 229.3, "real": 176.8}],
    "environment": PLACE,
}


def recorded_table() -> dict:
    run = {"stage": "warmup", "what": "objects", "steps": 9, "seconds": 9.5, **PLACE}
    columns = ["cls-agnostic AP", "finetuned det AP"]
    return {
        "table": 3,
        "profile": "demo",
        "seeds": [0, 1],
        "rows": {row: {column: {"0": 0.25, "1": None} for column in columns} for row in ("12 (1x)", "36 (3x)")},
        "lengths": {"12 (1x), finetuned det AP": {"steps": {"800": {"0": 0.2, "1": 0.3}}, "chosen": {"0": "800"}}},
        "runs": {"0": {"warmup-64aa53a1f658": run}, "1": {}},
        "environment": PLACE,
    }


def recorded_chain() -> dict:
    names = ("labeler_agnostic", "warmup_agnostic")
    shares = [f"{name}_{kind}" for name in names for kind in ("ap", "ap75")]
    shares += [f"{name}_{kind}" for name in ("baseline", "objects_ga", "cassl") for kind in ("ap", "mask_ap")]
    shares += [f"pseudo_{name}" for name in ("threshold", "precision", "recall", "recall_75", "recall_unnamed")]
    edges = {f"{side}{kind}": 0.1 for side in ("left", "top", "right", "bottom") for kind in ("", "_relative")}
    return {
        **dict.fromkeys(shares, 0.3),
        "baseline_steps": 800,
        "baseline_by_steps": {"800": 0.3, "3200": 0.2},
        "pseudo_labels": 12,
        "pseudo_edge_errors": {"pairs": 3, **edges},
        "seconds": 9.0,
        "profile": "demo",
        "split": "large",
        "seed": 0,
        "runs": {"cassl": "finetune-1"},
        "environment": PLACE,
    }
