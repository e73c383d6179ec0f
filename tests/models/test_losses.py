"""Every loss term against its formula, by plain loops."""

import math

import pytest
import torch

from cassl_lib.models import losses

TIGHT = {"rtol": 1e-5, "atol": 1e-6}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_focal_loss_by_loop():
    logits = torch.tensor([[2.0, -1.5, 0.3], [-4.0, 0.0, 5.0]])
    present = torch.tensor([[True, False, False], [False, False, True]])
    expected = 0.0
    for row in range(2):
        for column in range(3):
            p = sigmoid(logits[row, column].item())
            if present[row, column]:
                expected += -0.25 * (1 - p) ** 2 * math.log(p)
            else:
                expected += -0.75 * p**2 * math.log(1 - p)
    assert losses.focal_loss(logits, present).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_is_finite_where_the_sigmoid_saturates():
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = losses.focal_loss(logits, torch.tensor([False, True]))
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 200 + 0.25 * 200)
    assert logits.grad.isfinite().all()


def giou_by_corners(predicted, target):
    """1 - GIoU, only its IoU smoothed by 1, from the corners of boxes around the origin."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = predicted, target
    intersection = (min(r1, r2) + min(l1, l2)) * (min(b1, b2) + min(t1, t2))
    union = (l1 + r1) * (t1 + b1) + (l2 + r2) * (t2 + b2) - intersection
    hull = (max(r1, r2) + max(l1, l2)) * (max(b1, b2) + max(t1, t2))
    return 1 - ((intersection + 1) / (union + 1) - (hull - union) / hull)


def test_giou_loss_by_loop():
    predicted = [(1.0, 2.0, 3.0, 4.0), (0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 0.0, 0.0), (2.0, 1.0, 2.0, 1.0)]
    target = [(1.0, 2.0, 3.0, 4.0), (3.0, 0.2, 0.1, 2.0), (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 1.0, 2.0)]
    expected = torch.tensor([giou_by_corners(p, t) for p, t in zip(predicted, target, strict=True)])
    loss = losses.giou_loss(torch.tensor(predicted), torch.tensor(target))
    torch.testing.assert_close(loss, expected, **TIGHT)
    assert loss[0] == 0
    # By hand, the last pair: 4 x 2 against 2 x 4: intersection 4, union 12, hull 16.
    assert loss[3].item() == pytest.approx(1 - 5 / 13 + 4 / 16)


def test_centerness_by_hand():
    values = losses.centerness(torch.tensor([[3.0, 2.0, 3.0, 2.0], [1.0, 2.0, 4.0, 8.0]]))
    torch.testing.assert_close(values, torch.tensor([1.0, math.sqrt(1 / 4 * 2 / 8)]))


def test_dice_loss_by_loop():
    x = torch.tensor([[[0.9, 0.2], [0.4, 0.0]], [[0.1, 0.5], [0.3, 0.8]]])
    y = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = []
    for i in range(2):
        pairs = [(x[i, r, c].item(), y[i, r, c].item()) for r in range(2) for c in range(2)]
        squares = sum(a * a for a, _ in pairs) + sum(b * b for _, b in pairs)
        expected.append(1 - 2 * sum(a * b for a, b in pairs) / (squares + 1e-5))
    torch.testing.assert_close(losses.dice_loss(x, y), torch.tensor(expected), **TIGHT)
    assert losses.dice_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).item() == 1


def test_counts_are_averaged_over_processes(monkeypatch):
    values = torch.tensor([4.0, 1.0])
    assert losses.mean_over_processes(values) is values

    def add_the_other_process(mine):
        mine += torch.tensor([2.0, 0.0])

    monkeypatch.setattr(losses.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(losses.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", add_the_other_process)
    torch.testing.assert_close(losses.mean_over_processes(values), torch.tensor([3.0, 0.5]))
    assert values.tolist() == [4, 1]


def test_dice_loss_of_large_masks_and_at_its_extremes():
    """Full, empty and random masks of 128 x 128; random, exact and empty predictions."""
    x, y = torch.rand(5, 128, 128, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 128, 128)
    y[0] = y[3] = y[4] = 1
    y[2] = (x[1] > 0.5).float()
    x[3], x[4] = 1, 0
    x.requires_grad_()
    per_mask = losses.dice_loss(x, y)
    for probabilities, mask, loss in zip(x.tolist(), y.tolist(), per_mask.tolist(), strict=True):
        pairs = [pair for row in zip(probabilities, mask, strict=True) for pair in zip(*row, strict=True)]
        squares = math.fsum(a * a + b * b for a, b in pairs)
        assert loss == pytest.approx(1 - 2 * math.fsum(a * b for a, b in pairs) / (squares + 1e-5), rel=1e-5, abs=1e-6)
    assert per_mask[[1, 3, 4]].tolist() == pytest.approx([1, 0, 1], abs=1e-6)
    per_mask.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("target", [1e-7, 1.0, 1e5])
@pytest.mark.parametrize("predicted", [0.0, 1e-7, 1e5])
def test_giou_loss_of_vanishing_and_huge_boxes(predicted, target):
    distances = torch.full((4,), predicted, requires_grad=True)
    loss = losses.giou_loss(distances, torch.full((4,), target))
    loss.backward()
    assert loss.item() == pytest.approx(giou_by_corners([predicted] * 4, [target] * 4), rel=1e-5, abs=1e-6)
    assert distances.grad.isfinite().all()


def test_centerness_of_a_location_at_the_edge_of_its_box():
    values = losses.centerness(torch.tensor([[1e-7, 5.0, 1e5, 5.0], [1e-7, 1e-7, 1e-7, 1e-7]]))
    assert values.tolist() == pytest.approx([1e-6, 1], rel=1e-5)
