"""The request that a pseudo-label store is made for: written beside the store, compared by all that write into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from cassl_lib.errors import LabelingError
from cassl_lib.files import alone, sweep, write_atomically
from cassl_lib.labels.shards import finished_shards, read_json


def request_hash(request: Mapping) -> str:
    """Short hash of a request, kept in the entry of each shard that is made for it."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


def begin(store: Path, request: Mapping) -> dict:
    """The request that a store was begun with: this one, which is written beside it, if it is the first.

    What processes that have died left of their files is deleted.

    Raises:
        LabelingError: the folder has shards, but no request.
    """
    note = store / "request.json"
    if note.exists() and (store / "manifest.json").exists():  # finished: without the lock, for a read-only store
        return read_json(note, set())
    store.mkdir(parents=True, exist_ok=True)
    with alone(store, say=False):
        sweep(store)
        if not note.exists():
            if shards := finished_shards(store):
                raise LabelingError(
                    f"{store}: has {len(shards)} shards but no request.json. Write into another folder."
                )
            write_atomically(note, json.dumps(request, indent=1).encode())
    return read_json(note, set())


def differing(request: Mapping, begun: Mapping) -> list[str]:
    """The names of the entries in which a request differs from the one that its store was begun with."""
    return [name for name in request if begun.get(name) != request[name]]


def check_same(store: Path, request: Mapping, begun: Mapping, *, remedy: str) -> None:
    """Raise LabelingError if the store was begun with another request."""
    for name in differing(request, begun):
        raise LabelingError(
            f"{store}: was begun with {name} {begun.get(name)}, not {request[name]}. {remedy} into another folder, or "
            "delete the store."
        )
