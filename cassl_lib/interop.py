"""Weights of AdelaiDet's FCOS and CondInst, and loading that says exactly what it did."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from cassl_lib.config import ModelConfig
from cassl_lib.models.build import build_detector
from cassl_lib.models.condinst import CondInst
from cassl_lib.models.transfer import part_of

FPN_STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
RESNETS = {  # blocks per stage, bottleneck? -> timm name
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
CAFFE_MEAN_BGR = (103.53, 116.28, 123.675)  # of pixels between 0 and 255; the matching std is 1

# AdelaiDet's name -> ours; the numbers of a tower count conv, norm, ReLU.
RESNET_NAMES = [
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"backbone\.bottom_up\.stem\.conv1\.", "backbone.body.conv1."),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"{block(m)}bn{m[3]}."),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.", lambda m: f"{block(m)}conv{m[3]}."),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"{block(m)}downsample.1."),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.", lambda m: f"{block(m)}downsample.0."),
]
DETECTOR_NAMES = [
    (r"backbone\.fpn_(lateral|output)(\d)\.", r"neck.\1.p\2."),
    (r"backbone\.top_block\.(p\d)\.", r"neck.top.\1."),
    (r"proposal_generator\.fcos_head\.cls_tower\.(\d+)\.", lambda m: f"head.class_tower.{tower_layer(m[1])}."),
    (r"proposal_generator\.fcos_head\.bbox_tower\.(\d+)\.", lambda m: f"head.box_tower.{tower_layer(m[1])}."),
    (r"proposal_generator\.fcos_head\.cls_logits\.", "head.class_logits."),
    (r"proposal_generator\.fcos_head\.bbox_pred\.", "head.bbox_pred."),
    (r"proposal_generator\.fcos_head\.ctrness\.", "head.centerness."),
    (r"controller\.", "head.controller."),
    (r"mask_branch\.tower\.\d+\.(weight|bias)$", r"head.mask_branch.features.\1"),
    (r"mask_branch\.(refine|tower)\.", r"head.mask_branch.\1."),
]
SCALE_NAME = r"proposal_generator\.fcos_head\.scales\.(\d+)\.scale"


def block(match: re.Match) -> str:
    return f"backbone.body.layer{int(match[1]) - 1}.{match[2]}."


def tower_layer(index: str) -> str:
    return f"{('convs', 'norms', 'relu')[int(index) % 3]}.{int(index) // 3}"


@dataclass(frozen=True)
class LoadReport:
    """loaded, missing, wrong_shape: names in the model; skipped: names in the state dict that the model lacks."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    def __str__(self) -> str:
        counts = [f"{len(getattr(self, name))} {name}" for name in ("loaded", "skipped", "missing", "wrong_shape")]
        return ", ".join(counts).replace("_", " ")


def load(model: CondInst, state_dict: dict[str, Tensor], strict: bool = True) -> LoadReport:
    """Copy a state dict, named as ours or as AdelaiDet's, into `model` and report every name.

    Raises a ValueError when nothing matches and, if `strict`, when one of the parts backbone, neck, head, classifier
    would be filled only partly. A part that the state dict does not have at all is reported, not an error; so are
    the levels of the pyramid that the model does not use and BatchNorm's counters.
    """
    source = rename_adelaidet(state_dict)
    target = model.state_dict()
    common = [name for name in target if name in source]
    loaded = [name for name in common if source[name].shape == target[name].shape]
    report = LoadReport(
        loaded=tuple(loaded),
        skipped=tuple(name for name in source if name not in target),
        missing=tuple(name for name in target if name not in source),
        wrong_shape=tuple(name for name in common if source[name].shape != target[name].shape),
    )
    if not loaded:
        raise ValueError(f"no tensor of the state dict fits the model: {report}")
    unused = tuple(f"neck.{name}." for name in model.neck.unused())
    lost = [n for n in report.missing if not n.startswith(unused) and not n.endswith("num_batches_tracked")]
    begun = {part_of(name) for name in loaded}
    torn = [name for name in [*lost, *report.wrong_shape] if part_of(name) in begun]
    if strict and torn:
        raise ValueError(f"only part of {part_of(torn[0])} fits: {report}; e.g. {', '.join(torn[:4])}")
    for name in loaded:
        target[name].copy_(source[name])
    return report


def rename_adelaidet(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdelaiDet's names turned into ours; names it does not know stay as they are."""
    renamed, scales = {}, {}
    for name, value in state_dict.items():
        if match := re.fullmatch(SCALE_NAME, name):
            scales[int(match[1])] = torch.as_tensor(value).reshape(())
            continue
        for pattern, replacement in [*RESNET_NAMES, *DETECTOR_NAMES]:
            if re.match(pattern, name):
                name = re.sub(pattern, replacement, name, count=1)
                break
        renamed[name] = torch.as_tensor(value)
    if scales:
        renamed["head.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    return renamed


def from_adelaidet(
    state_dict: dict[str, Tensor],
    *,
    centre: str | None = None,
    threshold_on: str | None = None,
    stride_in_1x1: bool = True,
    pixel_mean_bgr: tuple[float, float, float] = CAFFE_MEAN_BGR,
) -> CondInst:
    """A detector that computes what AdelaiDet's FCOS or CondInst with a ResNet computes, on the same pixels in RGB.

    Depth, classes, levels and the mask branch are read off the names and shapes. What no weight tells is given here,
    by default as the public settings have it.

    Args:
        state_dict: {AdelaiDet's name: tensor or array}.
        centre, threshold_on: see ModelConfig; None is "mask" and "cls*ctr" with masks, "box" and "cls" without.
        stride_in_1x1: the Caffe ResNets' place of the stride; False for weights that came from torchvision.
        pixel_mean_bgr: the mean the model was trained with, for pixels between 0 and 255 (std 1).
    """
    source = rename_adelaidet(state_dict)
    masks = "head.controller.weight" in source
    config = read_config(source, masks=masks, stride_in_1x1=stride_in_1x1)
    settings = {
        "centre": centre or ("mask" if masks else "box"),
        "threshold_on": threshold_on or ("cls*ctr" if masks else "cls"),
        "pixel_mean": tuple(value / 255 for value in reversed(pixel_mean_bgr)),
        "pixel_std": (1.0, 1.0, 1.0),
    }
    model = build_detector(ModelConfig(**config, **settings))
    # The stem takes blue first and 0..255, our images are red first and 0..1. The mean is subtracted before the
    # stem's zero padding, in both, so it cannot be folded and stays in pixel_mean.
    stem = source["backbone.body.conv1.weight"]
    load(model, source | {"backbone.body.conv1.weight": stem.flip(1) * 255})
    return model


def read_config(source: dict[str, Tensor], *, masks: bool, stride_in_1x1: bool) -> dict:
    """The sizes in ModelConfig that renamed AdelaiDet weights tell."""
    stages = [count(source, rf"backbone\.body\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    bottleneck = "backbone.body.layer1.0.conv3.weight" in source
    if (tuple(stages), bottleneck) not in RESNETS:
        raise ValueError(f"no known ResNet has {stages} blocks per stage in {len(source)} tensors")
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


def count(source: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in source if (match := re.match(pattern, name))})
