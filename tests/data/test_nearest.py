"""Resizing and motion by nearest pixels: every pixel equals torchvision's."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from cassl_lib.data import nearest
from cassl_lib.data.nearest import Turn, extents, resize_masks, shift

SIZES = [(1, 1), (1, 9), (7, 2), (2, 300), (14, 231), (64, 96), (101, 57), (247, 136), (255, 333)]


def some_masks(size, *, seed=0):
    """(6, H, W): full, empty, noise, one pixel in a corner, a rectangle, and a speckled rectangle with a value of 3."""
    random, (height, width) = np.random.default_rng(seed), size
    masks = np.zeros((6, height, width), np.uint8)
    masks[0], masks[2] = 1, random.random(size) < 0.5
    masks[3, -1, -1] = 1
    top, left = int(random.integers(height)), int(random.integers(width))
    masks[4, top : top + height // 3 + 1, left : left + width // 4 + 1] = 1
    masks[5] = masks[4] * 3 * (random.random(size) < 0.7)
    return torch.from_numpy(masks)


def some_image(size, *, seed=0):
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed)).byte()


def test_extents_by_hand():
    masks = np.zeros((3, 5, 7), np.uint8)
    masks[0, 1, 2] = masks[0, 3, 5] = masks[2] = 1
    assert extents(masks) == [(1, 4, 2, 6), (0, 0, 0, 0), (0, 5, 0, 7)]
    assert extents(masks[:0]) == []


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_resized_as_by_torchvision(size, flip):
    masks = some_masks(size)
    flipped = masks.flip(-1) if flip else masks
    for new in [*SIZES, size, (size[0] + 1, size[1] * 2), (396, 112), (209, 373), (800, 1066)]:
        expected = F.resize(tv_tensors.Mask(flipped), list(new)).as_subclass(torch.Tensor)
        assert torch.equal(resize_masks(masks, new, flip=flip), expected)
        # as they are decoded: column by column
        assert torch.equal(resize_masks(masks.mT.contiguous().mT, new, flip=flip), expected)
    assert resize_masks(masks[:0], (3, 4), flip=flip).shape == (0, 3, 4)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_shifted_as_by_torchvision(size):
    masks, image = some_masks(size), some_image(size)
    for x, y in [(0, 0), (1, 0), (0, -1), (-3, 0), (0, 5), (size[1], 0), (0, -size[0]), (-400, 400)]:
        motion = {"angle": 0.0, "translate": [x, y], "scale": 1.0, "shear": [0.0, 0.0]}
        assert torch.equal(shift(image, [x, y], 125), F.affine(image, fill=125, **motion))
        assert torch.equal(shift(masks, [x, y], 0), F.affine(tv_tensors.Mask(masks), fill=0, **motion))


@pytest.mark.parametrize("size", [*SIZES, (403, 537), (640, 853)])
def test_pixels_are_turned_as_by_torchvision(size):
    masks, image, random = some_masks(size), some_image(size), np.random.default_rng(1)
    motions = [(0.0, [20.0, 0.0]), (30.0, [0.0, 0.0]), (-30.0, [0.0, 0.0]), (0.0, [-25.0, 25.0])]
    motions += [(float(random.uniform(-30, 30)), [0.0, 0.0]) for _ in range(8)]
    motions += [(0.0, random.uniform(-25, 25, 2).tolist()) for _ in range(8)]
    for angle, shear in motions:
        motion, turn = {"angle": angle, "translate": [0, 0], "scale": 1.0, "shear": shear}, Turn(size, angle, shear)
        assert torch.equal(turn.image(image, 125), F.affine(image, fill=125, **motion))
        assert torch.equal(turn.masks(masks), F.affine(tv_tensors.Mask(masks), fill=0, **motion))
    assert turn.masks(masks[:0]).shape == (0, *size)


def test_the_most_indices_are_whole_numbers_of_float32():
    assert torch.tensor([nearest.MOST_INDICES - 1, nearest.MOST_INDICES]).float().diff().item() == 1
    assert torch.tensor([nearest.MOST_INDICES, nearest.MOST_INDICES + 1]).float().diff().item() == 0
