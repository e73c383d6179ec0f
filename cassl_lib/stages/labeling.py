"""Label a pool with a detector, shard by shard, with any number of processes that may come and go.

A process claims a shard with a file lock, labels it, writes it atomically, and takes the next shard that is neither
finished nor claimed. The system releases the locks of a process that dies; another process then labels its shard from
scratch. The processes need not know of each other: they may belong to one torchrun, to several jobs, or to several
machines that share the folder. Without file locks two processes may label the same shard; they write the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cassl_lib import paths
from cassl_lib.config import LabelConfig, TrainConfig
from cassl_lib.data.image_files import spread
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.errors import DiskFull, LabelingError
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.files import explained, locked, sweep
from cassl_lib.labels.request import request_hash
from cassl_lib.labels.shards import AGNOSTIC, finish, finished_shard, finished_shards, shard_path, write_shard
from cassl_lib.stages.labeling_progress import LabelingProgress
from cassl_lib.stages.labeling_request import begin
from cassl_lib.training import engine

if TYPE_CHECKING:
    from cassl_lib.models.detector import Detector

MANY = 20  # images; so many are not all damaged by chance


def label_pool(
    load: Callable[[], Detector],
    samples: Samples,
    store: Path,
    *,
    label: LabelConfig,
    train: TrainConfig,
    labeler: str,
    settings: dict,
    categories: Sequence[dict] = AGNOSTIC,
    log: Callable[[dict], None] = lambda entry: None,
) -> None:
    """Label every image of `samples` into the store at `store`, together with the other processes that do the same.

    Returns when the store is finished. Finished shards are kept. Detections that score below `label.keep` are not
    stored. Damaged images have no row and are listed in the entry of their shard.

    Args:
        load: returns the detector; called only if something is left to label.
        samples: of a `Pool`.
        label: `keep`, `batch_size` and `shard_size`.
        train: precision and loading processes.
        labeler: identity of the detector.
        settings: what decides the labels besides labeler and pool; must equal those the store was begun with.
        categories: COCO categories in the order of the detector's labels.
        log: receives `shard`, `images` and `seconds` of each shard that this process has labeled.

    Raises:
        LabelingError: the store was begun by another request, the disk is full, or no image can be read.
        DataError: a disk, a mount or the system fails while reading; finished shards are kept.
    """
    if not len(samples):
        raise LabelingError(f"{store}: the pool has no images, so there is nothing to label. Give a pool with images.")
    size, pool = label.shard_size, samples.source.fingerprint
    parts = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    request = {"labeler": labeler, "pool": pool, "shard_size": size, **settings}
    with _full_disk_explained(store):
        begin(store, request)
        with LabelingProgress(store, len(samples), labeler) as progress:
            job = _Job(
                load=functools.cache(lambda: _load_checked(load, samples)),
                samples=samples,
                store=store,
                parts=parts,
                label=label,
                train=train,
                labeler=labeler,
                request=request_hash(request),
                progress=progress,
                log=log,
            )
            job.run()
        finish(store, labeler=labeler, pool=pool, shards=len(parts), categories=categories)
        sweep(store)  # what processes left that were killed after this one began


@dataclass(frozen=True)
class _Job:
    """This process's part in labeling a pool."""

    load: Callable[[], Detector]
    samples: Samples
    store: Path
    parts: list[range]  # the pool's images by shard
    label: LabelConfig
    train: TrainConfig
    labeler: str
    request: str
    progress: LabelingProgress
    log: Callable[[dict], None]

    def run(self) -> None:
        """Label shards until all are finished, by this process or by others."""
        while missing := [shard for shard in range(len(self.parts)) if not self._is_finished(shard)]:
            labeled = 0
            for shard in missing:
                labeled += self._label_if_free(shard)
            if not labeled:
                # Others have claimed all of them: wait until the first is finished or released
                self.progress.waiting(len(missing))
                self._label_if_free(missing[0], wait=True)

    def _is_finished(self, shard: int) -> bool:
        return finished_shard(self.store, shard, self.labeler, self.request) is not None

    def _label_if_free(self, shard: int, *, wait: bool = False) -> bool:
        """Label a shard unless another process has claimed or finished it; returns whether it was labeled here."""
        with locked(self.store / f".shard-{shard:05d}.lock", wait=wait) as claimed:
            if not claimed or self._is_finished(shard):
                return False
            self._label(shard)
            return True

    def _label(self, shard: int) -> None:
        """Label and write a claimed shard."""
        sweep(self.store, shard_path(self.store, shard).stem)
        detector = self.load()
        # Label its images
        started, unreadable, rows, indices = time.monotonic(), [], {}, self.parts[shard]
        for index, row in labeled_images(
            detector, self.samples, indices, label=self.label, train=self.train, unreadable=unreadable
        ):
            rows[index] = row
            self.progress.image_done()
        if not rows and len(indices) >= MANY:
            raise LabelingError(
                f"{shard_path(self.store, shard)}: none of its {len(indices)} images can be read, such as "
                f"{unreadable[0]}. Restore them and rerun the same command to resume."
            )
        # Write it
        entry = write_shard(
            self.store,
            shard,
            [rows[index] for index in sorted(rows)],
            self.labeler,
            unreadable=sorted(unreadable),
            request=self.request,
        )
        self.progress.shard_done(entry)
        self.log({"shard": shard, "images": len(indices), "seconds": round(time.monotonic() - started, 3)})


def _load_checked(load: Callable[[], Detector], samples: Samples) -> Detector:
    """The detector, after a check that some images of the pool can be read."""
    some = [samples[0, index] for index in spread(len(samples))]
    lost = [names[0] for image, _, _, names in some if image is None]
    if len(lost) == len(some):
        raise LabelingError(
            f"none of {len(samples):,} images can be read, such as {lost[0]}. Restore them; names without a leading / "
            f"are relative to CASSL_DATASETS, now {paths.datasets()}."
        )
    return load()


def image_rows(
    detector: Detector, samples: Samples, indices: range, *, label: LabelConfig, train: TrainConfig
) -> list[dict]:
    """The store's rows of these images of the pool, in order, without those of unreadable images."""
    rows = labeled_images(detector, samples, indices, label=label, train=train, unreadable=[])
    return [row for _, row in sorted(rows)]


def labeled_images(
    detector: Detector,
    samples: Samples,
    indices: range,
    *,
    label: LabelConfig,
    train: TrainConfig,
    unreadable: list[str],
) -> Iterator[tuple[int, dict]]:
    """Yield (index in the pool, row of the store) of these images as they are labeled (Sec. 3.1, eq. 2).

    Args:
        unreadable: list to which the names of unreadable images are added.
    """
    # Put images of similar proportions in one batch: it is padded to its widest and its highest image
    pool = samples.source
    facts = {index: pool.row(index) for index in indices}
    index_of = {row["id"]: index for index, row in facts.items()}
    order = sorted(indices, key=lambda index: facts[index]["width"] / facts[index]["height"])
    loader = batches(samples, in_turn(order, label.batch_size), workers=train.workers)

    def size_of(image_id: int) -> tuple[int, int]:
        row = facts[index_of[image_id]]
        return row["height"], row["width"]

    for image_id, detections, lost in engine.predict(detector, loader, sizes=size_of, config=train, title=None):
        unreadable.extend(lost)
        if image_id is None:
            continue
        # Keep what scores enough, masks as RLE
        keep = detections["scores"] >= (label.keep or 0.0)
        row = {"image_id": image_id, "file_name": facts[index_of[image_id]]["path"]}
        row |= dict(zip(("height", "width"), size_of(image_id), strict=True))
        row |= {name: detections[name][keep] for name in ("boxes", "scores", "labels")}
        if "masks" in detections:
            row["rles"] = encode_masks(detections["masks"][keep])
        yield index_of[image_id], row


@contextlib.contextmanager
def _full_disk_explained(store: Path):
    """Add to the error of a full disk what is finished."""
    try:
        with explained(store):
            yield
    except DiskFull as error:
        raise LabelingError(f"{error} {len(finished_shards(store))} shards are finished and kept.") from error


def image_seconds(entries: Sequence[dict]) -> float:
    """Seconds of labeling, summed over all processes, from the log of a run."""
    return float(np.sum([entry["seconds"] for entry in entries if "shard" in entry]))
