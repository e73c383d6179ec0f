"""Stage 1: the pseudo labeler (Sec. 3.1, eq. 1)."""

from __future__ import annotations

from cassl_lib.data import datasets
from cassl_lib.runs import Run
from cassl_lib.stages.models import class_agnostic_or_specific_model
from cassl_lib.stages.requests import Request
from cassl_lib.stages.training import Training, train_detector


def pseudo_labeler(request: Request, run: Run) -> dict:
    """Train the pseudo labeler on the labeled images, every instance an object (or entity) without a class.

    Returns:
        The run's result: metrics on the validation images, steps, seconds, what was left out.
    """
    config = request.config
    labeled, val = datasets.labeled_set(config), datasets.validation_set(config)
    training = Training(
        stage=request.stage,
        title=request.title,
        model=class_agnostic_or_specific_model(config, labeled.classes),
        section=config.pseudo_labeler,
        source=labeled,
        val=val,
        classes=config.class_specific,
    )
    return train_detector(training, config, run)
