"""Every image source keeps the contract of cassl_lib/data/source.py. To test another one, add a line to `SOURCES`."""

import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import DATA, write_coco, write_panoptic

from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.loader import Samples, read_image
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import LeftOut
from cassl_lib.labels.coco import from_coco
from cassl_lib.tools.plan.synthetic_photos import SyntheticPhotos
from cassl_lib.tools.plan.throughput import PoolSample


def coco(folder):
    return CocoImages(write_coco(folder, DATA), folder / "images")


def entities(folder, **options):
    return EntityImages(*write_panoptic(folder / "set", count=3), **options)


def without_entities(folder):
    return EntityImages(*write_panoptic(folder / "set", ids=np.zeros((4, 6), int)), crowd="ignore")


def pseudo_labeled(folder):
    return PseudoLabeled(from_coco(coco(folder).ground_truth(), folder / "store", images=folder / "images"))


def pool(folder):
    write_coco(folder, DATA)
    return build_pool([f"{folder / 'instances.json'}:{folder / 'images'}"], folder / "pools")


SOURCES = {  # name: a function of an empty folder
    "CocoImages": coco,
    "EntityImages": entities,
    "EntityImages, crowd=ignore": lambda folder: entities(folder, crowd="ignore"),
    "EntityImages without entities": without_entities,
    "PseudoLabeled": pseudo_labeled,
    "Pool": pool,
    "SyntheticPhotos": SyntheticPhotos,
    "PoolSample": lambda folder: PoolSample(pool(folder)),
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return SOURCES[request.param](tmp_path)


def equal(first, second):
    """Whether two annotations are equal in keys, types and values."""
    assert first.keys() == second.keys()
    arrays = {name for name in first if name != "size"}
    assert all(first[name].dtype == second[name].dtype for name in arrays)
    return first.get("size") == second.get("size") and all(np.array_equal(first[n], second[n]) for n in arrays)


def test_a_source_has_every_member_of_the_contract(source):
    assert isinstance(source, ImageSource)
    assert source.left_out is None or isinstance(source.left_out, LeftOut)
    assert inspect.signature(source.annotations).parameters["masks"].kind is inspect.Parameter.KEYWORD_ONLY


def test_ids_are_unique_integers_and_paths_can_be_read(source):
    assert len(source) > 0
    ids = [source.image_id(index) for index in range(len(source))]
    assert len(set(ids)) == len(ids) and all(type(image_id) is int for image_id in ids)
    for index in range(len(source)):
        path = source.image_path(index)
        assert isinstance(path, Path) and read_image(path).dtype == torch.uint8


def test_annotations_have_the_declared_keys_shapes_and_types(source):
    for index in range(len(source)):
        height, width = read_image(source.image_path(index)).shape[1:]
        for masks in (True, False):
            instances = source.annotations(index, masks=masks)
            assert {"boxes", "labels"} <= instances.keys() <= {"boxes", "labels", "masks", "size", "ignored"}
            boxes, labels = instances["boxes"], instances["labels"]
            assert boxes.shape == (len(labels), 4) and boxes.dtype == np.float32
            assert labels.shape == (len(boxes),) and labels.dtype == np.int64 and (labels >= 0).all()
            assert instances.get("size", (height, width)) == (height, width)
            assert ("masks" in instances) == masks
            if masks:
                assert instances["masks"].shape == (len(boxes), height, width)
                assert instances["masks"].dtype == np.uint8 and instances["masks"].max(initial=0) <= 1
            if "ignored" in instances:
                assert instances["ignored"].shape == (height, width) and instances["ignored"].dtype == np.uint8


def test_boxes_are_xyxy_in_pixels_of_the_image_and_surround_their_masks(source):
    for index in range(len(source)):
        height, width = read_image(source.image_path(index)).shape[1:]
        instances = source.annotations(index, masks=True)
        for (left, top, right, bottom), mask in zip(instances["boxes"].tolist(), instances["masks"], strict=True):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            rows, columns = np.nonzero(mask)
            assert left - 1 < columns.min() and columns.max() + 1 < right + 1
            assert top - 1 < rows.min() and rows.max() + 1 < bottom + 1


def test_a_source_can_be_read_in_any_order_and_by_other_processes(source):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = [source.annotations(index, masks=True) for index in range(len(source))]
    copied = pickle.loads(pickle.dumps(source))
    assert len(copied) == len(source)
    for index in reversed(range(len(source))):
        assert equal(source.annotations(index, masks=True), first[index])
        assert equal(copied.annotations(index, masks=True), first[index])
        assert copied.image_id(index) == source.image_id(index) and copied.image_path(index) == source.image_path(index)
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


@pytest.mark.parametrize("masks", [True, False])
def test_samples_take_the_source(source, masks):
    samples = Samples(source, lambda *sample: sample, masks=masks, classes=True)
    for index in range(len(source)):
        image, target, image_id, unreadable = samples[index, index]
        instances = source.annotations(index, masks=masks)
        assert image_id == source.image_id(index) and not unreadable
        assert target["boxes"].shape == (len(instances["boxes"]), 4) and ("masks" in target) == masks
        assert target["labels"].tolist() == instances["labels"].tolist()
        assert tuple(image.shape[1:]) == instances.get("size", tuple(image.shape[1:]))
