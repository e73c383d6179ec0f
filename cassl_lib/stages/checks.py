"""Checks before any training: what would end a chain after hours, and what would make its numbers meaningless.

Errors are for what cannot be trained on; a warning is for what can be, but should not be reported. Each data set is
checked once per process. The embedded scenes need no check.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data import datasets
from cassl_lib.data.annotation_checks import check_boxes, check_trainable
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.image_files import spread
from cassl_lib.errors import DataError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.stages.identity import annotation_of
from cassl_lib.stages.requests import Request
from cassl_lib.training.optimizer import number_of_steps

COMPARED = 200  # pairs of files whose contents are compared
LISTED = 20_000  # files whose sizes are looked up, to find copies with other names
SHOWN = 5  # class names in a message

logger = logging.getLogger(__name__)


def check_data(request: Request) -> None:
    """Check the data of a run that is about to be made.

    Raises:
        DataError: there is nothing to learn from, boxes are in another format, or the classes of the labeled and the
            validation images differ.
    """
    config = request.config
    if config.val == "scenes":
        return
    if request.stage in ("pseudo_labeler", "finetune"):
        annotation = annotation_of(request)
        labeled, val = datasets.labeled_set(config, annotation), datasets.validation_set(config, annotation)
        check_trainable(labeled)
        check_boxes(val)
        check_classes(labeled, val)
        _warn_once(f"labeled={config.labeled}", _files(labeled), _files(val))
    else:
        name = f"unlabeled={config.unlabeled}" if request.inputs else f"store={config.store}"
        _warn_once(name, unlabeled_files(request), _files(datasets.validation_set(config)))


def check_classes(labeled: CocoImages, val: CocoImages) -> None:
    """Raise DataError unless both have the same classes in the same order of their ids."""
    if labeled.classes == val.classes:
        return
    only = [
        f"only in {name}: {_listed(one)}"
        for name, one in (
            (labeled.path.name, [each for each in labeled.classes if each not in val.classes]),
            (val.path.name, [each for each in val.classes if each not in labeled.classes]),
        )
        if one
    ]
    raise DataError(
        f"{val.path}: its classes differ from those of {labeled.path} ({'; '.join(only) or 'the order of their ids'}); "
        "give both the same categories"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# ---- images in two sets ----


def unlabeled_files(request: Request) -> list[str]:
    """The images of the pool that is to be labeled, or of the store that is to be trained on."""
    if not request.inputs:
        store = PseudoLabelStore(request.config.store)
        return [str(paths.image(store.file_name(index))) for index in range(len(store))]
    if request.stage == "warmup":  # checked when its labels were made
        return []
    root, index = str(paths.datasets()), datasets.pool(request.config).index
    names = pq.read_table(index, columns=["path"], memory_map=True).column("path").to_pylist()
    return [os.path.join(root, name) for name in names]


def _files(images: CocoImages) -> list[str]:
    folder = str(images.folder)
    return [f"{folder}/{name}" for name in images.names.tolist()]


_warned: set[str] = set()


def _warn_once(name: str, files: Sequence[str], val: Sequence[str]) -> None:
    """Log how many of the validation images are also in another set, unless this process has done so."""
    if name in _warned:
        return
    _warned.add(name)
    if files and (words := shared(files, val)):
        logger.warning("%s: %s; numbers on them say nothing about new images", name, words)


def shared(files: Sequence[str], val: Sequence[str]) -> str | None:
    """How many validation images are also among `files`, in words; None if none is found.

    The same path is the same image. Files of one name in two folders are compared by content, up to `COMPARED` of
    them. Where no name occurs twice, a few images are looked for by size and content.
    """
    own = set(map(os.path.realpath, val)) if len(val) <= LISTED else set(val)
    same = own.intersection(map(os.path.realpath, files) if len(files) <= LISTED else files)
    places = {os.path.basename(file): file for file in files}
    twice = [(file, places[name]) for file in val if (name := os.path.basename(file)) in places and file not in same]
    compared = [file for file, other in twice[:COMPARED] if _equal(file, other)]
    count = len(same) + (len(twice) if len(compared) == COMPARED else len(compared))
    if count:
        return f"{count:,} of the {len(val):,} validation images are in it too, such as {[*sorted(same), *compared][0]}"
    found = _copies(files, val)
    return f"validation images are in it under other names, such as {found}" if found else None


def _copies(files: Sequence[str], val: Sequence[str]) -> str | None:
    """A file that is a copy of one of a few validation images, looked for by size; None if there is none."""
    by_size: dict[int, str] = {}
    for file in (files[index] for index in spread(len(files), LISTED)):
        by_size[_size(file)] = file
    few = (val[index] for index in spread(len(val), COMPARED))
    return next((f"{by_size[_size(one)]} = {one}" for one in few if _equal(one, by_size.get(_size(one)))), None)


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # missing, or in an archive
        return -1


def _equal(one: str, other: str | None) -> bool:
    if other is None or _size(one) < 0 or _size(one) != _size(other):
        return False
    try:
        return Path(one).read_bytes() == Path(other).read_bytes()
    except OSError:
        return False


# ---- compute ----


def unmatched_baseline(config: Config) -> str | None:
    """One line if even the longest baseline of a chain trains for fewer steps than warm-up and finetuning together."""
    warmup = number_of_steps(config.warmup, 0 if config.warmup.steps else _images_of_warmup(config))
    labeled = 0 if config.finetune.steps else len(datasets.labeled_set(config))
    finetune = number_of_steps(config.finetune, labeled)
    longest, together = round(max(config.baseline_lengths) * finetune), warmup + finetune
    if longest >= together:
        return None
    return (
        f"the longest baseline trains for {longest:,} steps, warm-up and finetuning together for {together:,}: for a "
        f"baseline of equal compute also run: cassl run finetune --start scratch --steps {together} with these options"
    )


def _images_of_warmup(config: Config) -> int:
    return len(PseudoLabelStore(config.store)) if config.store else len(datasets.pool(config))
