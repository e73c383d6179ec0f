"""Entities (Sec. 3.1): every segment of a panoptic annotation, thing or stuff, is one instance with mask and box.

COCO panoptic JSON and PNGs are converted once into a store of Arrow shards (`pseudo_labels`), image by image in
several processes; a conversion that is killed goes on with the shards that are missing. Crowds (score 0) and the pixels
without annotation (score -1) are kept too, to be ignored where that is asked for.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.coco import CocoImages, decode_masks
from cassl_lib.data.panoptic import PanopticFiles, check_segments, count_values, pngs_of, read_ids
from cassl_lib.data.processes import cores, several
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.files import alone, file_fingerprint
from cassl_lib.labels.coco import to_coco
from cassl_lib.labels.shards import finish, finished_shards, write_shard
from cassl_lib.labels.store import PseudoLabelStore

SHARD_SIZE = 1000  # images
VERSION = 3  # of the conversion: to be raised whenever the same annotation gives another store
WORTH_A_PROCESS = 200  # images, below which a process takes longer to start than to help


class EntityImages(CocoImages):
    """A panoptic set as instances: what `CocoImages` offers, with things and stuff as classes.

    Args:
        path: panoptic JSON, e.g. panoptic_train2017.json; its PNGs lie in the folder of that name beside it.
        folder: of the images.
        crowd: "background", as the authors' public code has it: pixels of crowds, and those without annotation, are
            trained as background. "ignore": locations there count neither as objects nor as background, and detections
            that lie mostly in a crowd are not counted as wrong.
    Attributes:
        isthing: (C,) bool, by label.
    """

    def __init__(self, path: Path | str, folder: Path | str, *, crowd: str = "background"):
        self.path, self.folder, self.left_out, self.crowd = Path(path), Path(folder), LeftOut(), crowd
        self.store = entity_store(self.path)
        self.categories = self.store.categories
        self.category_ids = np.array([category["id"] for category in self.categories], np.int64)
        self.classes = [str(category["name"]) for category in self.categories]
        self.isthing = np.array([bool(category["isthing"]) for category in self.categories])
        flat = self.store.flat()
        self.rows = np.array(self._present(flat["file_name"].tolist()), np.int64)  # in the store
        self._absent = len(self.store) - len(self.rows)
        self.ids, self.names = flat["image_id"][self.rows], flat["file_name"][self.rows]
        self.heights, self.widths = flat["height"][self.rows], flat["width"][self.rows]
        of_present = np.isin(np.repeat(np.arange(len(self.store)), flat["counts"]), self.rows)
        self.boxes, self.labels = flat["boxes"][of_present], flat["labels"][of_present].astype(np.int64)
        self.first = np.concatenate([[0], np.cumsum(flat["counts"][self.rows])]).astype(np.int64)
        for label in np.setdiff1d(np.arange(len(self.classes)), self.labels):
            self.left_out.add("classes have no instance", self.classes[label])

    def annotations(self, index: int, *, masks: bool = True) -> dict[str, np.ndarray]:
        """size, boxes, labels, masks as of `CocoImages`; with crowd="ignore" also ignored (H, W) uint8."""
        rows = slice(self.first[index], self.first[index + 1])
        size = int(self.heights[index]), int(self.widths[index])
        found = {"size": size, "boxes": self.boxes[rows], "labels": self.labels[rows]}
        if masks:
            found["masks"] = decode_masks(self.store[int(self.rows[index])]["rles"], size)
        if self.crowd == "ignore":
            unclaimed = [rle for rle, _, score in self._all_of(index) if score <= 0]
            found["ignored"] = decode_masks(unclaimed, size).any(0).astype(np.uint8)
        return found

    def ground_truth(self) -> dict:
        """The entities as a COCO ground truth; with crowd="ignore" also the crowds, which COCO's AP knows."""
        truth = to_coco(self.store)
        present = set(self.ids.tolist())
        truth["images"] = [image for image in truth["images"] if image["id"] in present]
        truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in present]
        if self.crowd == "ignore":
            truth["annotations"] += self._crowds(self.store.manifest["labels"])
        return truth

    def _crowds(self, used: int) -> list[dict]:
        """COCO annotations of the crowd segments."""
        crowds = []
        for index in range(len(self)):
            for rle, label, _ in (each for each in self._all_of(index) if each[2] == 0):
                crowds.append(
                    {
                        "id": used + len(crowds) + 1,
                        "image_id": self.image_id(index),
                        "category_id": int(self.category_ids[label]),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "area": float(coco_mask.area(rle)),
                        "iscrowd": 1,
                    }
                )
        return crowds

    def _all_of(self, index: int) -> list[tuple[dict, int, float]]:
        """Run lengths, label and score of entities (1), crowds (0) and what has no annotation (-1)."""
        item = self.store.at(-2.0)[int(self.rows[index])]
        return list(zip(item["rles"], item["labels"].tolist(), item["scores"].tolist(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        return f"{super().fingerprint}-{self.crowd}"


def entity_store(path: Path, *, workers: int | None = None) -> PseudoLabelStore:
    """The store of a panoptic JSON's entities: found finished, or completed by as many processes as there are cores.

    They are spawned: a script of your own needs `if __name__ == "__main__"`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a COCO panoptic JSON, such as panoptic_train2017.json")
    files_there = sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(pngs_of(path))
    )
    content = hashlib.sha256(repr((file_fingerprint(path), files_there)).encode()).hexdigest()[:16]
    identity = f"entities-{VERSION}-{content}"
    folder = paths.runs() / "entities" / identity
    if not (folder / "manifest.json").exists():
        files = PanopticFiles(path)
        check_truth(files)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not (folder / "manifest.json").exists():
                convert(files, folder, identity, workers=cores() if workers is None else workers)
    return PseudoLabelStore(folder, threshold=0.0)


def check_truth(files: PanopticFiles) -> None:
    """Refuse, before any work, a panoptic JSON without what a truth needs."""
    wanted = ("id", "file_name", "height", "width")
    if not files.images or not files.categories:
        raise DataError(f"{files.path} has no images or no categories: it is a result; give a truth")
    for image in files.images:
        if lacking := [name for name in wanted if name not in image]:
            raise DataError(f"{files.path}: an image (id {image.get('id')}) lacks {', '.join(lacking)}")
        if not isinstance(image["id"], int):
            raise DataError(f"{files.path}: image id {image['id']!r} is not a whole number, as COCO has it")


def convert(files: PanopticFiles, folder: Path, identity: str, *, workers: int) -> None:
    """Write the shards that are missing, then the manifest."""
    categories = sorted(files.categories, key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    images = [image for image in files.images if image["id"] in files]
    done, shards = finished_shards(folder, identity), range(0, len(images), SHARD_SIZE)
    todo = [number for number in range(len(shards)) if number not in done]
    left = sum(len(images[shards[n] : shards[n] + SHARD_SIZE]) for n in todo)
    workers = min(workers, left // WORTH_A_PROCESS)
    bar = tqdm(total=left, desc=f"entities of {files.path.name}", unit="image", mininterval=1, disable=None)
    with several(workers) as pool, bar:
        for number in todo:
            part = images[shards[number] : shards[number] + SHARD_SIZE]
            given = part, [files.png(i["id"]) for i in part], [files.segments(i["id"]) for i in part], repeat(label_of)
            rows = []
            for row in pool.map(entities_of, *given, chunksize=20) if pool else map(entities_of, *given):
                rows.append(row)
                bar.update()
            write_shard(folder, number, rows, identity)
    finish(folder, labeler=identity, pool=identity, shards=len(shards), categories=categories)


def entities_of(image: dict, png: Path, segments: list[dict], label_of: dict[int, int]) -> dict:
    """One image's row of the store."""
    ids = read_ids(png)
    if ids.shape != (image["height"], image["width"]):
        raise DataError(f"{png} is {ids.shape[0]}x{ids.shape[1]} pixels, its image {image['height']}x{image['width']}")
    check_segments(count_values(ids)[0], segments, f"{png} and its JSON")
    kept = run_lengths(ids, [segment["id"] for segment in segments])
    labels = [label_of[segment["category_id"]] for segment in segments]
    scores = [0.0 if segment.get("iscrowd", 0) else 1.0 for segment in segments]
    if not ids.all():
        kept, labels, scores = [*kept, *run_lengths(ids, [0])], [*labels, 0], [*scores, -1.0]
    boxes = coco_mask.toBbox(kept) if kept else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    row = {"image_id": image["id"], "file_name": image["file_name"], "height": image["height"], "width": image["width"]}
    return row | {"boxes": boxes, "scores": scores, "labels": labels, "rles": kept}


def run_lengths(ids: np.ndarray, wanted: list[int]) -> list[dict]:
    """Compressed run lengths of the pixels that have each wanted id, from one pass over the map."""
    columns_first = ids.T.reshape(-1)
    starts = np.flatnonzero(np.diff(columns_first, prepend=columns_first[0] - 1))
    values, ends = columns_first[starts], np.append(starts[1:], columns_first.size)
    rles = []
    for segment in wanted:
        own = values == segment
        edges = np.stack([starts[own], ends[own]], 1).reshape(-1)
        counts = np.diff(edges, prepend=0, append=columns_first.size)
        size = list(ids.shape)
        rles.append(coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size))
    return rles
