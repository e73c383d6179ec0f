"""Entities from panoptic maps: conversion by hand and on real annotations, ignored pixels, entity inference."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from small_models import SMALL, with_settings
from small_sets import CATEGORIES, MAP, write_panoptic
from torchvision import tv_tensors

from cassl_lib.config import AugmentConfig
from cassl_lib.data import entity_store as conversion
from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.datasets import sibling
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.entity_store import entity_store, segment_rles
from cassl_lib.data.loader import Samples
from cassl_lib.data.scenes.records import as_png
from cassl_lib.errors import DataError
from cassl_lib.evaluation import evaluate
from cassl_lib.models import build_detector
from cassl_lib.models.condinst_masks import enlarge_masks, mask_boxes
from cassl_lib.models.fcos import Predictions, Targets, fcos_losses, make_locations

REAL = Path(os.environ.get("CASSL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco_subset"
SMALL_DETECTOR = replace(SMALL, detections_per_image=30)
needs_real = pytest.mark.skipif(not (REAL / "panoptic.json").is_file(), reason=f"no real annotations in {REAL}")


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))


def test_every_segment_but_crowds_is_an_entity(tmp_path):
    images = EntityImages(*write_panoptic(tmp_path / "set"))
    assert images.classes == ["cat", "dog", "grass"] and images.isthing.tolist() == [True, True, False]
    assert images.labels.tolist() == [0, 2]
    assert images.boxes.tolist() == [[0, 1, 3, 4], [0, 0, 6, 4]]  # stuff in two parts is one entity
    item = images.annotations(0)
    assert item["size"] == (4, 6) and (item["masks"][0] == (MAP == 1000)).all()
    assert (item["masks"][1] == (MAP == 70000)).all() and "ignored" not in item
    ground_truth = images.ground_truth()
    assert [entry["area"] for entry in ground_truth["annotations"]] == [6, 6]
    assert [entry["category_id"] for entry in ground_truth["annotations"]] == [17, 200]
    assert "1 classes have no instance: dog" in str(images.left_out)


def test_crowds_and_unannotated_pixels_can_be_ignored(tmp_path):
    files = write_panoptic(tmp_path / "set")
    plain, ignoring = EntityImages(*files), EntityImages(*files, crowd="ignore")
    assert (ignoring.annotations(0)["ignored"] == np.isin(MAP, [0, 3])).all()
    assert len(ignoring.boxes) == 2 and ignoring.fingerprint != plain.fingerprint
    (crowd,) = [entry for entry in ignoring.ground_truth()["annotations"] if entry["iscrowd"]]
    # Only the crowd, with its own class and box: if it included void, every box of the image would be excused.
    assert crowd["category_id"] == 17 and crowd["area"] == 6 and crowd["bbox"] == [3, 0, 3, 2]
    assert len({entry["id"] for entry in ignoring.ground_truth()["annotations"]}) == 3
    results = [{"image_id": 1, "category_id": 17, "bbox": box, "score": 0.9} for box in ([3, 0, 3, 2], [4, 2, 2, 2])]
    results.append({"image_id": 1, "category_id": 17, "bbox": [0, 1, 3, 3], "score": 0.5})
    # On the crowd: not counted. Elsewhere: a false positive ranked before the cat. Precision 1/2; 1/3 without crowds.
    assert evaluate(results, ignoring.ground_truth())["AP50"] == pytest.approx((1 / 2 + 0) / 2)
    assert evaluate(results, plain.ground_truth())["AP50"] == pytest.approx((1 / 3 + 0) / 2)


def test_a_map_with_an_unlisted_segment_raises(tmp_path):
    path, folder = write_panoptic(tmp_path / "set")
    changed = np.where(MAP == 1000, 1001, MAP)
    Image.fromarray(as_png(changed)).save(path.with_suffix("") / "1.png")
    with pytest.raises(DataError, match="1.png.*1001"):
        EntityImages(path, folder)


def test_a_changed_map_is_converted_again(tmp_path):
    path, folder = write_panoptic(tmp_path / "set")
    assert EntityImages(path, folder).boxes[0].tolist() == [0, 1, 3, 4]
    Image.fromarray(as_png(np.roll(MAP, 1, 1))).save(path.with_suffix("") / "1.png")
    assert EntityImages(path, folder).boxes[0].tolist() == [1, 1, 4, 4]


def test_an_image_without_entities_is_valid(tmp_path):
    images = EntityImages(*write_panoptic(tmp_path / "set", ids=np.zeros((4, 6), int)))
    item = images.annotations(0)
    assert len(images) == 1 and item["masks"].shape == (0, 4, 6) and item["boxes"].shape == (0, 4)


def test_several_processes_and_a_resumed_conversion_give_the_same_store(tmp_path, monkeypatch):
    path, _ = write_panoptic(tmp_path / "set", count=7)
    monkeypatch.setattr(conversion, "SHARD_SIZE", 2)
    one = entity_store(path, workers=1)
    before = {file.name: file.read_bytes() for file in one.folder.glob("*.arrow")}
    assert len(before) == 4
    for name in ("manifest.json", "shard-00002.arrow", "shard-00002.json"):
        (one.folder / name).unlink()
    kept = (one.folder / "shard-00001.arrow").stat().st_mtime_ns
    entity_store(path, workers=1)
    assert (one.folder / "shard-00001.arrow").stat().st_mtime_ns == kept
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "others"))
    monkeypatch.setattr(conversion, "MIN_IMAGES_PER_PROCESS", 1)
    two = entity_store(path, workers=2)
    for store in (one, two):
        assert {file.name: file.read_bytes() for file in store.folder.glob("*.arrow")} == before


def test_absent_images_are_left_out(tmp_path):
    path, folder = write_panoptic(tmp_path / "set", count=3)
    whole = EntityImages(path, folder)
    (folder / "2.jpg").unlink()
    part = EntityImages(path, folder)
    assert part.ids.tolist() == [1, 3] and len(part.boxes) == 4 and part.first.tolist() == [0, 2, 4]
    assert {entry["image_id"] for entry in part.ground_truth()["annotations"]} == {1, 3}
    assert part.annotations(1)["masks"].any() and part.fingerprint != whole.fingerprint


def test_a_file_that_is_not_panoptic_is_named_in_the_error(tmp_path):
    path, folder = write_panoptic(tmp_path / "set")
    instances = {"images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 6}], "categories": CATEGORIES}
    instances["annotations"] = [{"id": 1, "image_id": 1, "bbox": [0, 0, 2, 2], "category_id": 17}]
    (path.parent / "instances_train.json").write_text(json.dumps(instances))
    (path.parent / "instances_train").mkdir()
    with pytest.raises(DataError, match="instances_train.json"):
        EntityImages(path.parent / "instances_train.json", folder)
    with pytest.raises(DataError, match="panoptic file; use annotation=entities"):
        CocoImages(path, folder)
    with pytest.raises(DataError, match="absent.json"):
        EntityImages(path.parent / "absent.json", folder)
    assert sibling(path, "instances").name == "instances_train.json"
    assert sibling(path.parent / "instances_train.json", "panoptic") == path
    with pytest.raises(DataError, match="instances_val.json: no such file"):
        sibling(path.with_name("panoptic_val.json"), "instances")


def test_a_map_of_another_size_than_its_image_raises(tmp_path):
    path, folder = write_panoptic(tmp_path / "set")
    Image.fromarray(as_png(MAP[:3])).save(path.with_suffix("") / "1.png")
    with pytest.raises(DataError, match="1.png is 3x6 pixels, but its image is 4x6 in the JSON"):
        EntityImages(path, folder)


def test_rles_of_segments_by_hand():
    (rle,) = segment_rles(np.array([[5, 5], [0, 5]]), [5])  # by columns: 5, 0, 5, 5
    assert rle["size"] == [2, 2] and coco_mask.decode(rle).tolist() == [[1, 1], [0, 1]]
    assert coco_mask.area(segment_rles(np.zeros((3, 2), int), [7])).tolist() == [0]


@needs_real
def test_boxes_areas_and_classes_equal_cocos_on_real_annotations():
    images = EntityImages(REAL / "panoptic.json", REAL / "images")
    data = json.loads((REAL / "panoptic.json").read_text())
    segments = {annotation["image_id"]: annotation["segments_info"] for annotation in data["annotations"]}
    areas = [entry["area"] for entry in images.ground_truth()["annotations"]]
    row = 0
    for image_id in images.ids.tolist():
        for segment in (one for one in segments[image_id] if not one["iscrowd"]):
            x, y, width, height = segment["bbox"]
            assert images.boxes[row].tolist() == [x, y, x + width, y + height]
            assert areas[row] == segment["area"]
            assert images.category_ids[images.labels[row]] == segment["category_id"]
            row += 1
    assert row == len(images.boxes) == 2225


# ---- training with ignored pixels ----


def test_ignored_pixels_move_with_the_image(tmp_path):
    samples = Samples(
        EntityImages(*write_panoptic(tmp_path / "set"), crowd="ignore"), lambda *x: x, masks=True, classes=True
    )
    image, target, _, _ = samples[0, 0]
    assert isinstance(target["ignored"], tv_tensors.Mask) and target["ignored"].shape == (4, 6)
    transform = training_transform(AugmentConfig(sizes=(8,), longest=100))
    torch.manual_seed(0)
    for _ in range(4):
        moved, changed = transform(image, dict(target))
        assert changed["ignored"].shape == moved.shape[-2:] == (8, 12)
        whole = changed["ignored"].bool() | changed["masks"].bool().any(0)
        assert whole.float().mean() > 0.9  # entities and ignored pixels cover the image, flipped or not
        assert not (changed["ignored"].bool() & changed["masks"].bool().any(0)).float().mean() > 0.1


def test_ignored_locations_have_neither_loss_nor_gradient():
    config = replace(SMALL_DETECTOR, masks=False)
    locations = make_locations([(4, 4), (2, 2), (1, 1)], config, torch.device("cpu"))
    logits = torch.zeros(1, 21, 3, requires_grad=True)
    predictions = Predictions(logits, torch.ones(1, 21, 4), torch.zeros(1, 21), [])
    matched = torch.full((1, 21), -1)
    matched[0, 5] = 0
    ignored = torch.zeros(1, 21, dtype=torch.bool)
    ignored[0, 5:9] = True  # location 5 is positive, so it counts nevertheless
    boxes = torch.tensor([[[4.0, 4.0, 20.0, 20.0]]])
    targets = Targets(boxes, torch.zeros(1, 1, dtype=torch.int64), boxes[..., :2], ignored)
    found = fcos_losses(predictions, locations=locations, matched=matched, targets=targets)
    # At logit 0: 1/4 * 1/4 * ln 2 for the one positive, 3/4 * 1/4 * ln 2 for every negative.
    ln2 = torch.tensor(2.0).log().item()
    expected = (0.25 * 0.25 + (18 * 3 - 1) * 0.75 * 0.25) * ln2
    assert found["loss_cls"].item() == pytest.approx(expected, rel=1e-5)
    found["loss_cls"].backward()
    assert not logits.grad[0, 6:9].any() and logits.grad[0, 5].all() and logits.grad[0, 4].all()


def test_the_detector_looks_up_ignored_pixels_at_its_locations():
    model = build_detector(replace(SMALL_DETECTOR, masks=False, center="box"))
    ignored = torch.zeros(64, 90, dtype=torch.uint8)
    ignored[:, 45:] = 1
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    locations = model.make_locations([torch.empty(1, 1, 8, 12), torch.empty(1, 1, 4, 6), torch.empty(1, 1, 2, 3)])
    targets = model.gather_targets([empty | {"ignored": ignored}, empty], locations)
    x, y = locations.points.T
    assert targets.ignored[0].tolist() == ((x >= 45) & (x < 90)).tolist() and not targets.ignored[1].any()
    assert model.gather_targets([empty], locations).ignored is None


# ---- entity inference ----


def identity_enlarged(probabilities, **options):
    n, height, width = probabilities.shape
    masks = torch.zeros(n, height, width, dtype=torch.bool)
    enlarge_masks(probabilities, torch.eye(height), torch.eye(width), masks, **options)
    return masks


def test_a_pixel_belongs_to_the_first_entity_and_certainty_is_of_the_pixels_kept():
    torch.manual_seed(0)
    probabilities = torch.rand(4, 5, 6)
    probabilities[2] = 0.1
    certainty, taken = torch.zeros(4), torch.zeros(5, 6, dtype=torch.bool)
    masks = identity_enlarged(probabilities, certainty=certainty, taken=taken)
    owner = np.full((5, 6), -1)
    for n in range(4):
        inside = []
        for i in range(5):
            for j in range(6):
                if probabilities[n, i, j] > 0.5 and owner[i, j] < 0:
                    owner[i, j] = n
                    inside.append(probabilities[n, i, j].item())
        assert certainty[n].item() == pytest.approx(np.mean(inside) if inside else 0.0)
        assert (masks[n].numpy() == (owner == n)).all()
    assert masks.sum(0).max() == 1 and (taken == masks.any(0)).all()
    overlapping = identity_enlarged(probabilities)
    assert overlapping.equal(probabilities > 0.5) and overlapping.sum(0).max() > 1


def test_boxes_of_masks_by_hand():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 3:7] = masks[1, 5, 7] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 7, 4], [7, 5, 8, 6], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_entity_detections_do_not_overlap_and_their_boxes_are_their_pixels():
    torch.manual_seed(0)
    config = replace(SMALL_DETECTOR, one_entity_per_pixel=True, rescore_masks=True)
    model = build_detector(config).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if parameter.dim() == 4:
                parameter.mul_(3 if "controller" in name else 10)
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    (found,) = model.predict([image], [(120, 90)])
    assert len(found["boxes"]) >= 2 and found["masks"].shape[1:] == (120, 90)
    assert found["masks"].sum(0).max() == 1
    assert found["boxes"].equal(mask_boxes(found["masks"]))
    assert ((found["boxes"][:, 2:] - found["boxes"][:, :2]) > 1).all()
    assert (found["scores"].diff() <= 0).all()
    overlapping = with_settings(model, one_entity_per_pixel=False, rescore_masks=False)
    (plain,) = overlapping.predict([image], [(120, 90)])
    assert plain["masks"].sum(0).max() > 1 and len(plain["boxes"]) >= len(found["boxes"])
    assert found["scores"].max() < plain["scores"].max()
