"""Detectors from AdelaiDet's FCOS and CondInst weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from cassl_lib.config import ModelConfig
from cassl_lib.errors import WeightsError
from cassl_lib.models.build import build_detector
from cassl_lib.models.detector import Detector
from cassl_lib.models.weights.load import load, shown, unwrap
from cassl_lib.models.weights.names import to_our_names

logger = logging.getLogger(__name__)

FPN_STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
RESNETS = {  # (blocks per stage, whether they are bottlenecks): timm name
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
CAFFE_MEAN_BGR = (103.53, 116.28, 123.675)  # of pixels in [0, 255], used with std 1
SEMANTIC_HEAD = ("mask_branch.seg_head.", "mask_branch.logits.")  # an auxiliary training loss, not used for detection
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
) -> Detector:
    """Build a detector equivalent to AdelaiDet's FCOS or CondInst with a ResNet, for the same pixels in RGB.

    Depth, classes, levels and mask branch are inferred from names and shapes. Settings that the weights do not show
    are parameters; their defaults are those of the public configs.

    Args:
        state_dict: {AdelaiDet's name: tensor or array}, or a checkpoint that has it under "model".
        center, threshold_on, class_normalizer: see ModelConfig. None is "mask" and "cls*ctr" for CondInst, "box" and
            "cls" for FCOS.
        stride_in_1x1: stride in the first 1x1 convolution, as in Caffe ResNets; False for weights that were finetuned
            from torchvision's.
        bgr: whether the model was trained on BGR images.
        pixel_mean_bgr, pixel_std_bgr: the model's normalization, for pixels in [0, 255], in BGR order.

    Raises:
        WeightsError: the weights are not from such a model (deformable convolutions, shared towers, other backbones).
    """
    state_dict = unwrap(state_dict)
    semantic = [name for name in state_dict if name.startswith(SEMANTIC_HEAD)]
    source = to_our_names({n: v for n, v in state_dict.items() if n not in (*semantic, *BUFFERS)})
    masks = "head.controller.weight" in source
    config = read_config(source, masks=masks, stride_in_1x1=stride_in_1x1)
    check_sizes_of_interest(state_dict, config)
    config = replace(
        config,
        center=center or ("mask" if masks else "box"),
        threshold_on=threshold_on or ("cls*ctr" if masks else "cls"),
        class_normalizer=class_normalizer,
        pixel_mean=tuple(value / 255 for value in reversed(pixel_mean_bgr)),
        pixel_std=tuple(reversed(pixel_std_bgr)),
    )
    model = build_detector(config)
    # Their stem expects BGR in [0, 255], ours RGB in [0, 1]: fold order and scale into its weights. The mean cannot be
    # folded, because it is subtracted before the stem's zero padding; it is in pixel_mean.
    stem = source["backbone.body.conv1.weight"]
    report = load(model, source | {"backbone.body.conv1.weight": (stem.flip(1) if bgr else stem) * 255})
    if report.skipped:
        raise WeightsError(
            f"state_dict: {len(report.skipped)} tensors have no counterpart here (deformable convolutions, shared "
            f"towers, ...), so the detections would differ: {shown(report.skipped)}. Such models are not supported."
        )
    if semantic:
        logger.info("ignored the auxiliary semantic head (%d tensors), which detection does not use", len(semantic))
    return model


def read_config(source: dict[str, Tensor], *, masks: bool, stride_in_1x1: bool) -> ModelConfig:
    """The fields of ModelConfig that can be inferred from AdelaiDet's weights, given under our names."""
    if "head.scales" not in source or "head.class_logits.weight" not in source:
        raise WeightsError(
            f"state_dict: no FCOS head among its {len(source)} tensors ({shown(source)}, ...). Names must be those of "
            "AdelaiDet, e.g. proposal_generator.fcos_head.cls_logits.weight. Use interop.load for other libraries."
        )
    stages = [count(source, rf"backbone\.body\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    bottleneck = "backbone.body.layer1.0.conv3.weight" in source
    if (tuple(stages), bottleneck) not in RESNETS:
        raise WeightsError(
            f"state_dict: no known ResNet has {stages} blocks per stage. Use a ResNet-18, 34, 50, 101 or 152."
        )
    levels = [p for p in FPN_STRIDES if f"neck.output.{p}.weight" in source or f"neck.top.{p}.weight" in source]
    levels = levels[-len(source["head.scales"]) :]
    config = ModelConfig(
        backbone=RESNETS[tuple(stages), bottleneck],
        backbone_options=(("stride_in_1x1", stride_in_1x1),),
        backbone_norm="frozen_bn",
        frozen_stages=2,
        num_classes=len(source["head.class_logits.weight"]),
        masks=masks,
        channels=source["head.class_logits.weight"].shape[1],
        strides=tuple(FPN_STRIDES[p] for p in levels),
        ranges=tuple(8 * FPN_STRIDES[p] for p in levels[:-1]),
        tower_convs=count(source, r"head\.class_tower\.convs\.(\d+)\."),
    )
    if not masks:
        return config
    features, width = source["head.mask_branch.features.weight"].shape[:2]
    convs = count(source, r"head\.mask_branch\.tower\.(\d+)\.")
    return replace(config, mask_channels=width, mask_features=features, mask_convs=convs)


def check_sizes_of_interest(state_dict: dict, config: ModelConfig) -> None:
    """Raise if the sizes that normalize relative coordinates are not those that follow from the ranges."""
    expected = [*config.ranges, 2 * config.ranges[-1]]
    if SIZES in state_dict and [float(size) for size in state_dict[SIZES]] != expected:
        sizes = [float(size) for size in state_dict[SIZES]]
        raise WeightsError(f"state_dict: {SIZES} is {sizes}, expected {expected}. Other sizes are not supported.")


def count(source: Iterable[str], pattern: str) -> int:
    """Number of different values of the pattern's group among the names."""
    return len({match[1] for name in source if (match := re.match(pattern, name))})
