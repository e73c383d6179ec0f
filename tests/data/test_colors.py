"""Color operations: every pixel equals torchvision's."""

from functools import partial

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from cassl_lib.data import colors


def images():
    """Noise of several sizes, dark noise, a gradient, one value, two values, and a channel of one value."""
    random = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (3, *size), generator=random).byte() for size in ((1, 1), (2, 9), (3, 3), (64, 61))]
    gradient = (torch.arange(120 * 90).reshape(1, 120, 90) // 50).expand(3, -1, -1).byte().contiguous()
    uneven = noise[3].clone()
    uneven[1] = 77
    two = torch.where(noise[3] > 99, 200, 30).byte()
    return [*noise, noise[3] // 7 + 20, gradient, torch.full((3, 40, 50), 9).byte(), two, uneven]


@pytest.mark.parametrize("image", images(), ids=lambda image: f"{tuple(image.shape)}")
def test_color_operations_are_torchvisions(image):
    before = image.clone()
    assert torch.equal(colors.autocontrast(image), F.autocontrast(image))
    assert torch.equal(colors.equalize(image), F.equalize(image))
    for m in range(1, 10):
        factor = 1.8 * m / 10 + 0.1
        assert torch.equal(colors.adjust_sharpness(image, factor), F.adjust_sharpness(image, factor))
        for operation in (
            partial(F.adjust_brightness, brightness_factor=factor),
            partial(F.solarize, threshold=min(int(256 * m / 10), 255)),
        ):
            assert torch.equal(colors.by_value(operation, image), operation(image))
    assert torch.equal(image, before)
