"""A detector overfits a few real images from random weights: boxes, masks and classes."""

import json
import os
from dataclasses import replace

import pytest

from cassl_lib.resolve import resolve
from cassl_lib.stages import requests
from cassl_lib.stages.graph import obtain

STEPS = 90


@pytest.fixture
def five_images(shared_data, tmp_path):
    """COCO JSON of the first five images of the subset that have one to three objects, all of them large."""
    data = json.loads((shared_data / "coco_subset/instances.json").read_text())
    by_image = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)

    def easy(annotations):
        return 1 <= len(annotations) <= 3 and all(min(a["bbox"][2:]) > 100 and not a["iscrowd"] for a in annotations)

    chosen = [image for image in data["images"] if easy(by_image[image["id"]])][:5]
    annotations = [annotation for image in chosen for annotation in by_image[image["id"]]]
    classes = {annotation["category_id"] for annotation in annotations}
    categories = [category for category in data["categories"] if category["id"] in classes]
    path = tmp_path / "five.json"
    path.write_text(json.dumps({"images": chosen, "annotations": annotations, "categories": categories}))
    return f"{path}{os.pathsep}{shared_data / 'coco_subset/images'}"


@pytest.mark.slow
def test_a_detector_overfits_a_few_real_images(five_images):
    config = resolve(profile="smoke", labeled=five_images, val=five_images, size=128)
    training = replace(config.finetune, steps=STEPS, batch_size=5, learning_rate=8e-3, warmup_steps=16, log_every=20)
    config = replace(
        config,
        augment=replace(config.augment, sizes=(128,), longest=192, crop=0),
        finetune=training,
        model=replace(config.model, channels=64, mask_channels=32, ranges=(48, 96)),
    )
    run = obtain(requests.baseline(config))
    assert run.result["steps"] == STEPS and run.result["images"] == 5
    assert run.result["metrics"]["box"]["AP"] > 0.5
    assert run.result["metrics"]["mask"]["AP"] > 0.5
