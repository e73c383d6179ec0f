"""Weak and strong augmentation (Sec. 4, Table 6): boxes, masks and pixels move together, as in torchvision.

Weak augmentation is multi-scale resizing, cropping and a flip. Strong augmentation is Soft Teacher's, which the paper
cites: scale jitter and one color operation, and on pseudo-labeled images also one geometric operation and erased
patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cassl_lib.config import AugmentConfig
from cassl_lib.data import colors
from cassl_lib.data.nearest import MOST_INDICES, Turn, extents, resize_masks, shift

GRAY = 125  # of pixels that augmentation fills in


def training_transform(config: AugmentConfig, *, pseudo_labeled: bool = False) -> Callable:
    """The transform of training samples (Sec. 4, Table 6).

    It maps an image (3, H, W) uint8 and a target of tv_tensors to an augmented image and a target of plain tensors in
    the frame of that image. Instances that were cropped away are dropped. Draws from torch's global generator.

    Args:
        pseudo_labeled: whether the images are pseudo-labeled. Strong augmentation moves and erases only those; labeled
            images get scale jitter and one color operation. Weak augmentation is the same for both.
    """
    crop = [v2.RandomCrop(config.crop, pad_if_needed=True)] if config.crop else []
    if config.kind == "strong":
        low, high = config.strong_sizes
        sizes, steps = range(low, high + 1), [partial(strong, crop)] if pseudo_labeled else [_color, *crop]
    else:
        sizes, steps = config.sizes, crop
    steps = [partial(_flip_and_resize, sizes, config.longest), *steps]
    return partial(_train_sample, steps)  # not a closure, so that it can be pickled for loading processes


def test_transform(config: AugmentConfig) -> Callable:
    """The transform of test images: resize to `test_shape`. The target stays in the frame of the original image."""
    return partial(_test_sample, config)


def test_shape(shape: tuple[int, int], config: AugmentConfig) -> tuple[int, int]:
    """(height, width) at test time: the short side is `test_size`, unless the long side would exceed `longest`."""
    scale = min(config.test_size / min(shape), config.longest / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _train_sample(steps, image, target):
    return _drop_lost_instances(*_apply(steps, image, target))


def _test_sample(config: AugmentConfig, image, target):
    resized = F.resize(image, list(test_shape(tuple(image.shape[-2:]), config)))
    return resized.as_subclass(torch.Tensor).contiguous(), target


def _apply(steps, image, target):
    for step in steps:
        image, target = step(image, target)
    return image, target


def _flip_and_resize(sizes, longest: int, image, target):
    """Flip with a chance of 1/2, then resize: torchvision's RandomHorizontalFlip and RandomShortestSize, same draws."""
    flip, short = bool(torch.rand(1) < 0.5), sizes[int(torch.randint(len(sizes), ()))]
    height, width = image.shape[-2:]
    scale = min(short / min(height, width), longest / max(height, width))
    size = max(1, int(height * scale)), max(1, int(width * scale))  # torchvision rounds a thin image's side to 0

    def resize(value):
        if isinstance(value, tv_tensors.Mask):
            masks = value.as_subclass(torch.Tensor).reshape(-1, height, width)
            return tv_tensors.Mask(resize_masks(masks, size, flip=flip).reshape(*value.shape[:-2], *size))
        return F.resize(F.horizontal_flip(value) if flip else value, list(size))

    resized = {name: resize(value) if name != "labels" else value for name, value in target.items()}
    pixels = resize(image).as_subclass(torch.Tensor).contiguous()
    return tv_tensors.wrap(pixels, like=image), resized


def _drop_lost_instances(image, target):
    """Clip boxes to the image; drop instances whose box is narrower than one pixel or whose mask is empty."""
    size = image.shape[-2:]
    boxes = F.clamp_bounding_boxes(target["boxes"]).as_subclass(torch.Tensor)
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    if "masks" in target:
        keep &= target["masks"].flatten(1).amax(dim=1) > 0  # several times as fast as `any` of a comparison
    kept = {name: value.as_subclass(torch.Tensor) for name, value in target.items()} | {"boxes": boxes}
    if not keep.all():  # index rows only if there is one to drop: masks are large
        rows = keep.nonzero()[:, 0]
        kept = {name: value if name == "ignored" else value.index_select(0, rows) for name, value in kept.items()}
    if "masks" in target:
        kept["masks"] = kept["masks"].reshape(-1, *size)
    return image.as_subclass(torch.Tensor), kept


# ---- strong augmentation ----


# UNSTATED: which of the cited operations the paper used, how strong, and on which images.
def strong(crop: list, image, target):
    """Soft Teacher's augmentation of pseudo-labeled images, after scale jitter.

    A color and a geometric operation in random order, then `crop` (no step or one), then erased patches. The crop comes
    after the color operation, whose statistics would include the padding.
    """
    motion = _draw_motion(tuple(image.shape[-2:]), turn="masks" in target)
    steps = [_color, partial(_move, motion)]
    if torch.rand(()) >= 0.5:
        steps.reverse()
    image, target = _apply([*steps, *crop], image, target)
    if _turns(motion):
        target = _fit_boxes(target)  # before erasing, which leaves boxes as they are
    return _erase(image, target)  # in place: `_move` has made copies


def _color(image, target):
    """One of nine color operations, chosen uniformly, with an integer magnitude m from 1 to 9, of 10."""
    m = int(torch.randint(1, 10, ()))
    factor = 1.8 * m / 10 + 0.1
    operations = (
        lambda x: x,
        colors.autocontrast,
        colors.equalize,
        lambda x: colors.by_value(partial(F.solarize, threshold=min(int(256 * m / 10), 255)), x),
        lambda x: F.adjust_saturation(x, factor),
        lambda x: F.adjust_contrast(x, factor),
        lambda x: colors.by_value(partial(F.adjust_brightness, brightness_factor=factor), x),
        lambda x: colors.adjust_sharpness(x, factor),
        lambda x: F.posterize(x, 4 - int(4 * m / 10)),
    )
    operation = operations[int(torch.randint(len(operations), ()))]
    return tv_tensors.wrap(operation(image.as_subclass(torch.Tensor)), like=image), target


def _draw_motion(shape: tuple[int, int], *, turn: bool) -> dict:
    """The arguments of an affine motion, for an image of this (height, width) in pixels.

    A translation along x or y by up to a tenth of the side, a rotation by up to 30 degrees, or a shear of both axes by
    factors of up to tanh(pi / 6): one of the four, chosen uniformly. `turn=False` draws translations only.
    """
    kind = int(torch.randint(4 if turn else 2, ()))
    translate, angle, shear = [0, 0], 0.0, [0.0, 0.0]
    if kind == 0:
        translate[0] = round(_uniform(-0.1, 0.1) * shape[1])
    elif kind == 1:
        translate[1] = round(_uniform(-0.1, 0.1) * shape[0])
    elif kind == 2:
        angle = _uniform(-30, 30)
    else:  # the shear factor is tanh of an angle in radians; torchvision expects the angle with that tangent
        shear = [math.degrees(math.atan(math.tanh(math.radians(_uniform(-30, 30))))) for _ in range(2)]
    return {"angle": angle, "translate": translate, "shear": shear}


def _turns(motion: dict) -> bool:
    return bool(motion["angle"] or any(motion["shear"]))


def _move(motion: dict, image, target):
    """Move image and target. Pixels from outside are gray in the image and 0 in the masks."""
    height, width = image.shape[-2:]
    fill = {tv_tensors.Image: GRAY, tv_tensors.Mask: 0}
    turn = _turns(motion) and height * width <= MOST_INDICES and Turn((height, width), motion["angle"], motion["shear"])

    def move(value):
        if isinstance(value, tv_tensors.BoundingBoxes) or (_turns(motion) and not turn):
            return F.affine(value, scale=1.0, fill=fill.get(type(value)), **motion)
        pixels = value.as_subclass(torch.Tensor)
        if not turn:
            moved = shift(pixels, motion["translate"], fill[type(value)])
        elif isinstance(value, tv_tensors.Image):
            moved = turn.image(pixels, GRAY)
        else:
            moved = turn.masks(pixels.reshape(-1, height, width)).reshape(value.shape)
        return tv_tensors.wrap(moved, like=value)

    moved = {name: move(value) if name != "labels" else value for name, value in target.items()}
    return move(image), moved


# DEVIATES: boxes after rotation and shear are tight around the moved masks. Soft Teacher keeps the hull of the turned
# box, whose IoU with the tight box is 0.7 on average. A turned box alone does not determine the object's extent, so
# targets without masks are neither rotated nor sheared.
def _fit_boxes(target: dict) -> dict:
    """Replace each box by the tight box of its mask, with edges past the last pixel; zeros for an empty mask."""
    edges = torch.tensor(extents(target["masks"].numpy()), dtype=target["boxes"].dtype).reshape(-1, 4)
    boxes = edges[:, [2, 0, 3, 1]]  # (top, bottom, left, right) to xyxy
    return {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"])}


def _erase(image, target):
    """Erase 1 to 4 patches, with sides of up to a fifth of the image's: gray in the image, 0 in the masks.

    Boxes do not change. Image and masks are modified.
    """
    height, width = image.shape[-2:]
    for _ in range(int(torch.randint(1, 5, ()))):
        ratio = _uniform(0, 0.2)
        h, w = int(height * ratio), int(width * ratio)
        top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
        image[..., top : top + h, left : left + w] = GRAY
        if "masks" in target:
            target["masks"][..., top : top + h, left : left + w] = 0
    return image, target


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
