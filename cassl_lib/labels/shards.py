"""What a pseudo-label store is on disk, and how it is written: Arrow shards, and a manifest that closes them.

    shard-00000.arrow   about 10,000 images, one row an image: one uncompressed Arrow IPC file, read by memory map
    shard-00000.json    its entry of the manifest, written after it: the shard is finished when this exists
    manifest.json       written last: the store is finished when it exists

Shards may be written in any order by any number of processes and machines. The same labels give the same bytes.
Anyone can read a shard: `pandas.read_feather(path)`, `pyarrow.dataset.dataset(folder, format="ipc")`, polars, duckdb.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pycocotools import mask as mask_api

from cassl_lib.errors import PseudoLabelError
from cassl_lib.files import write_atomically

FORMAT, VERSION = "cassl pseudo labels", 2
AGNOSTIC = ({"id": 1, "name": "object"},)
SCHEMA = pa.schema(
    {
        "image_id": pa.int64(),
        "file_name": pa.string(),  # below the data root, or absolute
        "height": pa.int32(),
        "width": pa.int32(),
        "boxes": pa.list_(pa.float32()),  # xyxy pixels of the stored image, four a label
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int32()),  # from 0; all 0 if class-agnostic
        "areas": pa.list_(pa.float32()),  # pixels of the mask, of the box without masks
        "masks": pa.list_(pa.binary()),  # `counts` of COCO's compressed RLE; an empty list for box-only labels
        "labeler": pa.dictionary(pa.int32(), pa.string()),
    }
)
ENTRY = {"file", "rows", "labels", "masks", "bytes", "sha256", "labeler", "unreadable"}
PER_LABEL = ("boxes", "scores", "labels", "areas")


def write_shard(
    folder: str | Path,
    index: int,
    rows: Iterable[Mapping],
    labeler: str,
    *,
    unreadable: Sequence[str] = (),
    request: str = "",
) -> dict:
    """Write shard `index` so that it is either whole or absent, and note its checksum beside it.

    Args:
        rows: one mapping an image: `image_id`, `file_name`, `height`, `width`, `boxes` (N, 4) xyxy, `scores` (N,);
            optional `labels` (N,), all 0 if absent; `rles`, N dicts `size`, `counts` as of pycocotools, or none;
            `areas` (N,), from the masks, else the boxes, if absent. Arrays or CPU tensors. N may be 0.
        labeler: identity of the model that made the labels.
        unreadable: images of this part of the pool that could not be read and have no row.
        request: hash of what was asked for (labeler, pool, settings), so that no shard passes for one of another pool.
    Returns:
        The shard's entry in the manifest: `file`, `rows`, `labels`, `masks`, `bytes`, `sha256`, `labeler`, `request`,
        `unreadable`.
    """
    path, rows = shard_path(folder, index), [_checked(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as file:
        file.write_batch(_to_batch(rows, labeler))
    content = sink.getvalue()
    entry = {"file": path.name, "rows": len(rows), "labels": sum(len(row["scores"]) for row in rows)}
    entry |= {"masks": sum(len(row["masks"]) for row in rows), "bytes": content.size}
    entry |= {"sha256": hashlib.sha256(content).hexdigest(), "labeler": labeler}
    entry |= {"request": request, "unreadable": list(unreadable)}
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), json.dumps(entry).encode())  # last: its presence means "finished"
    return entry


def shard_path(folder: str | Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.arrow"


def finished_shard(
    folder: str | Path, index: int, labeler: str | None = None, request: str | None = None
) -> dict | None:
    """The entry of a shard that need not be written again, None of one that must.

    Raises:
        PseudoLabelError: it is another `labeler`'s, or was made for another `request`.
    """
    shard = shard_path(folder, index)
    note = shard.with_suffix(".json")
    if not note.is_file():
        return None
    entry = read_json(note, ENTRY)
    if labeler is not None and entry["labeler"] != labeler:
        raise PseudoLabelError(f"{shard} is of labeler {entry['labeler']}, not {labeler}: label into another folder")
    if request is not None and entry.get("request") != request:
        raise PseudoLabelError(f"{shard} is of another pool or other settings: take it and {note.name} away")
    return entry if shard.is_file() and shard.stat().st_size == entry["bytes"] else None


def finished_shards(folder: str | Path, labeler: str | None = None) -> dict[int, dict]:
    """The entries of all finished shards by index; those of another `labeler` are refused."""
    indices = (int(path.stem.removeprefix("shard-")) for path in sorted(Path(folder).glob("shard-*.json")))
    entries = {index: finished_shard(folder, index, labeler) for index in indices}
    return {index: entry for index, entry in entries.items() if entry}


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
        pool: fingerprint of the unlabeled pool.
        shards: how many there must be; None takes those that are there, which must be numbered without a gap.
        categories: COCO categories in the order of the labels, `categories[label]`.
    """
    folder, finished = Path(folder), finished_shards(folder, labeler)
    shards = max(finished, default=-1) + 1 if shards is None else shards
    for index in sorted(finished.keys() ^ set(range(shards))):
        problem = "is one too many" if index in finished else "is missing: labeling has not finished"
        raise PseudoLabelError(f"{shard_path(folder, index)} {problem}, {shards} shards are expected")
    entries = [finished[index] for index in range(shards)]
    manifest = {"format": FORMAT, "version": VERSION, "labeler": labeler, "pool": pool}
    manifest |= {"categories": [dict(category) for category in categories]}
    manifest |= {"images" if name == "rows" else name: sum(e[name] for e in entries) for name in ("rows", "labels")}
    manifest |= {"unreadable": sum(len(entry["unreadable"]) for entry in entries), "shards": entries}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: Path) -> dict:
    """The manifest, once every shard is known to belong here and to have its size; contents are not read."""
    path = folder / "manifest.json"
    if folder.is_file():
        raise PseudoLabelError(f"{folder} is a file; give the folder of a store of pseudo labels")
    if not path.is_file():
        there = f"{len(finished_shards(folder))} shards are finished" if folder.is_dir() else "there is no such folder"
        raise PseudoLabelError(f"{path} is missing ({there}): run the labeling again, it continues")
    manifest = read_json(path, {"format", "version"})
    if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
        raise PseudoLabelError(
            f"{path} is of {manifest['format']} {manifest['version']}, not {FORMAT} {VERSION}: label again"
        )
    manifest = read_json(path, {"labeler", "pool", "categories", "images", "labels", "shards"})
    for entry in manifest["shards"]:
        if not isinstance(entry, dict) or not ENTRY <= entry.keys():
            raise PseudoLabelError(f"{path} is damaged: the entry of a shard lacks something")
        shard = folder / entry["file"]
        if entry["labeler"] != manifest["labeler"]:
            raise PseudoLabelError(f"{shard} is of labeler {entry['labeler']}, the store of {manifest['labeler']}")
        if not shard.is_file() or shard.stat().st_size != entry["bytes"]:
            raise PseudoLabelError(
                f"{shard} is missing or damaged, it should have {entry['bytes']} bytes: label again, it is made anew"
            )
    named = {entry["file"] for entry in manifest["shards"]}
    for foreign in sorted({path.name for path in folder.glob("*.arrow")} - named):
        raise PseudoLabelError(f"{folder / foreign} is not in the manifest: it belongs to another store")
    return manifest


def read_json(path: Path, keys: set[str]) -> dict:
    """A JSON object that has these keys."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise PseudoLabelError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or not keys <= content.keys():
        raise PseudoLabelError(f"{path} does not belong to a pseudo-label store")
    return content


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


def _to_batch(rows: list[dict], labeler: str) -> pa.RecordBatch:
    columns = {name: [row[name] for row in rows] for name in ("image_id", "file_name", "height", "width", "masks")}
    for name in PER_LABEL:
        starts = np.cumsum([0] + [len(row[name]) for row in rows]).astype(np.int32)
        values = np.concatenate(
            [np.empty(0, SCHEMA.field(name).type.value_type.to_pandas_dtype()), *(row[name] for row in rows)]
        )
        columns[name] = pa.ListArray.from_arrays(starts, values, type=SCHEMA.field(name).type)
    maker = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([labeler]))
    return pa.record_batch(columns | {"labeler": maker}, schema=SCHEMA)
