"""Before any training: data that cannot be trained on are refused, data that make numbers meaningless are named."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cassl_lib.cli.main import main
from cassl_lib.errors import ConfigError, DataError
from cassl_lib.resolve import resolve
from cassl_lib.stages import checks, graph, requests
from cassl_lib.stages.checks import shared, unmatched_baseline


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(checks, "_warned", set())


def write_set(folder, name, *, first=0, classes=("cat", "dog"), box=(10, 10, 20, 20)) -> str:
    """Four images of noise with one object each; returns JSON:FOLDER."""
    images = folder / name
    images.mkdir()
    for number in range(first, first + 4):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(first, first + 4)],
        "annotations": [
            {"id": n + 1, "image_id": n, "category_id": 1 + n % 2, "bbox": list(box), "iscrowd": 0, "area": 400}
            for n in range(first, first + 4)
        ],
        "categories": [{"id": place, "name": each} for place, each in enumerate(classes, 1)],
    }
    (folder / f"{name}.json").write_text(json.dumps(data))
    return f"{folder / name}.json{os.pathsep}{images}"


def refused(request) -> str:
    """The one line that making a run ends in, before anything is written for it."""
    with pytest.raises(DataError) as caught:
        graph.obtain(request)
    assert "\n" not in str(caught.value) and not graph.located(request).folder.exists()
    return str(caught.value)


def test_other_classes_in_validation_are_refused_before_the_first_stage(tmp_path):
    labeled = write_set(tmp_path, "train")
    for classes, words in (
        (("cat", "wolf"), "only in train.json: dog; only in val.json: wolf"),
        (("dog", "cat"), "the order of their ids"),
    ):
        val = write_set(tmp_path, "val", first=50, classes=classes)
        config = resolve(profile="smoke", masks=False, labeled=labeled, val=val, unlabeled=str(tmp_path / "val"))
        for request in (requests.pseudo_labeler(config), requests.baseline(config)):
            assert f"{words}); give both the same categories" in refused(request)
        shutil.rmtree(tmp_path / "val")


def test_boxes_that_are_shares_of_the_image_are_refused_before_the_first_stage(tmp_path):
    """In the labeled set, and in validation."""
    shares, pixels = write_set(tmp_path, "shares", box=(0.1, 0.1, 0.5, 0.5)), write_set(tmp_path, "pixels", first=50)
    for labeled, val in ((shares, pixels), (pixels, shares)):
        config = resolve(profile="smoke", masks=False, labeled=labeled, val=val)
        message = refused(requests.pseudo_labeler(config))
        assert "shares.json" in message and "between 0 and 1" in message


def test_own_labeled_images_without_a_pool_are_refused_by_all_that_would_label(tmp_path, capsys):
    labeled, val = write_set(tmp_path, "train"), write_set(tmp_path, "val", first=50)
    config = resolve(profile="smoke", masks=False, labeled=labeled, val=val)
    for build in (requests.pseudo_labels, requests.warmup, requests.finetune, requests.chain):
        with pytest.raises(ConfigError, match="^unlabeled=None with labeled=.*; give unlabeled=FOLDER"):
            build(config)
    assert main(["chain", "--profile", "smoke", "--labeled", labeled, "--val", val]) == 2
    assert "unlabeled=None" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    requests.pseudo_labeler(config), requests.baseline(config)  # which need no pool


def test_validation_images_among_others_are_counted_by_path_name_and_content(tmp_path):
    write_set(tmp_path, "train"), write_set(tmp_path, "val", first=2)
    train, val = (sorted(map(str, (tmp_path / name).iterdir())) for name in ("train", "val"))
    assert shared(val, val).startswith("4 of the 4 validation images are in it too, such as ")
    assert shared(train[:2], val[2:]) is None
    assert shared(train, val).startswith("2 of the 4 validation images are in it too")  # 2.png and 3.png of both
    shutil.copy(val[3], tmp_path / "train/0.png")  # another image's content under a name that only train has
    assert shared(train[:1], val) == f"validation images are in it under other names, such as {train[0]} = {val[3]}"
    Image.new("RGB", (64, 64)).save(tmp_path / "train/2.png")  # the name alone does not make it the same image
    assert shared(train[2:3], val) is None
    (tmp_path / "linked").symlink_to(tmp_path / "val")
    assert shared([str(tmp_path / "linked/4.png")], val).startswith("1 of the 4")


def test_a_pool_of_the_validation_images_is_warned_of_once_with_the_count(tmp_path, caplog):
    labeled, val = write_set(tmp_path, "train"), write_set(tmp_path, "val", first=50)
    config = resolve(profile="smoke", masks=False, labeled=labeled, val=val, unlabeled=str(tmp_path / "val"))
    labels = requests.pseudo_labels(config)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            checks.check_data(labels)
    (line,) = caplog.messages
    assert line.startswith(f"unlabeled={tmp_path / 'val'}: 4 of the 4 validation images are in it too")
    checks.check_data(labels.input)
    assert len(caplog.messages) == 1  # labeled and val share no image


def test_a_chain_whose_baselines_are_shorter_than_its_stages_says_so():
    assert unmatched_baseline(resolve(profile="smoke")) is None
    assert unmatched_baseline(resolve(profile="demo")) is None  # 4 x 800 steps against 2,000 + 800
    words = unmatched_baseline(resolve(profile="demo", stage="warmup", steps=5000))
    assert words.startswith("the longest baseline trains for 3,200 steps, warm-up and finetuning together for 5,800")
    assert unmatched_baseline(resolve(profile="demo", stage="finetune", steps=1600)) is None  # baselines follow it


def test_a_shorter_training_has_at_least_one_step():
    config = resolve(profile="smoke", stage="finetune", steps=1)
    assert requests.longer(config, "finetune", 0.25).finetune.steps == 1
