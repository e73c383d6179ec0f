"""Losses stay finite for degenerate targets, training is deterministic, and losses are computed in float32."""

from dataclasses import replace

import pytest
import torch

from cassl_lib.models import ModelConfig, build_detector, condinst, losses

TINY = ModelConfig(
    backbone="resnet10t",
    backbone_options=(("channels", (8, 8, 8, 8)), ("stem_width", 8)),
    num_classes=2,
    channels=8,
    strides=(8, 16),
    ranges=(32,),
    tower_convs=1,
    head_norm="bn",
    mask_channels=8,
    mask_convs=1,
    mask_features=2,
    mask_proposals=50,
)


def make_target(boxes, masks):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {"boxes": boxes, "labels": torch.arange(len(boxes)) % 2, "masks": masks}


def rectangles(boxes, height, width):
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    return masks


def degenerate_target(height, width, kind):
    """A target of one of nine degenerate kinds."""
    x, y = (int(torch.randint(side - 20, ())) for side in (width, height))
    boxes = {
        "zero area": [[x, y, x, y + 9], [x, y, x + 9, y], [x, y, x, y], [0, 0, 0, 0]],
        "inverted": [[x + 9, y + 9, x, y]],
        "one pixel": [[x, y, x + 1, y + 1], [0, 0, 1, 1], [width - 1, height - 1, width, height]],
        "outside": [[-30, -30, -2, -2], [width + 1, 3, width + 40, 30], [-9, -9, width + 9, height + 9]],
        "huge": [[-(10**6), -(10**6), 10**6, 10**6]],
        "identical": [[x, y, x + 20, y + 18]] * 300,
        "empty masks": [[x, y, x + 20, y + 20], [0, 0, width, height]],
        "full masks": [[x, y, x + 20, y + 20], [0, 0, width, height]],
        "no instance": [],
    }[kind]
    masks = rectangles(boxes, height, width)
    if "masks" in kind:
        masks[:] = kind == "full masks"
    return make_target(boxes, masks)


KINDS = (
    *("zero area", "inverted", "one pixel", "outside", "huge"),
    *("identical", "empty masks", "full masks", "no instance"),
)


def train(model, samples, learning_rate=0.01):
    """Train with SGD; yield the losses of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    for images, targets in samples:
        optimizer.zero_grad()
        result = model(images, targets)
        sum(result.values()).backward()
        optimizer.step()
        yield result


def degenerate_samples(steps):
    """Batches of two images from 32 x 32 to 64 x 64; 81 steps cover every ordered pair of kinds."""
    for step in range(steps):
        sizes = torch.randint(32, 65, (2, 2)).tolist()
        kinds = KINDS[step % 9], KINDS[step // 9 % 9]
        images = [torch.rand(3, *size) for size in sizes]
        yield images, [degenerate_target(*size, kind) for size, kind in zip(sizes, kinds, strict=True)]


def test_a_thousand_steps_on_degenerate_targets_stay_finite():
    torch.manual_seed(0)
    model = build_detector(TINY)
    for step, result in enumerate(train(model, degenerate_samples(1000))):
        assert all(loss.isfinite() for loss in result.values()), (step, result)
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), name


def test_training_with_the_same_seed_gives_identical_weights():
    def weights():
        torch.manual_seed(3)
        model = build_detector(replace(TINY, mask_proposals=3))  # fewer than positives, so that they are drawn
        list(train(model, degenerate_samples(5)))
        return model.state_dict()

    first, second = weights(), weights()
    assert all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.parametrize("scale", [1, 1000])
def test_the_dice_loss_of_large_masks_is_exact_under_bfloat16(scale, monkeypatch):
    """Dice sums 128 x 128 products; bfloat16 has 8 bits of precision and rounds integers above 256."""
    torch.manual_seed(0)
    model = build_detector(TINY)
    with torch.no_grad():
        model.head.controller.weight.mul_(30 * scale)
    boxes = [[0, 0, 512, 512], [0, 0, 512, 300], [100, 0, 512, 512], [240, 240, 272, 272]]
    masks = rectangles(boxes, 512, 512)
    masks[3] = True  # a full-image mask with a small box
    seen, logits = [], []
    dice_loss, mask_logits = losses.dice_loss, condinst.mask_logits
    monkeypatch.setattr(losses, "dice_loss", lambda x, y: seen.append((x, y, dice_loss(x, y))) or seen[-1][2])
    monkeypatch.setattr(condinst, "mask_logits", lambda *a, **k: logits.append(mask_logits(*a, **k)) or logits[-1])
    with torch.autocast("cpu", torch.bfloat16):
        result = model([torch.rand(3, 512, 512)], [make_target(boxes, masks)])

    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in result.values())
    ((x, y, dice),) = seen
    assert x.dtype == y.dtype == dice.dtype == torch.float32 and x.shape[1:] == (128, 128) and len(x) > 4
    assert (logits[0].abs().max() > 1e4) == (scale > 1)
    x, y = x.detach().double(), y.double()
    expected = 1 - 2 * (x * y).sum((1, 2)) / ((x * x).sum((1, 2)) + (y * y).sum((1, 2)) + 1e-5)
    torch.testing.assert_close(dice.double(), expected, rtol=1e-5, atol=1e-6)
    assert result["loss_mask"].item() == pytest.approx(expected.mean().item(), rel=1e-5)
    sum(result.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
