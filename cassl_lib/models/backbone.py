"""Backbones: a timm feature extractor with four stages at strides 4, 8, 16, 32, in NCHW."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from math import gcd

import timm
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torchvision.ops import misc

from cassl_lib.config import ModelConfig
from cassl_lib.errors import ConfigError, WeightsError
from cassl_lib.models.weights.load import load_backbone

STAGE_STRIDES = (4, 8, 16, 32)
SIZE_DIVISOR = STAGE_STRIDES[-1]  # of the height and width of a batch


class FrozenBatchNorm2d(misc.FrozenBatchNorm2d):
    """torchvision's, computed by one fused kernel that keeps bfloat16 activations in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class InPlaceFrozenBatchNorm2d(FrozenBatchNorm2d):
    """The same in place: for ResNets, where only the norm reads the output of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's Swin block, but padded to whole windows before the shift, as in detection Swins, instead of after it.

    With timm's order the border that the shift wraps around lies inside a window, where the attention mask does not
    separate it.
    """

    def __init__(self, block: SwinTransformerBlock):
        nn.Module.__init__(self)  # not timm's, which would create new layers and draw their weights
        vars(self).update(vars(block))  # the layers and settings of `block`

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        return super()._attn(x)[:, :height, :width]


class Backbone(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 32 -> four maps (B, channels[i], H / s, W / s), s = 4, 8, 16, 32.

    `channels` lists the width of each stage. Stages before `first_stage` are computed but not normalized.
    """

    def __init__(self, config: ModelConfig, first_stage: int = 0):
        super().__init__()
        options = dict(config.backbone_options)
        stride_in_1x1 = options.pop("stride_in_1x1", False)
        self.body = create_body(config, options)
        replace_modules(self.body, SwinTransformerBlock, PaddedSwinBlock)
        strides = self.body.feature_info.reduction()
        if strides != list(STAGE_STRIDES):
            raise ConfigError(
                f"backbone={config.backbone!r} has stages at strides {strides}. Choose one with strides 4, 8, 16, 32."
            )
        self.channels = self.body.feature_info.channels()
        self.channels_last_output = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        # Transformers do not end a stage with a norm; detection Swins add one per stage (ResNets need none).
        norms = [nn.LayerNorm(c) if self.channels_last_output else nn.Identity() for c in self.channels]
        self.norms = nn.ModuleList(norms)
        # The pyramid does not use these stages: DDP would wait for the gradients of their norms.
        self.norms[:first_stage].requires_grad_(False)
        self.first_stage = first_stage
        if isinstance(config.pretrained, str):
            load_backbone(self, config.pretrained)
        if stride_in_1x1:
            move_stride_to_first_conv(self.body)
        resnet = re.fullmatch(r"resnet\d+[a-z]*", config.backbone)
        freeze = partial(frozen_batch_norm, kind=InPlaceFrozenBatchNorm2d if resnet else FrozenBatchNorm2d)
        if config.backbone_norm == "frozen_bn":
            replace_batch_norms(self.body, freeze)
        elif config.backbone_norm == "gn":
            replace_batch_norms(self.body, lambda norm: group_norm(norm.num_features))
        freeze_stages(self.body, config.frozen_stages, freeze)

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.body(images)
        for i in range(self.first_stage, 4):
            stages[i] = self.norms[i](stages[i])
        return [stage.permute(0, 3, 1, 2) for stage in stages] if self.channels_last_output else stages


def create_body(config: ModelConfig, options: dict) -> FeatureListNet:
    """timm's feature extractor for the last four stages, with its ImageNet weights if `config.pretrained` is True."""
    if "swin" in config.backbone:
        # Sizes vary in detection; always_partition keeps the shift of the last stage, which timm drops at 7 x 7.
        options = {"strict_img_size": False, "always_partition": True} | options
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    create = partial(timm.create_model, config.backbone, features_only=True, out_indices=(-4, -3, -2, -1), **options)
    if config.pretrained is not True:
        return create(pretrained=False)
    try:
        return create(pretrained=True)
    except Exception as error:  # whatever timm's download library raises
        raise WeightsError(
            f"pretrained=True: the ImageNet weights of {config.backbone} could not be loaded "
            f'({type(error).__name__}: {error}). Without network access use a local file, pretrained="FILE", or random '
            "weights, pretrained=False; for a notebook, -p pretrained FILE or -p pretrained none."
        ) from error


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or the most that divide 32 and `channels`, with at least two channels per group.

    On a map of one pixel (a coarse level of a small image) a group of one channel has no variance.
    """
    groups = gcd(32, channels)
    return nn.GroupNorm(groups // 2 if groups == channels > 1 else groups, channels)


def replace_modules(module: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every submodule whose type is exactly `kind` by make(submodule), in place."""
    for name, child in module.named_children():
        if type(child) is kind:
            setattr(module, name, make(child))
        else:
            replace_modules(child, kind, make)


def replace_batch_norms(module: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Replace every BatchNorm2d inside `module` by make(batch_norm), in place."""
    for name, child in module.named_modules():
        if name and isinstance(child, nn.BatchNorm2d) and type(child) is not nn.BatchNorm2d:
            raise ConfigError(
                f"backbone_norm, frozen_stages: {type(child).__name__} {name} of this backbone also contains an "
                'activation and cannot be replaced. Use backbone_norm="default" and frozen_stages=0.'
            )
    replace_modules(module, nn.BatchNorm2d, make)


def frozen_batch_norm(norm: nn.BatchNorm2d, *, kind: type[FrozenBatchNorm2d]) -> FrozenBatchNorm2d:
    """A norm of class `kind` with the statistics, weight and bias of `norm`."""
    frozen = kind(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def move_stride_to_first_conv(body: nn.Module) -> None:
    """Use the original (Caffe) bottleneck, with the stride in the first 1x1 convolution instead of the 3x3."""
    for block in body.modules():
        if hasattr(block, "conv3") and block.conv2.stride != (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def freeze_stages(body: nn.Module, frozen_stages: int, freeze: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Do not train the stem (frozen_stages=1), the stem and the first stage (2), and so on; freeze their BatchNorms."""
    last_of_stage = [name.replace(".", "_") for name in body.feature_info.module_name()]
    reached = 1  # the stem; the network's stages count from 2
    for name, child in body.named_children():
        stage = last_of_stage.index(name) + 2 if name in last_of_stage else reached
        reached = max(reached, stage)
        if stage > frozen_stages:
            return
        child.requires_grad_(False)
        if type(child) is nn.BatchNorm2d:
            setattr(body, name, freeze(child))
        else:
            replace_batch_norms(child, freeze)
