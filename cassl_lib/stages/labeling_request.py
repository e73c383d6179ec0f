"""What a pool is labeled for: a store that was begun for another pool, or with other settings, is not written into."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cassl_lib import paths
from cassl_lib.data.pool.index import Pool
from cassl_lib.errors import DataError
from cassl_lib.labels import request as requests


def begin(store: Path, request: dict) -> None:
    """Write the request beside the store, or raise LabelingError if the store was begun with another one."""
    begun, remedy = requests.begin(store, request), "Label"
    if requests.differing(request, begun) == ["pool"]:
        index = _index_of(begun["pool"]) if "pool" in begun else None
        old = f"resume the old one with --images {index}" if index else "restore the old images"
        remedy = f"The pool has changed: {old}, label"
    requests.check_same(store, request, begun, remedy=remedy)


def _index_of(fingerprint: str) -> Path | None:
    """The index of an earlier pool, if it is still in the run store."""
    for index in sorted((paths.runs() / "pools").glob("pool-*/pool.parquet")):
        with contextlib.suppress(DataError):
            if Pool(index).fingerprint == fingerprint:
                return index
    return None
