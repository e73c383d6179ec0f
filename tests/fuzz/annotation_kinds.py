"""Damaged annotation files: COCO instances, keypoints, results, labels to import, panoptic JSON and PNGs.

Each kind is a function of a folder that returns a strategy of damaged files and a check of one: it reads the file as
the library does, and what is accepted must be what a naive reading finds.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from mutations import damaged, json_files
from PIL import Image
from small_sets import CATEGORIES, HEIGHT, MAP, WIDTH, annotation, as_rle, filled, write_panoptic

from cassl_lib.data.coco import CocoImages
from cassl_lib.data.entities import EntityImages
from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.evaluation import evaluate
from cassl_lib.labels.coco import from_coco

COUNTS = [10 * HEIGHT + 4, 4, HEIGHT - 4, 4, HEIGHT - 8 + 18 * HEIGHT]
POLYGONS = [[2, 3, 7, 3, 7, 5, 2, 5], [2, 6, 7, 6, 7, 7, 2, 7]]


def ground_truth() -> dict:
    images = [{"id": 10 * n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2, 3)]
    return {
        "info": {"year": 2026},
        "images": images,
        "annotations": [
            annotation(1, 10, 7, [2, 3, 5, 4], POLYGONS, area=18, iscrowd=0),
            annotation(2, 10, 9, [10, 4, 2, 4], {"size": [HEIGHT, WIDTH], "counts": COUNTS}, area=8, iscrowd=0),
            annotation(3, 20, 7, [0, 0, 4, 2], as_rle(filled(0, 0, 4, 2)), area=8, iscrowd=0),
            annotation(4, 20, 9, [0, 0, 30, 20], {"size": [HEIGHT, WIDTH], "counts": [0, 600]}, area=600, iscrowd=1),
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat", "supercategory": "animal"}],
    }


def detections(**more) -> list[dict]:
    return [
        {"image_id": 10, "category_id": 7, "bbox": [2, 3, 5.5, 4], "score": 0.9, **more},
        {"image_id": 10, "category_id": 9, "bbox": [10, 4, 2, 4], "score": 0.5, **more},
        {"image_id": 20, "category_id": 7, "bbox": [1, 0, 4, 2.5], "score": 0.25, **more},
    ]


def write_images(folder: Path) -> Path:
    folder.mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 9, 90)).save(folder / f"{number}.png")
    return folder


def parsed(content: bytes):
    """A naive reading of an accepted JSON file; damage in a text that nothing reads is accepted."""
    return json.loads(content.decode(json.detect_encoding(content), "replace").removeprefix("\ufeff"))


def instances(folder: Path):
    images, file = write_images(folder / "images"), folder / "instances.json"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        source = CocoImages(file, images)
        assert source.fingerprint
        kept, boxes = [], []
        for index in range(len(source)):
            found = source.annotations(index, masks=bool(len(source.segmentations.parts)))
            name = str(source.names[index])
            kept += [(name, source.classes[label]) for label in found["labels"]]
            boxes += [(name, box) for box in found["boxes"]]
            assert all(mask.shape == found["size"] for mask in found.get("masks", ()))
        evaluate([], source.ground_truth(), "bbox")
        # The same by hand.
        data = parsed(content)
        file_of = {image["id"]: image["file_name"] for image in data["images"]}
        size_of = {image["file_name"]: (image["width"], image["height"]) for image in data["images"]}
        class_of = {category["id"]: category["name"] for category in data["categories"]}
        entries = [(file_of[entry["image_id"]], class_of[entry["category_id"]]) for entry in data["annotations"]]
        assert Counter(kept) <= Counter(entries), f"relabeled: {Counter(kept) - Counter(entries)}"
        assert len(entries) - len(kept) <= sum(source.left_out.counts.values()), "objects are lost in silence"
        assert len(data["images"]) - len(source) <= sum(source.left_out.counts.values()), "images are lost in silence"
        said = {(file_of[entry["image_id"]], *corners(entry["bbox"])) for entry in data["annotations"]}
        for name, box in boxes:
            width, height = size_of[name]
            near = (
                np.allclose(box, each, atol=1e-3, rtol=1e-6)
                for one, *plain in said
                if one == name
                for each in (plain, np.clip(plain, 0, [width, height, width, height]))
            )
            assert any(near), f"box {box} of {name} is not in the file"

    return json_files(ground_truth()), check


def corners(box) -> tuple[float, float, float, float]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def keypoints(folder: Path):
    points = [number for place in range(17) for number in (place, place + 1, 2)]
    data = ground_truth()
    data["annotations"] = [entry | {"keypoints": points, "num_keypoints": 17} for entry in data["annotations"]]
    found = detections(keypoints=points)
    return evaluated(folder, data, found, "keypoints")


def results(folder: Path):
    found = detections(segmentation=as_rle(filled(2, 3, 7, 7)))
    return evaluated(folder, ground_truth(), found, "segm")


def evaluated(folder: Path, truth: dict, found: list[dict], iou_type: str):
    """Damage to ground truth or results, with the numbers of pycocotools as the naive reading."""
    files = {"truth": folder / "truth.json", "found": folder / "found.json"}
    plain = {"truth": json.dumps(truth).encode(), "found": json.dumps(found).encode()}

    def check(case: tuple[str, bytes]) -> None:
        for name, file in files.items():
            file.write_bytes(case[1] if case[0] == name else plain[name])
        numbers = evaluate(files["found"], files["truth"], iou_type)
        assert all(-1 <= value <= 1 for value in numbers.values()), f"not a share: {numbers}"
        expected = of_pycocotools(*(parsed(file.read_bytes()) for file in files.values()), iou_type)
        assert np.allclose(list(numbers.values()), expected, atol=1e-9), f"{numbers} instead of {expected}"

    strategies = [
        json_files(document).map(lambda file, name=name: (name, file))
        for name, document in (("truth", truth), ("found", found))
    ]
    return st.one_of(*strategies), check


def of_pycocotools(truth: dict, found: list, iou_type: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = truth | {"info": {}}
    for entry in coco.dataset["annotations"]:  # what the library documents of fields that are absent
        entry["iscrowd"] = entry.get("iscrowd", 0)
        if entry.get("area") is None:
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        if iou_type == "keypoints":
            entry["area"] = float(entry["area"])  # an integer beyond 64 bits is an object to NumPy
            entry["keypoints"] = [float(number) for number in entry["keypoints"]]
            entry["bbox"] = entry.get("bbox") or [0, 0, 0, 0]  # read only where no keypoint is visible
        if iou_type == "keypoints" and entry.get("num_keypoints") is None:
            entry["num_keypoints"] = sum(v > 0 for v in entry["keypoints"][2::3])
    for entry in found if iou_type == "keypoints" else ():
        entry["keypoints"] = [float(number) for number in entry["keypoints"]]
    coco.createIndex()
    evaluator = COCOeval(coco, coco.loadRes(found) if found else COCO(), iou_type)
    evaluator.params.imgIds = sorted(coco.imgs)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats[: 10 if iou_type == "keypoints" else 12].tolist()


def labels(folder: Path):
    """Another model's results as pseudo labels."""
    file, truth, store = folder / "results.json", folder / "instances.json", folder / "store"
    truth.write_text(json.dumps(ground_truth()))
    data = ground_truth()
    file_of = {image["id"]: image["file_name"] for image in data["images"]}
    names = {category["id"]: category["name"] for category in data["categories"]}

    def check(content: bytes) -> None:
        shutil.rmtree(store, ignore_errors=True)
        file.write_bytes(content)
        made = from_coco(truth, store, results=file).at(-1.0)
        made.verify()
        classes = [category["name"] for category in made.categories]
        kept = Counter(
            (item["file_name"], classes[label], round(float(score), 5))
            for item in made
            for label, score in zip(item["labels"], item["scores"], strict=True)
        )
        entries = Counter()
        lost_ones = 0
        for entry in parsed(content):
            entries[
                file_of[entry["image_id"]], names[entry["category_id"]], round(np.float32(entry["score"]).item(), 5)
            ] += 1
            lost_ones += entry.get("iscrowd", 0) != 0 or not in_image(entry.get("bbox"))
        assert kept <= entries, f"changed: {kept - entries}"
        assert entries.total() - kept.total() <= lost_ones, "labels are lost in silence"

    return json_files(detections(segmentation=as_rle(filled(2, 3, 7, 7)))), check


def in_image(box) -> bool:
    """Whether a box has an area inside its image; unknown without a box, where a mask gives it."""
    if box is None:
        return False
    x1, y1, x2, y2 = np.clip(corners(box), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    return x2 > x1 and y2 > y1


def panoptic(folder: Path):
    """Damage to the JSON or to the PNG of one image."""
    file, images = write_panoptic(folder, count=2)
    png = folder / "panoptic_train/1.png"
    plain = {"json": file.read_bytes(), "png": png.read_bytes()}
    classes = {category["id"]: category["name"] for category in CATEGORIES}

    def check(case: tuple[str, bytes]) -> None:
        file.write_bytes(case[1] if case[0] == "json" else plain["json"])
        png.write_bytes(case[1] if case[0] == "png" else plain["png"])
        read = PanopticFiles(file)
        for image_id in read.image_ids:
            ids, segments = read.read(image_id)
            assert {segment["id"] for segment in segments} == set(np.unique(ids)) - {0}
        source = EntityImages(file, images)
        kept = Counter(
            (str(source.names[index]), source.classes[label])
            for index in range(len(source))
            for label in source.annotations(index)["labels"]
        )
        data = parsed(file.read_bytes())
        names = {category["id"]: category["name"] for category in data["categories"]}
        file_of = {image["id"]: image["file_name"] for image in data["images"]}
        entries = Counter(
            (file_of[each["image_id"]], names[segment["category_id"]])
            for each in data["annotations"]
            for segment in each["segments_info"]
            if not segment.get("iscrowd", 0)
        )
        present = Counter({key: n for key, n in entries.items() if (images / key[0]).is_file()})
        assert kept == present, f"{kept} instead of {present}"
        absent = sum(not (images / name).is_file() for name in file_of.values())
        assert absent <= sum(source.left_out.counts.values()), "images are lost in silence"

    assert MAP.max() and classes
    strategies = [json_files(json.loads(plain["json"])).map(lambda content: ("json", content))]
    strategies += [damaged(plain["png"]).map(lambda content: ("png", content))]
    strategies += [st.builds(other_png, st.sampled_from(["L", "P", "RGBA", "I;16", "1", "RGB"]), st.integers(1, 9))]
    return st.one_of(*strategies), check


def other_png(mode: str, side: int) -> tuple[str, bytes]:
    """A PNG of another mode and size."""
    buffer = io.BytesIO()
    Image.new(mode, (side, 4)).save(buffer, "PNG")
    return "png", buffer.getvalue()
