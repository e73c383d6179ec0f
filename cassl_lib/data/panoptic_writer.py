"""Writing COCO's panoptic format: `write_image` writes one PNG, `write_json` lists them all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cassl_lib.data.panoptic import ID_LIMIT, PanopticError, check_segments, count_values, few
from cassl_lib.data.scenes.records import as_png, tight_box
from cassl_lib.files import write_atomically


def write_image(folder: Path | str, image_id: int, ids: np.ndarray, segments: Sequence[dict]) -> dict:
    """Write one image's PNG atomically, and return its annotation for `write_json`.

    Processes that write different images need no lock.

    Args:
        ids: (H, W) integer segment ids, 0 for void.
        segments: one dict per id, with `id`, `category_id` and, if it is not 0, `iscrowd`.

    Returns:
        `image_id`, `file_name` and `segments_info`: `id`, `category_id`, `iscrowd`, `area` in pixels, `bbox` xywh.

    Raises:
        PanopticError: the ids are invalid, or `segments` does not list exactly these ids.
    """
    name, ids = f"{image_id:012d}.png", np.asarray(ids)
    path = Path(folder) / name
    # Check the ids and measure their areas.
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise PanopticError(f"{path}: segment ids must be (H, W) integers, not {ids.dtype} of shape {ids.shape}")
    present, areas = count_values(ids)
    if len(present) and not 0 <= present[0] <= present[-1] < ID_LIMIT:
        raise PanopticError(f"{path}: ids {present[0]} to {present[-1]} are out of range; use 0 to {ID_LIMIT - 1}")
    check_segments(present, segments, str(path))
    area_of = dict(zip(present.tolist(), areas.tolist(), strict=True))
    infos = [
        {
            "id": int(segment["id"]),
            "category_id": int(segment["category_id"]),
            "iscrowd": int(segment.get("iscrowd", 0)),
            "area": area_of[segment["id"]],
            "bbox": tight_box(ids == segment["id"]),
        }
        for segment in segments
    ]
    # Write the PNG.
    content = io.BytesIO()
    Image.fromarray(as_png(ids)).save(content, "PNG", compress_level=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    return {"image_id": int(image_id), "file_name": name, "segments_info": infos}


def write_json(
    path: Path | str, annotations: Iterable[dict], *, images: Sequence[dict], categories: Sequence[dict]
) -> Path:
    """Write the JSON of images that `write_image` wrote, in any number of processes, atomically.

    Args:
        annotations: what `write_image` returned, one per image, in any order.
        images: COCO's image records.
        categories: COCO's category dicts, with `isthing`.

    Raises:
        PanopticError: an image has no annotation or several, or an annotation has no image record.
    """
    path, by_image = Path(path), {}
    for annotation in annotations:
        if annotation["image_id"] in by_image:
            raise PanopticError(f"{path}: image {annotation['image_id']} was written twice; give it to one process")
        by_image[annotation["image_id"]] = annotation
    listed = [image["id"] for image in images]
    for problem, wrong in (
        ("were not written", set(listed) - set(by_image)),
        ("were written but are not among the images", set(by_image) - set(listed)),
    ):
        if wrong:
            raise PanopticError(f"{path}: the images {few(sorted(wrong))} {problem}; each image needs one annotation")
    data = {"images": list(images), "annotations": [by_image[image_id] for image_id in listed]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(data | {"categories": list(categories)}).encode())
    return path
