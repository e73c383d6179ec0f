"""Which of several runs counts: the best one on held-out images, which no stage trains on and no table reports on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cassl_lib import deadline
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.evaluation.detector import evaluate_detector
from cassl_lib.files import where_writable, write_atomically
from cassl_lib.runs import Run
from cassl_lib.stages.identity import ANNOTATIONS
from cassl_lib.stages.models import load_detector


def best_of(runs: Sequence[Run | None], config: Config, *, kind: str = "box", name: str = "AP") -> Run | None:
    """The run with the highest number on the held-out images; the first one where there are no such images.

    Args:
        runs: finished runs of one target; None if one of several is missing, and then there is no best one yet.
        kind, name: of the number, as in a run's metrics.
    """
    if not runs or not all(runs):
        return None
    if len(runs) == 1 or config.heldout is None:
        return runs[0]
    return max(runs, key=lambda run: heldout_metrics(run, config)[kind][name])


def heldout_metrics(run: Run, config: Config) -> dict:
    """The metrics of a finished detector on the held-out images; kept in the run's folder once computed."""
    classes = len(run.result["classes"]) > 1
    annotation = ANNOTATIONS[config.target] if run.stage == "finetune" else config.annotation
    images = datasets.heldout_set(config, annotation)
    if (known := run.held_out_metrics(images.fingerprint)) is not None:
        return known
    deadline.check(f"{run.id} on held-out images")
    with TemporaryDirectory() as folder:
        metrics = evaluate_detector(
            load_detector(run),
            images,
            augment=config.augment,
            training=config.finetune,
            classes=classes,
            folder=Path(folder),
            side=datasets.area_side(config),
        )
    with where_writable(run.folder):
        write_atomically(run.held_out_file(images.fingerprint), json.dumps(metrics).encode())
    return metrics
