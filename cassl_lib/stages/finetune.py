"""Stage 3: finetuning with classes (Sec. 3.1, eq. 5), and the baseline that starts from scratch."""

from __future__ import annotations

from dataclasses import replace

from cassl_lib.data import datasets
from cassl_lib.runs import Run
from cassl_lib.stages.checks import check_classes
from cassl_lib.stages.identity import annotation_of
from cassl_lib.stages.requests import Request
from cassl_lib.stages.training import Training, train_detector


def finetune(request: Request, run: Run) -> dict:
    """Train with classes on the labeled images, or (`config.target`) with things and stuff.

    Starts from a warm-up (CA-SSL) or a pseudo labeler (Objects (G,A), Table 2), of which `request.parts` are copied
    (Table 9). Without an input it is a baseline: the backbone's initial weights.

    Returns:
        The run's result: metrics on the validation images, steps, seconds, what was copied.
    """
    config, annotation = request.config, annotation_of(request)
    labeled, val = datasets.labeled_set(config, annotation), datasets.validation_set(config, annotation)
    check_classes(labeled, val)
    training = Training(
        stage=request.stage,
        title=request.title,
        model=replace(config.model, num_classes=len(labeled.classes)),
        section=config.finetune,
        source=labeled,
        val=val,
        classes=True,
        start=None if request.is_baseline else request.inputs[0],
        parts=request.parts,
    )
    return train_detector(training, config, run)
