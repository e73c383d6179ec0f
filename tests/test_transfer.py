"""Copying parts of a warmed-up model (Table 9), and loading weights from AdelaiDet."""

from dataclasses import replace

import pytest
import torch

from cassl_lib import interop
from cassl_lib.models import ModelConfig, build_detector, copy_parts
from cassl_lib.models.transfer import PARTS, part_of

AGNOSTIC = ModelConfig(
    backbone="resnet10t",
    backbone_options=(("channels", (8, 8, 16, 16)), ("stem_width", 8)),
    num_classes=1,
    channels=8,
    strides=(8, 16, 32, 64),
    ranges=(32, 64, 128),
    tower_convs=1,
    mask_channels=8,
    mask_convs=1,
)


def build(**settings):
    model = build_detector(replace(AGNOSTIC, **settings))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return model


def equal_parts(model, source):
    """Parts of which every tensor equals the source's."""
    names = {part: [n for n in model.state_dict() if part_of(n) == part and "tracked" not in n] for part in PARTS}
    state = model.state_dict()
    return {
        part
        for part in PARTS
        if all(state[n].shape == source[n].shape and state[n].equal(source[n]) for n in names[part])
    }


def test_every_parameter_belongs_to_a_part():
    names = list(build().state_dict())
    assert {part_of(name) for name in names} == set(PARTS)
    assert [name for name in names if part_of(name) == "classifier"] == [
        "head.class_logits.weight",
        "head.class_logits.bias",
    ]


@pytest.mark.parametrize("parts", [("backbone",), ("backbone", "neck"), ("backbone", "neck", "head"), PARTS, ("head",)])
def test_copies_what_is_asked_and_nothing_else(parts):
    source, model = build().state_dict(), build()
    report = copy_parts(source, model, parts)
    assert equal_parts(model, source) == set(parts)
    assert {part_of(name) for name in report.copied} == set(parts)
    assert report.skipped == report.missing == ()


def test_one_channel_is_copied_to_every_class():
    source, model = build().state_dict(), build(num_classes=3)
    copy_parts(source, model)
    for row in range(3):
        assert model.head.class_logits.weight[row].equal(source["head.class_logits.weight"][0])
    assert model.head.class_logits.bias.tolist() == source["head.class_logits.bias"].tolist() * 3


def test_a_classifier_that_is_not_asked_for_stays_fresh():
    source, model = build().state_dict(), build(num_classes=3)
    before = model.head.class_logits.weight.clone()
    report = copy_parts(source, model, ("backbone", "neck", "head"))
    assert model.head.class_logits.weight.equal(before)
    assert not any("class_logits" in name for name in report.copied)


def test_differences_are_reported():
    source = build().state_dict()
    boxes_only = {name: value for name, value in source.items() if "mask_branch" not in name}
    report = copy_parts(boxes_only, build(), ("head",))
    assert report.missing and all(name.startswith("head.mask_branch.") for name in report.missing)
    report = copy_parts(source, build(mask_channels=16), ("head",))
    assert "head.mask_branch.refine.0.0.weight" in report.skipped
    assert "\n" not in str(report) and f"{len(report.copied)} tensors copied" in str(report)


def test_wrong_requests_are_named():
    source, model = build().state_dict(), build()
    with pytest.raises(ValueError, match="backbone, neck, head, classifier"):
        copy_parts(source, model, ("backbone", "tail"))
    with pytest.raises(ValueError, match="backbone, neck, head, classifier"):
        copy_parts(source, model, "backbone")
    with pytest.raises(ValueError, match="'neck'"):
        copy_parts({n: v for n, v in source.items() if part_of(n) != "neck"}, model, ("backbone", "neck"))
    with pytest.raises(ValueError, match="'classifier'"):
        copy_parts(build(num_classes=2).state_dict(), build(num_classes=3), ("classifier",))


def test_load_reports_every_name():
    source, model = build().state_dict(), build()
    report = interop.load(model, source)
    assert equal_parts(model, source) == set(PARTS) and len(report.loaded) == len(source)
    assert report.skipped == report.missing == report.wrong_shape == ()

    partial = {n: v for n, v in source.items() if part_of(n) == "backbone"} | {"other.weight": torch.zeros(1)}
    report = interop.load(model, partial)
    assert report.skipped == ("other.weight",)
    assert {part_of(name) for name in report.missing} == {"neck", "head", "classifier"}


def test_load_refuses_nothing_and_torn_parts():
    source, model = build().state_dict(), build()
    with pytest.raises(ValueError, match="no tensor"):
        interop.load(model, {"something.else": torch.zeros(2)})
    torn = {n: v for n, v in source.items() if n != "neck.output.p4.weight"}
    before = model.backbone.body.layer1[0].conv1.weight.clone()
    with pytest.raises(ValueError, match="neck.output.p4.weight"):
        interop.load(model, torn)
    assert model.backbone.body.layer1[0].conv1.weight.equal(before)  # nothing was loaded
    assert interop.load(model, torn, strict=False).missing == ("neck.output.p4.weight",)
    other_width = build(mask_channels=16)
    with pytest.raises(ValueError, match="only part of head"):
        interop.load(other_width, source)
    assert "head.mask_branch.refine.0.0.weight" in interop.load(other_width, source, strict=False).wrong_shape


def test_load_does_without_the_unused_level():
    source = {n: v for n, v in build().state_dict().items() if ".p2." not in n}
    assert all(".p2." in name for name in interop.load(build(), source).missing)


def to_adelaidet(model):
    """The state dict of a ResNet detector of ours under AdelaiDet's names."""
    names = {}
    for name in model.state_dict():
        new = name.replace("backbone.body.conv1.", "backbone.bottom_up.stem.conv1.")
        new = new.replace("backbone.body.bn1.", "backbone.bottom_up.stem.conv1.norm.")
        if new.startswith("backbone.body.layer"):
            _, _, layer, block, rest = new.split(".", 4)
            rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            rest = rest.replace("bn", "conv", 1).replace(".", ".norm.", 1) if rest.startswith("bn") else rest
            new = f"backbone.bottom_up.res{int(layer[5:]) + 1}.{block}.{rest}"
        elif new.startswith("neck.top"):
            new = new.replace("neck.top", "backbone.top_block")
        elif new.startswith("neck"):
            _, kind, level, rest = new.split(".")
            new = f"backbone.fpn_{kind}{level[1]}.{rest}"
        elif "_tower." in new:
            _, tower, kind, index, rest = new.split(".")
            tower = {"class_tower": "cls_tower", "box_tower": "bbox_tower"}[tower]
            new = f"proposal_generator.fcos_head.{tower}.{3 * int(index) + (kind == 'norms')}.{rest}"
        elif new.startswith("head."):
            new = "proposal_generator.fcos_" + new.replace("class_logits", "cls_logits").replace(
                "centerness", "ctrness"
            )
        names[name] = new
    state = {names[n]: v for n, v in model.state_dict().items() if n != "head.scales" and ".p2." not in n}
    for i, scale in enumerate(model.head.scales):
        state[f"proposal_generator.fcos_head.scales.{i}.scale"] = scale.detach()[None]
    return state


def test_fcos_of_another_depth_is_read_off_the_shapes():
    config = ModelConfig(
        backbone="resnet18", backbone_norm="frozen_bn", masks=False, num_classes=7, channels=32, tower_convs=2,
        pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1 / 255,) * 3, centre="box", threshold_on="cls", score_threshold=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    original = build_detector(config).eval()
    model = interop.from_adelaidet(to_adelaidet(original), pixel_mean_bgr=(0.0, 0.0, 0.0)).eval()
    for name in ("backbone", "num_classes", "channels", "tower_convs", "strides", "ranges", "masks", "centre"):
        assert getattr(model.config, name) == getattr(config, name), name
    assert model.config.threshold_on == "cls"
    # The original, as an AdelaiDet model, takes blue, green, red.
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.head(original.neck(original.backbone(original.make_batch([image.flip(0)]))))
        found = model.head(model.neck(model.backbone(model.make_batch([image]))))
    torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.distances, expected.distances, rtol=1e-3, atol=1e-3)
