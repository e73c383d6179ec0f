"""Panoptic quality of a detector's stored detections, and the score threshold that serves it best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cassl_lib.config import PanopticConfig
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.data.panoptic_writer import write_image, write_json
from cassl_lib.data.segmentations import decode_masks
from cassl_lib.evaluation.panoptic_merge import merge_panoptic
from cassl_lib.evaluation.panoptic_quality import count_images, image_counts, quality
from cassl_lib.evaluation.results import StoredResults

THRESHOLDS = tuple(step / 20 for step in range(4, 15))  # 0.2 to 0.7


def panoptic_metrics(
    results: StoredResults, images: EntityImages, *, settings: PanopticConfig, folder: Path
) -> dict[str, dict[str, float]]:
    """Merge the detections of every image into segments, write them as COCO panoptic files, and score those.

    Args:
        settings: with a score threshold, not None.
        folder: receives panoptic.json and panoptic/.

    Returns:
        PQ, SQ and RQ by `panoptic`, `panoptic_things` and `panoptic_stuff`.
    """
    annotations, records = [], []
    for image_id, size, detections in _detections(results, images, lowest=settings.score_threshold):
        ids, segments = merge_panoptic(detections, size=size, categories=images.categories, settings=settings)
        annotations.append(write_image(folder / "panoptic", image_id, ids, segments))
        records.append({"id": image_id, "height": size[0], "width": size[1]})
    written = write_json(folder / "panoptic.json", annotations, images=records, categories=images.categories)
    # Score the written files.
    ground_truth = PanopticFiles(images.path)
    counts = count_images(PanopticFiles(written), ground_truth, images.ids.tolist())
    scores = quality(counts, ground_truth.categories)
    return {
        name: {key: value for key, value in scores[group].items() if key != "n"}
        for name, group in (("panoptic", "all"), ("panoptic_things", "things"), ("panoptic_stuff", "stuff"))
    }


def quality_by_threshold(
    results: StoredResults, images: EntityImages, *, settings: PanopticConfig, thresholds: Sequence[float] = THRESHOLDS
) -> dict[float, float]:
    """PQ, in [0, 1], of the detections merged at each score threshold. Writes no files."""
    ground_truth = PanopticFiles(images.path)
    categories = ground_truth.categories
    category_ids = [category["id"] for category in categories]
    counts = {threshold: np.zeros((len(categories), 4)) for threshold in thresholds}
    for image_id, size, detections in _detections(results, images, lowest=min(thresholds)):
        expected = ground_truth.read(image_id)
        for threshold in thresholds:
            at_threshold = replace(settings, score_threshold=threshold)
            merged = merge_panoptic(detections, size=size, categories=images.categories, settings=at_threshold)
            counts[threshold] += image_counts(merged, expected, category_ids=category_ids)
    return {threshold: quality(counts[threshold], categories)["all"]["PQ"] for threshold in thresholds}


def best_threshold(qualities: dict[float, float]) -> float:
    """The threshold with the highest PQ; of several, the highest one."""
    return max(qualities, key=lambda threshold: (qualities[threshold], threshold))


def _detections(
    results: StoredResults, images: EntityImages, *, lowest: float
) -> Iterator[tuple[int, tuple[int, int], dict[str, torch.Tensor]]]:
    """Yield the id, (height, width) and detections of every image, those with a score of at least `lowest`."""
    label_of = {int(category): label for label, category in enumerate(images.category_ids)}
    for image_id, height, width in zip(images.ids.tolist(), images.heights, images.widths, strict=True):
        size = int(height), int(width)
        chosen = [result for result in results.of_image(image_id) if result["score"] >= lowest]
        masks = decode_masks([result["segmentation"] for result in chosen], size)
        yield (
            image_id,
            size,
            {
                "scores": torch.tensor([result["score"] for result in chosen]),
                "labels": torch.tensor([label_of[result["category_id"]] for result in chosen], dtype=torch.int64),
                "masks": torch.from_numpy(masks).contiguous().bool(),
            },
        )
