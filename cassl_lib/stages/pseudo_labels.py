"""The pseudo labels: the pseudo labeler's detections in every image of the pool (Sec. 3.1, eqs. 2 and 3)."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import torch

from cassl_lib import paths
from cassl_lib.config import THRESHOLD, Config
from cassl_lib.data import datasets
from cassl_lib.data.augment import test_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.loader import Samples
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.index import Pool
from cassl_lib.errors import PseudoLabelError
from cassl_lib.evaluation.labels import judge_labels, read_ground_truth
from cassl_lib.labels.shards import AGNOSTIC, read_manifest
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.runs import Run, find_run
from cassl_lib.stages.labeling import image_seconds, label_pool
from cassl_lib.stages.models import load_detector
from cassl_lib.stages.requests import Request
from cassl_lib.stages.thresholds import Proposal, propose_threshold, quality_at
from cassl_lib.training.distributed import device_of_process, rank_and_world
from cassl_lib.training.optimizer import precision_of

logger = logging.getLogger(__name__)


def pseudo_labels(request: Request, run: Run) -> dict:
    """Count and judge the labels of a finished store, see `label`.

    Returns:
        The run's result: number of labels above the threshold and, where the pool has hidden ground truth, their
        quality; images, seconds, unreadable images.
    """
    threshold = threshold_of(request.config, run)  # all processes share the labeling of the held-out images
    if rank_and_world()[0]:
        return {}
    config, store = request.config, PseudoLabelStore(run.store, threshold=threshold)
    return {
        "metrics": judge(config, store),
        "images": len(store) + len(store.unreadable),
        "seconds": image_seconds(run.history),
        "unreadable": store.unreadable,
    }


def label(request: Request, run: Run) -> None:
    """Label every image of the pool into the run's store. The threshold is applied when labels are read.

    Any number of processes share the work, those of other jobs and machines too.
    """
    label_into(run.store, request.inputs[0], datasets.pool(request.config), request.config, log=run.log)


def threshold_of(config: Config, labels: Run | None) -> float:
    """The score threshold of the labels that a warm-up reads (eq. 3): the configuration's, or else the best one.

    Args:
        labels: the pseudo_labels run; None for a store from elsewhere, of which no held-out images can be labeled.
    """
    if config.pseudo_labels.threshold is not None:
        return config.pseudo_labels.threshold
    proposal = best_threshold(config, labels) if labels else None
    return proposal.threshold if proposal else THRESHOLD


def best_threshold(config: Config, labels: Run) -> Proposal | None:
    """The threshold with the best F1 on the held-out images, of the pseudo labeler of `labels`; None without any."""
    held = heldout_labels(config, labels)
    return propose_threshold(quality_at(*held)) if held else None


def heldout_labels(config: Config, labels: Run) -> tuple[PseudoLabelStore, CocoImages] | None:
    """The held-out images and their labels by the pseudo labeler of `labels`, made now if missing; None without any.

    Raises:
        DataError: a held-out image is also trained on or evaluated on.
        MissingRun: the pseudo labeler's run was deleted.
    """
    images = datasets.heldout_set(config)
    if images is None:
        return None
    store = labels.folder / f"heldout-{images.fingerprint[:8]}"
    pool = build_pool([f"{images.path}{os.pathsep}{images.folder}"], paths.runs() / "pools", own=images.own)
    label_into(store, find_run(labels.inputs["pseudo_labeler"]), pool, config)
    return PseudoLabelStore(store), images


def label_into(store: Path, labeler: Run, pool: Pool, config: Config, *, log=lambda entry: None) -> None:
    """Label a pool into a store with a finished run's detector; resumes where this or another process stopped."""
    samples = Samples(pool, test_transform(config.augment), masks=False, classes=False, replace=False)
    label_pool(
        functools.partial(load_labeler, labeler, config),
        samples,
        store,
        label=config.pseudo_labels,
        train=config.pseudo_labeler,
        labeler=labeler.id,
        settings=label_settings(config),
        categories=labeler.result.get("categories") or AGNOSTIC,
        log=log,
    )


def label_settings(config: Config) -> dict:
    """What decides the labels besides pseudo labeler and pool, as JSON data; kept beside the store."""
    return {
        "keep": config.pseudo_labels.keep,
        "shard_size": config.pseudo_labels.shard_size,
        "test": {"test_size": config.augment.test_size, "longest": config.augment.longest},
        "batch_size": config.pseudo_labels.batch_size,  # an image is padded to the largest of its batch
        "precision": precision_of(config.pseudo_labeler, device_of_process()),
    }


def load_labeler(run: Run, config: Config) -> torch.nn.Module:
    """A finished run's detector with its score threshold lowered to the store's minimum, `pseudo_labels.keep`."""
    keep = config.pseudo_labels.keep
    # The score is sqrt(cls * ctr): neither cls nor cls * ctr of a detection with this score is below its square.
    return load_detector(run) if keep is None else load_detector(run, score_threshold=keep**2)


def intact(run: Run) -> bool:
    """Whether no shard of a finished run is missing or truncated; damaged ones are labeled again."""
    try:
        return bool(read_manifest(run.store))
    except PseudoLabelError as error:
        logger.warning("%s: %s", run.id, error)
        return False


def judge(config: Config, store: PseudoLabelStore) -> dict:
    """The number of labels above the store's threshold and, where the pool has hidden ground truth, their quality."""
    count = int(store.statistics([store.threshold])["labels"][0])
    hidden = datasets.hidden_ground_truth(config)
    if not hidden or store.manifest["pool"] != datasets.pool(config).fingerprint:
        return {"threshold": store.threshold, "labels": count}
    quality = judge_labels(store, *read_ground_truth(hidden), complete=config.annotation == "objects")
    return {"threshold": store.threshold, "labels": count, **quality}
