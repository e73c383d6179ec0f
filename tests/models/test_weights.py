"""Weights of other libraries: what is loaded, what raises, and that outputs equal the original's."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from small_models import AGNOSTIC as SMALL
from small_models import with_settings

from cassl_lib import interop
from cassl_lib.models import ModelConfig, build_detector
from cassl_lib.models.backbone import Backbone
from cassl_lib.models.weights.transfer import PARTS, part_of

SWIN_OPTIONS = {"embed_dim": 8, "depths": (1, 2, 1, 2), "num_heads": (1, 1, 2, 2)}
SWIN = ModelConfig(backbone="swin_tiny_patch4_window7_224", backbone_options=tuple(SWIN_OPTIONS.items()))


def randomize(module):
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.5 + 0.25)
    return module


def build(**settings):
    return randomize(build_detector(replace(SMALL, **settings)))


def equal_parts(model, source):
    """Parts whose tensors all equal those of the source."""
    state = model.state_dict()
    same = {name: state[name].shape == source[name].shape and state[name].equal(source[name]) for name in source}
    return {part for part in PARTS if all(equal for name, equal in same.items() if part_of(name) == part)}


def test_load_reports_every_name():
    source, model = build().state_dict(), build()
    report = interop.load(model, source)
    assert equal_parts(model, source) == set(PARTS) and len(report.loaded) == len(source)
    assert report.skipped == report.missing == report.wrong_shape == ()

    partial = {n: v for n, v in source.items() if part_of(n) == "backbone"} | {"other.weight": torch.zeros(1)}
    report = interop.load(model, partial)
    assert report.skipped == ("other.weight",)
    assert {part_of(name) for name in report.missing} == {"neck", "head", "classifier"}


def test_load_raises_if_no_tensor_fits_or_a_part_is_incomplete():
    source, model = build().state_dict(), build()
    with pytest.raises(ValueError, match="no tensor"):
        interop.load(model, {"something.else": torch.zeros(2)})
    incomplete = {n: v for n, v in source.items() if n != "neck.output.p4.weight"}
    before = model.backbone.body.layer1[0].conv1.weight.clone()
    with pytest.raises(ValueError, match="neck.output.p4.weight"):
        interop.load(model, incomplete)
    assert model.backbone.body.layer1[0].conv1.weight.equal(before)  # nothing was loaded
    assert interop.load(model, incomplete, strict=False).missing == ("neck.output.p4.weight",)
    other_width = build(mask_channels=16)
    with pytest.raises(ValueError, match="only part of head"):
        interop.load(other_width, source)
    assert "head.mask_branch.refine.0.0.weight" in interop.load(other_width, source, strict=False).wrong_shape


def test_load_accepts_a_missing_unused_pyramid_level():
    source = {n: v for n, v in build().state_dict().items() if ".p2." not in n}
    assert all(".p2." in name for name in interop.load(build(), source).missing)


def to_adelaidet(model):
    """The state dict of one of our ResNet detectors under AdelaiDet's names."""
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


def test_depth_and_sizes_of_an_fcos_are_inferred_from_shapes():
    config = ModelConfig(
        backbone="resnet18", backbone_norm="frozen_bn", masks=False, num_classes=7, channels=32, tower_convs=2,
        pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1 / 255,) * 3, center="box", threshold_on="cls", score_threshold=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    original = build_detector(config).eval()
    model = interop.from_adelaidet(to_adelaidet(original), pixel_mean_bgr=(0.0, 0.0, 0.0)).eval()
    for name in ("backbone", "num_classes", "channels", "tower_convs", "strides", "ranges", "masks", "center"):
        assert getattr(model.config, name) == getattr(config, name), name
    assert model.config.threshold_on == "cls"
    # The original, taken as an AdelaiDet model, expects BGR.
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.head(original.neck(original.backbone(original.make_batch([image.flip(0)]))))
        predictions = model.head(model.neck(model.backbone(model.make_batch([image]))))
    torch.testing.assert_close(predictions.class_logits, expected.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions.distances, expected.distances, rtol=1e-3, atol=1e-3)


def small_adelaidet(**settings):
    config = ModelConfig(
        backbone="resnet18", backbone_norm="frozen_bn", num_classes=1, channels=16, tower_convs=1, mask_channels=8,
        mask_convs=1, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1 / 255,) * 3, score_threshold=0.0,
    )  # fmt: skip
    original = build_detector(replace(config, **settings)).eval()
    prefix = "proposal_generator.fcos_head."
    names = ("mask_branch", "controller")
    state = to_adelaidet(original)
    return original, {n.removeprefix(prefix) if n.startswith(tuple(prefix + x for x in names)) else n: v
                      for n, v in state.items()}  # fmt: skip


def test_a_class_agnostic_condinst_is_built_from_a_checkpoint_of_arrays(caplog):
    caplog.set_level(logging.INFO, "cassl_lib")
    torch.manual_seed(0)
    original, state = small_adelaidet()
    features = [name for name in state if name.startswith("mask_branch.features.")]
    state |= {name.replace("features", "tower.1"): state.pop(name) for name in features}
    state |= {"mask_branch.seg_head.0.0.weight": torch.zeros(1), "mask_branch.logits.bias": torch.zeros(1)}
    state |= {"mask_head.sizes_of_interest": torch.tensor([64, 128, 256, 512, 1024]), "mask_head._iter": torch.zeros(1)}
    checkpoint = {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "somebody"}
    model = interop.from_adelaidet(checkpoint, pixel_mean_bgr=(0.0, 0.0, 0.0)).eval()
    assert "0 skipped" in caplog.text and "0 wrong shape" in caplog.text
    assert "semantic head (2 tensors)" in caplog.text
    assert (model.config.num_classes, model.config.masks, model.config.center) == (1, True, "mask")
    model = with_settings(model, score_threshold=0.0)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (expected,), (detections,) = original([image.flip(0)]), model([image])
    assert len(detections["boxes"]) == len(expected["boxes"]) > 5
    torch.testing.assert_close(detections["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
    assert (detections["masks"] != expected["masks"]).float().mean() < 1e-4


def test_color_order_mean_and_std_of_the_model_are_parameters():
    torch.manual_seed(0)
    original, state = small_adelaidet(masks=False, pixel_mean=(0.1, 0.2, 0.4), pixel_std=(0.25, 0.2, 0.5))
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    model = interop.from_adelaidet(
        state, bgr=False, pixel_mean_bgr=(102.0, 51.0, 25.5), pixel_std_bgr=(127.5, 51.0, 63.75)
    )
    with torch.no_grad():
        expected, pyramid = (m.eval().neck(m.backbone(m.make_batch([image]))) for m in (original, model))
    torch.testing.assert_close(pyramid[0], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backbone.bottom_up.res4.0.conv2_offset.weight", torch.zeros(2), "deformable.*res4.0.conv2_offset"),
        ("proposal_generator.fcos_head.share_tower.0.weight", torch.zeros(2), "share_tower.0"),
        ("mask_head.sizes_of_interest", torch.tensor([32, 64, 128, 256, 512]), r"\[32.0.*expected \[64"),
        ("backbone.bottom_up.res2.7.conv1.weight", torch.zeros(2), "blocks per stage"),
    ],
)
def test_adelaidet_models_without_an_equivalent_raise(name, value, message):
    _, state = small_adelaidet(masks=False)
    with pytest.raises(ValueError, match=message):
        interop.from_adelaidet(state | {name: value})


def test_weights_of_another_library_raise_with_the_right_function():
    with pytest.raises(ValueError, match="no FCOS head.*interop.load"):
        interop.from_adelaidet({"fc.weight": torch.ones(1)})
    _, state = small_adelaidet(masks=False)
    with pytest.raises(ValueError, match="BGR.*from_adelaidet"):
        interop.load(build(), state)


def test_loading_logs_its_report(caplog):
    caplog.set_level(logging.INFO, "cassl_lib")
    model = build()
    report = interop.load(model, build().state_dict())
    assert [record.getMessage() for record in caplog.records] == [f"weights: {report}"]
    assert f"{len(report.loaded)} loaded, 0 skipped, 0 missing, 0 wrong shape" == str(report)


def test_torchvisions_fcos_weights_give_torchvisions_predictions():
    """An independent implementation of backbone, pyramid and head; it has no scales."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 4 and name.startswith("head"):
            parameter.data.mul_(4)  # so that outputs are not dominated by biases
    model = build_detector(
        ModelConfig(backbone="resnet50", backbone_norm="frozen_bn", masks=False, center="box", num_classes=5)
    ).eval()
    report = interop.load(model, theirs.state_dict())
    assert not report.skipped and not report.wrong_shape
    assert {name.split(".")[2] for name in report.missing} == {"p2"}
    theirs, model, batch = theirs.double(), model.double(), torch.randn(2, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        pyramid = list(theirs.backbone(batch).values())
        expected = theirs.head(pyramid)
        ours = model.neck(model.backbone(batch))
        predictions = model.head(ours)
    for a, b in zip(ours, pyramid, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert expected["cls_logits"].std() > 0.1
    torch.testing.assert_close(predictions.class_logits, expected["cls_logits"].float())
    torch.testing.assert_close(predictions.distances, expected["bbox_regression"].float())
    torch.testing.assert_close(predictions.centerness, expected["bbox_ctrness"][..., 0].float())


def test_torchvisions_mask_rcnn_provides_backbone_and_pyramid():
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    config = ModelConfig(backbone="resnet50", backbone_norm="frozen_bn", strides=(4, 8, 16, 32), ranges=(32, 64, 128))
    model = build_detector(config)
    report = interop.load(model, theirs)
    assert model.neck.lateral["p2"].weight.equal(theirs["backbone.fpn.inner_blocks.0.0.weight"])
    assert model.neck.output["p5"].bias.equal(theirs["backbone.fpn.layer_blocks.3.0.bias"])
    assert {part_of(name) for name in report.missing} == {"head", "classifier"}
    assert all(name.startswith(("rpn.", "roi_heads.")) for name in report.skipped)


def swin_state():
    """State dict of a timm classifier with random weights."""
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **SWIN_OPTIONS)
    return randomize(model).state_dict()


def as_microsofts(state):
    """Microsoft's names: patch merging in the previous stage, the classifier is `head`, indices are stored."""
    names = {}
    for name, value in state.items():
        if ".downsample." in name:
            _, stage, rest = name.split(".", 2)
            name = f"layers.{int(stage) - 1}.{rest}"
        names[name.replace("head.fc.", "head.")] = value
    return names | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}


def as_detector(state, prefix):
    """Inside a detector: no classifier, no final norm, a norm per stage."""
    body = {name: value for name, value in as_microsofts(state).items() if not name.startswith(("head", "norm."))}
    norms = {f"norm{i}.{kind}": torch.rand(8 * 2**i) for i in (1, 2, 3) for kind in ("weight", "bias")}
    return {prefix + name: value for name, value in (body | norms).items()}


@pytest.mark.parametrize("kind", ["timm", "features", "microsoft", "detectron2", "swin_detection"])
def test_swin_weights_load_under_the_names_of_every_library(kind, tmp_path):
    state = swin_state()
    given = {
        "timm": lambda: state,
        "features": lambda: {n.replace("layers.", "layers_"): v for n, v in state.items()},
        "microsoft": lambda: as_microsofts(state),
        "detectron2": lambda: as_detector(state, "backbone.bottom_up."),
        "swin_detection": lambda: as_detector(state, "backbone."),
    }[kind]()
    torch.save({"model": given, "epoch": 3}, tmp_path / "swin.pth")
    net = Backbone(replace(SWIN, pretrained=str(tmp_path / "swin.pth")), first_stage=1)
    for name, value in net.body.state_dict().items():
        assert value.equal(state[name.replace("layers_", "layers.")]), name
    norms = [norm.weight for norm in net.norms]
    if kind in ("detectron2", "swin_detection"):
        prefix = "backbone.bottom_up." if kind == "detectron2" else "backbone."
        assert all(norms[i].equal(given[f"{prefix}norm{i}.weight"]) for i in (1, 2, 3))
    else:
        assert all((norm == 1).all() for norm in norms)


def test_swin_from_a_file_has_the_outputs_of_timm(tmp_path):
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **SWIN_OPTIONS).eval()
    save_file(as_microsofts(model.state_dict()), tmp_path / "swin.safetensors")
    net = Backbone(replace(SWIN, pretrained=str(tmp_path / "swin.safetensors"))).eval()
    stages = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **SWIN_OPTIONS).eval()
    stages.load_state_dict({n.replace("layers.", "layers_"): v for n, v in model.state_dict().items()}, strict=False)
    image = torch.rand(1, 3, 224, 224)  # at this size timm drops the last stage's shift: compare the others
    with torch.no_grad():
        for ours, theirs in zip(net.body(image)[:3], stages(image)[:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_incomplete_backbone_file_raises_and_is_named(tmp_path):
    state = swin_state()
    cases = {
        "lacking": ({n: v for n, v in state.items() if "layers.1.downsample" not in n}, "layers_1.downsample"),
        "window": (
            {n: v[:25] if "bias_table" in n else v for n, v in state.items()},
            "relative_position_bias_table",
        ),
        "other": ({"conv.weight": torch.zeros(1)}, "no tensor fits"),
        "caffe": ({"stem.conv1.weight": torch.zeros(1)}, "BGR"),
    }
    for name, (given, message) in cases.items():
        file = tmp_path / f"{name}.pth"
        torch.save(given, file)
        with pytest.raises(ValueError, match=f"{name}.pth.*{message}"):
            Backbone(replace(SWIN, pretrained=str(file)))


def test_weight_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"model": {"fc.weight": torch.zeros(1)}, "code": interop.load}, tmp_path / "code.pth")
    for name in ("cut.safetensors", "text.pth", "code.pth"):
        with pytest.raises(ValueError, match=f"{name}: no weights.*safetensors"):
            interop.read_weights(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        interop.read_weights(tmp_path / "absent.pth")
    torch.save({"state_dict": {"fc.weight": np.ones(2)}}, tmp_path / "arrays.pth")
    assert interop.read_weights(tmp_path / "arrays.pth")["state_dict"]["fc.weight"].tolist() == [1, 1]
