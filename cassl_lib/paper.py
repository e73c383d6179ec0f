"""Every number that the paper prints, once: Tables 1 to 10 by their row names, and differences stated in the text.

AP, PQ and gains are in percent, as printed; None where the paper gives no number. Our copy of the paper has lost its
sub- and superscripts, so the column names are reconstructed.
"""

SOURCES = {"coco_unlabeled": 123_403, "places365": 1_803_460, "open_images": 1_743_042}
"""Number of images of the three unlabeled sources, from their own publications."""

# UNSTATED: Sec. 4, the composition of small, base and large. The paper gives their sizes (Table 7) and the three
# sources. The sizes fit tiny + 3/10 of Places365, Open Images, and all three sources.
IMAGES = {"train": 118_287, "tiny": 123_403, "small": 664_441, "base": 1_743_042, "large": 3_669_905}
"""Number of images of COCO train2017 (labeled) and of the four unlabeled pools."""

EPOCHS = {"warmup": 60, "finetune": 36}
"""Epochs of warm-up and finetuning "unless specified" (Sec. 4); Tables 3 and 4 vary them in steps of 12."""

TABLE1 = {
    "COCO train2017": {
        "annotation": "Ground-truth",
        "images": 118_000,
        "class-specific AP": 41.0,
        "class-agnostic AP": 41.9,
    },
    "COCO unlabeled": {
        "annotation": "Pseudo labels",
        "images": 123_000,
        "class-specific AP": 35.9,
        "class-agnostic AP": 40.0,
    },
}
"""Quality gap of pseudo labels: box AP on COCO val of FCOS R-50, trained for 36 epochs on ground truth or on pseudo
labels, class-specific or class-agnostic."""


TABLE2_COLUMNS = (
    "cls-agnostic object box AP",
    "cls-agnostic object mask AP",
    "cls-specific AP",
    "entity AP",
    "finetuned det AP",
    "finetuned mask AP",
    "finetuned PQ",
)


def _table2(object_box=None, object_mask=None, specific=None, entity=None, *, finetuned) -> dict:
    return dict(zip(TABLE2_COLUMNS, (object_box, object_mask, specific, entity, *finetuned), strict=True))


TABLE2 = {
    "ImageNet": _table2(finetuned=(46.8, 43.0, 41.4)),
    "Objects (G,A)": _table2(41.9, 35.3, finetuned=(46.9, None, None)),
    "Objects (P,S)": _table2(specific=35.9, finetuned=(47.1, None, None)),
    "Objects (P,A)": _table2(40.0, 33.4, finetuned=(48.1, 45.0, 42.5)),
    "Entities (P,A)": _table2(entity=40.2, finetuned=(48.2, 45.2, 43.7)),
}
"""Warm-up training data: G ground truth, P pseudo labels, A class-agnostic, S class-specific. The first four columns
are of the warmed-up model: class-agnostic object box and mask AP, class-specific AP, entity AP. The others are after
finetuning: box AP, mask AP, PQ. 41.9, 40.0 and 35.9 also appear in Table 1, there for FCOS R-50, here among Swin-T."""


def _aps(*values: float) -> dict:
    return dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), values, strict=True))


TABLE3 = {
    "12 (1x)": _aps(38.4, 59.6, 40.5, 14.5, 35.0, 52.6),
    "24 (2x)": _aps(39.6, 60.5, 41.9, 15.0, 36.3, 54.1),
    "36 (3x)": _aps(39.9, 60.8, 42.4, 15.1, 36.9, 54.6),
    "48 (4x)": _aps(40.2, 60.8, 42.7, 15.4, 37.1, 54.8),
    "60 (5x)": _aps(40.2, 60.9, 42.8, 15.4, 37.0, 54.9),
}
"""Warm-up epochs: class-agnostic (entity) AP of the warmed-up model. The text says it saturates after 40 epochs."""

TABLE4 = {
    "1x": {"1x": 45.3, "2x": 46.3, "3x": 46.4, "4x": 46.8, "5x": 47.1},
    "2x": {"1x": 47.0, "2x": 47.4, "3x": 47.7, "4x": 47.3, "5x": 47.7},
    "3x": {"1x": 47.2, "2x": 47.7, "3x": 47.6, "4x": 47.9, "5x": 48.2},
    "4x": {"1x": 47.3, "2x": 47.6, "3x": 47.7, "4x": 47.9, "5x": 48.0},
    "5x": {"1x": 47.5, "2x": 47.7, "3x": 47.9, "4x": 47.9, "5x": 48.0},
}
"""Box AP after finetuning, `TABLE4[finetuning][warm-up]`, in units of 12 epochs. The text identifies the axes:
warm-up 5x and finetuning 3x give 48.2."""

TABLE5 = {
    "pseudo labeler": [38.0, 39.1, 40.6, 41.4, 42.1],
    "warmed-up target detector": [36.1, 37.3, 38.8, 39.6, 40.2],
}
"""Class-agnostic entity AP of five pseudo labelers and of the models they warm up. The paper does not say how the
pseudo labelers differ; the last one is that of the other tables."""

TABLE6 = {
    "weak": {
        "weak": {"warm-up entity AP": 40.2, "finetuned det AP": 48.2},
        "strong": {"warm-up entity AP": 40.6, "finetuned det AP": 48.6},
    },
    "strong": {
        "weak": {"warm-up entity AP": 40.2, "finetuned det AP": 48.6},
        "strong": {"warm-up entity AP": 40.6, "finetuned det AP": 49.1},
    },
}
"""Data augmentation, `TABLE6[finetuning][warm-up]`, pool tiny. The paper does not name rows and columns. The AP of the
warmed-up model changes along the columns only, so these are the warm-up's augmentation."""

TABLE7 = {
    "Tiny": {"images": 123_000, "warm-up entity AP": 40.2, "finetuned det AP": 48.2},
    "Small": {"images": 660_000, "warm-up entity AP": 40.7, "finetuned det AP": 48.8},
    "Base": {"images": 1_740_000, "warm-up entity AP": 41.4, "finetuned det AP": 49.7},
    "Large": {"images": 3_660_000, "warm-up entity AP": 42.0, "finetuned det AP": 50.6},
}
"""Scale of the unlabeled data, weak augmentation."""


def _table8(kind, images, model, *, baseline=None, ap=None, gain=None, note="the AP cell is lost") -> dict:
    return {"type": kind, "images": images, "model": model, "baseline": baseline, "AP": ap, "gain": gain, "note": note}


TABLE8 = {
    "MoCo-v2": _table8("self-supervised", 1_280_000, "R-50-FPN"),
    "DenseCL": _table8("self-supervised", 1_280_000, "R-50-FPN"),
    "DetCo": _table8("self-supervised", 1_280_000, "R-50-MaskRCNN"),
    "DetCon": _table8("self-supervised", 1_280_000, "R-50-FPN"),
    "PreDet": _table8("self-supervised", 50_000_000, "R-50-MaskRCNN"),
    "Proposal learning": _table8("semi-supervised", 120_000, "R-50-FPN"),
    "STAC": _table8("semi-supervised", 120_000, "R-50-FPN"),
    "Self-training": _table8("semi-supervised", 2_900_000, "R-50-FPN (SimCLR)"),
    "Soft Teacher, R-50-FPN, 0.12M": _table8(
        "semi-supervised", 120_000, "R-50-FPN", gain=3.6, note="only the gain is in the text; the row is lost"
    ),
    "Soft Teacher, Swin-T-FCOS, 1.74M": _table8(
        "semi-supervised", 1_740_000, "Swin-T-FCOS", gain=2.5, note="only the gain is in the text"
    ),
    "Soft Teacher, Swin-L-HTC++, 3.66M": _table8(
        "semi-supervised", 3_660_000, "Swin-L-HTC++", gain=1.7, note="only the gain is in the text"
    ),
    "CA-SSL, R-50-FPN, 0.12M": _table8(
        "semi-supervised",
        120_000,
        "R-50-FPN",
        note='no number: "a much larger margin than other methods"; the row is lost',
    ),
    "CA-SSL, Swin-T-FCOS, 1.74M": _table8(
        "semi-supervised", 1_740_000, "Swin-T-FCOS", baseline=46.8, ap=50.8, gain=4.0, note="text; baseline of Table 9"
    ),
    "CA-SSL, Swin-T-FCOS, 3.66M": _table8(
        "semi-supervised", 3_660_000, "Swin-T-FCOS", baseline=46.8, ap=51.5, gain=4.7, note="text, Tables 9 and 10"
    ),
    "CA-SSL, Swin-L-HTC++, 3.66M": _table8(
        "semi-supervised", 3_660_000, "Swin-L-HTC++", baseline=58.2, ap=60.9, gain=2.7, note="text"
    ),
}
"""Comparison with other methods, strong augmentation, box AP on COCO val. Our copy of the paper has lost the AP column;
only what the text repeats is here, and `note` says what that is."""


def _table9(parts: int, *aps: float) -> dict:
    ticks = {part: n < parts for n, part in enumerate(("backbone", "neck", "head", "classifier"))}
    return ticks | dict(zip(("AP", "AP50", "AP75"), aps, strict=True))


TABLE9 = {
    "nothing": _table9(0, 46.8, 66.2, 50.8),
    "backbone": _table9(1, 50.6, 69.2, 55.2),
    "backbone, neck": _table9(2, 50.8, 69.4, 55.5),
    "backbone, neck, head": _table9(3, 51.5, 69.5, 55.3),
    "backbone, neck, head, classifier": _table9(4, 51.5, 69.6, 55.4),
}
"""Parts initialized from the warmed-up model (pool large, strong augmentation) of FCOS Swin-T; "nothing": ImageNet."""


def _table10(initialized: str, metric: str, imagenet: float, cassl: float, gain: float) -> dict:
    return {"initialized": initialized, "metric": metric, "ImageNet": imagenet, "CA-SSL": cassl, "gain": gain}


TABLE10 = {
    "DET, FCOS": _table10("E", "box AP", 46.8, 51.5, 4.7),
    "DET, RetinaNet": _table10("P", "box AP", 42.8, 47.9, 5.1),
    "DET, FPN": _table10("P", "box AP", 44.0, 46.5, 2.5),
    "INS, CondInst": _table10("E", "mask AP", 41.9, 44.9, 3.0),
    "INS, Mask R-CNN": _table10("P", "mask AP", 42.8, 45.5, 2.7),
    "Entity, CondInst": _table10("E", "entity AP", 35.1, 38.2, 3.1),
    "Point, Mask R-CNN": _table10("P", "keypoint AP", 66.8, 67.8, 1.0),
    "Panop, PanopticFPN": _table10("P", "PQ", 39.5, 41.5, 2.0),
}
"""Transfer to other frameworks and tasks, Swin-T. The paper does not explain the types: E is probably "entirely
initialized", P "partially" (backbone and neck)."""

TEXT = {
    "table 1, class-specific gap": 5.1,
    "table 1, class-agnostic gap": 1.9,
    "table 2, class-agnostic over class-specific": 1.0,
    "table 2, PQ of entities over objects": 1.2,
    "table 9, backbone alone": 3.8,
}
"""Differences stated in the text and not in the tables."""
