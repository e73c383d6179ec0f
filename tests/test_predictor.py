"""Detections of a finished run in anyone's images: files, folders, arrays; in the frame of each image; COCO results."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from small_models import AGNOSTIC, SMALL
from small_sets import save_turned

from cassl_lib.errors import ConfigError, DataError, MissingRun
from cassl_lib.models.build import build_detector
from cassl_lib.predictor import Predictor, each_image, load_images
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run
from cassl_lib.training.engine import save_weights


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_RUNS", str(root))
        yield root


def make_run(store, name, model, **result):
    """A finished run of a random detector with many detections, tested at 64 pixels."""
    torch.manual_seed(0)
    detector = build_detector(model)
    torch.nn.init.constant_(detector.head.class_logits.bias, 0.0)
    torch.nn.init.constant_(detector.head.bbox_pred.bias, 1.0)
    config = resolve(profile="smoke")
    run = Run(store / name)
    run.folder.mkdir()
    run.keep_config(replace(config, model=model, augment=replace(config.augment, test_size=64, longest=128)))
    (run.folder / "request.json").write_text(json.dumps({"stage": run.stage, "inputs": {}}))
    save_weights(detector, run.weights, metadata={"model": asdict(model)})
    run.finish({"metrics": {}, "images": 3, "seconds": 1.0} | result)
    return run


@pytest.fixture(scope="module")
def predictor(store):
    return Predictor(make_run(store, "pseudo_labeler-a", AGNOSTIC, classes=["object"], categories=None))


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    return [torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8), torch.zeros(3, 130, 100, dtype=torch.uint8)]


@pytest.fixture
def folder(tmp_path):
    """Three images, the red of n.png is n, and a file that is not an image."""
    for n in (0, 2, 3):
        Image.new("RGB", (8, 6), (n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def reds(images):
    return [int(image[0, 0, 0]) for image in images]


def test_images_of_a_file_and_of_a_folder(folder):
    assert reds(load_images(str(folder))) == [0, 2, 3]
    assert reds(next(each_image(folder))[None]) == [0]  # one at a time
    assert [tuple(image.shape) for image in load_images(folder / "2.png")] == [(3, 6, 8)]
    assert reds(load_images([folder / "3.png", str(folder), torch.full((3, 4, 4), 9, dtype=torch.uint8)])) == [
        3,
        0,
        2,
        3,
        9,
    ]


def test_arrays_are_height_width_channels_and_tensors_channels_height_width():
    array = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    (image,) = load_images(array)
    assert tuple(image.shape) == (3, 2, 4) and image[1].tolist() == array[..., 1].tolist()
    for wrong in (array[..., :2], array.astype(np.float32), torch.zeros(3, 4, 4), np.zeros((4, 4), np.uint8)):
        with pytest.raises(DataError, match="give uint8 RGB"):
            load_images(wrong)


def test_places_without_images_raise(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    places = {"absent": "no such file or folder", "empty": "no image in this folder", "text.png": "text.png: "}
    for place, message in places.items():
        with pytest.raises(DataError, match=message):
            load_images(str(tmp_path / place))


def test_detections_are_in_the_frame_of_each_image_and_above_the_threshold(predictor, images):
    for image, detections in zip(images, predictor.predict(images, threshold=0.3), strict=True):
        assert len(detections["boxes"]) and detections["masks"].shape[1:] == image.shape[1:]
        assert detections["boxes"].max() <= max(image.shape[1:]) and (detections["scores"] > 0.3).all()
        # the frame is the image's, not that of the 64 pixels of the test size
        assert detections["boxes"][:, 2].max() > 0.8 * image.shape[2]
        assert detections["boxes"][:, 3].max() > 0.8 * image.shape[1]
    assert all(len(detections["boxes"]) == 0 for detections in predictor.predict(images, threshold=0.99))


def test_one_image_gives_the_same_as_among_others(predictor, images):
    for alone, among in zip(predictor.predict(images[0]), predictor.predict(images)[:1], strict=True):
        np.testing.assert_array_equal(alone["boxes"], among["boxes"])
        np.testing.assert_array_equal(alone["scores"], among["scores"])
        assert (np.diff(alone["scores"]) <= 0).all()


def test_results_are_cocos(predictor, images):
    results = json.loads(json.dumps(predictor.coco_results(images, [7, 9], threshold=0.3)))
    detections = predictor.predict(images, threshold=0.3)
    first, second = (len(each["boxes"]) for each in detections)
    assert [result["image_id"] for result in results] == [7] * first + [9] * second
    columns = [detections[0][key] for key in ("boxes", "scores", "masks")]
    for result, box, score, mask in zip(results[:first], *columns, strict=True):
        left, top, width, height = result["bbox"]
        np.testing.assert_allclose([left, top, left + width, top + height], box, atol=1e-4)
        assert result["category_id"] == 1 and result["score"] == pytest.approx(float(score))
        assert (coco_mask.decode(result["segmentation"]) == mask).all()
    assert {result["image_id"] for result in predictor.coco_results(images)} == {1, 2}
    with pytest.raises(ValueError):
        predictor.coco_results(images, [7])


def test_results_have_the_category_ids_that_the_run_was_trained_with(store, images):
    names = [{"id": 2, "name": "bolt"}, {"id": 30, "name": "nut"}, {"id": 31, "name": "gear"}]
    classes = [each["name"] for each in names]
    boxes_only = replace(SMALL, masks=False, threshold_on="cls", center="box")
    trained = Predictor(make_run(store, "finetune-b", boxes_only, classes=classes, categories=names))
    results = trained.coco_results(images[:1])
    labels = trained.predict(images[:1], threshold=0.05)[0]["labels"]
    assert len(labels) and [result["category_id"] for result in results] == [(2, 30, 31)[label] for label in labels]
    assert not any("segmentation" in result for result in results)
    assert repr(trained) == "Predictor(finetune-b, 3 classes)" and "bolt, nut, gear" in trained._repr_html_()


def test_a_figure_shows_the_first_images(predictor, folder):
    assert len(predictor.show(folder, count=2).axes) == 2


def test_a_run_is_given_by_name_prefix_or_folder(store, predictor):
    assert Predictor("pseudo_labeler-").run == Predictor(predictor.run.folder).run == predictor.run
    assert repr(predictor) == "Predictor(pseudo_labeler-a, class-agnostic)"
    with pytest.raises(MissingRun, match="is not a run"):
        Predictor("warmup-1")


def test_a_run_without_a_detector_raises(store):
    with pytest.raises(ConfigError, match="pseudo_labels-a is not a run of a detector; give a run of pseudo_lab"):
        Predictor(Run(store / "pseudo_labels-a"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_detections_are_in_the_displayed_frame(predictor, images, orientation, tmp_path):
    """The same detections as in the displayed pixels, whatever the EXIF orientation of the file."""
    displayed = images[0].permute(1, 2, 0).numpy()
    (of_file,) = predictor.predict(save_turned(tmp_path / "a.png", displayed, orientation))
    (of_array,) = predictor.predict(displayed)
    assert of_file["masks"].shape[1:] == (32, 48) and len(of_file["boxes"])
    np.testing.assert_array_equal(of_file["boxes"], of_array["boxes"])
