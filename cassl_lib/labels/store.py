"""Reading a pseudo-label store: a sequence of images with the labels above a score threshold (Sec. 3.1, eq. 3).

Shards are memory-mapped: nothing is loaded, and all processes of a machine share its page cache. The store keeps every
detection of the labeler; the one constant threshold on the score is applied here, when labels are read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cassl_lib.config import THRESHOLD
from cassl_lib.errors import PseudoLabelError
from cassl_lib.labels.mapped import MappedShard, open_shard
from cassl_lib.labels.shards import PER_LABEL, read_manifest
from cassl_lib.labels.summary import store_html

AREA_LIMITS = (32**2, 96**2)  # pixels; COCO's small, medium and large
OPEN_SHARDS = 400  # at most, each a file handle; enough for 4 million images
WORTH_A_BAR = 4 << 30  # bytes; checking more takes longer than a few seconds


class PseudoLabelStore:
    """A finished store as a sequence of images with the labels whose score is above the threshold.

    `store[i]` is a dict: `image_id`, `file_name`, `height`, `width`, `boxes` (N, 4) float32 xyxy in pixels of the
    original image, `scores` (N,) float32 in [0, 1], `labels` (N,) int32, `areas` (N,) float32 in pixels, `rles` list of
    N `{"size": [height, width], "counts": bytes}`, empty for box-only labels. N may be 0.
    Opening checks the manifest and the size of each shard; `verify` also checks their contents.

    Args:
        folder: of the store.
        threshold: labels must score above it; by default `config.THRESHOLD`.

    Raises:
        PseudoLabelError: the store is missing, unfinished or damaged.
    """

    def __init__(self, folder: str | Path, threshold: float = THRESHOLD):
        self.folder, self.threshold = Path(folder), threshold
        self.manifest = read_manifest(self.folder)
        self._first_rows = np.cumsum([0] + [entry["rows"] for entry in self.manifest["shards"]])
        self._shards: dict[int, MappedShard] = {}

    def __repr__(self) -> str:
        return (
            f"PseudoLabelStore({str(self.folder)!r}, threshold={self.threshold:g}): {len(self):,} images, "
            f"{len(self.manifest['shards']):,} shards, labeler {self.labeler}"
        )

    def _repr_html_(self) -> str:
        return store_html(self)

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
        """Pickle without the open shards."""
        return self.__dict__ | {"_shards": {}}

    def file_name(self, index: int) -> str:
        """File name of an image, without reading its labels."""
        shard, row = self._find(index)
        return shard.file_name[row].as_py()

    def image_id(self, index: int) -> int:
        """Id of an image, without reading its labels."""
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
        """Whether every label has a mask; True for a store without labels."""
        return all(entry["masks"] == entry["labels"] for entry in self.manifest["shards"])

    @property
    def unreadable(self) -> list[str]:
        """Images of the pool that could not be read and are not in the store."""
        return [name for entry in self.manifest["shards"] for name in entry["unreadable"]]

    @property
    def bytes_on_disk(self) -> int:
        """Total size of the shards."""
        return sum(entry["bytes"] for entry in self.manifest["shards"])

    @property
    def fingerprint(self) -> str:
        """Hash of everything stored; independent of the threshold."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def at(self, threshold: float) -> PseudoLabelStore:
        """The same store at another threshold, sharing the open shards."""
        other = copy.copy(self)
        other.threshold, other._shards = threshold, self._shards
        return other

    def open(self) -> None:
        """Open all shards now (up to `OPEN_SHARDS`, 0.1 ms each), so that processes forked later share them.

        Shards that are opened one by one during training fragment the heap: 240 KB per shard were measured.
        """
        for number in range(min(len(self.manifest["shards"]), OPEN_SHARDS)):
            self._shards[number] = self._shards.get(number) or self._open(number)

    def verify(self) -> None:
        """Compare every shard with its checksum: about 10 seconds for 3.7M images, with a progress bar.

        Raises:
            PseudoLabelError: names the first shard that is damaged or was replaced.
        """
        hidden = None if self.bytes_on_disk > WORTH_A_BAR else True
        paths = [self.folder / entry["file"] for entry in self.manifest["shards"]]
        with ThreadPoolExecutor(4) as threads:
            checksums = tqdm(threads.map(_checksum, paths), "labels", len(paths), unit="shard", disable=hidden)
            for path, entry, checksum in zip(paths, self.manifest["shards"], checksums, strict=True):
                if checksum != entry["sha256"]:
                    raise PseudoLabelError(
                        f"{path} is damaged or was replaced: its checksum differs from the manifest's. "
                        "Delete it and label again to rewrite it."
                    )

    def flat(self) -> dict[str, np.ndarray]:
        """All labels at once, without masks.

        Returns:
            `image_id`, `height`, `width`, `counts` (labels per image), `file_name`: (I,) for I images; `boxes` (L, 4)
            xyxy and `labels` (L,) for the L labels above the threshold, in the order of the images.
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
        """Ascending indices of the images that have at least one label above the threshold."""
        return np.flatnonzero(np.concatenate([[], *(shard.kept(self.threshold) for shard in self._each_shard())]))

    def labels_by_class(self) -> np.ndarray:
        """Number of labels above the threshold per category, (C,)."""
        counts = np.zeros(len(self.categories), np.int64)
        for shard in self._each_shard():
            counts += np.bincount(shard.labels[shard.scores > self.threshold], minlength=len(counts))
        return counts

    def statistics(self, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
        """Counts of the labels above each of T thresholds.

        Returns:
            `thresholds`, `labels`, `labels_per_image` (the mean), `images_with_labels`: (T,); `images_by_labels`
            (T, 102): number of images with 0, 1, ..., 100 and with more than 100 labels; `areas` (T, 3): small, medium
            and large labels by COCO's limits; `score_histogram` (50,) of all stored labels, and its bin edges
            `score_edges` (51,).
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

    def _find(self, index: int) -> tuple[MappedShard, int]:
        """The shard of an image, opened on first use, and the image's row in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} is out of range: {self.folder} has {len(self)} images")
        index %= len(self)
        number = int(self._first_rows.searchsorted(index, side="right")) - 1
        if number not in self._shards:
            if len(self._shards) >= OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)))
            self._shards[number] = self._open(number)
        return self._shards[number], index - int(self._first_rows[number])

    def _each_shard(self) -> Iterator[MappedShard]:
        return (self._shards.get(number) or self._open(number) for number in range(len(self.manifest["shards"])))

    def _open(self, number: int) -> MappedShard:
        entry = self.manifest["shards"][number]
        return open_shard(self.folder / entry["file"], entry["rows"])


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
