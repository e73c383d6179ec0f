"""COCO panoptic files as a store of entities, with masks as RLE: converted once, by several processes.

A conversion that was killed resumes with the missing shards. Crowds and unannotated pixels are stored too, with scores
of their own, so that they can be ignored on request.
"""

from __future__ import annotations

import hashlib
import os
from itertools import repeat
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.image_files import MOST_PIXELS
from cassl_lib.data.panoptic import PanopticFiles, check_segments, count_values, few, pngs_of, read_ids
from cassl_lib.data.processes import cores, process_pool
from cassl_lib.errors import DataError
from cassl_lib.files import alone, file_fingerprint, writable
from cassl_lib.labels.shards import finish, finished_shards, write_shard
from cassl_lib.labels.store import PseudoLabelStore

SHARD_SIZE = 1000  # images
VERSION = 3  # of the conversion: raise it whenever the same files give a different store
MIN_IMAGES_PER_PROCESS = 200  # with fewer, starting a process takes longer than it saves
ENTITY, CROWD, UNANNOTATED = 1.0, 0.0, -1.0  # scores in the store; its default threshold of 0 selects the entities


def entity_store(path: Path, *, workers: int | None = None) -> PseudoLabelStore:
    """The store of a panoptic JSON's entities, created or completed if necessary.

    Args:
        path: COCO panoptic JSON.
        workers: number of processes, by default one per core. They are spawned, so scripts need the
            `if __name__ == "__main__"` guard.

    Raises:
        DataError: the JSON or a PNG is missing or invalid, or they disagree.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a COCO panoptic JSON, such as panoptic_train2017.json")
    pngs = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(pngs_of(path)))
    content = hashlib.sha256(repr((file_fingerprint(path), pngs)).encode()).hexdigest()[:16]
    identity = f"entities-{VERSION}-{content}"
    folder = paths.runs() / "entities" / identity
    if not (folder / "manifest.json").exists():
        files = PanopticFiles(path)
        check_ground_truth(files)
        folder = writable(folder)
        with alone(folder):
            if not (folder / "manifest.json").exists():
                convert(files, folder, identity, workers=cores() if workers is None else workers)
    return PseudoLabelStore(folder, threshold=0.0)


def check_ground_truth(files: PanopticFiles) -> None:
    """Raise DataError, before any work, if a panoptic JSON lacks what a ground truth needs."""
    if not files.images or not files.categories:
        raise DataError(
            f"{files.path} has no images or no categories, so it is a result file; give a ground truth JSON"
        )
    for image in files.images:
        if lacking := [name for name in ("id", "file_name", "height", "width") if name not in image]:
            raise DataError(f"{files.path}: an image (id {image.get('id')}) lacks {', '.join(lacking)}")
        if image["height"] * image["width"] > MOST_PIXELS:
            raise DataError(f"{files.path}: image {image['id']} has more than {MOST_PIXELS:,} pixels; make it smaller")
    listed = {image["id"] for image in files.images}
    if unknown := [image for image in files.image_ids if image not in listed]:
        raise DataError(
            f"{files.path}: annotations of the images {few(unknown)}, which `images` lacks; list or remove them"
        )


def convert(files: PanopticFiles, folder: Path, identity: str, *, workers: int) -> None:
    """Write the missing shards, then the manifest."""
    categories = sorted(files.categories, key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    images = [image for image in files.images if image["id"] in files]
    # Find the shards that are missing.
    done, shards = finished_shards(folder, identity), range(0, len(images), SHARD_SIZE)
    missing = [number for number in range(len(shards)) if number not in done]
    left = sum(len(images[shards[number] : shards[number] + SHARD_SIZE]) for number in missing)
    # Convert them image by image; the processes share each shard.
    workers = min(workers, left // MIN_IMAGES_PER_PROCESS)
    bar = tqdm(total=left, desc=f"entities of {files.path.name}", unit="image", mininterval=1, disable=None)
    with process_pool(workers) as pool, bar:
        for number in missing:
            part = images[shards[number] : shards[number] + SHARD_SIZE]
            pngs, segments = [files.png(i["id"]) for i in part], [files.segments(i["id"]) for i in part]
            arguments = (part, pngs, segments, repeat(label_of))
            rows = []
            for row in pool.map(entity_row, *arguments, chunksize=20) if pool else map(entity_row, *arguments):
                rows.append(row)
                bar.update()
            write_shard(folder, number, rows, identity)
    finish(folder, labeler=identity, pool=identity, shards=len(shards), categories=categories)


def entity_row(image: dict, png: Path, segments: list[dict], label_of: dict[int, int]) -> dict:
    """One image's row of the store.

    Args:
        image: COCO's image record.
        segments: `segments_info` of the image.
        label_of: label by category id.
    """
    ids = read_ids(png)
    if ids.shape != (image["height"], image["width"]):
        raise DataError(
            f"{png} is {ids.shape[0]}x{ids.shape[1]} pixels, but its image is {image['height']}x{image['width']} in "
            "the JSON; the PNG must have the size of the image"
        )
    check_segments(count_values(ids)[0], segments, f"{png} and its JSON")
    rles = segment_rles(ids, [segment["id"] for segment in segments])
    labels = [label_of[segment["category_id"]] for segment in segments]
    scores = [CROWD if segment.get("iscrowd", 0) else ENTITY for segment in segments]
    if not ids.all():
        rles, labels, scores = [*rles, *segment_rles(ids, [0])], [*labels, 0], [*scores, UNANNOTATED]
    boxes = coco_mask.toBbox(rles) if rles else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    row = {"image_id": image["id"], "file_name": image["file_name"], "height": image["height"], "width": image["width"]}
    return row | {"boxes": boxes, "scores": scores, "labels": labels, "rles": rles}


def segment_rles(ids: np.ndarray, wanted: list[int]) -> list[dict]:
    """Compressed RLE of the pixels with each of the wanted ids, from one pass over the (H, W) id map."""
    columns_first = ids.T.reshape(-1)
    starts = np.flatnonzero(np.diff(columns_first, prepend=columns_first[0] - 1))
    values, ends = columns_first[starts], np.append(starts[1:], columns_first.size)
    rles = []
    for segment in wanted:
        own = values == segment
        edges = np.stack([starts[own], ends[own]], 1).reshape(-1)
        counts = np.diff(edges, prepend=0, append=columns_first.size)
        size = list(ids.shape)
        rles.append(coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size))
    return rles
