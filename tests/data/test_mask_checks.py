"""Masks that pycocotools cannot decode safely are named by annotation before it sees them; empty ones are counted."""

import numpy as np
import pytest
from pycocotools import mask as mask_api
from small_sets import DATA, HEIGHT, TWO_POLYGONS, WIDTH, annotation, as_rle, filled, write_coco

from cassl_lib.data.coco import CocoImages
from cassl_lib.data.mask_checks import empty_masks, first_invalid
from cassl_lib.data.schema import Rle
from cassl_lib.data.segmentations import Segmentations
from cassl_lib.errors import DataError
from cassl_lib.evaluation import evaluate
from cassl_lib.labels.coco import from_coco

SIZE = [HEIGHT, WIDTH]
ZIGZAG = [value for n in range(2000) for value in ((n % 2) * 9e4, n / 100)]
INVALID = [
    ([[1, 1, 1e7, 1, 1, 9]], "a point far outside the image"),
    ([[1, 1, -1e300, 1, 1, 9]], "a point far outside the image"),
    ([[1, 1, 5, 1, 1, 9, 3]], "an odd number of coordinates"),
    ([ZIGZAG], "the outline of a polygon is too long"),
    ({"size": [10**6, 10**6], "counts": "04"}, "its RLE has 1000000 x 1000000"),
    ({"size": [HEIGHT + 1, WIDTH], "counts": [(HEIGHT + 1) * WIDTH]}, "its RLE has 21 x 30"),
    ({"size": SIZE, "counts": []}, "its RLE has no counts"),
    ({"size": SIZE, "counts": [600, 1]}, "make 601 pixels, its image has 600"),
    ({"size": SIZE, "counts": [2**61]}, "its image has 600"),
    ({"size": SIZE, "counts": ""}, "its RLE has no counts"),
    ({"size": SIZE, "counts": "o"}, "the counts of its RLE are malformed"),  # the last character has the bit "more"
    ({"size": SIZE, "counts": "oooooooooooo0"}, "the counts of its RLE are malformed"),
    ({"size": SIZE, "counts": "0 0"}, "the counts of its RLE are malformed"),
    ({"size": SIZE, "counts": "é"}, "the counts of its RLE are malformed"),
    ({"size": SIZE, "counts": "N"}, "a count of its RLE is negative"),
    ({"size": SIZE, "counts": "5"}, "make 5 pixels, its image has 600"),
]


@pytest.mark.parametrize(("segmentation", "reason"), INVALID)
def test_a_mask_that_cannot_be_decoded_is_named(tmp_path, segmentation, reason):
    for crowd in (0, 1):
        entries = [*DATA["annotations"], annotation(77, 3, 5, [1, 1, 4, 4], segmentation, iscrowd=crowd)]
        path = write_coco(tmp_path, DATA | {"annotations": entries})
        with pytest.raises(DataError) as caught:
            CocoImages(path, tmp_path / "images")
        assert str(path) in str(caught.value) and "(id 77)" in str(caught.value) and reason in str(caught.value)


@pytest.mark.parametrize(("segmentation", "reason"), INVALID)
def test_neither_evaluation_nor_import_decodes_it(tmp_path, segmentation, reason):
    box = {"image_id": 3, "category_id": 5, "bbox": [1, 1, 4, 4], "area": 16}
    data = DATA | {"annotations": [box | {"id": 1, "segmentation": segmentation}]}
    path = write_coco(tmp_path, data)
    for given in (path, data):
        with pytest.raises(DataError, match=f"annotation 1 of image 3: .*{reason}"):
            evaluate([], given, "segm")
        with pytest.raises(DataError, match=reason):
            from_coco(given, tmp_path / "store")
    result = box | {"score": 0.5, "segmentation": segmentation}
    reason = (
        reason if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str) else "not compressed RLE"
    )
    good = DATA | {"annotations": [box | {"id": 1, "segmentation": as_rle(filled(1, 1, 5, 5))}]}
    with pytest.raises(DataError, match=reason):
        evaluate([result], good, "segm")


def test_valid_masks_pass_and_compressed_counts_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(200):
        height, width = rng.integers(1, 60, 2)
        blocks = rng.random((height, width)) < rng.random()
        masks.append(np.kron(blocks, np.ones(rng.integers(1, 5, 2), bool)).astype(np.uint8, order="F"))
    sizes = np.array([mask.shape for mask in masks])
    rles = [mask_api.encode(mask) for mask in masks]
    packed = Segmentations(Rle(tuple(rle["size"]), rle["counts"].decode()) for rle in rles)
    assert first_invalid(packed, sizes) is None
    assert empty_masks(packed, sizes) == [n for n, mask in enumerate(masks) if not mask.any()]
    longer = [rle["counts"].decode() + "1" for rle in rles]  # one more pixel or two
    for rle, counts in zip(rles, longer, strict=True):
        assert first_invalid(Segmentations([Rle(tuple(rle["size"]), counts)]), np.array([rle["size"]])) is not None


def test_empty_masks_are_counted(tmp_path):
    entries = [
        annotation(1, 3, 5, [1, 1, 4, 4], {"size": SIZE, "counts": [600]}),
        annotation(2, 3, 5, [1, 1, 4, 4], as_rle(filled(0, 0, 0, 0))),
        annotation(3, 3, 5, [1, 1, 4, 4], [[40, 1, 45, 1, 45, 9]]),  # beside the image
        annotation(4, 3, 5, [1, 1, 4, 4], [[1, 1, 9, 9, 1, 1]]),  # no area
        annotation(5, 3, 5, [1, 1, 4, 4], {"size": SIZE, "counts": [300, 0, 300]}),
        annotation(6, 3, 5, [1, 1, 4, 4], TWO_POLYGONS),
        annotation(7, 3, 5, [1, 1, 4, 4], {"size": SIZE, "counts": [0, 600]}),
    ]
    images = CocoImages(write_coco(tmp_path, DATA | {"annotations": entries}), tmp_path / "images")
    assert [bool(mask.any()) for mask in images.annotations(1)["masks"]] == [False] * 5 + [True] * 2
    assert images.left_out.counts["masks cover no pixel"] == 5
    assert "annotation 1, annotation 2" in str(images.left_out)


def test_an_object_without_a_mask_is_never_matched(tmp_path):
    box = {"image_id": 3, "category_id": 5, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    rle = as_rle(filled(1, 1, 5, 5))
    entries = [box | {"id": 1, "segmentation": rle}, box | {"id": 2, "segmentation": []}]
    result = {"image_id": 3, "category_id": 5, "score": 0.5, "segmentation": rle}
    assert evaluate([result], write_coco(tmp_path, DATA | {"annotations": entries}), "segm")["AR100"] == 0.5


def test_an_image_above_the_pixel_limit_is_left_out(tmp_path):
    data = DATA | {"images": [DATA["images"][0] | {"height": 2**20, "width": 2**20}, *DATA["images"][1:]]}
    images = CocoImages(write_coco(tmp_path, data), tmp_path / "images")
    assert images.ids.tolist() == [3, 1000]
    assert "a.jpg" in str(images.left_out)
