"""The pseudo-label store: a folder of Parquet shards plus `manifest.json`, readable by anyone with pyarrow.

Labelling writes shards one by one and `finish`es the folder; whatever stops it, the shards that were finished stay.
Everything the labeler gave is kept; which labels are good enough (Sec. 3.1, one constant threshold on the score) is
decided when the store is read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as mask_api

FORMAT, VERSION = "cassl pseudo labels", 1
AGNOSTIC = ({"id": 1, "name": "object"},)
AREA_LIMITS = (32**2, 96**2)  # pixels; COCO's small, medium and large
SCHEMA = pa.schema(
    {
        "image_id": pa.int64(),
        "file_name": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "boxes": pa.list_(pa.float32()),  # xyxy pixels of the stored image, four a label
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int32()),  # from 0; all 0 if class-agnostic
        "areas": pa.list_(pa.float32()),  # pixels of the mask, of the box without masks
        "masks": pa.list_(pa.binary()),  # `counts` of COCO's compressed RLE; an empty list for box-only labels
        "labeler": pa.string(),
    }
)


class PseudoLabelError(ValueError):
    """A store that is unfinished, damaged, or holds what does not belong to it; the message names the file."""


def write_shard(folder: str | Path, index: int, rows: Iterable[Mapping], labeler: str) -> dict:
    """Write shard `index` so that it is either whole or absent, and note its checksum beside it.

    Args:
        rows: one mapping an image: `image_id`, `file_name`, `height`, `width`, `boxes` (N, 4) xyxy, `scores` (N,);
            optional `labels` (N,), all 0 if absent; `rles`, N dicts `size`, `counts` as of pycocotools, or none;
            `areas` (N,), from the masks, else the boxes, if absent. Arrays or CPU tensors. N may be 0.
        labeler: identity of the model that made the labels.
    Returns:
        The shard's entry in the manifest: `file`, `rows`, `labels`, `bytes`, `sha256`, `labeler`.
    """
    path, rows = Path(folder) / _shard_name(index), [_checked(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(_to_table(rows, labeler), sink, compression="zstd")
    content = sink.getvalue()
    entry = {"file": path.name, "rows": len(rows), "labels": sum(len(row["scores"]) for row in rows)}
    entry |= {"bytes": content.size, "sha256": hashlib.sha256(content).hexdigest(), "labeler": labeler}
    _write_atomically(path, content)
    _write_atomically(path.with_suffix(".json"), json.dumps(entry).encode())  # last: its presence means "finished"
    return entry


def finished_shards(folder: str | Path, labeler: str | None = None) -> set[int]:
    """Indices of the shards that need not be written again; those of another `labeler` are refused."""
    finished = set()
    for path in sorted(Path(folder).glob("shard-*.json")):
        entry, shard = (
            _read_json(path, {"file", "rows", "labels", "bytes", "sha256", "labeler"}),
            path.with_suffix(".parquet"),
        )
        if labeler is not None and entry["labeler"] != labeler:
            raise PseudoLabelError(
                f"{shard} is of labeler {entry['labeler']}, not {labeler}: label into another folder"
            )
        if shard.is_file() and shard.stat().st_size == entry["bytes"]:
            finished.add(int(path.stem.removeprefix("shard-")))
    return finished


def finish(
    folder: str | Path,
    *,
    labeler: str,
    pool: str,
    shards: int | None = None,
    categories: Sequence[Mapping] = AGNOSTIC,
) -> dict:
    """Close the store: write `manifest.json` and return it.

    Args:
        pool: fingerprint of the unlabelled pool.
        shards: how many there must be; None takes those that are there, which must be numbered without a gap.
        categories: COCO categories in the order of the labels, `categories[label]`.
    """
    folder, finished = Path(folder), finished_shards(folder, labeler)
    shards = max(finished, default=-1) + 1 if shards is None else shards
    for index in sorted(finished ^ set(range(shards))):
        problem = "is one too many" if index in finished else "is missing: labelling has not finished"
        raise PseudoLabelError(f"{folder / _shard_name(index)} {problem}, {shards} shards are expected")
    entries = [json.loads((folder / _shard_name(index)).with_suffix(".json").read_text()) for index in range(shards)]
    manifest = {"format": FORMAT, "version": VERSION, "labeler": labeler, "pool": pool}
    manifest |= {"categories": [dict(category) for category in categories]}
    manifest |= {"images": sum(entry["rows"] for entry in entries), "labels": sum(entry["labels"] for entry in entries)}
    manifest |= {"shards": entries}
    _write_atomically(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


@dataclass(frozen=True)
class _Shard:
    """One shard as flat arrays: the labels of row r are `starts[r]:starts[r + 1]`. No Python object a label."""

    table: pa.Table  # for what is read an image at a time: file names, sizes
    starts: np.ndarray  # (rows + 1,)
    boxes: np.ndarray  # (labels, 4)
    scores: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    masks: pa.Array
    mask_starts: np.ndarray  # (rows + 1,)


class PseudoLabels:
    """A finished store as a sequence of images, with the labels whose score is above the threshold.

    `labels[i]` is a dict: `image_id`, `file_name`, `height`, `width`, `boxes` (N, 4) float32 xyxy, `scores`, `labels`,
    `areas` (N,), `rles` list of N `{"size": [height, width], "counts": bytes}`, empty for box-only labels. N may be 0.
    Shards are read and checked when first touched, once a process; a pickled copy starts without them.
    """

    def __init__(self, folder: str | Path, threshold: float = 0.3):
        # UNSTATED: Sec. 3.1, the threshold on the score is in the lost supplement
        self.folder, self.threshold = Path(folder), threshold
        self.manifest = _read_manifest(self.folder)
        self._first_rows = np.cumsum([0] + [entry["rows"] for entry in self.manifest["shards"]])
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return self.manifest["images"]

    def __getitem__(self, index: int) -> dict:
        shard, row = self._find(index)
        first, last = shard.starts[row], shard.starts[row + 1]
        kept = np.flatnonzero(shard.scores[first:last] > self.threshold) + first
        item = {name: shard.table[name][row].as_py() for name in ("image_id", "file_name", "height", "width")}
        item |= {name: getattr(shard, name)[kept] for name in ("boxes", "scores", "labels", "areas")}
        first_mask, last_mask = shard.mask_starts[row], shard.mask_starts[row + 1]
        masks = shard.masks.take(pa.array(kept - first + first_mask)).to_pylist() if last_mask > first_mask else []
        return item | {"rles": [{"size": [item["height"], item["width"]], "counts": counts} for counts in masks]}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}

    def file_name(self, index: int) -> str:
        """Of one image, without its labels."""
        shard, row = self._find(index)
        return shard.table["file_name"][row].as_py()

    def image_id(self, index: int) -> int:
        """Of one image, without its labels."""
        shard, row = self._find(index)
        return shard.table["image_id"][row].as_py()

    @property
    def labeler(self) -> str:
        return self.manifest["labeler"]

    @property
    def categories(self) -> list[dict]:
        return self.manifest["categories"]

    @property
    def fingerprint(self) -> str:
        """Changes with any stored bit; not with the threshold."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def at(self, threshold: float) -> PseudoLabels:
        """The same store at another threshold; what has been read is shared."""
        other = copy.copy(self)
        other.threshold, other._shards = threshold, self._shards
        return other

    def flat(self) -> dict[str, np.ndarray]:
        """All labels at once, without masks.

        Returns:
            `image_id`, `height`, `width`, `counts` of labels, `file_name`: (I,); `boxes` (L, 4), `labels` (L,).
        """
        names = ("image_id", "height", "width", "file_name")
        columns = {name: [np.zeros(0, np.int64 if name != "file_name" else "U1")] for name in (*names, "counts")}
        columns |= {"boxes": [np.zeros((0, 4), np.float32)], "labels": [np.zeros(0, np.int32)]}
        for shard in self._each_shard():
            kept = shard.scores > self.threshold
            for name in names:
                columns[name].append(np.array(shard.table[name].to_pylist()))
            columns["counts"].append(_kept(shard, self.threshold))
            columns["boxes"].append(shard.boxes[kept])
            columns["labels"].append(shard.labels[kept])
        return {name: np.concatenate(parts) for name, parts in columns.items()}

    def images_with_labels(self) -> np.ndarray:
        """Indices, ascending int64, of the images that keep at least one label."""
        return np.flatnonzero(np.concatenate([[], *(_kept(s, self.threshold) for s in self._each_shard())]))

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
                counts = _kept(shard, threshold)
                labels[t] += counts.sum()
                by_labels[t] += np.bincount(np.minimum(counts, 101), minlength=102)
                areas[t] += np.bincount(sizes[shard.scores > threshold], minlength=3)
        images = {"labels_per_image": labels / max(len(self), 1), "images_with_labels": by_labels[:, 1:].sum(axis=1)}
        counted = {"images_by_labels": by_labels, "areas": areas, "score_histogram": histogram, "score_edges": edges}
        return {"thresholds": thresholds, "labels": labels} | images | counted

    def to_coco(self, threshold: float | None = None) -> dict:
        """The labels as a COCO dict: instances with a `score`, masks as compressed RLE. For small pools."""
        at = self if threshold is None else self.at(threshold)
        images, annotations = [], []
        for item in (at[index] for index in range(len(at))):
            images.append({"id": item["image_id"]} | {name: item[name] for name in ("file_name", "height", "width")})
            boxes = np.concatenate([item["boxes"][:, :2], item["boxes"][:, 2:] - item["boxes"][:, :2]], axis=1).tolist()
            for n, box in enumerate(boxes):
                entry = {"id": len(annotations) + 1, "image_id": item["image_id"], "bbox": box, "iscrowd": 0}
                entry |= {"category_id": self.categories[item["labels"][n]]["id"]}
                entry |= {"area": float(item["areas"][n]), "score": float(item["scores"][n])}
                if item["rles"]:
                    entry["segmentation"] = item["rles"][n] | {"counts": item["rles"][n]["counts"].decode()}
                annotations.append(entry)
        info = {"description": f"pseudo labels of {self.labeler}, scores above {at.threshold}"}
        return {"info": info, "images": images, "annotations": annotations, "categories": self.categories}

    def _find(self, index: int) -> tuple[_Shard, int]:
        """The shard of an image, read if it is touched for the first time, and the image's row there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        if number not in self._shards:
            self._shards[number] = self._read(number)
        return self._shards[number], index - int(self._first_rows[number])

    def _each_shard(self) -> Iterable[_Shard]:
        return (self._shards.get(number) or self._read(number) for number in range(len(self.manifest["shards"])))

    def _read(self, number: int) -> _Shard:
        entry = self.manifest["shards"][number]
        return _read_shard(self.folder / entry["file"], entry)


def from_coco(
    coco: str | Path | Mapping, folder: str | Path, *, labeler: str = "coco", shard_size: int = 5000
) -> PseudoLabels:
    """Make a store of any COCO instances JSON, path or dict: another tool's pseudo labels, or ground truth (score 1).

    Crowd regions are not labels and are left out. Labels are the ranks of the category ids.
    """
    content = json.dumps(coco, sort_keys=True) if isinstance(coco, Mapping) else Path(coco).read_text()
    coco = json.loads(content)
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    rank = {category["id"]: label for label, category in enumerate(categories)}
    by_image: dict[int, list] = {image["id"]: [] for image in coco["images"]}
    for entry in coco["annotations"]:
        if not entry.get("iscrowd", 0):
            by_image[entry["image_id"]].append(entry)
    for index, start in enumerate(range(0, len(coco["images"]), shard_size)):
        images = coco["images"][start : start + shard_size]
        write_shard(folder, index, [_row_from_coco(image, by_image[image["id"]], rank) for image in images], labeler)
    pool = hashlib.sha256(content.encode()).hexdigest()
    finish(folder, labeler=labeler, pool=pool, shards=-(-len(coco["images"]) // shard_size), categories=categories)
    return PseudoLabels(folder)


def _row_from_coco(image: Mapping, entries: list[Mapping], rank: Mapping[int, int]) -> dict:
    row = {"image_id": image["id"]} | {name: image[name] for name in ("file_name", "height", "width")}
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    row["boxes"] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    row["scores"] = [entry.get("score", 1.0) for entry in entries]
    row["labels"] = [rank[entry["category_id"]] for entry in entries]
    shapes = [entry["segmentation"] for entry in entries if entry.get("segmentation")]
    row["rles"] = [_to_rle(shape, image["height"], image["width"]) for shape in shapes]
    if all("area" in entry for entry in entries):
        row["areas"] = [entry["area"] for entry in entries]
    return row


def _to_rle(shape, height: int, width: int) -> dict:
    """Polygons, or a run-length mask in either of COCO's two forms, as compressed RLE."""
    if isinstance(shape, Mapping) and not isinstance(shape["counts"], list):
        return dict(shape)
    rle = mask_api.frPyObjects(shape, height, width)
    return mask_api.merge(rle) if isinstance(rle, list) else rle


def _checked(row: Mapping) -> dict:
    """The row as flat arrays of the stored types, refused if its parts do not fit together."""
    boxes, scores = np.asarray(row["boxes"], np.float32).reshape(-1, 4), np.asarray(row["scores"], np.float32)
    rles = list(row.get("rles", ()))
    masks = [rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode() for rle in rles]
    if "areas" in row:
        areas = np.asarray(row["areas"], np.float32)
    else:
        areas = mask_api.area(rles).astype(np.float32) if rles else (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    labels = np.asarray(row.get("labels", np.zeros(len(boxes))), np.int32)
    lengths = {"boxes": len(boxes), "scores": len(scores), "labels": len(labels), "areas": len(areas)}
    if len(set(lengths.values())) > 1 or len(masks) not in (0, len(boxes)):
        raise PseudoLabelError(
            f"{row['file_name']}: {lengths}, {len(masks)} masks; one of each a label, masks for all or none"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise PseudoLabelError(f"{row['file_name']}: a box or score is not finite")
    if any(tuple(rle["size"]) != (row["height"], row["width"]) for rle in rles):
        raise PseudoLabelError(
            f"{row['file_name']}: a mask is not of the image's size {row['height']} x {row['width']}"
        )
    image = {name: row[name] for name in ("image_id", "file_name", "height", "width")}
    return image | {"boxes": boxes.reshape(-1), "scores": scores, "labels": labels, "areas": areas, "masks": masks}


def _to_table(rows: list[dict], labeler: str) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in ("image_id", "file_name", "height", "width", "masks")}
    for name in ("boxes", "scores", "labels", "areas"):
        starts = np.cumsum([0] + [len(row[name]) for row in rows]).astype(np.int32)
        values = np.concatenate(
            [np.empty(0, SCHEMA.field(name).type.value_type.to_pandas_dtype()), *(row[name] for row in rows)]
        )
        columns[name] = pa.ListArray.from_arrays(starts, values, type=SCHEMA.field(name).type)
    return pa.table(columns | {"labeler": [labeler] * len(rows)}, schema=SCHEMA)


def _read_shard(path: Path, entry: Mapping) -> _Shard:
    try:
        with pa.memory_map(str(path)) as source:
            content = source.read_buffer()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise PseudoLabelError(f"{path} is damaged or was replaced: its checksum is not the manifest's")
        table = pq.read_table(pa.BufferReader(content)).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise PseudoLabelError(f"{path} cannot be read: {error}") from error
    if not table.schema.equals(SCHEMA) or table.num_rows != entry["rows"]:
        raise PseudoLabelError(f"{path} is not a shard of this store: other columns or number of images")
    column = {name: table[name].combine_chunks() for name in ("boxes", "scores", "labels", "areas", "masks")}
    flat = {name: column[name].values.to_numpy() for name in ("boxes", "scores", "labels", "areas")}
    flat["boxes"] = flat["boxes"].reshape(-1, 4)
    starts, mask_starts = (column[name].offsets.to_numpy() for name in ("scores", "masks"))
    return _Shard(table=table, starts=starts, masks=column["masks"].values, mask_starts=mask_starts, **flat)


def _kept(shard: _Shard, threshold: float) -> np.ndarray:
    """How many labels each image of the shard keeps."""
    before = np.concatenate([[0], np.cumsum(shard.scores > threshold)])
    return before[shard.starts[1:]] - before[shard.starts[:-1]]


def _read_manifest(folder: Path) -> dict:
    """The manifest, once every shard is known to belong here and to have its size; its content is checked when read."""
    path = folder / "manifest.json"
    if not path.is_file():
        finished = len(finished_shards(folder))
        raise PseudoLabelError(
            f"{path} is missing ({finished} shards are finished): run the labelling again, it continues"
        )
    manifest = _read_json(path, {"format", "version", "labeler", "pool", "categories", "images", "labels", "shards"})
    if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
        raise PseudoLabelError(f"{path} is of {manifest['format']} {manifest['version']}, not {FORMAT} {VERSION}")
    for entry in manifest["shards"]:
        shard = folder / entry["file"]
        if entry["labeler"] != manifest["labeler"]:
            raise PseudoLabelError(f"{shard} is of labeler {entry['labeler']}, the store of {manifest['labeler']}")
        if not shard.is_file() or shard.stat().st_size != entry["bytes"]:
            raise PseudoLabelError(f"{shard} is missing or damaged: it should have {entry['bytes']} bytes")
    for foreign in sorted(
        {path.name for path in folder.glob("*.parquet")} - {entry["file"] for entry in manifest["shards"]}
    ):
        raise PseudoLabelError(f"{folder / foreign} is not in the manifest: it belongs to another store")
    return manifest


def _read_json(path: Path, keys: set[str]) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise PseudoLabelError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or not keys <= content.keys():
        raise PseudoLabelError(f"{path} does not belong to a pseudo-label store")
    return content


def _write_atomically(path: Path, content) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"
