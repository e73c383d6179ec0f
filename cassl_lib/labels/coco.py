"""Pseudo labels to and from COCO JSON: warm up on another model's labels, or read ours with other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cassl_lib.labels.imported import ImportedLabels
from cassl_lib.labels.request import begin, check_same
from cassl_lib.labels.shards import finish, finished_shard, write_shard
from cassl_lib.labels.store import PseudoLabelStore

SHARD_SIZE = 10_000  # images


def to_coco(labels: PseudoLabelStore, images: range | None = None) -> dict:
    """The labels above the store's threshold as a COCO dict: annotations with a `score`, masks as compressed RLE.

    Args:
        images: indices of the images to export; None exports all. A million images take about 10 GB as Python objects.
    """
    records, annotations = [], []
    for item in (labels[index] for index in (range(len(labels)) if images is None else images)):
        records.append({"id": item["image_id"]} | {name: item[name] for name in ("file_name", "height", "width")})
        corners = item["boxes"].astype(np.float64)  # so that x + width gives exactly the stored corner again
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        for n, box in enumerate(boxes):
            entry = {"id": len(annotations) + 1, "image_id": item["image_id"], "bbox": box, "iscrowd": 0}
            entry |= {"category_id": labels.categories[item["labels"][n]]["id"]}
            entry |= {"area": float(item["areas"][n]), "score": float(item["scores"][n])}
            if item["rles"]:
                entry["segmentation"] = item["rles"][n] | {"counts": item["rles"][n]["counts"].decode()}
            annotations.append(entry)
    info = {"description": f"pseudo labels of {labels.labeler}, scores above {labels.threshold}"}
    return {"info": info, "images": records, "annotations": annotations, "categories": labels.categories}


def from_coco(
    coco: str | Path | Mapping,
    folder: str | Path,
    *,
    results: str | Path | Sequence[Mapping] | None = None,
    images: str | Path | None = None,
    labeler: str = "coco",
    shard_size: int = SHARD_SIZE,
) -> PseudoLabelStore:
    """Write a store from any COCO instances JSON (path or dict): another tool's pseudo labels, or ground truth.

    An import that was stopped resumes. Annotations without a score get 1. Boxes are clipped to their image. Crowd
    regions, and boxes without area inside their image, are left out and logged as a warning. Label k is the k-th
    category by id.

    Args:
        folder: of the new store.
        results: another model's detections in COCO's results format (`image_id`, `category_id`, `score`, `bbox` and/or
            `segmentation`), used instead of the annotations; `coco` then only lists the images.
        images: folder of the images; file names are taken relative to it. Warm-up has to find the images.
        labeler: identity of the model that made the labels.
        shard_size: images per shard.

    Raises:
        DataError: a file is not in this format, or a label has an unknown image or category.
        LabelingError: the folder has the store of another import.
    """
    labels = ImportedLabels(coco, results)
    prefix, folder = Path(images).expanduser().resolve() if images is not None else None, Path(folder)
    if prefix is not None:
        labels.check_inside(prefix)
    request = {"labeler": labeler, "pool": labels.pool, "shard_size": shard_size, "images": prefix and str(prefix)}
    check_same(folder, request, begin(folder, request), remedy="Import")
    for index, start in enumerate(range(0, len(labels), shard_size)):
        if not finished_shard(folder, index, labeler):
            part = range(start, min(start + shard_size, len(labels)))
            write_shard(folder, index, [labels.row(image, prefix) for image in part], labeler)
    shards = -(-len(labels) // shard_size)
    finish(folder, labeler=labeler, pool=labels.pool, shards=shards, categories=labels.categories)
    return PseudoLabelStore(folder)
