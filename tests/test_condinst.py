"""The detector as a whole, and its masks, by hand and by loops."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cassl_lib import losses
from cassl_lib.models import CondInst, ModelConfig, build_detector
from cassl_lib.models.condinst import gather_masks
from cassl_lib.models.masks import (
    aligned_bilinear,
    count_dynamic_parameters,
    dynamic_parameters,
    enlarging_matrix,
    mask_centres,
    mask_logits,
    sample_masks,
    split_dynamic_parameters,
)

SMALL = ModelConfig(
    backbone="resnet10t",
    backbone_options=(("channels", (8, 16, 16, 32)), ("stem_width", 8)),
    num_classes=3,
    channels=16,
    strides=(8, 16, 32),
    ranges=(32, 64),
    tower_convs=1,
    mask_channels=8,
    mask_convs=1,
    score_threshold=0.0,
    detections_per_image=10,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_target(height, width, *squares):
    """Squares of (x, y, side) with their masks; labels 0, 1, 2, ..."""
    boxes = torch.tensor([[x, y, x + side, y + side] for x, y, side in squares], dtype=torch.float32).view(-1, 4)
    masks = torch.zeros(len(squares), height, width, dtype=torch.bool)
    for mask, (x, y, side) in zip(masks, squares, strict=True):
        mask[y : y + side, x : x + side] = True
    return {"boxes": boxes, "labels": torch.arange(len(squares)), "masks": masks}


def make_batch():
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), torch.rand(3, 70, 60)]
    return images, [make_target(64, 96, (4, 8, 30), (50, 20, 20)), make_target(70, 60, (10, 10, 40))]


def lively(config=SMALL):
    """A detector whose fresh predictions are not all nearly equal."""
    model = build_detector(config)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if parameter.dim() == 4:
                parameter.mul_(3 if "controller" in name else 10)
    return model


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8), (8, 16, 32, 64, 128)])
def test_trains_and_detects_at_any_sizes(masks, strides):
    ranges = (16, 32, 64, 128)[: len(strides) - 1]
    config = replace(SMALL, masks=masks, strides=strides, ranges=ranges, detections_per_image=100)
    model = lively(config)
    assert isinstance(model, CondInst)
    images, targets = make_batch()
    found = model(images, targets)
    assert list(found) == ["loss_cls", "loss_box", "loss_centerness"] + ["loss_mask"] * masks
    for loss in found.values():
        assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    detections = model.eval()(images)
    for image, detection in zip(images, detections, strict=True):
        count = len(detection["boxes"])
        assert 0 < count <= 100 and detection["boxes"].shape == (count, 4)
        assert detection["labels"].dtype == torch.int64 and detection["labels"].max() < 3
        assert (detection["scores"].diff() <= 0).all()
        x1, y1, x2, y2 = detection["boxes"].unbind(1)
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 > x1).all() and (y2 > y1).all()
        assert (x2 <= image.shape[2]).all() and (y2 <= image.shape[1]).all()
        if masks:
            assert detection["masks"].shape == (count, *image.shape[1:]) and detection["masks"].dtype == torch.bool
        else:
            assert "masks" not in detection


def test_no_instance_at_all_gives_finite_losses_that_reach_every_trained_parameter():
    model = build_detector(SMALL)
    images, targets = make_batch()
    empty = [make_target(64, 96), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    for given in (empty, [targets[0], empty[1]]):
        found = model(images, given)
        assert all(loss.isfinite() for loss in found.values())
        assert (found["loss_mask"] == 0) == (given is empty)
        model.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert without == {f"neck.{kind}.p2.{what}" for kind in ("lateral", "output") for what in ("weight", "bias")}
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_batch_equals_its_images_one_by_one():
    model = lively().eval()
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(3)]
    for image, together in zip(images, model(images), strict=True):
        (alone,) = model([image])
        assert len(alone["boxes"]) > 5 and 0 < alone["masks"].float().mean() < 1
        for name in alone:
            torch.testing.assert_close(together[name].float(), alone[name].float(), rtol=1e-4, atol=1e-4)


def test_uint8_and_float_images_and_padding():
    model = build_detector(SMALL)
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    batch = model.make_batch([image, image.float() / 255])
    assert batch.shape == (2, 3, 64, 64)
    torch.testing.assert_close(batch[0], batch[1])
    assert (batch[:, :, 50:] == 0).all() and (batch[:, :, :, 60:] == 0).all()  # zeros after normalisation
    red = (image[0, 3, 4].item() / 255 - 0.485) / 0.229
    assert batch[0, 0, 3, 4].item() == pytest.approx(red, abs=1e-5)
    assert not any("pixel" in name for name in model.state_dict())


def test_predict_scales_boxes_and_masks_to_the_original_size():
    model = lively().eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (given,), (original,) = model.predict([image]), model.predict([image], [(128, 288)])
    expected = given["boxes"] * torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(original["boxes"], expected)
    assert original["masks"].shape == (len(expected), 128, 288)
    larger = given["masks"].repeat_interleave(2, 1).repeat_interleave(3, 2)
    assert (larger != original["masks"]).float().mean() < 0.05


def test_no_detection_is_an_ordinary_result():
    (found,) = build_detector(replace(SMALL, score_threshold=0.9)).eval()([torch.rand(3, 50, 60)])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 50, 60),
    }  # fmt: skip


def test_masks_beyond_the_chunk_size_are_the_same(monkeypatch):
    model = lively().eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (whole,) = model([image])
    monkeypatch.setattr("cassl_lib.models.condinst.PIXELS_AT_ONCE", 64 * 96 * 3)
    assert model([image])[0]["masks"].equal(whole["masks"])


def test_bfloat16_autocast_is_near_float32_and_float32_in_its_losses():
    model = lively(replace(SMALL, head_norm="bn"))
    images, targets = make_batch()
    plain = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images, targets)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.1)
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        (detection, _) = model.eval()(images)
    assert detection["boxes"].dtype == torch.float32 and detection["masks"].dtype == torch.bool


def test_channels_last_changes_nothing():
    model = lively().eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (plain,) = model([image])
    (found,) = model.to(memory_format=torch.channels_last)([image])
    torch.testing.assert_close(found["boxes"], plain["boxes"], rtol=1e-4, atol=1e-3)


def test_two_processes_give_the_losses_of_one(monkeypatch):
    """Mean of the losses of two processes with one image each = losses of the batch of both."""
    model = lively()
    model.eval().training = True  # losses, with BatchNorms that do not mix the images
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    targets = [make_target(64, 96, (4, 8, 30), (50, 20, 20)), make_target(64, 96, (10, 10, 16))]
    together = model(images, targets)

    counts = ([], [])
    for process in (0, 1):
        monkeypatch.setattr(losses, "mean_over_processes", lambda v, seen=counts[process]: seen.append(v) or v)
        model(images[process : process + 1], targets[process : process + 1])
    apart = []
    for process in (0, 1):
        means = iter([(a + b) / 2 for a, b in zip(*counts, strict=True)])
        monkeypatch.setattr(losses, "mean_over_processes", lambda v, means=means: next(means))
        apart.append(model(images[process : process + 1], targets[process : process + 1]))
    for name, loss in together.items():
        assert loss.item() == pytest.approx(sum(part[name].item() for part in apart) / 2, rel=1e-4)


def test_at_most_mask_proposals_positives_get_a_mask_loss(monkeypatch):
    model = build_detector(replace(SMALL, mask_proposals=5))
    images, targets = make_batch()
    seen = []
    original = losses.dice_loss
    monkeypatch.setattr(losses, "dice_loss", lambda x, y: seen.append(len(x)) or original(x, y))
    model(images, targets)
    assert seen == [5]


def test_masks_are_asked_for_by_name():
    images, targets = make_batch()
    del targets[1]["masks"]
    with pytest.raises(ValueError, match="masks=False"):
        build_detector(SMALL)(images, targets)
    assert build_detector(replace(SMALL, masks=False))(images, targets)["loss_box"].isfinite()


def test_training_without_targets_is_refused():
    with pytest.raises(ValueError, match="targets"):
        build_detector(SMALL)(make_batch()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_norm": "layer"}, "head_norm='layer', expected one of gn, bn"),
        ({"strides": (8, 32, 64)}, "neighbours"),
        ({"strides": (64, 128), "ranges": (64,)}, "start at 32"),
        ({"ranges": (64,)}, "3 strides need 2 ranges, not 1"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build_detector(replace(SMALL, **settings))


def test_public_sizes():
    """What the public CondInst has at 80 classes: head, mask branch, controller."""
    config = replace(ModelConfig(), backbone="resnet10t")
    model = build_detector(config)
    total = {name: sum(p.numel() for p in part.parameters()) for name, part in model.head.named_children()}
    assert total.pop("mask_branch") == 1_477_384
    assert total.pop("controller") == 389_545
    assert sum(total.values()) + model.head.scales.numel() == 4_920_666
    assert count_dynamic_parameters(8) == 169


def test_order_of_the_169_numbers():
    weights, biases = split_dynamic_parameters(torch.arange(169.0)[None], 8)
    assert [w.shape[1:] for w in weights] == [(8, 10), (8, 8), (1, 8)]
    assert weights[0][0, 1, 2] == 12 and weights[1][0, 2, 3] == 80 + 19 and weights[2][0, 0, 5] == 149
    assert biases[0].flatten().tolist() == list(range(152, 160))
    assert biases[1].flatten().tolist() == list(range(160, 168)) and biases[2].item() == 168


def test_mask_logits_by_loop():
    """Relative coordinates first, x before y, location minus pixel; then the features; three layers."""
    features, parameters = torch.randn(2, 8, 3, 4), torch.randn(3, 169)
    images, points = torch.tensor([0, 1, 1]), torch.tensor([[12.0, 20.0], [4.0, 4.0], [28.0, 8.0]])
    sizes = torch.tensor([64.0, 32.0, 128.0])
    found = mask_logits(features, parameters=parameters, images=images, points=points, sizes=sizes, stride=8)
    expected = torch.empty(3, 1, 3, 4)
    for n in range(3):
        w1, w2, w3 = parameters[n, :80].view(8, 10), parameters[n, 80:144].view(8, 8), parameters[n, 144:152]
        b1, b2, b3 = parameters[n, 152:160], parameters[n, 160:168], parameters[n, 168]
        for i in range(3):
            for j in range(4):
                x, y = (points[n, 0] - (j * 8 + 4)) / sizes[n], (points[n, 1] - (i * 8 + 4)) / sizes[n]
                value = torch.cat([torch.stack([x, y]), features[images[n], :, i, j]])
                value = (w2 @ (w1 @ value + b1).clamp(min=0) + b2).clamp(min=0)
                expected[n, 0, i, j] = w3 @ value + b3
    torch.testing.assert_close(found, aligned_bilinear(expected, 2)[:, 0], rtol=1e-4, atol=1e-4)


def test_dynamic_parameters_equal_the_controller_as_a_convolution():
    controller = nn.Conv2d(5, 169, 3, padding=1)
    maps = [torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 3)]
    dense = torch.cat([controller(x).flatten(2) for x in maps], 2)
    images, positions = torch.cartesian_prod(torch.arange(2), torch.arange(30)).unbind(1)
    found = dynamic_parameters(controller, maps, images, positions)
    torch.testing.assert_close(found, dense[images, :, positions], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_aligned_bilinear_by_loop(factor):
    line = [3.0, 7.0, 1.0]
    expected = []
    for pixel in range(3 * factor):
        position = max(pixel - factor // 2, 0) / factor  # sample i lies on pixel i * factor + factor // 2
        low = int(position)
        high = min(low + 1, 2)
        expected.append(line[low] + (position - low) * (line[high] - line[low]))
    rows = torch.tensor(line).view(1, 1, 3, 1).expand(1, 1, 3, 5)
    assert aligned_bilinear(rows, factor)[0, 0, :, 0].tolist() == pytest.approx(expected)
    assert aligned_bilinear(rows.transpose(2, 3), factor)[0, 0, 0].tolist() == pytest.approx(expected)
    matrix = enlarging_matrix(3, factor, torch.device("cpu"))
    assert (matrix @ torch.tensor(line)).tolist() == pytest.approx(expected)


def test_mask_targets_are_points_at_half_the_stride():
    masks = torch.zeros(1, 10, 14, dtype=torch.uint8)
    masks[0, 2, 6] = masks[0, 6, 2] = masks[0, 3, 3] = masks[0, 4, 4] = 1
    found = sample_masks(masks, stride=4, size=(4, 8))
    assert found.shape == (1, 4, 8) and found.nonzero().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert sample_masks(masks, stride=2, size=(8, 16))[0].nonzero().tolist() == [[1, 1]]  # offset 1: only (3, 3)


def test_mask_targets_of_a_batch_keep_their_order():
    targets = [make_target(8, 8, (0, 0, 4)), make_target(8, 8), make_target(16, 8, (4, 0, 4), (0, 8, 8))]
    found = gather_masks(targets, stride=4, size=(4, 4), device=torch.device("cpu"))
    expected = [[[0, 0]], [[0, 1]], [[2, 0], [2, 1], [3, 0], [3, 1]]]
    assert [mask.nonzero().tolist() for mask in found] == expected


def test_mask_centres_by_loop():
    masks = torch.rand(4, 9, 7) > 0.6
    masks[3] = False
    boxes = torch.tensor([[0.0, 0.0, 7.0, 9.0]] * 3 + [[2.0, 3.0, 6.0, 4.0]])
    found = mask_centres(masks, boxes)
    for mask, centre in zip(masks[:3], found, strict=False):
        pixels = mask.nonzero().tolist()
        assert centre[0].item() == pytest.approx(sum(x for _, x in pixels) / len(pixels))
        assert centre[1].item() == pytest.approx(sum(y for y, _ in pixels) / len(pixels))
    assert found[3].tolist() == [4, 3.5]  # an empty mask: the centre of its box


def test_centre_of_the_samples_is_the_masks_or_the_boxs():
    target = make_target(64, 64, (0, 0, 40))
    target["masks"][0, 10:] = False  # only a strip at the top is left
    by_mask = build_detector(SMALL).gather_targets([target]).centres
    by_box = build_detector(replace(SMALL, centre="box")).gather_targets([target]).centres
    assert by_mask.tolist() == [[[19.5, 4.5]]] and by_box.tolist() == [[[20, 20]]]
