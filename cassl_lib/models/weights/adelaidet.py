"""Weights of other libraries: AdelaiDet's FCOS and CondInst as ready detectors, and `load` for every other kind.

`load` knows our own names and those of AdelaiDet, detectron2, torchvision's FCOS and pyramids, and Swin transformers of
timm, Microsoft and detectron2; ModelConfig(pretrained=FILE) fills a backbone alone in the same way.
"""

from __future__ import annotations

import re

from torch import Tensor

from cassl_lib.config import ModelConfig
from cassl_lib.models.build import build_detector
from cassl_lib.models.condinst import CondInst
from cassl_lib.models.weights.load import LoadReport, load, read_weights, shown, unwrap
from cassl_lib.models.weights.names import to_our_names

__all__ = ["LoadReport", "from_adelaidet", "load", "read_weights", "to_our_names"]

FPN_STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
RESNETS = {  # blocks per stage, bottleneck? -> timm name
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
CAFFE_MEAN_BGR = (103.53, 116.28, 123.675)  # of pixels between 0 and 255; the matching std is 1
SEMANTIC_HEAD = ("mask_branch.seg_head.", "mask_branch.logits.")  # an auxiliary loss of training, unused in detection
SIZES = "mask_head.sizes_of_interest"
BUFFERS = (SIZES, "mask_head._iter", "pixel_mean", "pixel_std")


def from_adelaidet(
    state_dict: dict[str, Tensor],
    *,
    center: str | None = None,
    threshold_on: str | None = None,
    class_normalizer: str = "positives",
    stride_in_1x1: bool = True,
    bgr: bool = True,
    pixel_mean_bgr: tuple[float, float, float] = CAFFE_MEAN_BGR,
    pixel_std_bgr: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> CondInst:
    """A detector that computes what AdelaiDet's FCOS or CondInst with a ResNet computes, on the same pixels in RGB.

    Depth, classes, levels and the mask branch are read off the names and shapes. What no weight tells is given here,
    by default as the public settings have it.

    Args:
        state_dict: {AdelaiDet's name: tensor or array}, or a checkpoint with it below "model".
        center, threshold_on, class_normalizer: see ModelConfig; None is "mask" and "cls*ctr" with masks, "box" and
            "cls" without.
        stride_in_1x1: the Caffe ResNets' place of the stride; False for weights that began as torchvision's.
        bgr: whether the model was trained on blue, green, red.
        pixel_mean_bgr, pixel_std_bgr: what it was trained with, for pixels between 0 and 255.

    Raises:
        ValueError: when a tensor has no place here (deformable convolutions, shared towers, other backbones).
    """
    state_dict = unwrap(state_dict)
    semantic = [name for name in state_dict if name.startswith(SEMANTIC_HEAD)]
    source = to_our_names({n: v for n, v in state_dict.items() if n not in (*semantic, *BUFFERS)})
    masks = "head.controller.weight" in source
    config = read_config(source, masks=masks, stride_in_1x1=stride_in_1x1)
    check_sizes_of_interest(state_dict, config)
    settings = {
        "center": center or ("mask" if masks else "box"),
        "threshold_on": threshold_on or ("cls*ctr" if masks else "cls"),
        "class_normalizer": class_normalizer,
        "pixel_mean": tuple(value / 255 for value in reversed(pixel_mean_bgr)),
        "pixel_std": tuple(reversed(pixel_std_bgr)),
    }
    model = build_detector(ModelConfig(**config, **settings))
    # The stem takes blue first and 0..255, our images are red first and 0..1. The mean is subtracted before the
    # stem's zero padding, in both, so it cannot be folded and stays in pixel_mean.
    stem = source["backbone.body.conv1.weight"]
    report = load(model, source | {"backbone.body.conv1.weight": (stem.flip(1) if bgr else stem) * 255})
    if report.skipped:
        raise ValueError(
            f"{len(report.skipped)} tensors belong to parts that this FCOS and CondInst do not have (deformable "
            f"convolutions, shared towers, ...), so the detections would be others: {shown(report.skipped)}"
        )
    if semantic:
        print(f"ignored: the auxiliary semantic head, {len(semantic)} tensors; no detection depends on it")
    return model


def read_config(source: dict[str, Tensor], *, masks: bool, stride_in_1x1: bool) -> dict:
    """The sizes in ModelConfig that renamed AdelaiDet weights tell."""
    if "head.scales" not in source or "head.class_logits.weight" not in source:
        raise ValueError(
            f"no FCOS head among {len(source)} tensors ({shown(source)}, ...): the names must be AdelaiDet's, "
            "e.g. proposal_generator.fcos_head.cls_logits.weight; interop.load takes other libraries' weights"
        )
    stages = [count(source, rf"backbone\.body\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    bottleneck = "backbone.body.layer1.0.conv3.weight" in source
    if (tuple(stages), bottleneck) not in RESNETS:
        raise ValueError(f"no known ResNet has {stages} blocks per stage; ResNet-18, 34, 50, 101 and 152 can be read")
    levels = [p for p in FPN_STRIDES if f"neck.output.{p}.weight" in source or f"neck.top.{p}.weight" in source]
    levels = levels[-len(source["head.scales"]) :]
    config = {
        "backbone": RESNETS[tuple(stages), bottleneck],
        "backbone_options": (("stride_in_1x1", stride_in_1x1),),
        "backbone_norm": "frozen_bn",
        "frozen_stages": 2,
        "num_classes": len(source["head.class_logits.weight"]),
        "masks": masks,
        "channels": source["head.class_logits.weight"].shape[1],
        "strides": tuple(FPN_STRIDES[p] for p in levels),
        "ranges": tuple(8 * FPN_STRIDES[p] for p in levels[:-1]),
        "tower_convs": count(source, r"head\.class_tower\.convs\.(\d+)\."),
    }
    if masks:
        config["mask_channels"], config["mask_features"] = source["head.mask_branch.features.weight"].shape[1::-1]
        config["mask_convs"] = count(source, r"head\.mask_branch\.tower\.(\d+)\.")
    return config


def check_sizes_of_interest(state_dict: dict, config: dict) -> None:
    """The relative coordinates are divided by these sizes; the model takes them from its ranges."""
    expected = [*config["ranges"], 2 * config["ranges"][-1]]
    if SIZES in state_dict and [float(size) for size in state_dict[SIZES]] != expected:
        raise ValueError(f"{SIZES} is {list(map(float, state_dict[SIZES]))}, expected {expected}")


def count(source: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in source if (match := re.match(pattern, name))})
