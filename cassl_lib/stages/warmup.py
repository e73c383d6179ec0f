"""Stage 2: the warm-up on pseudo labels alone (Sec. 3.1, eq. 4)."""

from __future__ import annotations

import logging
from pathlib import Path

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.image_files import spread
from cassl_lib.data.loader import read_image
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import DataError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run
from cassl_lib.stages.models import class_agnostic_or_specific_model
from cassl_lib.stages.pseudo_labels import threshold_of
from cassl_lib.stages.requests import Request
from cassl_lib.stages.training import Training, train_detector
from cassl_lib.training.distributed import rank_and_world

logger = logging.getLogger(__name__)


def warmup(request: Request, run: Run) -> dict:
    """Train the target detector from its initial weights on the pseudo labels above the threshold alone.

    Returns:
        The run's result: metrics on the validation images, steps, seconds.

    Raises:
        DataError, PseudoLabelError: a store that cannot be trained on.
    """
    config, store = request.config, store_of(request)
    val = datasets.validation_set(config)
    check_store(store, config, val)
    if rank_and_world()[0] == 0:
        store.verify()
    training = Training(
        stage=request.stage,
        title=request.title,
        model=class_agnostic_or_specific_model(config, [category["name"] for category in store.categories]),
        section=config.warmup,
        source=PseudoLabeled(store),
        val=val,
        classes=config.class_specific,
    )
    return train_detector(training, config, run)


def store_of(request: Request) -> PseudoLabelStore:
    """The pseudo labels that a warm-up reads, above its threshold; its input is finished or a store from elsewhere."""
    labels = request.inputs[0] if request.inputs else None
    folder = labels.store if labels else Path(request.config.store)
    return PseudoLabelStore(folder, threshold=threshold_of(request.config, labels))


def check_store(store: PseudoLabelStore, config: Config, val: CocoImages) -> None:
    """Reject, before any training, a store that this configuration cannot be trained on."""
    if config.model.masks and not store.has_masks:
        raise DataError(f"{store.folder}: its labels have no masks; train with masks=False, or label with masks")
    names = [category["name"] for category in store.categories]
    if config.class_specific and names != list(val.classes):
        raise DataError(f"{store.folder}: its classes {names} differ from those of {val.path}, {list(val.classes)}")
    examples = [paths.image(store.file_name(index)) for index in spread(len(store))]
    if not any(map(_readable, examples)):
        raise DataError(
            f"{store.folder}: none of its images can be read, such as {examples[0] if examples else 'none'}; "
            "restore them, or set CASSL_DATASETS to the folder that the file names in the store are relative to"
        )
    _count_kept(store, config)


def _count_kept(store: PseudoLabelStore, config: Config) -> None:
    """Log how many labels are above the threshold, and raise if there are none.

    Not at the smoke profile, whose pseudo labeler is trained for seconds and may detect nothing.
    """
    counts = store.statistics([store.threshold])
    labels, images = int(counts["labels"][0]), int(counts["images_with_labels"][0])
    if not labels and config.profile != "smoke":
        edges = counts["score_edges"][1:][counts["score_histogram"] > 0]
        remedy = f"the highest score is below {edges[-1]:.2f}; use a lower threshold" if len(edges) else "it is empty"
        raise DataError(f"{store.folder}: no label has a score above the threshold {store.threshold}; {remedy}")
    if rank_and_world()[0] == 0:
        logger.info(
            "%s: %s labels above %g on %s of %s images",
            store.folder,
            f"{labels:,}",
            store.threshold,
            f"{images:,}",
            f"{len(store):,}",
        )


def _readable(path: Path) -> bool:
    try:
        return read_image(path) is not None
    except OSError:
        return False
