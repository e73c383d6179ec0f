"""Panoptic quality as published (Kirillov et al., CVPR 2019, Sec. 4), with COCO's rules for void and crowds.

For one class over all images, TP are the pairs of a predicted and a ground-truth segment with IoU > 0.5:

    PQ = sum of their IoU / (TP + FP / 2 + FN / 2) = SQ x RQ, SQ = sum of IoU / TP, RQ = TP / (TP + FP / 2 + FN / 2)

Void pixels of the ground truth are excluded from the union. A crowd segment matches nothing and is never missed. An
unmatched prediction is no FP if more than half of it lies on void and on crowds of its class. PQ, SQ and RQ of several
classes are averaged over the classes that have a TP, FP or FN.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from cassl_lib.data.panoptic import ID_LIMIT, Panoptic, PanopticFiles, check_segments, count_values
from cassl_lib.errors import DataError

IMAGES_AT_ONCE = 16  # per task of a worker process
Files = PanopticFiles | tuple[Path | str, Path | str] | Path | str


def panoptic_quality(predicted: Files, ground_truth: Files, *, workers: int = 0, allow_missing: bool = False) -> dict:
    """Score panoptic results against ground truth.

    Args:
        predicted, ground_truth: readers, or (JSON, PNG folder), or a JSON with a PNG folder of the same name.
        workers: processes that share the images; 0 uses this one. The numbers are identical to the last bit. Workers
            are spawned, so a script that calls this with workers needs `if __name__ == "__main__"`.
        allow_missing: count all segments of an image without prediction as missed, instead of raising an error.

    Returns:
        The result of `quality`.

    Raises:
        DataError: files that cannot be used or do not belong together.
    """
    predicted, ground_truth = _files(predicted), _files(ground_truth)
    _check_pair(predicted, ground_truth, allow_missing)
    parts = _counts(predicted, ground_truth, ground_truth.image_ids, workers)
    return quality(sum(parts, _no_counts(ground_truth)), ground_truth.categories)


def count_images(predicted: PanopticFiles, ground_truth: PanopticFiles, image_ids: Iterable[int]) -> np.ndarray:
    """The sum of `image_counts` over some images: one process's share. `quality` takes the total of all processes.

    All segments of an image without prediction are missed.
    """
    return sum(_counts(predicted, ground_truth, image_ids, 0), _no_counts(ground_truth))


def image_counts(predicted: Panoptic, ground_truth: Panoptic, *, category_ids: Sequence[int]) -> np.ndarray:
    """The counts of one image per class: (C, 4) float64, the sum of IoU over TP, then TP, FP, FN.

    Args:
        predicted, ground_truth: (H, W) segment ids and their `segments_info`; `iscrowd` of a prediction is ignored.
        category_ids: of the C classes.

    Raises:
        ValueError: the sizes differ, or a segment has an unknown category.
    """
    row_of = {category: row for row, category in enumerate(category_ids)}
    overlap = _overlaps(predicted, ground_truth)
    labels, true_labels = (_rows_of(segments, row_of) for _, segments in (predicted, ground_truth))
    crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in ground_truth[1]], bool)

    # Match: IoU > 0.5 with a segment of the same class, void left out of the union
    areas, true_areas = overlap[1:].sum(1), overlap[:, 1:].sum(0)
    on_void, shared = overlap[1:, 0], overlap[1:, 1:]
    union = areas[:, None] - on_void[:, None] + true_areas - shared
    same_class = labels[:, None] == true_labels
    pairs = same_class & ~crowd & (2 * shared > union)  # in integers
    excused = on_void + (shared * (same_class & crowd)).sum(1)

    # Count per class
    counts = np.zeros((len(category_ids), 4))
    first, second = np.nonzero(pairs)
    np.add.at(counts[:, 0], labels[first], shared[first, second] / union[first, second])
    np.add.at(counts[:, 1], labels[first], 1)
    np.add.at(counts[:, 2], labels[~pairs.any(1) & (2 * excused <= areas)], 1)
    np.add.at(counts[:, 3], true_labels[~pairs.any(0) & ~crowd], 1)
    return counts


def quality(counts: np.ndarray, categories: Sequence[dict]) -> dict:
    """PQ, SQ and RQ from the counts (C, 4) of all images.

    Args:
        categories: dicts with `name` and `isthing` of the C classes.

    Returns:
        `all`, `things`, `stuff`: each `PQ`, `SQ`, `RQ` in [0, 1], and `n`, the number of classes averaged over;
        `per_class`: by name `PQ`, `SQ`, `RQ`, `tp`, `fp`, `fn`. PQ, SQ and RQ are -1 where there is nothing to count.
    """
    iou, tp, fp, fn = np.asarray(counts, np.float64).T
    weight = tp + fp / 2 + fn / 2
    counted, thing = weight > 0, np.array([bool(category["isthing"]) for category in categories], bool)
    parts = {"PQ": (iou, weight), "SQ": (iou, tp), "RQ": (tp, weight)}
    values = {
        name: np.divide(over, under, np.zeros_like(over), where=under > 0) for name, (over, under) in parts.items()
    }
    result = {}
    for group, chosen in (("all", counted), ("things", counted & thing), ("stuff", counted & ~thing)):
        n = int(chosen.sum())
        result[group] = {name: float(value[chosen].mean()) if n else -1.0 for name, value in values.items()} | {"n": n}
    result["per_class"] = {
        category["name"]: {name: float(value[row]) if counted[row] else -1.0 for name, value in values.items()}
        | {"tp": int(tp[row]), "fp": int(fp[row]), "fn": int(fn[row])}
        for row, category in enumerate(categories)
    }
    return result


def _overlaps(predicted: Panoptic, ground_truth: Panoptic) -> np.ndarray:
    """(P + 1, T + 1) int64 pixels shared by each predicted and ground-truth segment; row 0 and column 0 are void."""
    (ids, segments), (true_ids, true_segments) = predicted, ground_truth
    if ids.shape != true_ids.shape:
        raise ValueError(f"a prediction of {ids.shape} pixels cannot be compared with ground truth of {true_ids.shape}")
    pairs, areas = count_values(ids.astype(np.int64) * ID_LIMIT + true_ids)
    positions = []
    for present, infos, name in (
        (pairs // ID_LIMIT, segments, "prediction"),
        (pairs % ID_LIMIT, true_segments, "ground truth"),
    ):
        check_segments(present, infos, name)
        position_of = {info["id"]: position for position, info in enumerate(infos, start=1)}
        positions.append([position_of.get(segment, 0) for segment in present.tolist()])
    overlaps = np.zeros((len(segments) + 1, len(true_segments) + 1), np.int64)
    overlaps[tuple(positions)] = areas
    return overlaps


def _rows_of(segments: list[dict], row_of: dict[int, int]) -> np.ndarray:
    """The row of each segment's class in the counts, (N,) int64."""
    for segment in segments:
        if segment["category_id"] not in row_of:
            raise ValueError(
                f"segment {segment['id']} has category {segment['category_id']}, which is not one of {list(row_of)}"
            )
    return np.array([row_of[segment["category_id"]] for segment in segments], np.int64)


def _files(files: Files) -> PanopticFiles:
    if isinstance(files, PanopticFiles):
        return files
    return PanopticFiles(files) if isinstance(files, (str, Path)) else PanopticFiles(*files)


def _check_pair(predicted: PanopticFiles, ground_truth: PanopticFiles, allow_missing: bool) -> None:
    """Raise DataError unless the prediction has known images and categories, and all images of the ground truth."""
    if not ground_truth.categories:
        raise DataError(
            f"{ground_truth.path}: no categories, so this is a result and not ground truth. Give a file such as "
            "panoptic_val2017.json."
        )
    known = {category["id"] for category in ground_truth.categories}
    for image_id in predicted.image_ids:
        if image_id not in ground_truth:
            raise DataError(
                f"{predicted.path} has image {image_id}, which is not in the ground truth {ground_truth.path}. "
                "Remove it."
            )
        for segment in predicted.segments(image_id):
            if segment["category_id"] not in known:
                raise DataError(
                    f"{predicted.path}, image {image_id}: segment {segment['id']} has category "
                    f"{segment['category_id']}, which is not in {ground_truth.path}. Use category ids, not labels."
                )
    missing = [image_id for image_id in ground_truth.image_ids if image_id not in predicted]
    if missing and not allow_missing:
        raise DataError(
            f"{predicted.path}: lacks {len(missing)} of the {len(ground_truth)} images of {ground_truth.path}, such as "
            f"{missing[0]}. Add them, or pass allow_missing=True to count them as missed."
        )


def _no_counts(ground_truth: PanopticFiles) -> np.ndarray:
    return np.zeros((len(ground_truth.categories), 4))


def _counts(
    predicted: PanopticFiles, ground_truth: PanopticFiles, image_ids: Iterable[int], workers: int
) -> Iterator[np.ndarray]:
    """The counts of each image, in order, so that their sum does not depend on the number of processes."""
    if workers == 0:
        for image_id in image_ids:
            yield _read_and_count(predicted, ground_truth, image_id)
        return
    # Forked workers would copy locks held by the caller's threads. Unlike multiprocessing.Pool, this pool notices a
    # killed worker.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=_take_pair, initargs=(predicted, ground_truth)
    ) as pool:
        yield from pool.map(_count_of_pair, image_ids, chunksize=IMAGES_AT_ONCE)


_pair: tuple[PanopticFiles, PanopticFiles] | None = None  # of a worker process, sent to it once


def _take_pair(predicted: PanopticFiles, ground_truth: PanopticFiles) -> None:
    global _pair
    _pair = predicted, ground_truth


def _count_of_pair(image_id: int) -> np.ndarray:
    return _read_and_count(*_pair, image_id)


def _read_and_count(predicted: PanopticFiles, ground_truth: PanopticFiles, image_id: int) -> np.ndarray:
    true_ids, true_segments = ground_truth.read(image_id)
    ids, segments = predicted.read(image_id) if image_id in predicted else (np.zeros_like(true_ids), [])
    if ids.shape != true_ids.shape:
        height, width = ids.shape
        raise DataError(
            f"{predicted.png(image_id)} has {width} x {height} pixels, but the ground truth "
            f"{ground_truth.png(image_id)} {true_ids.shape[1]} x {true_ids.shape[0]}. Write results in the size of the "
            "original image."
        )
    category_ids = [category["id"] for category in ground_truth.categories]
    return image_counts((ids, segments), (true_ids, true_segments), category_ids=category_ids)
