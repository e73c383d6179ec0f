"""Small data sets on disk for the tests of this folder: a COCO instances file, and panoptic files."""

import json
from dataclasses import replace

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as mask_api

from cassl_lib.config import AugmentConfig
from cassl_lib.data.scenes.records import as_png

HEIGHT, WIDTH = 20, 30
WEAK = AugmentConfig(sizes=(80, 96, 112), strong_sizes=(48, 144), longest=192, crop=96, test_size=96)
STRONG = replace(WEAK, kind="strong")


def filled(left, top, right, bottom):
    """The mask of a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def as_rle(mask):
    rle = mask_api.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def image_entry(image_id, name):
    return {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}


def annotation(number, image_id, category, box, segmentation=None, **extra):
    entry = {"id": number, "image_id": image_id, "category_id": category, "bbox": box, **extra}
    return entry if segmentation is None else entry | {"segmentation": segmentation}


def write_coco(folder, data, images=("a.jpg", "b.jpg", "c.jpg")):
    """Write `data` as a JSON in `folder`, and its images, gray ones, in `folder/images`."""
    (folder / "images").mkdir(exist_ok=True)
    for name in images:
        Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)).save(folder / "images" / name)
    path = folder / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def save_turned(path, pixels, orientation, **options):
    """Write pixels (H, W, 3) such that they are displayed as given, but stored in an EXIF orientation, 1 to 8."""
    # 1, 5: as it is; 2, 6: right side first; 3, 7: bottom and right first; 4, 8: bottom first; 5 to 8: transposed
    first = [np.s_[:], np.s_[:, ::-1], np.s_[::-1, ::-1], np.s_[::-1]][(orientation - 1) % 4]
    stored = pixels[first] if orientation < 5 else pixels[first].transpose(1, 0, 2)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    return path


# Ids have gaps and are out of order. Column-major counts of a rectangle: x 10 to 11, y 4 to 7.
COUNTS = [10 * HEIGHT + 4, 4, HEIGHT - 4, 4, HEIGHT - 8 + 18 * HEIGHT]
TWO_POLYGONS = [[2, 3, 7, 3, 7, 5, 2, 5], [2, 6, 7, 6, 7, 7, 2, 7]]
DATA = {
    "images": [
        image_entry(70, "a.jpg"),
        image_entry(3, "b.jpg"),
        image_entry(1000, "c.jpg"),
        image_entry(8, "gone.jpg"),
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 17, "name": "ghost"}],
    "annotations": [
        annotation(1, 1000, 90, [0, 0, 4, 2], as_rle(filled(0, 0, 4, 2))),
        annotation(2, 70, 90, [2, 3, 5, 4], TWO_POLYGONS),
        annotation(3, 70, 5, [10, 4, 2, 4], {"size": [HEIGHT, WIDTH], "counts": COUNTS}, iscrowd=0),
        annotation(4, 70, 90, [0, 0, 30, 20], {"size": [HEIGHT, WIDTH], "counts": [0, 600]}, iscrowd=1),
        annotation(5, 70, 90, [4, 4, 0, 5], [[4, 4, 4, 9, 4, 7]]),
        annotation(6, 70, 90, [1, 1, 3, -2], []),
        annotation(8, 8, 90, [1, 1, 2, 2], TWO_POLYGONS),
        annotation(9, 70, 90, [31, 4, 2, 2], TWO_POLYGONS),
    ],
}


# ---- panoptic ----

# A cat (1000), grass in two parts (70000), a crowd of cats (3) and void (0).
MAP = np.array(
    [
        [70000, 70000, 0, 3, 3, 3],
        [1000, 1000, 0, 3, 3, 3],
        [1000, 1000, 1000, 0, 70000, 70000],
        [0, 1000, 0, 0, 70000, 70000],
    ]
)
CATEGORIES = [
    {"id": 200, "name": "grass", "isthing": 0},
    {"id": 17, "name": "cat", "isthing": 1},
    {"id": 18, "name": "dog", "isthing": 1},
]


def write_panoptic(root, count=1, ids=MAP):
    """Write `count` images with the same panoptic map, in COCO's layout."""
    (root / "panoptic_train").mkdir(parents=True)
    (root / "train").mkdir()
    segments = [
        {"id": 1000, "category_id": 17, "iscrowd": 0},
        {"id": 70000, "category_id": 200, "iscrowd": 0},
        {"id": 3, "category_id": 17, "iscrowd": 1},
    ]
    segments = [segment for segment in segments if segment["id"] in ids]
    images, annotations = [], []
    for number in range(1, count + 1):
        Image.fromarray(as_png(ids)).save(root / "panoptic_train" / f"{number}.png")
        Image.new("RGB", ids.shape[::-1]).save(root / "train" / f"{number}.jpg")
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        images.append({"id": number, "file_name": f"{number}.jpg"} | size)
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "panoptic_train.json").write_text(json.dumps(data))
    return root / "panoptic_train.json", root / "train"
