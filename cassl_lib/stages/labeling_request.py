"""The request that a pseudo-label store is made for: written beside the store, compared by all that label into it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path

from cassl_lib import paths
from cassl_lib.data.pool.index import Pool
from cassl_lib.errors import DataError, LabelingError
from cassl_lib.files import alone, write_atomically
from cassl_lib.labels.shards import finished_shards, read_json


def request_hash(request: dict) -> str:
    """Short hash of a request, kept in the entry of each shard that is made for it."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


def begin(store: Path, request: dict) -> None:
    """Write the request beside the store, or raise LabelingError if the store was begun with another one."""
    store.mkdir(parents=True, exist_ok=True)
    note = store / "request.json"
    with alone(store, say=False):
        for stem in ("request", "manifest"):
            clear_leftovers(store, stem)
        if not note.exists():
            if shards := finished_shards(store):
                raise LabelingError(
                    f"{store}: has {len(shards)} shards but no request.json. Label into another folder."
                )
            write_atomically(note, json.dumps(request, indent=1).encode())
    begun = read_json(note, set())
    if differing := [name for name in request if begun.get(name) != request[name]]:
        name, remedy = differing[0], "Label"
        if differing == ["pool"]:
            index = _index_of(begun["pool"])
            old = f"resume the old one with --images {index}" if index else "restore the old images"
            remedy = f"The pool has changed: {old}, label"
        raise LabelingError(
            f"{store}: was begun with {name} {begun.get(name)}, not {request[name]}. {remedy} into another folder, or "
            "delete the store."
        )


def _index_of(fingerprint: str) -> Path | None:
    """The index of an earlier pool, if it is still in the run store."""
    for index in sorted((paths.runs() / "pools").glob("pool-*/pool.parquet")):
        with contextlib.suppress(DataError):
            if Pool(index).fingerprint == fingerprint:
                return index
    return None


def clear_leftovers(store: Path, stem: str) -> None:
    """Delete temporary files of a shard (`stem`) left behind by processes on this host that have exited."""
    for left in store.glob(f".{stem}.*.{platform.node()}.*.tmp"):
        try:
            os.kill(int(left.name.split(".")[-3]), 0)
        except (ProcessLookupError, ValueError):
            left.unlink(missing_ok=True)
        except PermissionError:  # another user's process, still running
            continue
