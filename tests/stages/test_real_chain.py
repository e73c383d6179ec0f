"""All stages on real images: crowds, a gray image, images without objects, a damaged file."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cassl_lib.data import datasets
from cassl_lib.data.panoptic import PanopticFiles
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import resolve
from cassl_lib.stages import requests
from cassl_lib.stages.graph import obtain, require
from cassl_lib.stages.models import load_detector
from cassl_lib.tables import summary

GRAY, EMPTY, CROWDED = {86}, {250, 508}, {149, 315, 357}


@pytest.fixture
def folders(shared_data, tmp_path, monkeypatch):
    """Twelve labeled images, four to evaluate on, five of a pool and a damaged one."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    data = json.loads((shared_data / "coco_subset/instances.json").read_text())
    odd = GRAY | EMPTY | CROWDED
    plain = [image["id"] for image in data["images"] if image["id"] not in odd]
    parts = {"train": odd | set(plain[:6]), "val": {438, *plain[6:9]}}
    for name, ids in parts.items():
        part = {**data, "images": [image for image in data["images"] if image["id"] in ids]}
        part["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    (tmp_path / "pool").mkdir()
    pool = sorted((shared_data / "unlabeled/images").iterdir())[:6]
    for path in pool[:5]:
        shutil.copy(path, tmp_path / "pool")
    (tmp_path / "pool" / pool[5].name).write_bytes(pool[5].read_bytes()[:5000])
    images = shared_data / "coco_subset/images"
    return {name: f"{tmp_path / name}.json{os.pathsep}{images}" for name in parts} | {"pool": tmp_path / "pool"}


def test_the_whole_chain_on_real_images(folders):
    config = resolve(
        profile="smoke", labeled=folders["train"], val=folders["val"], unlabeled=str(folders["pool"]), size=64
    )
    config = replace(
        config,
        model=replace(config.model, score_threshold=0.003),  # six steps do not make a detector; let it find something
        pseudo_labels=replace(config.pseudo_labels, keep=0.01, threshold=0.02, shard_size=4),
    )
    obtain(requests.finetune(config))
    obtain(requests.finetune(config, requests.pseudo_labeler(config)))
    for baseline in requests.baselines(config):
        obtain(baseline)
    runs = summary.chain_runs(config)

    labeled = datasets.labeled_set(config)
    assert len(labeled) == 12 and len(labeled.classes) == 80
    crowds = labeled.left_out.counts["crowds are not trained on"]
    for name in ("pseudo_labeler", "objects_ga", "baseline", "cassl"):
        assert f"{crowds} crowds are not trained on" in runs[name].result["left_out"]
        assert runs[name].result["images"] == 12 and runs[name].result["unreadable"] == []
    assert crowds >= len(CROWDED)
    assert load_detector(runs["cassl"]).config.num_classes == 80
    assert set(runs["cassl"].result["metrics"]) == {"box", "box_agnostic", "mask", "mask_agnostic"}
    numbers, _ = summary.summarize(config)
    assert numbers["pseudo_precision"] is None and numbers["cassl_ap"] is not None

    labels = PseudoLabelStore(runs["pseudo_labels"].store, threshold=0.02)
    damaged = sorted(folders["pool"].iterdir())[5]
    (lost,) = runs["pseudo_labels"].result["unreadable"]
    assert lost.startswith(f"{damaged} (")
    assert [Path(labels.file_name(index)) for index in range(5)] == sorted(folders["pool"].iterdir())[:5]
    assert runs["pseudo_labels"].result["metrics"]["labels"] > 0 and runs["warmup"].result["images"] == 5
    for item in labels:
        with Image.open(item["file_name"]) as image:
            assert (item["width"], item["height"]) == image.size
        assert all(rle["size"] == [item["height"], item["width"]] for rle in item["rles"])
        assert len(item["rles"]) == len(item["boxes"])


def test_the_odd_images_are_odd(folders):
    """Guards the test above."""
    config = resolve(profile="smoke", labeled=folders["train"], val=folders["val"])
    labeled = datasets.labeled_set(config)
    place = {int(image_id): index for index, image_id in enumerate(labeled.ids)}
    for image_id in GRAY:
        with Image.open(labeled.image_path(place[image_id])) as image:
            assert image.mode == "L"
    assert all(len(labeled.annotations(place[image_id])["boxes"]) == 0 for image_id in EMPTY)
    crowds = {e["image_id"] for e in json.loads(labeled.path.read_text())["annotations"] if e["iscrowd"]}
    assert crowds >= CROWDED


def test_entities_and_panoptic_quality_on_real_images(shared_data, folders):
    subset = shared_data / "coco_subset"
    labeled, val = (f"{subset}/panoptic_{part}2017.json{os.pathsep}{subset / 'images'}" for part in ("train", "val"))
    config = resolve(
        profile="smoke", annotation="entities", target="panoptic", labeled=labeled, val=val,
        unlabeled=str(folders["pool"]), size=64, overlap=False,
    )  # fmt: skip
    config = replace(
        config,
        model=replace(config.model, score_threshold=0.003),
        pseudo_labels=replace(config.pseudo_labels, keep=0.01, threshold=0.02, shard_size=4),
        panoptic=replace(config.panoptic, score_threshold=0.05),
    )
    run = obtain(requests.finetune(config))
    assert run.result["images"] == 100 and len(run.result["classes"]) == 133
    quality = run.result["metrics"]["panoptic"]
    assert set(quality) == {"PQ", "SQ", "RQ"} and 0 <= quality["PQ"] <= 1
    written = PanopticFiles(run.folder / "panoptic.json")
    assert len(written) == 102 and sum(len(written.read(image_id)[1]) for image_id in written.image_ids) > 0
    labels = PseudoLabelStore(require(requests.pseudo_labels(config)).store, threshold=0.02)
    for item in labels:
        assert not item["rles"] or coco_mask.decode(item["rles"]).sum(2).max() == 1
    # The same warm-up, finetuned on the instances that lie beside the panoptic files.
    warmup = require(requests.warmup(config))
    instances = obtain(requests.finetune(replace(config, target="instances")))
    assert instances.result["inputs"] == run.result["inputs"] == {"warmup": warmup.id}
    assert len(instances.result["classes"]) == 80 and "panoptic" not in instances.result["metrics"]
