"""Transfer of parts from a warmed-up detector (Table 9)."""

from dataclasses import replace

import pytest
import torch
from small_models import AGNOSTIC

from cassl_lib.models import build_detector, copy_parts
from cassl_lib.models.weights.transfer import PARTS, part_of


def build(**settings):
    model = build_detector(replace(AGNOSTIC, **settings))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return model


def equal_parts(model, source):
    """Parts whose tensors all equal those of the source."""
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
def test_only_the_requested_parts_are_copied(parts):
    source, model = build().state_dict(), build()
    report = copy_parts(source, model, parts)
    assert equal_parts(model, source) == set(parts)
    assert {part_of(name) for name in report.copied} == set(parts)
    assert report.skipped == report.missing == ()


def test_a_class_agnostic_classifier_is_copied_to_every_class():
    source, model = build().state_dict(), build(num_classes=3)
    copy_parts(source, model)
    for row in range(3):
        assert model.head.class_logits.weight[row].equal(source["head.class_logits.weight"][0])
    assert model.head.class_logits.bias.tolist() == source["head.class_logits.bias"].tolist() * 3


def test_a_classifier_that_is_not_requested_keeps_its_initial_weights():
    source, model = build().state_dict(), build(num_classes=3)
    before = model.head.class_logits.weight.clone()
    report = copy_parts(source, model, ("backbone", "neck", "head"))
    assert model.head.class_logits.weight.equal(before)
    assert not any("class_logits" in name for name in report.copied)


def test_missing_tensors_and_other_shapes_are_reported():
    source = build().state_dict()
    boxes_only = {name: value for name, value in source.items() if "mask_branch" not in name}
    report = copy_parts(boxes_only, build(), ("head",))
    assert report.missing and all(name.startswith("head.mask_branch.") for name in report.missing)
    report = copy_parts(source, build(mask_channels=16), ("head",))
    assert "head.mask_branch.refine.0.0.weight" in report.skipped
    assert "\n" not in str(report) and f"{len(report.copied)} tensors copied" in str(report)


def test_unknown_parts_and_parts_without_any_match_raise():
    source, model = build().state_dict(), build()
    with pytest.raises(ValueError, match="backbone, neck, head, classifier"):
        copy_parts(source, model, ("backbone", "tail"))
    with pytest.raises(ValueError, match="backbone, neck, head, classifier"):
        copy_parts(source, model, "backbone")
    with pytest.raises(ValueError, match="'neck'"):
        copy_parts({n: v for n, v in source.items() if part_of(n) != "neck"}, model, ("backbone", "neck"))
    with pytest.raises(ValueError, match="'classifier'"):
        copy_parts(build(num_classes=2).state_dict(), build(num_classes=3), ("classifier",))
