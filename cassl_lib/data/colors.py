"""Color operations on 8-bit images (3, H, W): torchvision's numbers, bit for bit, in less time.

Operations that look at one pixel at a time are computed for the 256 values, then looked up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

VALUES = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)


def by_value(operation: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """An operation that maps each value to one other, such as `F.adjust_brightness` with its factor."""
    return _look_up(operation(VALUES)[:, 0], image)


def autocontrast(image: torch.Tensor) -> torch.Tensor:
    """`F.autocontrast`: each channel is stretched from its darkest and brightest value to 0 and 255."""
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    return _look_up(F.autocontrast(VALUES.clamp(low, high))[:, 0], image)  # the values have the same extremes


def equalize(image: torch.Tensor) -> torch.Tensor:
    """`F.equalize`: each channel gets about the same number of pixels of each value."""
    tables = VALUES[:, 0].clone()
    for channel, table in zip(image.numpy(), tables, strict=True):
        counts = np.array(Image.fromarray(channel).histogram())
        step = (channel.size - counts[counts.nonzero()[0][-1]]) // 255
        if step:
            table[1:] = torch.from_numpy(np.minimum((counts.cumsum()[:-1] + step // 2) // step, 255))
            table[0] = 0
    return _look_up(tables, image)


def adjust_sharpness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """`F.adjust_sharpness`: a blend with the image blurred by (1 1 1, 1 5 1, 1 1 1) / 13, all but the border."""
    if min(image.shape[1:]) <= 2:
        return image
    output = image.float()
    inner = output[:, 1:-1, 1:-1]
    rows = output[:, :-2] + output[:, 1:-1]
    rows += output[:, 2:]
    blurred = rows[..., :-2] + rows[..., 1:-1]
    blurred += rows[..., 2:]
    # A whole number over 13 is never halfway between two, so rounding does not depend on how the sum was computed.
    blurred.add_(inner, alpha=4).mul_(1 / 13).round_()
    inner.add_(blurred.sub_(inner), alpha=1.0 - factor)
    return output.clamp_(0, 255).byte()


def _look_up(tables: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Replace the values of each channel by its table (3, 256) uint8."""
    output = np.empty(image.shape, np.uint8)
    for channel, table, target in zip(image.numpy(), tables.tolist(), output, strict=True):
        target[...] = Image.fromarray(channel).point(table)  # Pillow looks up several times as fast as torch
    return torch.from_numpy(output)
