"""What every detector promises (`cassl_lib.models.detector.Detector`), for each implementation.

To test a new detector, add a line to `DETECTORS`.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small_models import SMALL, lively, make_batch, make_target, with_settings

from cassl_lib.models import Detector, build_detector
from cassl_lib.models.weights.transfer import PARTS, part_of

DETECTORS = {
    "FCOS": replace(SMALL, masks=False),
    "CondInst": SMALL,
    "CondInst with a finer mask grid": replace(SMALL, mask_stride=2),
    "CondInst without overlap": replace(SMALL, one_entity_per_pixel=True),
    "CondInst for entities": replace(SMALL, one_entity_per_pixel=True, rescore_masks=True),
}


@pytest.fixture(params=DETECTORS.values(), ids=DETECTORS.keys())
def model(request):
    torch.manual_seed(0)
    return lively(request.param)


def same_size_images(count=3):
    return [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(count)]


def check_detections(detections, config, frames):
    """Keys, shapes, dtypes, ranges and order; boxes and masks lie in frames of the given (height, width)."""
    assert isinstance(detections, list) and len(detections) == len(frames)
    for result, (height, width) in zip(detections, frames, strict=True):
        assert set(result) == {"boxes", "scores", "labels"} | ({"masks"} if config.masks else set())
        count = len(result["boxes"])
        assert count <= config.detections_per_image
        assert result["boxes"].shape == (count, 4) and result["boxes"].dtype == torch.float32
        x1, y1, x2, y2 = result["boxes"].unbind(1)
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
        assert (x2 > x1).all() and (y2 > y1).all()
        assert result["scores"].shape == (count,) and result["scores"].dtype == torch.float32
        assert (result["scores"] >= 0).all() and (result["scores"] <= 1).all() and (result["scores"].diff() <= 0).all()
        assert result["labels"].shape == (count,) and result["labels"].dtype == torch.int64
        assert (result["labels"] >= 0).all() and (result["labels"] < config.num_classes).all()
        if config.masks:
            assert result["masks"].shape == (count, height, width) and result["masks"].dtype == torch.bool
            if config.one_entity_per_pixel:
                assert (result["masks"].sum(0) <= 1).all()
                for box, mask in zip(result["boxes"].tolist(), result["masks"], strict=True):
                    rows, columns = mask.nonzero().unbind(1)
                    assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert not any(value.requires_grad for value in result.values())


def check_losses(losses):
    assert isinstance(losses, dict) and losses and all(name.startswith("loss_") for name in losses)
    for loss in losses.values():
        assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()


def assert_identical(detections, expected):
    for result, other in zip(detections, expected, strict=True):
        assert result.keys() == other.keys() and len(result["boxes"]) > 0
        assert all(value.equal(other[name]) for name, value in result.items())


def test_it_satisfies_the_protocol(model):
    assert isinstance(model, Detector) and isinstance(model, torch.nn.Module)
    assert model.config in DETECTORS.values()
    assert model.device == next(model.parameters()).device
    assert {part_of(name) for name in model.state_dict()} == set(PARTS)


def test_losses_are_finite_float32_scalars_that_reach_every_trained_parameter(model):
    losses = model(*make_batch())
    check_losses(losses)
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("with_masks", [True, False])
def test_images_without_instances_give_finite_losses_that_reach_every_trained_parameter(model, with_masks):
    images, (full, _) = make_batch()
    empty = [make_target(*image.shape[1:]) for image in images]
    if not with_masks:
        for target in empty:
            del target["masks"]
    for targets in (empty, [full, empty[1]]):
        losses = model(images, targets)
        check_losses(losses)
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_ignored_pixels_are_not_trained_as_background(model):
    model.eval().training = True  # losses without batch statistics, which the second pass would change
    images, _ = make_batch()
    targets = [make_target(*image.shape[1:]) for image in images]
    plain = sum(model(images, targets).values())
    for ignored in (torch.zeros, torch.ones):
        given = [{**t, "ignored": ignored(i.shape[1:], dtype=torch.bool)} for i, t in zip(images, targets, strict=True)]
        loss = sum(model(images, given).values())
        assert loss == plain if ignored is torch.zeros else loss < plain


def test_training_needs_targets_and_masks_if_it_has_masks(model):
    images, targets = make_batch()
    with pytest.raises(ValueError, match="targets"):
        model(images)
    del targets[0]["masks"]
    if model.config.masks:
        with pytest.raises(ValueError, match="masks"):
            model(images, targets)
    else:
        check_losses(model(images, targets))


def test_inputs_are_not_changed(model):
    images, targets = make_batch()
    before = deepcopy((images, targets))
    model(images, targets)
    model.eval()(images)
    assert all(image.equal(other) for image, other in zip(images, before[0], strict=True))
    for target, other in zip(targets, before[1], strict=True):
        assert target.keys() == other.keys() and all(value.equal(other[name]) for name, value in target.items())


def test_detections_lie_in_the_frame_of_each_image(model):
    images, _ = make_batch()
    detections = model.eval()(images)
    check_detections(detections, model.config, [(64, 96), (70, 60)])
    assert all(len(result["boxes"]) > 0 for result in detections)
    assert_identical(model.predict(images), detections)


def test_sizes_move_detections_to_the_frames_of_the_original_images(model):
    images = same_size_images(2)
    given, frames = model.eval().predict(images), [(128, 288), (40, 50)]
    scaled = model.predict(images, sizes=frames)
    check_detections(scaled, model.config, frames)
    assert_identical(model.predict(images, sizes=[(64, 96)] * 2), given)
    for result, other, (height, width) in zip(given, scaled, frames, strict=True):
        scale = torch.tensor([width / 96, height / 64] * 2)
        # Boxes that follow the masks are exact to a pixel of the input on either side; some may become too small.
        tolerance = 2 * scale.clamp(min=1) if model.config.one_entity_per_pixel else scale.new_full((4,), 1e-3)
        expected = (result["boxes"] * scale)[:, None]
        near = ((other["boxes"] - expected).abs() <= tolerance).all(2) & (result["labels"][:, None] == other["labels"])
        assert near.any(0).all()
        assert len(other["boxes"]) == len(result["boxes"]) or model.config.one_entity_per_pixel
        if model.config.masks:
            rows = (torch.arange(height) + 0.5) * 64 / height
            columns = (torch.arange(width) + 0.5) * 96 / width
            resized = result["masks"][:, rows.long()][:, :, columns.long()]
            matched = near.float().argmax(0)
            assert (resized[matched] != other["masks"]).float().mean() < 0.05


def test_a_batch_equals_its_images_one_by_one(model):
    images = same_size_images()
    for image, result in zip(images, model.eval()(images), strict=True):
        (alone,) = model([image])
        assert result.keys() == alone.keys() and len(alone["boxes"]) > 1
        for name, value in result.items():
            torch.testing.assert_close(value.float(), alone[name].float(), rtol=1e-4, atol=1e-4)


def test_uint8_and_float_images_give_the_same_detections(model):
    images = same_size_images(2)
    assert_identical(model.eval()([image.float() / 255 for image in images]), model(images))


def test_an_image_may_have_no_detections(model):
    model = with_settings(model.eval(), score_threshold=1.0)
    detections = model([torch.rand(3, 50, 60)])
    check_detections(detections, model.config, [(50, 60)])
    assert len(detections[0]["boxes"]) == 0


def test_the_state_dict_restores_the_detector(model):
    images = same_size_images(2)
    torch.manual_seed(1)
    other = build_detector(model.config)
    assert not all(value.equal(other.state_dict()[name]) for name, value in model.state_dict().items())
    other.load_state_dict(model.state_dict())
    assert list(other.state_dict()) == list(model.state_dict())
    assert_identical(other.eval()(images), model.eval()(images))
