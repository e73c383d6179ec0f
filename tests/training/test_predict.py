"""The test loop and the evaluation of a detector, on a detector whose detections are computed by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cassl_lib.config import AugmentConfig, TrainConfig
from cassl_lib.data.coco import CocoImages
from cassl_lib.evaluation.detector import detect, evaluate_detector
from cassl_lib.training import distributed
from cassl_lib.training.engine import predict

WITHOUT_WORKERS = TrainConfig(workers=0)
SIZE = 100  # of the square images


class BrightDetector(torch.nn.Module):
    """One detection per image, of its bright pixels, scored by brightness; the box is twice as wide as the mask."""

    def __init__(self, masks=True):
        super().__init__()
        self.w, self.config = torch.nn.Parameter(torch.ones(1)), SimpleNamespace(masks=masks)

    def predict(self, images, sizes):
        assert not self.training and not torch.is_grad_enabled()
        return [self._one(image, size) for image, size in zip(images, sizes, strict=True)]

    def _one(self, image, size):
        bright = torch.nn.functional.interpolate(image[None].float(), size=size)[0, 0] > 127
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        if not len(rows):
            none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
            return none | {"masks": torch.zeros((0, *size), dtype=torch.bool)}
        left, right = columns[0].item(), columns[-1].item() + 1
        box = [left, rows[0].item(), 2 * right - left, rows[-1].item() + 1]
        detection = {"boxes": torch.tensor([box]).float(), "scores": image.max().float()[None] / 256}
        return detection | {"labels": torch.tensor([0]), "masks": bright[None]}


def test_the_test_loop_yields_every_image_once_and_names_unreadable_ones():
    bright = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    dark = bright * 0
    batches = [([bright, dark], [None, None], [5, 6], ["x.jpg"]), ([], [], [], ["y.jpg"]), ([bright], [None], [7], [])]
    model = BrightDetector().train()
    sizes = {5: (4, 6), 6: (8, 8), 7: (2, 2)}
    predictions = list(predict(model, batches, sizes=sizes.get, config=WITHOUT_WORKERS, title=None))
    assert [(image_id, unreadable) for image_id, _, unreadable in predictions] == [
        (5, ["x.jpg"]),
        (6, []),
        (None, ["y.jpg"]),
        (7, []),
    ]
    first, second, third, _ = (detections for _, detections, _ in predictions)
    assert first["boxes"].tolist() == [[0, 0, 12, 4]] and first["masks"].shape == (1, 4, 6)
    assert len(second["boxes"]) == 0 and third is None


@pytest.fixture
def squares(tmp_path):
    """Images with one bright square each, of 24, 30 and 90 pixels; an empty image, and one with a false positive.

    Also an image without a file, a crowd, and a box without area.
    """
    (tmp_path / "images").mkdir()
    entries, annotations = [], []
    for number, side in enumerate((24, 30, 90, 0, 24)):
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[:side, :side] = 255 if number == 4 else 200
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
        if side and number < 4:
            shape = {"segmentation": [[0, 0, side, 0, side, side, 0, side]], "area": side**2, "iscrowd": 0}
            annotations.append({"image_id": number, "category_id": 7, "bbox": [0, 0, side, side], **shape})
    crowd = mask_api.encode(np.asfortranarray(np.ones((SIZE, SIZE), np.uint8)))
    crowd = {"size": crowd["size"], "counts": crowd["counts"].decode()}
    extra = {"image_id": 3, "category_id": 7, "area": 10_000, "segmentation": crowd, "bbox": [0, 0, 100, 100]}
    annotations += [extra | {"iscrowd": 1}, extra | {"bbox": [0, 0, 0, 100]}]
    annotations.append(annotations[0] | {"image_id": 50})
    annotations = [{"id": number} | annotation for number, annotation in enumerate(annotations)]  # the first is 0
    entries.append({"id": 50, "file_name": "absent.png", "height": SIZE, "width": SIZE})
    path = tmp_path / "instances.json"
    data = {"images": entries, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    path.write_text(json.dumps(data))
    return CocoImages(path, tmp_path / "images")


def evaluated(squares, masks=True, classes=False, unreadable=None):
    sizes = AugmentConfig(test_size=SIZE, longest=SIZE)
    return evaluate_detector(
        BrightDetector(masks),
        squares,
        augment=sizes,
        training=WITHOUT_WORKERS,
        classes=classes,
        folder=squares.folder.parent,
        unreadable=unreadable,
    )


def test_masks_are_evaluated_by_their_own_areas(squares):
    """The best mask is a small false positive (below 32 * 32 pixels); its box, twice as wide, is not small."""
    metrics = evaluated(squares)["mask_agnostic"]
    # Precision at recall 1/3, 2/3, 1: 1/2, 2/3, 3/4; among the small objects 1/2, 2/3; one object is of medium size
    expected = {"AP": 3 / 4, "APs": 2 / 3, "APm": 1, "APl": -1}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    ground_truth = COCO()
    ground_truth.dataset = json.loads(squares.path.read_text())
    ground_truth.dataset["annotations"] = [a | {"id": a["id"] + 1} for a in ground_truth.dataset["annotations"][:4]]
    ground_truth.createIndex()
    masks = [np.pad(np.ones((side, side), np.uint8), (0, SIZE - side)) for side in (24, 24, 30, 90)]
    results = [{"image_id": n, "category_id": 7, "score": 0.99 if n == 4 else 0.8} for n in (4, 0, 1, 2)]
    detected = ground_truth.loadRes(
        [r | {"segmentation": mask_api.encode(np.asfortranarray(m))} for r, m in zip(results, masks, strict=True)]
    )
    reference = COCOeval(ground_truth, detected, "segm")
    reference.evaluate(), reference.accumulate(), reference.summarize()
    assert list(metrics.values()) == pytest.approx(reference.stats.tolist())


def test_metrics_depend_on_what_detector_and_annotations_have(squares):
    assert list(evaluated(squares, classes=True)) == ["box", "box_agnostic", "mask", "mask_agnostic"]
    boxes = evaluated(squares, masks=False)
    assert list(boxes) == ["box_agnostic"]
    # Boxes are twice as wide as the objects: IoU 0.5
    assert (boxes["box_agnostic"]["AP50"], boxes["box_agnostic"]["AP75"]) == (pytest.approx(0.75), 0)
    data = json.loads(squares.path.read_text())
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    squares.path.write_text(json.dumps(data))
    assert list(evaluated(CocoImages(squares.path, squares.folder))) == ["box_agnostic"]


def test_each_process_evaluates_its_share_of_the_images(squares, tmp_path, monkeypatch):
    sizes = AugmentConfig(test_size=SIZE, longest=SIZE)
    for rank in (1, 0):
        monkeypatch.setattr(distributed, "rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(distributed, "of_all_processes", lambda value, world: [value] * world)
        folder = tmp_path / "detections"
        results = detect(
            BrightDetector(), squares, folder=folder, augment=sizes, training=WITHOUT_WORKERS, unreadable=[]
        )
        assert (results is None) == (rank == 1)
    assert [result["image_id"] for result in results] == [0, 1, 2, 4]  # and 3, which is empty
    assert 3 in results.image_ids
    lines = (folder / "results-00001-of-00002.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [1, 3]


def test_unreadable_images_count_as_missed_and_are_named(squares, caplog):
    (squares.folder / "2.png").write_text("not an image")
    unreadable = []
    assert evaluated(squares, unreadable=unreadable)["mask_agnostic"]["AR100"] == pytest.approx(2 / 3)
    (name,) = unreadable
    assert name.startswith(str(squares.folder / "2.png"))
    assert f"1 of 5 images could not be read and count as missed, such as {name}" in caplog.text
