"""Tensor names of public checkpoints, translated to ours."""

from __future__ import annotations

import re

import torch
from torch import Tensor

CAFFE_STEM = r"(backbone\.bottom_up\.)?stem\.conv1\.weight"  # of ResNets trained on BGR pixels in [0, 255]

# (pattern of their name, our name); the first match counts. Their tower indices count convolution, norm, ReLU.
RULES = [
    # ResNet of detectron2 and AdelaiDet, alone or inside a detector
    (r"(?:backbone\.bottom_up\.)?stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"(?:backbone\.bottom_up\.)?stem\.conv1\.", "backbone.body.conv1."),
    (r"(?:backbone\.bottom_up\.)?res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"{block(m)}bn{m[3]}."),
    (r"(?:backbone\.bottom_up\.)?res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"{block(m)}downsample.1."),
    (r"(?:backbone\.bottom_up\.)?res(\d)\.(\d+)\.shortcut\.", lambda m: f"{block(m)}downsample.0."),
    (r"(?:backbone\.bottom_up\.)?res(\d)\.(\d+)\.(?=conv\d\.weight)", lambda m: block(m)),
    # Swin: alone (Microsoft, timm), or inside a detector (detectron2, mmdetection)
    (r"(?:backbone\.)?(?:bottom_up\.)?norm([0-3])\.", r"backbone.norms.\1."),
    (r"(?:backbone\.)?(?:bottom_up\.)?patch_embed\.", "backbone.body.patch_embed."),
    (r"(?:backbone\.)?(?:bottom_up\.)?layers[._](\d)\.", r"backbone.body.layers_\1."),
    # feature pyramid of detectron2 and torchvision
    (r"backbone\.fpn_(lateral|output)(\d)\.", r"neck.\1.p\2."),
    (r"backbone\.top_block\.(p\d)\.", r"neck.top.\1."),
    (r"backbone\.fpn\.extra_blocks\.(p\d)\.", r"neck.top.\1."),
    # heads of AdelaiDet
    (r"proposal_generator\.fcos_head\.(cls|bbox)_tower\.(\d+)\.", lambda m: tower(m[1], m[2])),
    (r"proposal_generator\.fcos_head\.cls_logits\.", "head.class_logits."),
    (r"proposal_generator\.fcos_head\.bbox_pred\.", "head.bbox_pred."),
    (r"proposal_generator\.fcos_head\.ctrness\.", "head.centerness."),
    (r"controller\.(?=weight|bias)", "head.controller."),
    (r"mask_branch\.tower\.\d+\.(?=(weight|bias)$)", "head.mask_branch.features."),
    (r"mask_branch\.(refine|tower)\.", r"head.mask_branch.\1."),
    # FCOS of torchvision
    (r"head\.classification_head\.conv\.(\d+)\.", lambda m: tower("cls", m[1])),
    (r"head\.regression_head\.conv\.(\d+)\.", lambda m: tower("bbox", m[1])),
    (r"head\.classification_head\.cls_logits\.", "head.class_logits."),
    (r"head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
    (r"head\.regression_head\.bbox_ctrness\.", "head.centerness."),
]
TORCHVISION_FPN = r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\."
SCALE = r"proposal_generator\.fcos_head\.scales\.(\d+)\.scale"
RECOMPUTED = r".*(relative_position_index|attn_mask)$"  # computed from sizes; timm does not store them


def block(match: re.Match) -> str:
    """Our prefix of a residual block, from detectron2's stage and block numbers."""
    return f"backbone.body.layer{int(match[1]) - 1}.{match[2]}."


def tower(kind: str, index: str) -> str:
    """Our prefix of a tower layer, from its index in a sequence of convolution, norm, ReLU."""
    name = {"cls": "class_tower", "bbox": "box_tower"}[kind]
    return f"head.{name}.{('convs', 'norms', 'relu')[int(index) % 3]}.{int(index) // 3}."


def is_caffe(state_dict: dict) -> bool:
    """Whether the ResNet expects BGR pixels in [0, 255], like those of detectron2 and AdelaiDet."""
    return any(re.fullmatch(CAFFE_STEM, name) for name in state_dict)


def to_our_names(state_dict: dict) -> dict[str, Tensor]:
    """Translate the names of a state dict of AdelaiDet, detectron2, timm, torchvision or Microsoft's Swin to ours.

    Unknown names are kept. Values may be tensors or arrays; they are returned as tensors.
    """
    # Microsoft and detectron2 put patch merging at the end of a stage, timm at the start of the next one.
    shift = any(re.search(r"(^|\.)layers[._]0\.downsample\.", name) for name in state_dict)
    # torchvision numbers pyramid levels from its finest: with three levels that is P3, with four P2.
    levels = {int(match[2]) for name in state_dict if (match := re.match(TORCHVISION_FPN, name))}
    renamed, scales = {}, {}
    for name, value in state_dict.items():
        value = torch.as_tensor(value)
        if re.fullmatch(RECOMPUTED, name):
            continue
        if match := re.fullmatch(SCALE, name):
            scales[int(match[1])] = value.reshape(())
            continue
        if match := re.match(TORCHVISION_FPN, name):
            kind, level = {"inner": "lateral", "layer": "output"}[match[1]], int(match[2]) + 6 - len(levels)
            renamed[f"neck.{kind}.p{level}.{name[match.end() :]}"] = value
            continue
        new = next((re.sub(rule, ours, name, count=1) for rule, ours in RULES if re.match(rule, name)), name)
        if shift and (match := re.match(r"backbone\.body\.layers_(\d)\.(?=downsample\.)", new)):
            new = f"backbone.body.layers_{int(match[1]) + 1}.{new[match.end() :]}"
        renamed[new] = value
    if scales:
        renamed["head.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    elif any(name.startswith("head.regression_head.bbox_ctrness.") for name in state_dict):
        renamed["head.scales"] = torch.ones(5)  # torchvision's FCOS has no scales, i.e. scales of 1
    return renamed
