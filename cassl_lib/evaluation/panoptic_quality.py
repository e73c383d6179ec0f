"""Panoptic quality as published (Kirillov et al., CVPR 2019, Sec. 4), with COCO's rules for void and crowds.

Of one class over all images, TP are pairs of a predicted and a true segment with IoU > 0.5:

    PQ = sum of their IoU / (TP + FP / 2 + FN / 2) = SQ x RQ, SQ = sum of IoU / TP, RQ = TP / (TP + FP / 2 + FN / 2)

Pixels that are void in the truth leave the union. A true crowd matches nothing and is never missed. A prediction
without a match is no FP if more than half of it lies on void and crowds of its class. PQ, SQ and RQ of many classes are
means over those that have a TP, FP or FN.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from cassl_lib.data.panoptic import ID_LIMIT, Panoptic, PanopticFiles, check_segments, count_values
from cassl_lib.errors import DataError

IMAGES_AT_ONCE = 16  # that a process is given
Files = PanopticFiles | tuple[Path | str, Path | str] | Path | str


def panoptic_quality(predicted: Files, truth: Files, *, workers: int = 0, allow_missing: bool = False) -> dict:
    """Score panoptic results against the truth.

    Args:
        predicted, truth: readers, or (JSON, PNG folder), or a JSON whose folder is named like it.
        workers: processes that share the images; 0 counts in this one. The numbers are the same to the last bit. They
            are spawned: a script that calls this with workers needs `if __name__ == "__main__"`.
        allow_missing: count all segments of an image without prediction as missed, where otherwise it is an error.
    Returns:
        What `quality` gives.
    Raises:
        DataError: files that cannot be used or do not belong together.
    """
    predicted, truth = _files(predicted), _files(truth)
    _check_pair(predicted, truth, allow_missing)
    parts = _counts(predicted, truth, truth.image_ids, workers)
    return quality(sum(parts, _no_counts(truth)), truth.categories)


def count_images(predicted: PanopticFiles, truth: PanopticFiles, image_ids: Iterable[int]) -> np.ndarray:
    """The sum of `image_counts` over some images: what one of several processes adds. `quality` takes the total.

    All segments of an image without prediction are missed.
    """
    return sum(_counts(predicted, truth, image_ids, 0), _no_counts(truth))


def image_counts(predicted: Panoptic, truth: Panoptic, *, category_ids: Sequence[int]) -> np.ndarray:
    """What one image adds to each class: (C, 4) float64, the sum of IoU over TP, then TP, FP, FN.

    Args:
        predicted, truth: (H, W) segment ids and their `segments_info`; whether a predicted segment is a crowd does not
            matter.
        category_ids: of the C classes.
    """
    row_of = {category: row for row, category in enumerate(category_ids)}
    overlap = _overlaps(predicted, truth)
    labels, true_labels = (_rows_of(segments, row_of) for _, segments in (predicted, truth))
    crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in truth[1]], bool)

    areas, true_areas = overlap[1:].sum(1), overlap[:, 1:].sum(0)
    on_void, shared = overlap[1:, 0], overlap[1:, 1:]
    union = areas[:, None] - on_void[:, None] + true_areas - shared
    same_class = labels[:, None] == true_labels
    pairs = same_class & ~crowd & (2 * shared > union)  # IoU > 0.5, in integers
    excused = on_void + (shared * (same_class & crowd)).sum(1)

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
        `all`, `things`, `stuff`: each `PQ`, `SQ`, `RQ`, 0 to 1, and `n`, the number of classes that are counted;
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


def _overlaps(predicted: Panoptic, truth: Panoptic) -> np.ndarray:
    """(P + 1, T + 1) int64 pixels that each predicted and true segment share; row 0 and column 0 are void."""
    (ids, segments), (true_ids, true_segments) = predicted, truth
    if ids.shape != true_ids.shape:
        raise ValueError(f"a prediction of {ids.shape} pixels cannot be compared with a truth of {true_ids.shape}")
    pairs, areas = count_values(ids.astype(np.int64) * ID_LIMIT + true_ids)
    places = []
    for found, infos, name in ((pairs // ID_LIMIT, segments, "prediction"), (pairs % ID_LIMIT, true_segments, "truth")):
        check_segments(found, infos, name)
        place_of = {info["id"]: place for place, info in enumerate(infos, start=1)}
        places.append([place_of.get(segment, 0) for segment in found.tolist()])
    overlaps = np.zeros((len(segments) + 1, len(true_segments) + 1), np.int64)
    overlaps[tuple(places)] = areas
    return overlaps


def _rows_of(segments: list[dict], row_of: dict[int, int]) -> np.ndarray:
    """The class of each segment, (N,) int64, as a row of the counts."""
    for segment in segments:
        if segment["category_id"] not in row_of:
            raise ValueError(
                f"segment {segment['id']} has category {segment['category_id']}, not one of {list(row_of)}"
            )
    return np.array([row_of[segment["category_id"]] for segment in segments], np.int64)


def _files(files: Files) -> PanopticFiles:
    if isinstance(files, PanopticFiles):
        return files
    return PanopticFiles(files) if isinstance(files, (str, Path)) else PanopticFiles(*files)


def _check_pair(predicted: PanopticFiles, truth: PanopticFiles, allow_missing: bool) -> None:
    if not truth.categories:
        raise DataError(f"{truth.path} has no categories, so it is a result and no truth; give panoptic_val2017.json")
    known = {category["id"] for category in truth.categories}
    for image_id in predicted.image_ids:
        if image_id not in truth:
            raise DataError(f"{predicted.path} has image {image_id}, which the truth {truth.path} lacks; leave it out")
        for segment in predicted.segments(image_id):
            if segment["category_id"] not in known:
                raise DataError(
                    f"{predicted.path}, image {image_id}: segment {segment['id']} has category "
                    f"{segment['category_id']}, which {truth.path} lacks; give its ids, not places in a list"
                )
    missing = [image_id for image_id in truth.image_ids if image_id not in predicted]
    if missing and not allow_missing:
        raise DataError(
            f"{predicted.path} lacks {len(missing)} of the {len(truth)} images of {truth.path}, such as {missing[0]}; "
            "add them, or count them as missed with allow_missing=True"
        )


def _no_counts(truth: PanopticFiles) -> np.ndarray:
    return np.zeros((len(truth.categories), 4))


def _counts(
    predicted: PanopticFiles, truth: PanopticFiles, image_ids: Iterable[int], workers: int
) -> Iterator[np.ndarray]:
    """The counts of each image, in order, whoever made them: so their sum does not depend on the processes."""
    if workers == 0:
        for image_id in image_ids:
            yield _read_and_count(predicted, truth, image_id)
        return
    # fork would copy the threads' locks of whoever calls; this pool, unlike multiprocessing's, notices a killed process
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_take_pair, initargs=(predicted, truth)) as pool:
        yield from pool.map(_count_of_pair, image_ids, chunksize=IMAGES_AT_ONCE)


_pair: tuple[PanopticFiles, PanopticFiles] | None = None  # of a worker process, sent to it once


def _take_pair(predicted: PanopticFiles, truth: PanopticFiles) -> None:
    global _pair
    _pair = predicted, truth


def _count_of_pair(image_id: int) -> np.ndarray:
    return _read_and_count(*_pair, image_id)


def _read_and_count(predicted: PanopticFiles, truth: PanopticFiles, image_id: int) -> np.ndarray:
    true = truth.read(image_id)
    found = predicted.read(image_id) if image_id in predicted else (np.zeros_like(true[0]), [])
    if found[0].shape != true[0].shape:
        height, width = found[0].shape
        raise DataError(
            f"{predicted.png(image_id)} is {width} x {height} pixels, the truth {truth.png(image_id)} "
            f"{true[0].shape[1]} x {true[0].shape[0]}; results have to be of the original image's size"
        )
    return image_counts(found, true, category_ids=[category["id"] for category in truth.categories])
