"""The one list of stages. A stage has one name: in code, shell, run folders, settings, tables and messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    name: str  # of its module and function, shell argument, run folders and section of the settings
    title: str  # in prose
    number: int | None  # in Fig. 2 of the paper and in ours; the pseudo labels lie between 1 and 2
    starts_from: tuple[str, ...]  # names of the stages that its input run may be of, the usual one first
    version: int = 1  # raise it when the same settings give a different result: old runs are then not reused
    trains: bool = True  # whether it trains a detector


STAGES = {
    stage.name: stage
    for stage in (
        Stage("pseudo_labeler", "pseudo labeler", 1, (), version=2),
        Stage("pseudo_labels", "pseudo labels", None, ("pseudo_labeler",), trains=False, version=2),
        Stage("warmup", "warm-up", 2, ("pseudo_labels",), version=2),
        Stage("finetune", "finetuning", 3, ("warmup", "pseudo_labeler"), version=2),
    )
}
SCRATCH = "scratch"  # finetuning that starts from no run: the baseline
