"""Backbones: a timm feature extractor with four stages at strides 4, 8, 16, 32, always in NCHW."""

from __future__ import annotations

import re
from math import gcd

import timm
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torchvision.ops import misc

from cassl_lib.config import ModelConfig
from cassl_lib.errors import WeightsError
from cassl_lib.models.weights.load import load_backbone

STAGE_STRIDES = (4, 8, 16, 32)


class FrozenBatchNorm2d(misc.FrozenBatchNorm2d):
    """torchvision's, with its affine done by one fused kernel that keeps bfloat16 activations in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class InPlaceFrozenBatchNorm2d(FrozenBatchNorm2d):
    """The same in the memory of its input: for ResNets, where nothing but the norm reads a convolution's output."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's block, padded to whole windows before the shift as detection Swins are, not after it.

    Otherwise the border that the shift wraps around lies inside a window, which the attention mask does not know.
    """

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        return super()._attn(x)[:, :height, :width]


class Backbone(nn.Module):
    """images (B, 3, H, W), H and W multiples of 32 -> four maps (B, channels[i], H / s, W / s), s = 4, 8, 16, 32.

    `channels` lists the width of each stage. Stages below `first_stage` are computed on the way but not normalized.
    """

    def __init__(self, config: ModelConfig, first_stage: int = 0):
        super().__init__()
        options = dict(config.backbone_options)
        stride_in_1x1 = options.pop("stride_in_1x1", False)
        self.body = create_body(config, options)
        for block in self.body.modules():
            if type(block) is SwinTransformerBlock:
                block.__class__ = PaddedSwinBlock
        if self.body.feature_info.reduction() != list(STAGE_STRIDES):
            raise ValueError(f"{config.backbone} has stages at strides {self.body.feature_info.reduction()}, not 4..32")
        self.channels = self.body.feature_info.channels()
        self.channels_last_output = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        # Transformers end a stage without a norm; detection Swins add one per stage (ResNets need none).
        norms = [nn.LayerNorm(c) if self.channels_last_output else nn.Identity() for c in self.channels]
        self.norms = nn.ModuleList(norms)
        # The pyramid does not ask for these stages: a trainable norm without gradient would stall DDP.
        self.norms[:first_stage].requires_grad_(False)
        self.first_stage = first_stage
        if isinstance(config.pretrained, str):
            load_backbone(self, config.pretrained)
        if stride_in_1x1:
            move_stride_to_first_conv(self.body)
        if config.backbone_norm == "frozen_bn":
            replace_batch_norms(self.body, frozen_batch_norm)
        elif config.backbone_norm == "gn":
            replace_batch_norms(self.body, lambda norm: group_norm(norm.num_features))
        freeze_stages(self.body, config.frozen_stages)
        if re.fullmatch(r"resnet\d+[a-z]*", config.backbone):
            for norm in self.body.modules():
                if type(norm) is FrozenBatchNorm2d:
                    norm.__class__ = InPlaceFrozenBatchNorm2d

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.body(images)
        for i in range(self.first_stage, 4):
            stages[i] = self.norms[i](stages[i])
        return [stage.permute(0, 3, 1, 2) for stage in stages] if self.channels_last_output else stages


def create_body(config: ModelConfig, options: dict) -> FeatureListNet:
    """timm's feature extractor for the last four stages, with ImageNet weights if the config asks for them."""
    if "swin" in config.backbone:
        # Sizes vary in detection; always_partition keeps the shift of the last stage, which timm drops at 7 x 7.
        options = {"strict_img_size": False, "always_partition": True} | options
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    arguments = {"features_only": True, "out_indices": (-4, -3, -2, -1), "pretrained": config.pretrained is True}
    if config.pretrained is not True:
        return timm.create_model(config.backbone, **arguments, **options)
    try:
        return timm.create_model(config.backbone, **arguments, **options)
    except Exception as error:  # timm passes on whatever its download library raises
        raise WeightsError(
            f"The ImageNet weights of {config.backbone} could not be loaded ({type(error).__name__}: {error}). "
            'Without a network give a local file, pretrained="FILE", or start at random, pretrained=False; '
            "for a notebook that is -p pretrained FILE, or -p pretrained none."
        ) from error


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or as many as divide `channels`, of at least two channels each.

    A group of one channel has no variance on a map of one pixel, such as a coarse level of a small image.
    """
    groups = gcd(32, channels)
    return nn.GroupNorm(groups // 2 if groups == channels > 1 else groups, channels)


def replace_batch_norms(module: nn.Module, make_norm) -> None:
    """Put make_norm(batch_norm) in the place of every BatchNorm2d inside `module`."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, make_norm(child))
        elif isinstance(child, nn.BatchNorm2d):
            raise ValueError(f"{type(child).__name__} also holds an activation: this backbone keeps its own norms")
        else:
            replace_batch_norms(child, make_norm)


def frozen_batch_norm(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def move_stride_to_first_conv(body: nn.Module) -> None:
    """The original (Caffe) bottleneck: its stride is in the first 1x1 convolution, not in the 3x3."""
    for block in body.modules():
        if hasattr(block, "conv3") and block.conv2.stride != (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def freeze_stages(body: nn.Module, frozen_stages: int) -> None:
    """Freeze the stem (1), the stem and the first stage (2), and so on; their BatchNorms keep their statistics."""
    last_of_stage = [name.replace(".", "_") for name in body.feature_info.module_name()]
    reached = 1  # by the stem; a stage of the network counts 2 and up
    for name, child in body.named_children():
        stage = last_of_stage.index(name) + 2 if name in last_of_stage else reached
        reached = max(reached, stage)
        if stage > frozen_stages:
            return
        child.requires_grad_(False)
        if type(child) is nn.BatchNorm2d:
            setattr(body, name, frozen_batch_norm(child))
        else:
            replace_batch_norms(child, frozen_batch_norm)
