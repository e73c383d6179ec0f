"""Augmentation by torchvision's own transforms: slow, but plainly what is meant, with the same draws."""

import math

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


def plain_training_sample(config, image, target, *, pseudo_labeled):
    """What `training_transform(config, pseudo_labeled=...)` returns for an image (3, H, W) and a target."""
    low, high = config.strong_sizes
    sizes = list(config.sizes) if config.kind == "weak" else list(range(low, high + 1))
    image, target = v2.RandomHorizontalFlip(0.5)(tv_tensors.Image(image.contiguous()), target)
    image, target = v2.RandomShortestSize(sizes, max_size=config.longest)(image, target)
    crop = v2.RandomCrop(config.crop, pad_if_needed=True) if config.crop else lambda image, target: (image, target)
    if config.kind == "weak":
        image, target = crop(image, target)
    elif not pseudo_labeled:
        image, target = crop(color(image), target)
    else:
        motion = draw_motion(image.shape[-2:], turn="masks" in target)
        if torch.rand(()) >= 0.5:
            image, target = move(motion, image, target)
            image = color(image)
        else:
            image = color(image)
            image, target = move(motion, image, target)
        image, target = crop(image, target)
        if motion["angle"] or any(motion["shear"]):
            target = fit_boxes(target)
        image, target = erase(image, target)
    return drop_lost(image, target)


def color(image):
    m = int(torch.randint(1, 10, ()))
    factor = 1.8 * m / 10 + 0.1
    operations = (
        lambda x: x,
        F.autocontrast,
        F.equalize,
        lambda x: F.solarize(x, min(int(256 * m / 10), 255)),
        lambda x: F.adjust_saturation(x, factor),
        lambda x: F.adjust_contrast(x, factor),
        lambda x: F.adjust_brightness(x, factor),
        lambda x: F.adjust_sharpness(x, factor),
        lambda x: F.posterize(x, 4 - int(4 * m / 10)),
    )
    return operations[int(torch.randint(9, ()))](image)


def draw_motion(size, *, turn):
    height, width = size
    kind, motion = int(torch.randint(4 if turn else 2, ())), {"angle": 0.0, "translate": [0, 0], "shear": [0.0, 0.0]}
    if kind == 0:
        motion["translate"] = [round(uniform(-0.1, 0.1) * width), 0]
    elif kind == 1:
        motion["translate"] = [0, round(uniform(-0.1, 0.1) * height)]
    elif kind == 2:
        motion["angle"] = uniform(-30, 30)
    else:
        motion["shear"] = [math.degrees(math.atan(math.tanh(math.radians(uniform(-30, 30))))) for _ in range(2)]
    return motion


def move(motion, image, target):
    def moved(value):
        fill = {tv_tensors.Image: 125, tv_tensors.Mask: 0}.get(type(value))
        return F.affine(value, scale=1.0, fill=fill, **motion)

    return moved(image), {name: value if name == "labels" else moved(value) for name, value in target.items()}


def fit_boxes(target):
    boxes = torch.zeros_like(target["boxes"])
    for box, mask in zip(boxes, target["masks"], strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            box[:] = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"])}


def erase(image, target):
    height, width = image.shape[-2:]
    for _ in range(int(torch.randint(1, 5, ()))):
        ratio = uniform(0, 0.2)
        h, w = int(height * ratio), int(width * ratio)
        top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
        image = F.erase(image, top, left, h, w, torch.tensor(125, dtype=torch.uint8))
        if "masks" in target:
            masks = F.erase(target["masks"].as_subclass(torch.Tensor), top, left, h, w, torch.tensor(0).byte())
            target = {**target, "masks": tv_tensors.Mask(masks)}
    return image, target


def drop_lost(image, target):
    boxes = F.clamp_bounding_boxes(target["boxes"]).as_subclass(torch.Tensor)
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    if "masks" in target:
        keep &= target["masks"].flatten(1).bool().any(1)
    kept = {name: value if name == "ignored" else value[keep] for name, value in {**target, "boxes": boxes}.items()}
    return image, kept


def uniform(low, high):
    return low + (high - low) * float(torch.rand(()))
