"""Backbone and pyramid: shapes, norms, frozen stages, weights from a file."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from cassl_lib.errors import ConfigError, WeightsError
from cassl_lib.models import ModelConfig, backbone, build_detector
from cassl_lib.models.backbone import Backbone, FrozenBatchNorm2d
from cassl_lib.models.fpn import FPN

RESNET = ModelConfig(backbone="resnet10t", backbone_options=(("channels", (8, 16, 24, 32)), ("stem_width", 8)))
SWIN = ModelConfig(
    backbone="swin_tiny_patch4_window7_224",
    backbone_options=(("embed_dim", 8), ("depths", (1, 1, 1, 2)), ("num_heads", (1, 1, 2, 2))),
)


@pytest.mark.parametrize("config", [RESNET, SWIN, replace(RESNET, backbone="resnet18")], ids=lambda c: c.backbone)
def test_a_backbone_returns_four_stages_in_nchw(config):
    net = Backbone(config)
    stages = net(torch.rand(2, 3, 64, 96))
    assert [tuple(x.shape) for x in stages] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(net.channels, (4, 8, 16, 32), strict=True)
    ]


def test_swin_shifts_windows_in_the_last_stage_and_normalizes_every_stage():
    net = Backbone(SWIN, first_stage=1)
    shifts = [
        m.shift_size
        for n, m in net.named_modules()
        if n.startswith("body.layers_3.blocks.") and hasattr(m, "shift_size")
    ]
    assert shifts == [(0, 0), (3, 3)]
    assert [type(norm) for norm in net.norms] == [nn.LayerNorm] * 4
    assert [norm.weight.requires_grad for norm in net.norms] == [False, True, True, True]
    stages = net(torch.rand(1, 3, 64, 64) * 5)
    for stage in stages[1:]:
        assert stage.mean(1).abs().max() < 1e-4  # LayerNorm over the channels
        torch.testing.assert_close(stage.var(1, unbiased=False), torch.ones_like(stage[:, 0]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (16, 20)])
def test_a_shifted_window_block_by_loops(size):
    """For any size: pad to whole windows, roll by 3, attend within a window but not across the wrapped border."""
    torch.manual_seed(0)
    net = Backbone(SWIN).eval()
    block = net.body.layers_3.blocks[1]  # 7 x 7 at 224 pixels, where timm would not shift
    height, width, channels = *size, 64
    x = torch.randn(1, height, width, channels)
    heads, window, shift = 2, 7, 3
    bias = torch.nn.init.normal_(block.attn.relative_position_bias_table.data)
    rows, columns = -(-height // window) * window, -(-width // window) * window

    attn = block.attn
    with torch.no_grad():
        padded = torch.zeros(rows, columns, channels)
        padded[:height, :width] = block.norm1(x)[0]
        qkv = attn.qkv(padded).view(rows, columns, 3, heads, channels // heads)
        mixed = torch.zeros(rows, columns, channels)
        for i in range(rows):
            for j in range(columns):
                # After the shift, the pixel is in the window that starts at (top, left).
                a, b = (i - shift) % rows, (j - shift) % columns
                top, left = a // window * window, b // window * window
                others = [(top + u, left + v) for u in range(window) for v in range(window)]
                edges = (rows - window, rows - shift), (columns - window, columns - shift)
                region = [edge <= a for edge in edges[0]] + [edge <= b for edge in edges[1]]
                scores, values = [], []
                for u, v in others:
                    p, q = (u + shift) % rows, (v + shift) % columns
                    same = region == [edge <= u for edge in edges[0]] + [edge <= v for edge in edges[1]]
                    table = bias[(a - u + window - 1) * (2 * window - 1) + (b - v + window - 1)]
                    dot = (qkv[i, j, 0] * qkv[p, q, 1]).sum(-1) * (channels // heads) ** -0.5
                    scores.append(dot + table + (0 if same else -100.0))
                    values.append(qkv[p, q, 2])
                weight = torch.stack(scores).softmax(0)[..., None]
                mixed[i, j] = (weight * torch.stack(values)).sum(0).flatten()
        y = x + attn.proj(mixed[:height, :width])
        expected = y + block.mlp(block.norm2(y))
        computed = block(x)
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)


def test_drop_path_is_passed_to_the_blocks():
    rates = [m.drop_prob for m in Backbone(replace(SWIN, drop_path=0.3)).modules() if hasattr(m, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)


@pytest.mark.parametrize("config", [RESNET, SWIN], ids=lambda c: c.backbone)
def test_frozen_stages_are_not_trained(config):
    for frozen, trained in [(0, {0, 1, 2}), (1, {1, 2}), (2, {2})]:
        body = Backbone(replace(config, frozen_stages=frozen)).body
        groups = [[], [], []]  # stem, first stage, rest
        for name, parameter in body.named_parameters():
            first = name.startswith(("layer1.", "layers_0."))
            groups[1 if first else 2 if name.startswith("layer") else 0].append(parameter.requires_grad)
        assert all(groups)
        assert {i for i, group in enumerate(groups) if all(group)} == trained
        assert {i for i, group in enumerate(groups) if not any(group)} == {0, 1, 2} - trained


def test_batch_norms_of_frozen_stages_keep_their_statistics():
    net = Backbone(replace(RESNET, frozen_stages=2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.rand(2, 3, 64, 64))
    moved = {name.split(".")[1] for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert moved == {"layer2", "layer3", "layer4"}


def test_frozen_batch_norm_equals_batch_norm_in_evaluation_and_keeps_bfloat16():
    plain = Backbone(RESNET)
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2), nn.init.normal_(norm.bias)
    frozen = Backbone(replace(RESNET, backbone_norm="frozen_bn")).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    frozen.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 64, 64)
    for a, b in zip(plain.eval()(image), frozen(image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert FrozenBatchNorm2d(3)(torch.rand(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_only_resnets_normalize_in_place():
    """In other backbones the input of a norm may be used elsewhere."""
    for name, in_place in (("resnet18", True), ("inception_next_atto", False)):
        config = ModelConfig(backbone=name, backbone_norm="frozen_bn")
        norms = [m for m in Backbone(config).modules() if isinstance(m, FrozenBatchNorm2d)]
        assert norms and all(isinstance(norm, backbone.InPlaceFrozenBatchNorm2d) == in_place for norm in norms)


def test_group_norms_have_at_least_two_channels_per_group():
    net = Backbone(replace(RESNET, backbone_norm="gn"))
    groups = {m.num_channels: m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    assert groups[24] == 8 and groups[32] == 16 and groups[6] == 2
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_stride_in_1x1_moves_the_stride_to_the_first_convolution():
    net = Backbone(ModelConfig(backbone="resnet26", backbone_options=(("stride_in_1x1", True),)))
    block = net.body.layer2[0]
    assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1)
    assert net.body.layer1[0].conv1.stride == (1, 1)


def test_a_backbone_loads_weights_from_a_local_file(tmp_path):
    options = dict(RESNET.backbone_options)
    source = timm.create_model("resnet10t", num_classes=5, **options)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    net = Backbone(replace(RESNET, pretrained=str(tmp_path / "weights.pth")))
    assert net.body.layer3[0].conv1.weight.equal(source.layer3[0].conv1.weight)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Backbone(replace(RESNET, pretrained=str(tmp_path / "absent.pth")))


def test_a_failed_download_suggests_a_local_file(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(backbone.timm, "create_model", fail)
    with pytest.raises(WeightsError, match='no route to host.*pretrained="FILE"'):
        Backbone(replace(RESNET, pretrained=True))


def test_the_pyramid_has_every_requested_stride():
    for strides in [(8, 16, 32, 64, 128), (4, 8, 16, 32), (8, 16), (16, 32, 64)]:
        neck = FPN([8, 16, 24, 32], 8, strides)
        stages = [torch.rand(1, c, 128 // s, 64 // s) for c, s in zip([8, 16, 24, 32], (4, 8, 16, 32), strict=True)]
        maps = neck(stages)
        assert [tuple(x.shape) for x in maps] == [(1, 8, 128 // s, -(-64 // s)) for s in strides]
        sum(x.sum() for x in maps).backward()
        for name, parameter in neck.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        assert set(neck.lateral) == set(neck.output) == {"p2", "p3", "p4", "p5"}
        assert set(neck.top) == {p for p, s in {"p6": 64, "p7": 128}.items() if s <= strides[-1]}


def test_the_pyramid_adds_the_coarser_level_and_computes_p7_from_relu_of_p6():
    neck = FPN([4, 4, 4, 4], 4, (8, 16, 32, 64, 128))
    stages = [torch.rand(1, 4, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    maps = neck(stages)
    merged = [neck.lateral[f"p{i + 2}"](stage) for i, stage in enumerate(stages)]
    for i in (2, 1):
        merged[i] = merged[i] + merged[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    for level_map, i in zip(maps[:3], (1, 2, 3), strict=True):
        torch.testing.assert_close(level_map, neck.output[f"p{i + 2}"](merged[i]))
    torch.testing.assert_close(maps[3], neck.top["p6"](maps[2]))
    torch.testing.assert_close(maps[4], neck.top["p7"](maps[3].clamp(min=0)))


def test_a_backbone_with_other_strides_raises():
    with pytest.raises(ConfigError, match="4, 8, 16, 16"):
        build_detector(replace(RESNET, backbone_options=(*RESNET.backbone_options, ("output_stride", 16))))
