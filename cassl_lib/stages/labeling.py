"""Stage 2's loop: a labeler over a pool, shard by shard, by any number of processes that come and go.

A process claims a shard by a lock on a file, labels it, writes it whole, and takes the next that is neither finished
nor claimed. The system frees the lock of a process that dies, and whoever looks next labels its shard anew. So the
processes need not know of each other: those of one torchrun, of several jobs, or of several machines that share the
folder. Where a file system has no locks two may label the same shard; they write the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.data.image_files import spread
from cassl_lib.data.loader import Samples, batches, in_turn
from cassl_lib.data.pool.index import Pool
from cassl_lib.errors import DataError, LabelingError
from cassl_lib.evaluation.rle import encode_masks
from cassl_lib.files import alone, locked, write_atomically
from cassl_lib.labels.shards import (
    AGNOSTIC,
    finish,
    finished_shard,
    finished_shards,
    read_json,
    shard_path,
    write_shard,
)
from cassl_lib.training import distributed, engine

MANY = 20  # images that are not all damaged by themselves
SAYS_EVERY = 60.0  # seconds, where no bar is shown
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def label_pool(
    load: Callable,
    samples: Samples,
    store: Path,
    *,
    config: Config,
    labeler: str,
    settings: dict,
    categories: Sequence[dict] = AGNOSTIC,
    log: Callable[[dict], None] = lambda entry: None,
) -> None:
    """Label every image of `samples` into the store at `store`, together with whatever other processes do so.

    Returns when the store is finished. Finished shards stay as they are. Detections below `config.label.keep` are not
    stored; an image that is damaged has no row and is named in its shard's entry.

    Args:
        load: function without arguments that returns the model; not called where nothing is left to label.
        settings: what decides the labels beside labeler and pool; a store begun with others is refused.
        log: receives `shard`, `images` and `seconds` of each shard that this process has labeled.

    Raises:
        LabelingError: the store was begun by another request, the disk is full, or no image can be read.
        DataError: a disk, a mount or the system fails in reading; what is finished stays.
    """
    if not len(samples):
        raise LabelingError(f"{store} cannot be labeled: the pool has no image")
    size = config.label.shard_size
    parts = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    request = {"labeler": labeler, "pool": samples.source.fingerprint, "shard_size": size, **settings}
    made_for = {"labeler": labeler, "request": _hash(request)}
    with _room(store):
        _begin(store, request)
        with _Progress(store, len(samples), labeler) as progress:
            model = None
            while missing := [shard for shard in range(len(parts)) if not finished_shard(store, shard, **made_for)]:
                claimed = 0
                # Where all that is missing is in the hands of others, wait for the first to be finished, or to be free.
                for shard, wait in [(shard, False) for shard in missing] + [(missing[0], True)]:
                    if wait and claimed:
                        break
                    if wait:
                        progress.waits(len(missing))
                    with _claim(store, shard, wait=wait) as mine:
                        if not mine or finished_shard(store, shard, **made_for):
                            continue
                        claimed += 1
                        model = model or _load_checked(load, samples)
                        log(_label_shard(model, samples, store, shard, parts[shard], config, made_for, progress))
        finish(store, labeler=labeler, pool=samples.source.fingerprint, shards=len(parts), categories=categories)


def _load_checked(load: Callable, samples: Samples):
    """The model, once some images of the pool could be read."""
    some = [samples[0, index] for index in spread(len(samples))]
    lost = [names[0] for image, _, _, names in some if image is None]
    if len(lost) == len(some):
        raise LabelingError(
            f"none of {len(samples):,} images can be read, such as {lost[0]}; names without a / before them are below "
            f"CASSL_DATASETS, now {paths.datasets()}"
        )
    return load()


def image_rows(model, samples: Samples, indices: range, config: Config) -> list[dict]:
    """The store's rows of these images of the pool, in their order; without those that cannot be read."""
    return [row for _, row in sorted(labeled_images(model, samples, indices, config, []))]


def labeled_images(
    model, samples: Samples, indices: range, config: Config, unreadable: list[str]
) -> Iterator[tuple[int, dict]]:
    """Yield (index in the pool, row) of these images as they are labeled; adds to `unreadable` what cannot be read.

    Images of like proportions share a batch: a batch is padded to its widest and its highest image.
    """
    pool = samples.source
    facts = {index: pool.row(index) for index in indices}
    index_of = {row["id"]: index for index, row in facts.items()}
    order = sorted(indices, key=lambda index: facts[index]["width"] / facts[index]["height"])
    loader = batches(samples, in_turn(order, config.label.batch_size), workers=config.labeler.workers)

    def size_of(image_id: int) -> tuple[int, int]:
        row = facts[index_of[image_id]]
        return row["height"], row["width"]

    for image_id, found, lost in engine.predict(model, loader, sizes=size_of, config=config.labeler, title=None):
        unreadable.extend(lost)
        if image_id is None:
            continue
        keep = found["scores"] >= (config.label.keep or 0.0)
        row = {"image_id": image_id, "file_name": facts[index_of[image_id]]["path"]}
        row |= dict(zip(("height", "width"), size_of(image_id), strict=True))
        row |= {name: found[name][keep] for name in ("boxes", "scores", "labels")}
        if "masks" in found:
            row["rles"] = encode_masks(found["masks"][keep])
        yield index_of[image_id], row


def _label_shard(model, samples, store: Path, shard: int, indices: range, config: Config, made_for: dict, progress):
    """Label and write one claimed shard; returns what the log says of it."""
    _clear(store, shard_path(store, shard).stem)
    started, unreadable, rows = time.monotonic(), [], {}
    for index, row in labeled_images(model, samples, indices, config, unreadable):
        rows[index] = row
        progress.image()
    if not rows and len(indices) >= MANY:
        raise LabelingError(f"no image of shard {shard} can be read, such as {unreadable[0]}; bring them back")
    in_order = [rows[index] for index in sorted(rows)]
    progress.shard(write_shard(store, shard, in_order, unreadable=sorted(unreadable), **made_for))
    return {"shard": shard, "images": len(indices), "seconds": round(time.monotonic() - started, 3)}


def _hash(request: dict) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


def _begin(store: Path, request: dict) -> None:
    """Note what the store is made from, or compare with what it was begun with."""
    store.mkdir(parents=True, exist_ok=True)
    note = store / "request.json"
    with alone(store, say=False):
        for stem in ("request", "manifest"):
            _clear(store, stem)
        if not note.exists():
            if there := finished_shards(store):
                raise LabelingError(f"{store} holds {len(there)} shards of no known request: label into another folder")
            write_atomically(note, json.dumps(request, indent=1).encode())
    begun = read_json(note, set())
    if differing := [name for name in request if begun.get(name) != request[name]]:
        name, remedy = differing[0], ""
        if differing == ["pool"]:
            index = _index_of(begun["pool"])
            remedy = f"go on with --images {index}, " if index else "bring back "
            remedy += "the images that were there then, "
        raise LabelingError(
            f"{store} was begun with {name} {begun.get(name)}, not {request[name]}: {remedy}label into another folder, "
            "or delete it"
        )


def _index_of(fingerprint: str) -> Path | None:
    """The index of an earlier pool, if it is still in the run store."""
    for index in sorted((paths.runs() / "pools").glob("pool-*/pool.parquet")):
        with contextlib.suppress(DataError):
            if Pool(index).fingerprint == fingerprint:
                return index
    return None


def _claim(store: Path, shard: int, *, wait: bool):
    """Hold a shard against other processes; yields whether it is held."""
    return locked(store / f".shard-{shard:05d}.lock", wait=wait)


def _clear(store: Path, stem: str) -> None:
    """Remove what processes of this machine that are no more have left of a shard."""
    for left in store.glob(f".{stem}.*.{platform.node()}.*.tmp"):
        try:
            os.kill(int(left.name.split(".")[-3]), 0)
        except (ProcessLookupError, ValueError):
            left.unlink(missing_ok=True)
        except PermissionError:  # another user's, and alive
            continue


@contextlib.contextmanager
def _room(store: Path):
    """Turn the error of a full disk into one that says what is left and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise LabelingError(
            f"{store} cannot be written ({error.strerror}): {len(finished_shards(store))} shards are finished and "
            "whole. Make room and run the same command again, it continues"
        ) from error


class _Progress:
    """Images per second and time left: a bar where somebody looks, a line after each shard in a batch job's log."""

    def __init__(self, store: Path, images: int, labeler: str):
        self.store, self.images, self.labeler = store, images, labeler
        self.begun, self.started, self.own = self._finished(), time.monotonic(), 0
        self.warned, self.said = False, self.started
        hidden = distributed.quiet(distributed.rank_and_world()[0])
        self.bar = tqdm(total=images, initial=self.begun, desc="labeling", unit="image", disable=hidden, mininterval=1)

    def _finished(self) -> int:
        entries = finished_shards(self.store, self.labeler).values()
        return sum(entry["rows"] + len(entry["unreadable"]) for entry in entries)

    def image(self) -> None:
        self.own += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.said > SAYS_EVERY:
            self.say("labeling", self.begun + self.own)

    def say(self, what: str, done: int) -> None:
        """A line where no bar is shown; `done` of all images are labeled."""
        self.said = time.monotonic()
        rate = (done - self.begun) / (self.said - self.started)
        left = tqdm.format_interval((self.images - done) / rate) if rate else "?"
        line = f"{what}: {done:,} of {self.images:,} images, {rate:.1f} images/s, {left} left"
        print(line, file=sys.stderr, flush=True)

    def waits(self, shards: int) -> None:
        self.bar.write(f"{shards} shards are in the hands of other processes; waiting for them", sys.stderr)

    def shard(self, entry: dict) -> None:
        """After a shard of this process: take in what others have finished, say how far it is, look at the disk."""
        done = self._finished()
        left, self.bar.n = self.images - done, max(done, self.bar.n)
        self.bar.refresh()
        if self.bar.disable:
            self.say(entry["file"], done)
        needed, free = left * entry["bytes"] / max(entry["rows"], 1), shutil.disk_usage(self.store).free
        if needed > free and not self.warned:
            self.warned = True
            line = f"{self.store} needs {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free on its disk"
            self.bar.write(
                f"warning: {line}; it will stop when the disk is full and go on when there is room", sys.stderr
            )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.bar.n = self.images
            self.bar.refresh()
        self.bar.close()


def image_seconds(entries: Sequence[dict]) -> float:
    """Seconds of labeling of all processes together, from the log of a label run."""
    return float(np.sum([entry["seconds"] for entry in entries if "shard" in entry]))
