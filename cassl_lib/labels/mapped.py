"""One shard of a pseudo-label store as views of a memory-mapped file: nothing is loaded or copied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cassl_lib.errors import PseudoLabelError
from cassl_lib.labels.shards import PER_LABEL, SCHEMA


@dataclass(frozen=True)
class MappedShard:
    """A shard's columns; the labels of row r are `starts[r]:starts[r + 1]`."""

    image_id: np.ndarray  # (rows,)
    height: np.ndarray
    width: np.ndarray
    file_name: pa.Array
    starts: np.ndarray  # (rows + 1,)
    boxes: np.ndarray  # (labels, 4)
    scores: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    mask_starts: np.ndarray  # (rows + 1,)
    mask_offsets: np.ndarray  # (masks + 1,) into `mask_bytes`
    mask_bytes: memoryview

    def kept(self, threshold: float) -> np.ndarray:
        """Number of labels above the threshold per image, (rows,)."""
        before = np.concatenate([[0], np.cumsum(self.scores > threshold)])
        return before[self.starts[1:]] - before[self.starts[:-1]]


def open_shard(path: Path, rows: int) -> MappedShard:
    """Map a shard that must have this number of rows.

    Raises:
        PseudoLabelError: the file cannot be read, or is not a shard of this store.
    """
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        foreign = not file.schema.equals(SCHEMA) or file.num_record_batches != 1
        batch = None if foreign else file.get_batch(0)
        if foreign or batch.num_rows != rows:
            raise PseudoLabelError(
                f"{path} is not a shard of this store: other columns or number of images. Delete it and label again."
            )
        batch.validate()
    except (OSError, pa.ArrowException) as error:
        raise PseudoLabelError(f"{path} cannot be read: {error}. Delete it and label again.") from error
    flat = {name: batch[name].values.to_numpy() for name in PER_LABEL}
    flat["boxes"] = flat["boxes"].reshape(-1, 4)
    masks = batch["masks"].values
    _, offsets, content = masks.buffers()
    offsets = np.frombuffer(offsets, np.int32, len(masks) + 1) if len(masks) else np.zeros(1, np.int32)
    return MappedShard(
        **{name: batch[name].to_numpy() for name in ("image_id", "height", "width")},
        file_name=batch["file_name"],
        starts=batch["scores"].offsets.to_numpy(),
        mask_starts=batch["masks"].offsets.to_numpy(),
        mask_offsets=offsets,
        mask_bytes=memoryview(content or b""),
        **flat,
    )
