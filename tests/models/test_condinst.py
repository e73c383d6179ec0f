"""CondInst as a whole, and its masks, checked by hand and by loops."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small_models import SMALL, lively, make_batch, make_target
from torch import nn

from cassl_lib.config import AugmentConfig
from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.loader import Samples
from cassl_lib.errors import ConfigError
from cassl_lib.models import FCOS, CondInst, ModelConfig, build_detector, condinst, fcos, losses
from cassl_lib.models.condinst_masks import (
    aligned_bilinear,
    count_dynamic_parameters,
    dynamic_parameters,
    enlarging_matrix,
    gather_masks,
    mask_logits,
    sample_masks,
    split_dynamic_parameters,
)
from cassl_lib.models.fcos_targets import assign_targets, mask_centers


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8), (8, 16, 32, 64, 128)])
def test_it_trains_and_detects_images_of_different_sizes(masks, strides):
    ranges = (16, 32, 64, 128)[: len(strides) - 1]
    config = replace(SMALL, masks=masks, strides=strides, ranges=ranges, detections_per_image=100)
    model = lively(config)
    assert type(model) is (CondInst if masks else FCOS)
    images, targets = make_batch()
    result = model(images, targets)
    assert list(result) == ["loss_cls", "loss_box", "loss_centerness"] + ["loss_mask"] * masks
    for loss in result.values():
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


def test_images_without_instances_give_finite_losses_that_reach_every_trained_parameter():
    model = build_detector(SMALL)
    images, targets = make_batch()
    empty = [make_target(64, 96), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    for given in (empty, [targets[0], empty[1]]):
        result = model(images, given)
        assert all(loss.isfinite() for loss in result.values())
        assert (result["loss_mask"] == 0) == (given is empty)
        model.zero_grad(set_to_none=True)
        sum(result.values()).backward()
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


def test_uint8_and_float_images_are_normalized_then_padded_with_zeros():
    model = build_detector(SMALL)
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    batch = model.make_batch([image, image.float() / 255])
    assert batch.shape == (2, 3, 64, 64)
    torch.testing.assert_close(batch[0], batch[1])
    assert (batch[:, :, 50:] == 0).all() and (batch[:, :, :, 60:] == 0).all()  # zeros after normalization
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


def test_an_image_without_detections_has_empty_tensors():
    (detections,) = build_detector(replace(SMALL, score_threshold=0.9)).eval()([torch.rand(3, 50, 60)])
    assert {name: tuple(value.shape) for name, value in detections.items()} == {
        "boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 50, 60),
    }  # fmt: skip


def test_pasting_masks_in_chunks_gives_the_same_masks(monkeypatch):
    model = lively().eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (whole,) = model([image])
    monkeypatch.setattr("cassl_lib.models.condinst.CELLS_AT_ONCE", 10 * 14 * 3)
    assert model([image])[0]["masks"].equal(whole["masks"])


def test_bfloat16_autocast_is_close_to_float32_and_keeps_losses_in_float32():
    model = lively(replace(SMALL, head_norm="bn"))
    images, targets = make_batch()
    plain = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(images, targets)
    for name, loss in result.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.1)
    sum(result.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        (detection, _) = model.eval()(images)
    assert detection["boxes"].dtype == torch.float32 and detection["masks"].dtype == torch.bool


def test_channels_last_weights_give_the_same_boxes():
    model = lively().eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (plain,) = model([image])
    (detections,) = model.to(memory_format=torch.channels_last)([image])
    torch.testing.assert_close(detections["boxes"], plain["boxes"], rtol=1e-4, atol=1e-3)


def test_two_processes_give_the_losses_of_one(monkeypatch):
    """The mean of the losses of two processes with one image each equals the losses of both images in one batch."""
    model = lively()
    model.eval().training = True  # losses, with BatchNorms that do not mix images
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


def test_at_most_mask_proposals_positives_have_a_mask_loss(monkeypatch):
    model = build_detector(replace(SMALL, mask_proposals=5))
    images, targets = make_batch()
    seen = []
    original = losses.dice_loss
    monkeypatch.setattr(losses, "dice_loss", lambda x, y: seen.append(len(x)) or original(x, y))
    model(images, targets)
    assert seen == [5]


def test_targets_without_masks_raise_unless_masks_are_off():
    images, targets = make_batch()
    del targets[1]["masks"]
    with pytest.raises(ValueError, match="masks=False"):
        build_detector(SMALL)(images, targets)
    assert build_detector(replace(SMALL, masks=False))(images, targets)["loss_box"].isfinite()


def test_training_without_targets_raises():
    with pytest.raises(ValueError, match="targets"):
        build_detector(SMALL)(make_batch()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_norm": "layer"}, "head_norm='layer' is not supported. Choose one of gn, bn"),
        ({"strides": (8, 32, 64)}, "neighbors"),
        ({"strides": (64, 128), "ranges": (64,)}, "the first at most 32"),
        ({"ranges": (64,)}, r"ranges=\(64,\) do not fit strides=\(8, 16, 32\). Give 2"),
        ({"mask_stride": 3}, "mask_stride=3 does not divide the finest stride, 8"),
        ({"mask_stride": 16}, "mask_stride=16 does not divide the finest stride, 8"),
        ({"mask_stride": 0}, "mask_stride=0 does not divide"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_unsupported_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(replace(SMALL, **settings))


def test_parameter_counts_equal_those_of_the_public_condinst():
    """Head, mask branch and controller at 80 classes."""
    config = replace(ModelConfig(), backbone="resnet10t")
    model = build_detector(config)
    total = {name: sum(p.numel() for p in part.parameters()) for name, part in model.head.named_children()}
    assert total.pop("mask_branch") == 1_477_384
    assert total.pop("controller") == 389_545
    assert sum(total.values()) + model.head.scales.numel() == 4_920_666
    assert count_dynamic_parameters(8) == 169


def test_order_of_the_169_dynamic_parameters():
    weights, biases = split_dynamic_parameters(torch.arange(169.0)[None], 8)
    assert [w.shape[1:] for w in weights] == [(8, 10), (8, 8), (1, 8)]
    assert weights[0][0, 1, 2] == 12 and weights[1][0, 2, 3] == 80 + 19 and weights[2][0, 0, 5] == 149
    assert biases[0].flatten().tolist() == list(range(152, 160))
    assert biases[1].flatten().tolist() == list(range(160, 168)) and biases[2].item() == 168


@pytest.mark.parametrize("mask_stride", [None, 8, 4, 2, 1])
def test_mask_logits_by_loop(mask_stride):
    """Inputs: relative coordinates (location minus pixel, x then y), then features. Three layers."""
    features, parameters = torch.randn(2, 8, 3, 4), torch.randn(3, 169)
    images, points = torch.tensor([0, 1, 1]), torch.tensor([[12.0, 20.0], [4.0, 4.0], [28.0, 8.0]])
    sizes = torch.tensor([64.0, 32.0, 128.0])
    factor = 8 // (mask_stride or 4)
    options = {"factor": factor} if mask_stride else {}
    logits = mask_logits(
        features, parameters=parameters, images=images, points=points, sizes=sizes, stride=8, **options
    )
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
    torch.testing.assert_close(logits, aligned_bilinear(expected, factor)[:, 0], rtol=1e-4, atol=1e-4)
    # Sample i lies on cell i * factor + factor // 2.
    positions = [[(cell - factor // 2) / factor for cell in range(length * factor)] for length in (3, 4)]
    enlarged = torch.tensor([bilinear(grid, *positions) for grid in expected[:, 0].tolist()])
    torch.testing.assert_close(logits, enlarged, rtol=1e-4, atol=1e-4)


def test_dynamic_parameters_equal_the_controller_as_a_convolution():
    controller = nn.Conv2d(5, 169, 3, padding=1)
    maps = [torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 3)]
    dense = torch.cat([controller(x).flatten(2) for x in maps], 2)
    images, positions = torch.cartesian_prod(torch.arange(2), torch.arange(30)).unbind(1)
    parameters = dynamic_parameters(controller, maps, images=images, positions=positions)
    torch.testing.assert_close(parameters, dense[images, :, positions], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_aligned_bilinear_by_loop(factor):
    line = [3.0, 7.0, 1.0]
    expected = []
    for pixel in range(3 * factor):
        position = max(pixel - factor // 2, 0) / factor  # sample i is at pixel i * factor + factor // 2
        low = int(position)
        high = min(low + 1, 2)
        expected.append(line[low] + (position - low) * (line[high] - line[low]))
    rows = torch.tensor(line).view(1, 1, 3, 1).expand(1, 1, 3, 5)
    assert aligned_bilinear(rows, factor)[0, 0, :, 0].tolist() == pytest.approx(expected)
    assert aligned_bilinear(rows.transpose(2, 3), factor)[0, 0, 0].tolist() == pytest.approx(expected)
    matrix = enlarging_matrix(3, factor, torch.device("cpu"))
    assert (matrix @ torch.tensor(line)).tolist() == pytest.approx(expected)


def test_mask_targets_are_sampled_at_half_the_stride():
    masks = torch.zeros(1, 10, 14, dtype=torch.uint8)
    masks[0, 2, 6] = masks[0, 6, 2] = masks[0, 3, 3] = masks[0, 4, 4] = 1
    sampled = sample_masks(masks, stride=4, size=(4, 8))
    assert sampled.shape == (1, 4, 8) and sampled.nonzero().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert sample_masks(masks, stride=2, size=(8, 16))[0].nonzero().tolist() == [[1, 1]]  # offset 1: only (3, 3)


@pytest.mark.parametrize("mask_stride", [8, 4, 2, 1])
def test_the_mask_loss_compares_logits_and_targets_on_the_grid_of_mask_stride(mask_stride, monkeypatch):
    """Targets are sampled at mask_stride // 2 :: mask_stride; the loss is the mean dice loss, here by plain loops."""
    model = lively(replace(SMALL, mask_stride=mask_stride, num_classes=1))
    compared = []
    original = losses.dice_loss
    monkeypatch.setattr(losses, "dice_loss", lambda x, y: compared.append((x, y)) or original(x, y))
    target = make_target(64, 96, (5, 11, 37))
    loss = model([torch.rand(3, 64, 96)], [target])["loss_mask"].item()
    ((probabilities, masks),) = compared
    rows, columns = (range(mask_stride // 2, side, mask_stride) for side in (64, 96))
    expected = [[float(target["masks"][0, i, j]) for j in columns] for i in rows]
    assert probabilities.shape == masks.shape == (len(masks), 64 // mask_stride, 96 // mask_stride)
    assert len(masks) > 1 and all(mask.tolist() == expected for mask in masks)
    dice = []
    for probability in probabilities.tolist():
        pairs = [
            (p, t) for row, mask in zip(probability, expected, strict=True) for p, t in zip(row, mask, strict=True)
        ]
        overlap = sum(p * t for p, t in pairs)
        dice.append(1 - 2 * overlap / (sum(p * p for p, _ in pairs) + sum(t * t for _, t in pairs) + 1e-5))
    assert loss == pytest.approx(sum(dice) / len(dice), rel=1e-5)


def test_mask_targets_of_a_batch_keep_their_order():
    targets = [make_target(8, 8, (0, 0, 4)), make_target(8, 8), make_target(16, 8, (4, 0, 4), (0, 8, 8))]
    sampled = gather_masks(targets, stride=4, size=(4, 4), device=torch.device("cpu"))
    expected = [[[0, 0]], [[0, 1]], [[2, 0], [2, 1], [3, 0], [3, 1]]]
    assert [mask.nonzero().tolist() for mask in sampled] == expected


def test_mask_centers_by_loop():
    masks = torch.rand(4, 9, 7) > 0.6
    masks[3] = False
    boxes = torch.tensor([[0.0, 0.0, 7.0, 9.0]] * 3 + [[2.0, 3.0, 6.0, 4.0]])
    centers = mask_centers(masks, boxes)
    for mask, center in zip(masks[:3], centers, strict=False):
        pixels = mask.nonzero().tolist()
        assert center[0].item() == pytest.approx(sum(x for _, x in pixels) / len(pixels))
        assert center[1].item() == pytest.approx(sum(y for y, _ in pixels) / len(pixels))
    assert centers[3].tolist() == [4, 3.5]  # an empty mask: the center of its box


def test_center_sampling_uses_the_center_of_the_mask_or_of_the_box():
    target = make_target(64, 64, (0, 0, 40))
    target["masks"][0, 10:] = False  # keep only a strip at the top
    by_mask = build_detector(SMALL).gather_targets([target]).centers
    by_box = build_detector(replace(SMALL, center="box")).gather_targets([target]).centers
    assert by_mask.tolist() == [[[19.5, 4.5]]] and by_box.tolist() == [[[20, 20]]]


# ---- From features to pasted masks, by loops ----


def bilinear(grid, rows, columns):
    """Interpolate `grid` at fractional row and column positions, clamped to its ends."""

    def neighbors(position, length):
        position = min(max(position, 0), length - 1)
        low = int(position)
        return low, min(low + 1, length - 1), position - low

    below = [neighbors(position, len(grid)) for position in rows]
    beside = [neighbors(position, len(grid[0])) for position in columns]
    return [
        [
            (grid[a][c] * (1 - v) + grid[a][d] * v) * (1 - u) + (grid[b][c] * (1 - v) + grid[b][d] * v) * u
            for c, d, v in beside
        ]
        for a, b, u in below
    ]


def paste_by_loop(features, parameters, point, interest, *, image_size, size, mask_stride):
    """Mask probabilities of one instance, resized to `size`; features (8, H, W) of stride 8."""
    w1, w2, w3 = parameters[:80].view(8, 10), parameters[80:144].view(8, 8), parameters[144:152]
    b1, b2, b3 = parameters[152:160], parameters[160:168], parameters[168]
    (height, width), grid = features.shape[1:], []
    for i in range(height):
        grid.append([])
        for j in range(width):
            relative = torch.stack([point[0] - (8 * j + 4), point[1] - (8 * i + 4)]) / interest
            value = (w1 @ torch.cat([relative, features[:, i, j]]) + b1).clamp(min=0)
            grid[-1].append((w3 @ (w2 @ value + b2).clamp(min=0) + b3).item())
    # Sample i is at i * factor + factor // 2.
    for factor, then in ((8 // mask_stride, lambda x: 1 / (1 + math.exp(-x))), (mask_stride, lambda x: x)):
        sides = len(grid), len(grid[0])
        positions = [[(p - factor // 2) / factor for p in range(length * factor)] for length in sides]
        grid = [[then(x) for x in row] for row in bilinear(grid, *positions)]
    grid = [row[: image_size[1]] for row in grid[: image_size[0]]]
    rows, columns = ([(p + 0.5) * a / b - 0.5 for p in range(b)] for a, b in zip(image_size, size, strict=True))
    return torch.tensor(bilinear(grid, rows, columns), dtype=torch.float64)


@pytest.mark.parametrize("mask_stride", [4, 8, 2, 1])
@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        ((37, 50), (37, 50)),
        ((37, 50), (80, 121)),
        ((37, 50), (23, 31)),
        ((37, 50), (20, 90)),
        ((40, 48), (40, 48)),  # its last pixels are interpolated from cells outside the image
    ],
)
def test_pasted_masks_by_loop(image_size, size, mask_stride):
    """Images padded to 64 x 64; an image of 37 x 50 ends inside feature row 4 and feature column 6."""
    features = torch.randn(8, 8, 8, dtype=torch.float64)
    features[4:] = 0
    features[4, [0, 4]] = features[4, :, [0, 6]] = 1  # the border
    features[5, 2, 3] = 1  # an isolated cell
    features[6, 6:] = 1  # only padding
    features[7] = 0.44  # barely below the threshold, well above it from column 6: logits -0.2 and 11
    features[7, :, 6:] = 1
    parameters = torch.zeros(9, 169, dtype=torch.float64)
    parameters[:3] = torch.randn(3, 169)
    parameters[3:, 168] = torch.tensor(
        [-9.0, 9.0, -9.0, -9.0, -9.0, -9.0]
    )  # empty, full, then following one feature each
    for row, feature in enumerate((4, 5, 6, 7), start=5):
        parameters[row, 2 + feature] = parameters[row, 80] = 1
        parameters[row, 144] = 20
    points, sizes = torch.rand(9, 2) * 60, torch.tensor([32.0, 64, 128, 32, 64, 64, 64, 64, 64])
    masks, _ = build_detector(replace(SMALL, mask_stride=mask_stride)).paste_masks(
        features.float(), parameters.float(), points=points, sizes=sizes, image_size=image_size, size=size
    )
    instances = zip(parameters, points.double(), sizes.double(), strict=True)
    soft = torch.stack(
        [paste_by_loop(features, *one, image_size=image_size, size=size, mask_stride=mask_stride) for one in instances]
    )
    clear = (soft - 0.5).abs() > 1e-5
    assert masks.dtype == torch.bool and clear.float().mean() > 0.99
    assert masks[clear].equal((soft > 0.5)[clear])
    assert sum(0 < mask.float().mean().item() < 1 for mask in masks[:3]) >= 2
    empty, full, border, cell, padding, columns = masks[3:]
    assert not empty.any() and full.all() and not padding.any() and columns[:, -1].all() and not columns[:, 0].any()
    assert border[0].all() and border[:, 0].all() and not border[size[0] // 3, size[1] // 3]
    assert not (cell[0].any() or cell[-1].any() or cell[:, 0].any() or cell[:, -1].any())


# ---- Unusual batches ----


def test_of_more_positives_than_mask_proposals_a_random_subset_has_a_mask_loss(monkeypatch):
    """81 boxes of 24 x 24 have up to nine positives each, more than the 500 that have a mask loss."""
    model = lively(replace(SMALL, num_classes=81))
    target = make_target(256, 256, *[(24 * i + 2, 24 * j + 2, 24) for i in range(9) for j in range(9)])
    images = [torch.rand(3, 256, 256), torch.rand(3, 256, 256)]
    drawn, matches = [], []
    for module, name, calls in ((condinst, "dynamic_parameters", drawn), (fcos, "assign_targets", matches)):
        original = getattr(module, name)

        def record(*args, original=original, calls=calls, **options):
            calls.append((options, original(*args, **options)))
            return calls[-1][1]

        monkeypatch.setattr(module, name, record)
    dice = []
    original_dice = losses.dice_loss
    monkeypatch.setattr(losses, "dice_loss", lambda x, y: dice.append(original_dice(x, y)) or dice[-1])
    result = [model(images, [make_target(256, 256), target])["loss_mask"] for _ in range(2)]

    positives = {tuple(row) for row in (matches[0][1] >= 0).nonzero().tolist()}
    pairs = [list(zip(o["images"].tolist(), o["positions"].tolist(), strict=True)) for o, _ in drawn]
    assert len(positives) > 500
    for chosen, per_positive, loss in zip(pairs, dice, result, strict=True):
        assert len(chosen) == len(set(chosen)) == 500 and set(chosen) <= positives
        assert {image for image, _ in chosen} == {1}
        assert loss.item() == pytest.approx(sum(per_positive.tolist()) / 500, rel=1e-5)
    assert set(pairs[0]) != set(pairs[1])


def test_one_pixel_instances_and_instances_outside_the_image_train():
    """Stride 8 has locations at (28, 28) and, the last one, (92, 60)."""
    model = lively()
    target = make_target(64, 96, *[(0, 0, 1)] * 5)
    target["boxes"] = torch.tensor(
        [[28, 28, 29, 29], [27.5, 27.5, 28.5, 28.5], [88, 56, 104, 72], [96, 64, 120, 90], [-30, -30, -4, -4]]
    )
    target["labels"] = torch.tensor([0, 1, 2, 0, 1])
    target["masks"][1, 0, 0], target["masks"][1, 28, 28] = False, True
    target["masks"][2:] = False
    target["masks"][2, 56:, 88:] = True
    ground_truth = model.gather_targets([target])
    assert ground_truth.centers[0, :3].tolist() == [[0, 0], [28, 28], [91.5, 59.5]]
    image = torch.rand(3, 64, 96)
    locations = model.make_locations([torch.empty(1, 1, 64 // s, 96 // s) for s in SMALL.strides])
    boxes, centers = ground_truth.boxes, ground_truth.centers
    matched = assign_targets(locations, boxes, centers, radius=SMALL.center_radius)[0]
    positives = (matched >= 0).nonzero()[:, 0].tolist()
    assert positives == [3 * 12 + 3, 95] and matched[positives].tolist() == [1, 2]
    result = model([image], [target])
    assert all(loss.isfinite() for loss in result.values())
    sum(result.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_an_image_with_only_crowds_trains_like_an_empty_one(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (96, 64), (90, 60, 30)).save(tmp_path / "images/a.png")
    crowd = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 1, "bbox": [0, 0, 96, 64]}
    crowd["segmentation"] = {"size": [64, 96], "counts": [0, 64 * 96]}
    entry = {"id": 1, "file_name": "a.png", "height": 64, "width": 96}
    data = {"images": [entry], "annotations": [crowd], "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "crowd.json").write_text(json.dumps(data))
    source = CocoImages(tmp_path / "crowd.json", tmp_path / "images")
    transform = training_transform(AugmentConfig(sizes=(64,), longest=96))
    image, target, _, _ = Samples(source, transform, masks=True, classes=True)[0, 0]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert target["masks"].shape == (0, 64, 96)
    result = build_detector(SMALL)([image], [target])
    assert result["loss_cls"].isfinite() and result["loss_cls"] > 0
    assert result["loss_box"] == result["loss_centerness"] == result["loss_mask"] == 0


def test_an_empty_image_in_a_batch_adds_only_its_focal_loss():
    """Two sizes; for comparison each image alone, padded to the batch size with the value that normalizes to zero."""
    model = lively()
    model.eval().training = True  # losses, with BatchNorms that do not mix images
    images = [torch.rand(3, 64, 96), torch.rand(3, 70, 60)]
    full, empty = make_target(64, 96, (4, 8, 30), (50, 20, 20)), make_target(70, 60)
    alone = []
    for image, target in zip(images, (full, empty), strict=True):
        padded = model.pixel_mean.expand(3, 96, 96).clone()
        padded[:, : image.shape[1], : image.shape[2]] = image
        alone.append(model([padded], [target]))
    together = model(images, [full, empty])

    ground_truth = model.gather_targets([full])
    locations = model.make_locations([torch.empty(1, 1, 96 // s, 96 // s) for s in SMALL.strides])
    matched = assign_targets(locations, ground_truth.boxes, ground_truth.centers, radius=1.5)
    positives = (matched >= 0).sum().item()
    assert positives > 5
    focal = alone[0]["loss_cls"] * positives + alone[1]["loss_cls"]  # the divisor of the empty image is 1
    assert together["loss_cls"].item() == pytest.approx(focal.item() / positives, rel=1e-5)
    for name in ("loss_box", "loss_centerness", "loss_mask"):
        assert together[name].item() == pytest.approx(alone[0][name].item(), rel=1e-4) and alone[1][name] == 0
