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

# DEVIATES: at the small profiles masks of entities may overlap, as those of objects do: on such small scenes masks are
# too coarse for boxes recomputed from non-overlapping ones. `cassl operating-point` measures both.
SMALL_OVERLAP = True

SMOKE_TRAINING = SMALL_TRAINING | dict(steps=6, batch_size=8, warmup_steps=2, checkpoint_every=2, log_every=2)

SMALL_PANOPTIC = dict(
    score_threshold=None,  # chosen on the tuning scenes
    min_stuff_area=64 * 64 * 96 * 96 // (480 * 640),  # the same share of a scene of 96 px
)

# 100 labeled scenes and 3,100 unlabeled ones of the same look: labels are scarce, not steps.
DEMO_SCENES = dict(size=96, objects=(2, 6), radius=(0.08, 0.3), camouflage=0.4, clutter=5.0, texture=0.8)

DEMO_MODEL = SMALL_MODEL | dict(
    backbone_options=(("channels", (24, 48, 96, 192)), ("stem_type", "deep"), ("stem_width", 8)),
    mask_channels=16,
    mask_stride=2,  # on a grid of 4 pixels even perfect masks of such small things have a mask AP below 30
    mask_proposals=200,
)
DEMO_AUGMENT = dict(sizes=(72, 84, 96, 108, 120), strong_sizes=(48, 144), longest=192, crop=96, test_size=96)

PROFILES: dict[str, dict] = {
    "smoke": {
        "doc": "for tests; seconds",
        "grid": (1, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 1,  # of the tables
        "split": "tiny",  # unless one is asked for
        "labeled_images": 16,
        "baseline_lengths": (1, 2),  # of the chain, in lengths of finetuning
        "baseline_curve": (1, 2),  # of the tables
        "scenes": dict(train=24, val=12, tune=4, pool=(16, 8, 8, 8), places=8, openimages=8, size=96),
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
        "doc": "embedded scenes on a CPU, twenty minutes",
        "grid": (1, 3, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 1,  # of the tables
        "split": "large",
        "labeled_images": 100,
        "baseline_lengths": (1, 4),
        "baseline_curve": (1, 4, 8),
        "scenes": DEMO_SCENES,
        "overlap": SMALL_OVERLAP,
        "model": DEMO_MODEL,
        "augment": DEMO_AUGMENT,
        "pseudo_labeler": SMALL_TRAINING | dict(steps=1200),
        "warmup": SMALL_TRAINING | dict(steps=2000),
        "finetune": SMALL_TRAINING | dict(steps=800),
        "pseudo_labels": dict(shard_size=250, batch_size=32),
        "panoptic": SMALL_PANOPTIC,
    },
    "gpu": {
        "doc": "embedded scenes, a larger model and longer training on one GPU",
        "grid": (1, 3, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 3,  # of the tables
        "split": "large",
        "labeled_images": 300,
        "baseline_lengths": (1, 4),
        "baseline_curve": (1, 4, 8),
        "scenes": dict(train=1500, pool=(320, 1480, 3000, 5200), places=4800, openimages=4800),
        "overlap": SMALL_OVERLAP,
        "model": SMALL_MODEL | dict(channels=128, tower_convs=4, mask_channels=64, mask_convs=4, mask_stride=2),
        "augment": dict(sizes=(96, 112, 128, 144, 160), strong_sizes=(64, 192), longest=256, crop=128, test_size=128),
        "pseudo_labeler": SMALL_TRAINING | dict(steps=2_000, workers=8),
        "warmup": SMALL_TRAINING | dict(steps=3_500, workers=8),
        "finetune": SMALL_TRAINING | dict(steps=1_200, workers=8),
        "pseudo_labels": dict(shard_size=1000, batch_size=64),
        "panoptic": SMALL_PANOPTIC,
    },
    "paper": {
        "doc": "COCO, Open Images and Places365 with the paper's schedule",
        "annotation": "entities",  # what pseudo labeler and warm-up learn (Sec. 3.1); objects at the other profiles
        "grid": (1, 2, 3, 4, 5),  # of the five lengths, strengths and thresholds of the tables
        "seeds": 1,  # of the tables
        "split": "tiny",
        "labeled_images": 0,
        "baseline_lengths": (1, 2),
        "baseline_curve": (1, 2),
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
