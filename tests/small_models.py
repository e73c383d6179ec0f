"""Detectors small enough to build and run many times, and inputs for them."""

from dataclasses import replace

import torch

from cassl_lib.models import Detector, ModelConfig, build_detector

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
AGNOSTIC = ModelConfig(
    backbone="resnet10t",
    backbone_options=(("channels", (8, 8, 16, 16)), ("stem_width", 8)),
    num_classes=1,
    channels=8,
    strides=(8, 16, 32, 64),
    ranges=(32, 64, 128),
    tower_convs=1,
    mask_channels=8,
    mask_convs=1,
)


def lively(config: ModelConfig = SMALL) -> Detector:
    """A detector with larger initial weights in the head, so that its predictions differ between locations."""
    model = build_detector(config)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if parameter.dim() == 4:
                parameter.mul_(3 if "controller" in name else 10)
    return model


def with_settings(model: Detector, **settings) -> Detector:
    """A detector with the weights of `model` and other inference settings, in the same mode."""
    other = build_detector(replace(model.config, **settings))
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


def make_target(height: int, width: int, *squares: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """A target of squares (x, y, side) with their masks and labels 0, 1, 2, ..."""
    boxes = torch.tensor([[x, y, x + side, y + side] for x, y, side in squares], dtype=torch.float32).view(-1, 4)
    masks = torch.zeros(len(squares), height, width, dtype=torch.bool)
    for mask, (x, y, side) in zip(masks, squares, strict=True):
        mask[y : y + side, x : x + side] = True
    return {"boxes": boxes, "labels": torch.arange(len(squares)), "masks": masks}


def make_batch() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A uint8 image of 64 x 96 with two squares and a float image of 70 x 60 with one."""
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), torch.rand(3, 70, 60)]
    return images, [make_target(64, 96, (4, 8, 30), (50, 20, 20)), make_target(70, 60, (10, 10, 40))]
