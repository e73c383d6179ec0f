"""COCO's panoptic format: a JSON that lists each image's segments, and a folder of PNGs whose colors are segment ids.

A pixel's id is R + 256 G + 256^2 B, 0 is void. `PanopticFiles` reads the truth and the results of any tool;
`write_image` and `write_json` write what any tool can score.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cassl_lib.data.scenes.records import as_png, tight_box
from cassl_lib.errors import DataError
from cassl_lib.files import write_atomically

ID_LIMIT = 256**3  # of three color channels
# (H, W) integer segment ids, 0 for void, and the `segments_info` of exactly those ids
Panoptic = tuple[np.ndarray, list[dict]]


class PanopticError(DataError):
    """Panoptic files that cannot be used; the message names the file, the value and the remedy."""


class PanopticFiles:
    """Truth or results in COCO's panoptic format; PNGs are read and checked when asked for.

    Results need no `images` and no `categories`, as in COCO's result format.

    Attributes:
        path, folder: the JSON and its PNG folder.
        categories: dicts with `id`, `name`, `isthing`, sorted by id; empty where the JSON lists none.
        images: COCO's image records; image_ids: of the images that have an annotation, in its order.
    """

    def __init__(self, path: Path | str, folder: Path | str | None = None):
        """Without a folder it is the one that `pngs_of` finds."""
        self.path = Path(path)
        data = _read(self.path)
        self.folder = Path(folder) if folder is not None else pngs_of(self.path)
        if not self.folder.is_dir():
            raise PanopticError(f"{self.folder}: no such folder; give the folder of the PNGs that {self.path} names")
        self.categories = _categories(data, self.path)
        self._annotations = {annotation["image_id"]: annotation for annotation in data["annotations"]}
        self.images = list(data.get("images") or ())
        self._sizes = {
            image["id"]: (image["height"], image["width"]) for image in self.images if {"height", "width"} <= set(image)
        }
        self.image_ids = list(self._annotations)
        _check_annotations(data["annotations"], {category["id"] for category in self.categories}, self.path)

    def __len__(self) -> int:
        return len(self._annotations)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._annotations

    def segments(self, image_id: int) -> list[dict]:
        """`segments_info` of an image, as the JSON has it: at least `id` and `category_id`."""
        if image_id not in self._annotations:
            raise PanopticError(f"{self.path} has no annotation of image {image_id}")
        return self._annotations[image_id]["segments_info"]

    def png(self, image_id: int) -> Path:
        self.segments(image_id)
        return self.folder / self._annotations[image_id]["file_name"]

    def read(self, image_id: int) -> Panoptic:
        """The (H, W) int32 segment ids of an image, 0 for void, and its `segments_info`, which agree."""
        segments, png = self.segments(image_id), self.png(image_id)
        if not png.is_file():
            raise PanopticError(f"{png}: no such PNG, but {self.path} names it for image {image_id}; add it")
        ids = read_ids(png)
        height, width = self._sizes.get(image_id, ids.shape)
        if ids.shape != (height, width):
            raise PanopticError(
                f"{png} is {ids.shape[1]} x {ids.shape[0]} pixels, {self.path} says {width} x {height} for image "
                f"{image_id}; the PNG has to be of the original image's size"
            )
        check_segments(count_values(ids)[0], segments, f"{png} and image {image_id} of {self.path}")
        return ids, segments


def pngs_of(path: Path) -> Path:
    """The folder named like the JSON, beside it (COCO) or beside its folder (detectron2), or `panoptic` beside it."""
    places = [path.with_suffix(""), path.parent.parent / path.stem, path.with_name("panoptic")]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise PanopticError(f"{path}: no folder of its PNGs; put it, or a link, at {places[0]}, or name it")
    return found


def read_ids(png: Path | str) -> np.ndarray:
    """The (H, W) int32 segment ids of a PNG, 0 for void."""
    try:
        with Image.open(png) as image:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise PanopticError(f"{png} is a {image.mode!r} image; ids are colors, R + 256 G + 256^2 B: write RGB")
            # Four bytes a pixel are one little-endian number: several times faster than a sum over channels.
            pixels, shape = image.convert("RGBA").tobytes(), (image.height, image.width)
    except (OSError, SyntaxError) as error:  # a broken PNG gives either
        raise PanopticError(f"{png} cannot be read ({error}); write it again") from error
    return (np.frombuffer(pixels, "<u4").reshape(shape) & (ID_LIMIT - 1)).astype(np.int32)


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of an array, ascending, and how often each occurs, int64.

    Equal neighbors in a map come in long runs, so only the starts of runs are sorted.
    """
    flat = values.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1])[: flat.size])
    found, which = np.unique(flat[starts], return_inverse=True)
    return found, np.bincount(which, np.diff(starts, append=flat.size)).astype(np.int64)


def check_segments(present: np.ndarray, segments: Sequence[dict], where: str) -> None:
    """Refuse a `segments_info` that does not list exactly the ids that are present in the pixels (but for 0)."""
    listed, present = {segment["id"] for segment in segments}, set(present.tolist()) - {0}
    if len(listed) < len(segments):
        raise PanopticError(f"{where}: segments_info lists an id twice; give each segment an id of its own")
    if unlisted := sorted(present - listed):
        raise PanopticError(
            f"{where}: pixels hold the ids {_few(unlisted)}, which segments_info lacks; list them or make them 0, void"
        )
    if absent := sorted(listed - present):
        raise PanopticError(f"{where}: segments_info lists the ids {_few(absent)}, which no pixel has; leave them out")


def write_image(folder: Path | str, image_id: int, ids: np.ndarray, segments: Sequence[dict]) -> dict:
    """Write one image's PNG, whole or not at all, and return its annotation for `write_json`.

    Processes that each write images of their own need no lock.

    Args:
        ids: (H, W) segment ids, integers, 0 for void.
        segments: dicts with `id` and `category_id` (`iscrowd` if it is not 0), one for each id.
    Returns:
        `image_id`, `file_name`, `segments_info` with `id`, `category_id`, `iscrowd`, `area` in pixels, `bbox` xywh.
    """
    name, ids = f"{image_id:012d}.png", np.asarray(ids)
    path = Path(folder) / name
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise PanopticError(f"{path}: segment ids are (H, W) integers, not {ids.dtype} of shape {ids.shape}")
    present, areas = count_values(ids)
    if len(present) and not 0 <= present[0] <= present[-1] < ID_LIMIT:
        raise PanopticError(f"{path}: ids {present[0]} to {present[-1]}; a PNG holds 0 to {ID_LIMIT - 1}")
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
    content = io.BytesIO()
    Image.fromarray(as_png(ids)).save(content, "PNG", compress_level=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    return {"image_id": int(image_id), "file_name": name, "segments_info": infos}


def write_json(
    path: Path | str, annotations: Iterable[dict], *, images: Sequence[dict], categories: Sequence[dict]
) -> Path:
    """Write the JSON of images that `write_image` wrote, in whatever processes, whole or not at all.

    Args:
        annotations: what `write_image` returned, one for each image, in any order.
        images: COCO's image records; `categories`: COCO's, with `isthing`.
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
            raise PanopticError(f"{path}: the images {_few(sorted(wrong))} {problem}; each image needs one annotation")
    data = {"images": list(images), "annotations": [by_image[image_id] for image_id in listed]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(data | {"categories": list(categories)}).encode())
    return path


def _read(path: Path) -> dict:
    """The parsed JSON with its annotations; anything but panoptic annotations is refused by name."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PanopticError(f"{path}: no such file; give a COCO panoptic JSON") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PanopticError(f"{path} is not JSON ({error}); give a COCO panoptic JSON") from error
    annotations = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(annotations, list):
        raise PanopticError(f"{path} is not a COCO panoptic file: it has no list 'annotations'")
    for annotation in annotations:
        if "segments_info" not in annotation and "bbox" in annotation:
            raise PanopticError(
                f"{path} is an instances file: its annotations have 'bbox' and no 'segments_info'; "
                "give the panoptic JSON, such as panoptic_val2017.json"
            )
        if lacking := [name for name in ("image_id", "file_name", "segments_info") if name not in annotation]:
            raise PanopticError(
                f"{path}: the annotation of image {annotation.get('image_id')} lacks {', '.join(lacking)}"
            )
    return data


def _categories(data: dict, path: Path) -> list[dict]:
    categories = data.get("categories") or []
    for category in categories:
        if lacking := [name for name in ("id", "name", "isthing") if name not in category]:
            raise PanopticError(
                f"{path}: category {category.get('id')} lacks {', '.join(lacking)}; take COCO's 133 panoptic categories"
            )
    for name in ("id", "name"):
        if len({category[name] for category in categories}) < len(categories):
            raise PanopticError(f"{path}: two categories have the same {name}; give each its own")
    return sorted(categories, key=lambda category: category["id"])


def _check_annotations(annotations: list[dict], categories: set[int], path: Path) -> None:
    seen = set()
    for annotation in annotations:
        where = f"{path}, image {annotation['image_id']}"
        if annotation["image_id"] in seen:
            raise PanopticError(f"{where}: there are two annotations of it; keep one")
        seen.add(annotation["image_id"])
        for segment in annotation["segments_info"]:
            if lacking := [name for name in ("id", "category_id") if name not in segment]:
                raise PanopticError(f"{where}: segment {segment.get('id')} lacks {', '.join(lacking)}")
            number, category = segment["id"], segment["category_id"]
            if not 0 < number < ID_LIMIT:
                raise PanopticError(f"{where}: segment id {number}; ids are 1 to {ID_LIMIT - 1}, 0 is void")
            if categories and category not in categories:
                raise PanopticError(f"{where}: segment {number} has category {category}, which the JSON lacks; add it")


def _few(values: list) -> str:
    return f"{', '.join(map(str, values[:5]))}{f' and {len(values) - 5} more' if len(values) > 5 else ''}"
