"""Reading a pseudo-label store: a sequence of images with the labels that are good enough (Sec. 3.1, eq. 3).

Shards (`label_shards`) are opened by memory map: nothing is loaded, and all processes of a machine share its page
cache. Everything the labeler gave is kept; which labels are good enough, one constant threshold on the score, is
decided here, when they are read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from cassl_lib.errors import PseudoLabelError
from cassl_lib.labels.shards import PER_LABEL, SCHEMA, read_manifest

AREA_LIMITS = (32**2, 96**2)  # pixels; COCO's small, medium and large
OPEN_SHARDS = 400  # at most, each a file handle; enough for 4 million images
WORTH_A_BAR = 4 << 30  # bytes that take more than a few seconds to check


@dataclass(frozen=True)
class _Shard:
    """One shard as views of the mapped file: the labels of row r are `starts[r]:starts[r + 1]`."""

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
        """How many labels each image keeps."""
        before = np.concatenate([[0], np.cumsum(self.scores > threshold)])
        return before[self.starts[1:]] - before[self.starts[:-1]]


class PseudoLabelStore:
    """A finished store as a sequence of images, with the labels whose score is above the threshold.

    `labels[i]` is a dict: `image_id`, `file_name`, `height`, `width`, `boxes` (N, 4) float32 xyxy, `scores`, `labels`,
    `areas` (N,), `rles` list of N `{"size": [height, width], "counts": bytes}`, empty for box-only labels. N may be 0.
    Opening checks the manifest and the size of each shard; `verify` checks their contents too.
    """

    def __init__(self, folder: str | Path, threshold: float = 0.3):
        # UNSTATED: Sec. 3.1, the threshold on the score is in the lost supplement
        self.folder, self.threshold = Path(folder), threshold
        self.manifest = read_manifest(self.folder)
        self._first_rows = np.cumsum([0] + [entry["rows"] for entry in self.manifest["shards"]])
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return self.manifest["images"]

    def __getitem__(self, index: int) -> dict:
        shard, row = self._find(index)
        first, last = shard.starts[row], shard.starts[row + 1]
        kept = np.flatnonzero(shard.scores[first:last] > self.threshold) + first
        size = [int(shard.height[row]), int(shard.width[row])]
        item = {"image_id": int(shard.image_id[row]), "file_name": shard.file_name[row].as_py()}
        item |= {"height": size[0], "width": size[1]}
        item |= {name: getattr(shard, name)[kept] for name in PER_LABEL}
        first_mask, last_mask = shard.mask_starts[row], shard.mask_starts[row + 1]
        masks = kept - first + first_mask if last_mask > first_mask else []
        ends = shard.mask_offsets
        counts = (bytes(shard.mask_bytes[ends[mask] : ends[mask + 1]]) for mask in masks)
        return item | {"rles": [{"size": size, "counts": each} for each in counts]}

    def __getstate__(self) -> dict:
        """A pickled copy starts without open shards."""
        return self.__dict__ | {"_shards": {}}

    def file_name(self, index: int) -> str:
        """Of one image, without its labels."""
        shard, row = self._find(index)
        return shard.file_name[row].as_py()

    def image_id(self, index: int) -> int:
        """Of one image, without its labels."""
        shard, row = self._find(index)
        return int(shard.image_id[row])

    @property
    def labeler(self) -> str:
        return self.manifest["labeler"]

    @property
    def categories(self) -> list[dict]:
        return self.manifest["categories"]

    @property
    def has_masks(self) -> bool:
        """Whether every label has a mask; True of a store without labels."""
        return all(entry["masks"] == entry["labels"] for entry in self.manifest["shards"])

    @property
    def unreadable(self) -> list[str]:
        """Images of the pool that could not be read and have no row."""
        return [name for entry in self.manifest["shards"] for name in entry["unreadable"]]

    @property
    def fingerprint(self) -> str:
        """Changes with any stored bit; not with the threshold."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def at(self, threshold: float) -> PseudoLabelStore:
        """The same store at another threshold; what has been opened is shared."""
        other = copy.copy(self)
        other.threshold, other._shards = threshold, self._shards
        return other

    def open(self) -> None:
        """Open all shards (as many as are kept open) now, 0.1 ms each, so that processes forked later share them.

        Opened one by one between the images of a training, they would scatter over the heap and hold it apart: 240 KB
        a shard were measured.
        """
        for number in range(min(len(self.manifest["shards"]), OPEN_SHARDS)):
            self._shards[number] = self._shards.get(number) or self._open(number)

    def verify(self) -> None:
        """Compare every shard with its checksum: some seconds for millions of images, with a bar where it takes long.

        Raises:
            PseudoLabelError: names the first shard that is damaged or was replaced.
        """
        hidden = None if sum(entry["bytes"] for entry in self.manifest["shards"]) > WORTH_A_BAR else True
        paths = [self.folder / entry["file"] for entry in self.manifest["shards"]]
        with ThreadPoolExecutor(4) as threads:
            found = tqdm(threads.map(_checksum, paths), "labels", len(paths), unit="shard", disable=hidden)
            for path, entry, checksum in zip(paths, self.manifest["shards"], found, strict=True):
                if checksum != entry["sha256"]:
                    raise PseudoLabelError(
                        f"{path} is damaged or was replaced, its checksum is not the manifest's: delete it and label "
                        "again, it is made anew"
                    )

    def flat(self) -> dict[str, np.ndarray]:
        """All labels at once, without masks.

        Returns:
            `image_id`, `height`, `width`, `counts` of labels, `file_name`: (I,); `boxes` (L, 4), `labels` (L,).
        """
        names = ("image_id", "height", "width")
        columns = {name: [np.zeros(0, np.int64)] for name in (*names, "counts")}
        columns |= {"file_name": [np.zeros(0, "U1")]}
        columns |= {"boxes": [np.zeros((0, 4), np.float32)], "labels": [np.zeros(0, np.int32)]}
        for shard in self._each_shard():
            kept = shard.scores > self.threshold
            for name in names:
                columns[name].append(getattr(shard, name))
            columns["file_name"].append(np.array(shard.file_name.to_pylist()))
            columns["counts"].append(shard.kept(self.threshold))
            columns["boxes"].append(shard.boxes[kept])
            columns["labels"].append(shard.labels[kept])
        return {name: np.concatenate(parts) for name, parts in columns.items()}

    def images_with_labels(self) -> np.ndarray:
        """Indices, ascending int64, of the images that keep at least one label."""
        return np.flatnonzero(np.concatenate([[], *(shard.kept(self.threshold) for shard in self._each_shard())]))

    def labels_by_class(self) -> np.ndarray:
        """How many labels above the threshold each category has, (C,)."""
        counts = np.zeros(len(self.categories), np.int64)
        for shard in self._each_shard():
            counts += np.bincount(shard.labels[shard.scores > self.threshold], minlength=len(counts))
        return counts

    def statistics(self, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
        """What each of T thresholds keeps, to choose one by.

        Returns:
            `thresholds`, `labels`, `labels_per_image` (the mean), `images_with_labels`: (T,); `images_by_labels`
            (T, 102): images with 0, 1, ..., 100, more labels; `areas` (T, 3): small, medium, large labels by COCO's
            limits; `score_histogram` (50,) of all stored labels between `score_edges` (51,).
        """
        thresholds, edges = np.asarray(thresholds, dtype=np.float32), np.linspace(0, 1, 51)
        by_labels, areas = np.zeros((len(thresholds), 102), np.int64), np.zeros((len(thresholds), 3), np.int64)
        labels, histogram = np.zeros(len(thresholds), np.int64), np.zeros(50, np.int64)
        for shard in self._each_shard():
            histogram += np.histogram(shard.scores, edges)[0]
            sizes = np.searchsorted(AREA_LIMITS, shard.areas, side="right")
            for t, threshold in enumerate(thresholds):
                counts = shard.kept(threshold)
                labels[t] += counts.sum()
                by_labels[t] += np.bincount(np.minimum(counts, 101), minlength=102)
                areas[t] += np.bincount(sizes[shard.scores > threshold], minlength=3)
        images = {"labels_per_image": labels / max(len(self), 1), "images_with_labels": by_labels[:, 1:].sum(axis=1)}
        counted = {"images_by_labels": by_labels, "areas": areas, "score_histogram": histogram, "score_edges": edges}
        return {"thresholds": thresholds, "labels": labels} | images | counted

    def _find(self, index: int) -> tuple[_Shard, int]:
        """The shard of an image, opened if it is touched for the first time, and the image's row there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        number = int(self._first_rows.searchsorted(index, side="right")) - 1
        if number not in self._shards:
            if len(self._shards) >= OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)))
            self._shards[number] = self._open(number)
        return self._shards[number], index - int(self._first_rows[number])

    def _each_shard(self) -> Iterable[_Shard]:
        return (self._shards.get(number) or self._open(number) for number in range(len(self.manifest["shards"])))

    def _open(self, number: int) -> _Shard:
        entry = self.manifest["shards"][number]
        return _open_shard(self.folder / entry["file"], entry["rows"])


def _open_shard(path: Path, rows: int) -> _Shard:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        foreign = not file.schema.equals(SCHEMA) or file.num_record_batches != 1
        batch = None if foreign else file.get_batch(0)
        if foreign or batch.num_rows != rows:
            raise PseudoLabelError(f"{path} is not a shard of this store: other columns or number of images")
        batch.validate()
    except (OSError, pa.ArrowException) as error:
        raise PseudoLabelError(f"{path} cannot be read: {error}") from error
    flat = {name: batch[name].values.to_numpy() for name in PER_LABEL}
    flat["boxes"] = flat["boxes"].reshape(-1, 4)
    masks = batch["masks"].values
    _, offsets, content = masks.buffers()
    offsets = np.frombuffer(offsets, np.int32, len(masks) + 1) if len(masks) else np.zeros(1, np.int32)
    return _Shard(
        **{name: batch[name].to_numpy() for name in ("image_id", "height", "width")},
        file_name=batch["file_name"],
        starts=batch["scores"].offsets.to_numpy(),
        mask_starts=batch["masks"].offsets.to_numpy(),
        mask_offsets=offsets,
        mask_bytes=memoryview(content or b""),
        **flat,
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
