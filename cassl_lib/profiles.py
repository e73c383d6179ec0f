"""The profiles as data: what each sets in the sections of a configuration; all else keeps the paper's defaults.

A profile is one entry of `PROFILES`; nothing else in the library asks which profile is on.
"""

from __future__ import annotations

SMALL_MODEL = dict(
    backbone="resnet10t",
    backbone_options=(("channels", (32, 64, 128, 256)), ("stem_type", "deep"), ("stem_width", 16)),
    channels=64,
    strides=(8, 16, 32),
    ranges=(32, 64),
    tower_convs=2,
    head_norm="bn",
    mask_channels=32,
    mask_convs=2,
)
SMALL_TRAINING = dict(learning_rate=4e-3, warmup_steps=100, clip_norm=5.0, workers=0, checkpoint_every=200)

# DEVIATES: at the small profiles masks of entities may overlap, as those of objects do. The mask grid of 4 pixels is
# too coarse for boxes recomputed from non-overlapping masks on scenes of 128: on the tuning scenes the pseudo labeler's
# entity AP would fall from 47.6 to 24.0 (paper: 42.1).
SMALL_OVERLAP = True

SMOKE_TRAINING = SMALL_TRAINING | dict(steps=6, batch_size=8, warmup_steps=2, checkpoint_every=2, log_every=2)

SMALL_PANOPTIC = dict(min_stuff_area=64 * 64 * 128 * 128 // (480 * 640))  # the same share of a scene

PROFILES: dict[str, dict] = {
    "smoke": {
        "doc": "for tests; seconds",
        "grid": (1, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 1,  # of the tables
        "scenes": dict(train=24, val=12, tune=4, coco=16, places_part=6, openimages_part=6, size=96),
        "overlap": SMALL_OVERLAP,
        "model": SMALL_MODEL | dict(channels=32, mask_channels=16),
        "augment": dict(sizes=(80, 96, 112), strong_sizes=(48, 144), longest=192, crop=96, test_size=96),
        "pseudo_labeler": SMOKE_TRAINING,
        "warmup": SMOKE_TRAINING,
        "finetune": SMOKE_TRAINING,
        "pseudo_labels": dict(shard_size=8, batch_size=8),
        "panoptic": SMALL_PANOPTIC,
    },
    "demo": {
        "doc": "embedded scenes on a CPU, a quarter of an hour",
        "grid": (1, 3, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 1,  # of the tables
        "scenes": {},
        "overlap": SMALL_OVERLAP,
        "model": SMALL_MODEL,
        "augment": dict(sizes=(96, 112, 128, 144, 160), strong_sizes=(64, 192), longest=256, crop=128, test_size=128),
        "pseudo_labeler": SMALL_TRAINING | dict(steps=1200),
        "warmup": SMALL_TRAINING | dict(steps=1200),
        "finetune": SMALL_TRAINING | dict(steps=1200),
        "pseudo_labels": dict(shard_size=250, batch_size=32),
        "panoptic": SMALL_PANOPTIC,
    },
    "gpu": {
        "doc": "embedded scenes, longer training on one GPU",
        "grid": (1, 2, 3, 4, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 3,  # of the tables
        "scenes": {},
        "overlap": SMALL_OVERLAP,
        "model": SMALL_MODEL | dict(channels=128, tower_convs=4, mask_channels=64, mask_convs=4),
        "augment": dict(sizes=(96, 112, 128, 144, 160), strong_sizes=(64, 192), longest=256, crop=128, test_size=128),
        "pseudo_labeler": SMALL_TRAINING | dict(steps=10_000, workers=8),
        "warmup": SMALL_TRAINING | dict(steps=10_000, workers=8),
        "finetune": SMALL_TRAINING | dict(steps=5_000, workers=8),
        "pseudo_labels": dict(shard_size=1000, batch_size=64),
        "panoptic": SMALL_PANOPTIC,
    },
    "paper": {
        "doc": "COCO, Open Images and Places365 with the paper's schedule",
        "grid": (1, 2, 3, 4, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 1,  # of the tables
        "scenes": None,
        "overlap": None,
        "model": dict(pretrained=True, drop_path=0.2),
        "augment": {},
        "pseudo_labeler": dict(epochs=36),  # UNSTATED: the pseudo labeler's schedule; as long as finetuning
        "warmup": dict(epochs=60),  # UNSTATED: whether 60 epochs also hold above tiny
        "finetune": dict(epochs=36),
        "pseudo_labels": {},
        "panoptic": {},
    },
}
