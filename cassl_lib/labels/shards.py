"""The pseudo-label store on disk, and how it is written: Arrow shards and a manifest.

    shard-00000.arrow   about 10,000 images, one row per image: an uncompressed Arrow IPC file, read by memory map
    shard-00000.json    the shard's entry of the manifest, written after the shard: marks it as finished
    manifest.json       written last: marks the store as finished

Shards may be written in any order, by any number of processes and machines. The same labels give the same bytes.
Other tools can read a shard too: `pandas.read_feather(path)`, `pyarrow.dataset.dataset(folder, format="ipc")`, polars,
duckdb.
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
from cassl_lib.labels.manifest import check_manifest

FORMAT, VERSION = "cassl pseudo labels", 2
AGNOSTIC = ({"id": 1, "name": "object"},)  # categories of class-agnostic labels
SCHEMA = pa.schema(
    {
        "image_id": pa.int64(),
        "file_name": pa.string(),  # relative to the data root, or absolute
        "height": pa.int32(),
        "width": pa.int32(),
        "boxes": pa.list_(pa.float32()),  # xyxy in pixels of the original image, four numbers per label
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int32()),  # from 0; all 0 if class-agnostic
        "areas": pa.list_(pa.float32()),  # pixels of the mask, or of the box where there is no mask
        "masks": pa.list_(pa.binary()),  # `counts` of COCO's compressed RLE; an empty list for box-only labels
        "labeler": pa.dictionary(pa.int32(), pa.string()),
    }
)
ENTRY_KEYS = {"file", "rows", "labels", "masks", "bytes", "sha256", "labeler", "unreadable"}
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
    """Write shard `index` atomically, then its entry with the checksum.

    Args:
        rows: one mapping per image: `image_id`, `file_name`, `height`, `width`, `boxes` (N, 4) xyxy, `scores` (N,);
            optional `labels` (N,), 0 by default; `rles`, N pycocotools dicts `size`, `counts`, or none; `areas` (N,),
            by default those of the masks, or of the boxes without masks. Arrays or CPU tensors; N may be 0.
        labeler: identity of the model that made the labels.
        unreadable: images of this part of the pool that could not be read and have no row.
        request: hash of labeler, pool and settings, so that a shard of another request is recognized.

    Returns:
        The shard's entry of the manifest: `file`, `rows`, `labels`, `masks`, `bytes`, `sha256`, `labeler`, `request`,
        `unreadable`.

    Raises:
        PseudoLabelError: the parts of a row do not fit together.
    """
    path, rows = shard_path(folder, index), [_flat_row(row) for row in rows]
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
    """The entry of a finished shard; None if the shard still has to be written.

    Raises:
        PseudoLabelError: the shard is from another `labeler` or another `request`.
    """
    shard = shard_path(folder, index)
    note = shard.with_suffix(".json")
    if not note.is_file():
        return None
    entry = read_json(note, ENTRY_KEYS)
    if labeler is not None and entry["labeler"] != labeler:
        raise PseudoLabelError(
            f"{shard}: made by labeler {entry['labeler']}, not by {labeler}. Label into another folder."
        )
    if request is not None and entry.get("request") != request:
        raise PseudoLabelError(
            f"{shard}: made from another pool or with other settings. Move it and {note.name} to another folder."
        )
    return entry if shard.is_file() and shard.stat().st_size == entry["bytes"] else None


def finished_shards(folder: str | Path, labeler: str | None = None) -> dict[int, dict]:
    """The entries of all finished shards by index.

    Raises:
        PseudoLabelError: a shard is from another `labeler`.
    """
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
    """Finish the store: write `manifest.json` and return it.

    Args:
        pool: fingerprint of the unlabeled pool.
        shards: expected number of shards; None takes the finished ones, which must be numbered without gaps.
        categories: COCO categories in the order of the labels, `categories[label]`.

    Raises:
        PseudoLabelError: a shard is missing, or there are more than `shards`.
    """
    folder, finished = Path(folder), finished_shards(folder, labeler)
    shards = max(finished, default=-1) + 1 if shards is None else shards
    for index in sorted(finished.keys() ^ set(range(shards))):
        problem, remedy = "is missing", "Rerun the labeling to resume"
        if index in finished:
            problem, remedy = "is one too many", "Move it and its .json to another folder"
        raise PseudoLabelError(f"{shard_path(folder, index)} {problem}: {shards} shards are expected. {remedy}.")
    entries = [finished[index] for index in range(shards)]
    manifest = {"format": FORMAT, "version": VERSION, "labeler": labeler, "pool": pool}
    manifest |= {"categories": [dict(category) for category in categories]}
    manifest |= {"images" if name == "rows" else name: sum(e[name] for e in entries) for name in ("rows", "labels")}
    manifest |= {"unreadable": sum(len(entry["unreadable"]) for entry in entries), "shards": entries}
    folder.mkdir(parents=True, exist_ok=True)
    file, content = folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode()
    if not file.exists() or file.read_bytes() != content:  # a finished store may be read-only
        write_atomically(file, content)
    return manifest


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished store, whose shards are all present and of the right size; reads no shard.

    Raises:
        PseudoLabelError: the store is unfinished, of another format, or has missing, cut or foreign shards.
    """
    path = folder / "manifest.json"
    if folder.is_file():
        raise PseudoLabelError(f"{folder} is a file. Give the folder of a pseudo-label store.")
    if not path.is_file():
        state = f"{len(finished_shards(folder))} shards are finished" if folder.is_dir() else "no such folder"
        raise PseudoLabelError(f"{path} is missing ({state}). Rerun the labeling to resume.")
    manifest = read_json(path, {"format", "version"})
    if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
        raise PseudoLabelError(
            f"{path}: format {manifest['format']!r} {manifest['version']}, not {FORMAT!r} {VERSION}. Label again."
        )
    manifest = read_json(path, {"labeler", "pool", "categories", "images", "labels", "shards"})
    check_manifest(manifest, path)
    _check_shards(folder, manifest)
    return manifest


def _check_shards(folder: Path, manifest: dict) -> None:
    """Raise PseudoLabelError unless the folder holds exactly the manifest's shards, each of the right size."""
    for entry in manifest["shards"]:
        shard = folder / entry["file"]
        if entry["labeler"] != manifest["labeler"]:
            raise PseudoLabelError(
                f"{shard}: made by labeler {entry['labeler']}, but the store by {manifest['labeler']}. Label again."
            )
        if not shard.is_file() or shard.stat().st_size != entry["bytes"]:
            raise PseudoLabelError(
                f"{shard} is missing or damaged: expected {entry['bytes']} bytes. Label again to rewrite it."
            )
    listed = {entry["file"] for entry in manifest["shards"]}
    for foreign in sorted({path.name for path in folder.glob("*.arrow")} - listed):
        raise PseudoLabelError(
            f"{folder / foreign} is not in the manifest, so it belongs to another store. Move it to another folder."
        )


def read_json(path: Path, keys: set[str]) -> dict:
    """A JSON object that has these keys.

    Raises:
        PseudoLabelError: not JSON, or a key is missing.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise PseudoLabelError(f"{path} is damaged: {error}. Delete it and label again.") from error
    if not isinstance(content, dict) or not keys <= content.keys():
        raise PseudoLabelError(f"{path} does not belong to a pseudo-label store of this format.")
    return content


def _flat_row(row: Mapping) -> dict:
    """The row as flat arrays of the stored types; raises PseudoLabelError if its parts do not fit together."""
    name = row["file_name"]
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
            f"{name}: got {lengths} and {len(masks)} masks. Give one of each per label, and masks for all or none."
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise PseudoLabelError(f"{name}: a box or score is not finite.")
    if any(tuple(rle["size"]) != (row["height"], row["width"]) for rle in rles):
        raise PseudoLabelError(f"{name}: a mask does not have the image's size {row['height']} x {row['width']}.")
    image = {key: row[key] for key in ("image_id", "file_name", "height", "width")}
    return image | {"boxes": boxes.reshape(-1), "scores": scores, "labels": labels, "areas": areas, "masks": masks}


def _to_batch(rows: list[dict], labeler: str) -> pa.RecordBatch:
    columns = {name: [row[name] for row in rows] for name in ("image_id", "file_name", "height", "width", "masks")}
    for name in PER_LABEL:
        starts = np.cumsum([0] + [len(row[name]) for row in rows]).astype(np.int32)
        values = np.concatenate(
            [np.empty(0, SCHEMA.field(name).type.value_type.to_pandas_dtype()), *(row[name] for row in rows)]
        )
        columns[name] = pa.ListArray.from_arrays(starts, values, type=SCHEMA.field(name).type)
    labelers = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([labeler]))
    return pa.record_batch(columns | {"labeler": labelers}, schema=SCHEMA)
