"""The settings of a run, frozen. Defaults are the paper's; `resolve` is the only way from parameters to a `Config`.

A value that the paper does not give is marked UNSTATED, a departure from the paper DEVIATES; docs/deviations.md lists
both.
"""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, fields

INFINITE = 1e8  # the upper end of the last range of interest, in pixels
SPLITS = ("tiny", "small", "base", "large")  # pools of unlabeled images (Sec. 4)
SHIFTED = ("places", "openimages")  # pools of embedded scenes that look different from the labeled ones
THRESHOLD = 0.5  # of the pseudo labels where no held-out images choose it
KEEP = ("last", "best")  # weights that a stage may keep
PARTS = ("backbone", "neck", "head", "classifier")  # of a detector, that finetuning may start from (Table 9)


@dataclass(frozen=True)
class ModelConfig:
    """The detector. Defaults are the paper's base detector: CondInst with Swin-T (Sec. 3.3 and 4)."""

    backbone: str = "swin_tiny_patch4_window7_224"  # a timm name
    backbone_options: tuple = ()  # (name, value) pairs handed to timm.create_model
    backbone_norm: str = "default"  # default | frozen_bn | gn
    frozen_stages: int = 0  # stem and first stages that are not trained (detectron2's FREEZE_AT)
    pretrained: bool | str = False  # ImageNet weights: True downloads by timm, a str is a local file
    drop_path: float = 0.0
    num_classes: int = 80  # 1 is class-agnostic
    masks: bool = True  # False: box-only, plain FCOS
    channels: int = 256  # of the FPN and the towers
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)  # of the head's levels, from 4, 8, 16, 32, 64, 128
    ranges: tuple[float, ...] = (64, 128, 256, 512)  # upper end of max(l, t, r, b) of all levels but the last, pixels
    tower_convs: int = 4
    head_norm: str = "gn"  # gn | bn, in the towers
    center: str = "mask"  # center of the sample region: mask centroid or box center
    center_radius: float = 1.5  # half side of the sample region, in strides
    class_normalizer: str = "positives"  # the class loss is divided by: positives | moving (their average) | locations
    mask_channels: int = 128  # of the mask branch
    mask_convs: int = 4
    mask_features: int = 8
    mask_norm: str = "bn"  # bn | gn, in the mask branch
    # Of the mask logits that the loss compares and inference thresholds, pixels; a divisor of the finest stride.
    mask_stride: int = 4  # 4: public code | 2: CondInst paper; four times as many cells
    mask_proposals: int = 500  # at most this many positives get a mask loss, per process
    score_threshold: float = 0.05  # candidate test
    threshold_on: str = "cls*ctr"  # cls*ctr (CondInst) | cls (FCOS): what the candidate test looks at
    candidates_per_level: int = 1000
    nms_threshold: float = 0.6
    detections_per_image: int = 100
    one_entity_per_pixel: bool = False  # overlapping masks: the higher score keeps the pixels, boxes follow the masks
    rescore_masks: bool = False  # multiply the score by the mean probability inside the mask
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # RGB in [0, 1]
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AugmentConfig:
    """Geometry and color of training samples (Sec. 4, Table 6), and the size at test time. All sizes in pixels."""

    kind: str = "weak"  # weak: multi-scale and flip | strong: scale jitter, color; geometry, erasing on pseudo labels
    sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # short sides, one drawn per image; of the weak kind
    # UNSTATED: the range of the scale jitter; Soft Teacher's.
    strong_sizes: tuple[int, int] = (400, 1200)  # lowest and highest short side, an integer drawn per image
    longest: int = 1333
    crop: int = 0  # afterward crop or pad to this square; 0 keeps the whole image
    test_size: int = 800  # short side at test time and when labeling


@dataclass(frozen=True)
class TrainConfig:
    """One training stage. `steps` wins over `epochs` when it is not 0."""

    epochs: float = 36
    steps: int = 0
    batch_size: int = 16  # over all processes
    accumulate: int = 1  # parts of a process's batch, one after another, whose gradients are averaged: for few GPUs
    learning_rate: float = 1e-4  # UNSTATED: Entity's Swin configs; for 16 images, scaled linearly
    fresh_rate: float = (
        1.0  # times the learning rate, for what finetuning starts afresh: 4 as in CutLER, not in the paper
    )
    optimizer: str = "adamw"  # adamw | sgd (momentum 0.9)
    weight_decay: float = 0.05  # UNSTATED: Entity's Swin configs; 0 on norms, biases, position tables
    warmup_steps: int = 1500  # of the learning rate, linear from 1/1000
    milestones: tuple[float, ...] = (2 / 3, 25 / 27)  # shares of the run where the rate falls tenfold (3x: 180k, 250k)
    clip_norm: float = 1.0  # UNSTATED: no clipping is seen in the authors' configs; 0 turns it off
    precision: str = "auto"  # auto: bf16 autocast on CUDA, else float32 | bf16 | float32
    workers: int = 4  # loading processes of each training process
    checkpoint_every: int = 1000  # steps
    log_every: int = 50  # steps
    evaluate_every: int = 0  # steps between evaluations on held-out images; 0: after the last step alone
    keep: str = "last"  # the run's weights: last | best, those of the evaluation with the highest AP


@dataclass(frozen=True)
class LabelConfig:
    """The pseudo labels (Sec. 3.1, eqs. 2 and 3)."""

    # Lowest stored score; the threshold is applied when labels are read. None stores every detection: the candidate
    # test (cls*ctr > 0.05) leaves scores above 0.22. With 0.05 a store is five times as large.
    keep: float | None = None
    # UNSTATED: the constant threshold of eq. 3, on sqrt(cls*ctr). None: each pseudo labeler's own, with the best F1 of
    # its labels on held-out images; without any, `THRESHOLD`.
    threshold: float | None = None
    batch_size: int = 16
    shard_size: int = 10_000  # images


@dataclass(frozen=True)
class PanopticConfig:
    """How detected things and stuff are merged into non-overlapping segments. The paper states none of it.

    The defaults are those of Panoptic FPN (Kirillov et al., CVPR 2019), as in public code for COCO.
    """

    # UNSTATED: Panoptic FPN's, on the softmax score of a box head. Ours is sqrt(cls * ctr), another scale: tune it.
    # None: the one with the best PQ on held-out images.
    score_threshold: float | None = 0.5  # lowest score of an instance that is painted
    overlap_threshold: float = 0.5  # largest share of an instance that others may hold already
    min_stuff_area: int = 64 * 64  # pixels of the original image, 1.3 % of a photograph of 640 x 480

    def __post_init__(self):
        for name in ("score_threshold", "overlap_threshold"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if self.min_stuff_area < 0:
            raise ValueError(f"min_stuff_area is a number of pixels, not {self.min_stuff_area}")


@dataclass(frozen=True)
class Config:
    """Everything a stage needs. Made by `resolve`, never by hand. Each stage has a section of its own name."""

    profile: str
    split: str  # tiny, small, base, large: the pool of unlabeled images; of scenes also places, openimages
    seed: int  # of labeled images, weights, order and augmentation; each stage has streams of its own
    annotation: str  # what pseudo labeler and warm-up learn: objects, or entities (things and stuff, Table 2)
    target: str  # what finetuning learns: instances of the thing classes, or panoptic (things and stuff, for PQ)
    crowd: str  # pixels of crowds and without annotation, in entities: background or ignore
    overlap: bool | None  # whether detected masks may overlap; None: those of objects may, those of entities may not
    labeled: str  # "scenes", or JSON[:FOLDER]
    labeled_images: int  # how many of them are used, drawn by the seed; 0 is all
    unlabeled: str  # "scenes", "split", or parts of a pool joined by commas
    val: str  # "scenes", or JSON[:FOLDER]
    heldout: str | None  # "scenes", or JSON[:FOLDER]: labeled images to choose the threshold on; no stage sees them
    store: str | None  # a pseudo-label store to warm up on; None: the pseudo labeler's labels of the pool
    class_specific: bool  # pseudo labeler and warm-up learn classes too: Objects (P,S), Table 2
    make_inputs: bool  # missing input runs are made on the way; False stops with the command that makes them
    baseline_lengths: tuple[float, ...]  # of the baselines, in lengths of finetuning; the best one is compared
    scenes: tuple  # (name, value) pairs of SceneSpec that differ from its defaults
    model: ModelConfig
    augment: AugmentConfig
    panoptic: PanopticConfig
    pseudo_labeler: TrainConfig
    pseudo_labels: LabelConfig
    warmup: TrainConfig
    finetune: TrainConfig

    def __str__(self) -> str:
        """The settings as aligned text, one per line, in the order above."""
        return "\n".join(f"{name:15} {value}" for name, value in self._lines())

    def _repr_html_(self) -> str:
        """The settings folded away, as a notebook shows them."""
        rows = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._lines()
        )
        title = f"profile {self.profile}, split {self.split}, seed {self.seed}"
        return f"<details><summary>{html.escape(title)}: all settings</summary><table>{rows}</table></details>"

    def _lines(self) -> list[tuple[str, str]]:
        lines = []
        for field in fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "__dataclass_fields__"):
                shown = ", ".join(f"{name}={each!r}" for name, each in asdict(value).items())
            else:
                shown = repr(value)
            lines.append((field.name, shown))
        return lines


TRAINING_SECTIONS = tuple(field.name for field in fields(Config) if field.type == "TrainConfig")
