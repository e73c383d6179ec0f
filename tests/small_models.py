"""Detectors small enough to be built and run many times."""

from cassl_lib.models import ModelConfig

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
