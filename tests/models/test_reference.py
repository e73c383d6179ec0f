"""Our detector computes the recorded outputs of the public CondInst, from the same generated weights."""

import numpy as np
import pytest
import recorded_condinst as records
import torch
from small_models import with_settings

from cassl_lib import interop
from cassl_lib.models import losses
from cassl_lib.models.condinst_masks import dynamic_parameters, gather_masks, mask_logits
from cassl_lib.models.fcos import select_detections
from cassl_lib.models.fcos_targets import assign_targets, box_distances

LEVELS = ("p3", "p4", "p5", "p6", "p7")
# The reference itself varies with the number of threads: head outputs by 2.4e-5, losses by 4e-7 and gradient norms by
# 8e-4 (relative), boxes by 4e-4 pixels, scores by 2e-6. We allow a few times that, for another order of summation.
OUTPUT, LOSS, GRADIENT, BOX, SCORE = 1e-4, 4e-6, 3e-3, 2e-3, 1e-5
FULL = pytest.mark.skipif(
    not (records.SHARED / "condinst_r50.npz").is_file(), reason=f"no full records in {records.SHARED}"
)


@pytest.fixture(scope="module", params=["carried", pytest.param("full", marks=FULL)])
def recorded(request):
    return records.reduce(records.SHARED, 1) if request.param == "full" else dict(np.load(records.CARRIED))


@pytest.fixture(scope="module")
def weights(recorded):
    return records.draw_weights(recorded["rules"])


@pytest.fixture
def model(weights):
    return interop.from_adelaidet(weights).eval()


@pytest.fixture(scope="module")
def images(recorded):
    return [torch.from_numpy(image[::-1].copy()) for image in records.draw_images(recorded)]


@pytest.fixture(scope="module")
def targets(recorded):
    result = []
    for i in range(records.IMAGES):
        masks = records.unpack_masks(recorded, i)
        values = {"boxes": recorded[f"boxes_{i}"], "labels": recorded[f"classes_{i}"], "masks": masks}
        result.append({name: torch.from_numpy(value) for name, value in values.items()})
    return result


def by_level(values, locations):
    """(B, P, ...) -> the reference's order: level, image, location."""
    return torch.cat([level.flatten(0, 1) for level in values.split(locations.counts, 1)])


def close(computed, expected, tolerance, what):
    """Compare with the recorded numbers, all or every STEP-th of them. `pytest -rP` shows the deviations."""
    expected = torch.from_numpy(np.asarray(expected))
    if expected.ndim == 1 and expected.numel() < computed.numel():
        computed = computed.reshape(-1)[:: records.STEP]
    expected = expected.view(computed.shape)
    say(what, (computed - expected).abs().max().item() if computed.numel() else 0.0, tolerance)
    torch.testing.assert_close(computed, expected, rtol=0, atol=tolerance)


def say(what, deviation, allowed):
    print(f"{what}: largest deviation {deviation:.1e}, allowed {allowed:.0e}")


@torch.no_grad()
def test_feature_maps_and_head_outputs_are_the_recorded_ones(model, images, recorded):
    batch = model.make_batch(images)
    close(batch.flip(1) * 255, recorded["norm_batch"], 1e-4, "normalized pixels")
    pyramid = model.neck(model.backbone(batch))
    predictions, locations = model.head(pyramid), model.make_locations(pyramid)
    close(pyramid[0][:, ::4], recorded["eval/fpn/p3/every4thchannel"], OUTPUT, "p3")
    close(pyramid[0].mean((2, 3)), recorded["eval/fpn/p3/mean"], OUTPUT, "mean of p3")
    columns = {
        "logits": predictions.class_logits,
        "reg": predictions.distances,
        "ctrness": predictions.centerness[..., None],
    }
    for level, name in enumerate(LEVELS):
        if level:
            close(pyramid[level], recorded[f"eval/fpn/{name}"], OUTPUT, name)
        for kind, values in columns.items():
            expected = recorded[f"eval/{kind}/{name}"]
            close(values.split(locations.counts, 1)[level].transpose(1, 2), expected, OUTPUT, f"{kind} {name}")
    close(model.head.mask_branch(pyramid), recorded["eval/mask_feats"], OUTPUT, "mask features")


@torch.no_grad()
def test_controller_outputs_at_chosen_locations_are_the_recorded_ones(model, images, recorded):
    predictions = model.head(model.neck(model.backbone(model.make_batch(images))))
    start = 1600
    for name, side in zip(LEVELS[1:], (20, 10, 5, 3), strict=True):
        image, position = torch.cartesian_prod(torch.arange(3), torch.arange(start, start + side * side)).unbind(1)
        parameters = dynamic_parameters(model.head.controller, predictions.box_maps, images=image, positions=position)
        parameters = parameters.view(3, side * side, 169).transpose(1, 2)
        close(parameters, recorded[f"eval/top_feats/{name}"].reshape(-1), OUTPUT, f"controller {name}")
        start += side * side
    image, i, j = torch.cartesian_prod(torch.arange(3), torch.arange(0, 40, 2), torch.arange(0, 40, 2)).unbind(1)
    parameters = dynamic_parameters(model.head.controller, predictions.box_maps, images=image, positions=i * 40 + j)
    close(
        parameters.view(3, 400, 169).transpose(1, 2),
        recorded["eval/top_feats/p3/every2ndcell"].reshape(-1),
        OUTPUT,
        "controller p3",
    )


def test_targets_are_the_recorded_ones(model, images, targets, recorded):
    locations = model.make_locations([torch.empty(3, 1, n, n) for n in (40, 20, 10, 5, 3)])
    assert locations.counts == recorded["targets/num_loc_per_level"].tolist()
    ground_truth = model.gather_targets(targets)
    boxes, centers = ground_truth.boxes, ground_truth.centers
    matched = assign_targets(locations, boxes, centers, radius=model.config.center_radius)
    labels = torch.where(matched < 0, 80, ground_truth.labels.gather(1, matched.clamp(min=0)))
    assert by_level(labels, locations).tolist() == recorded["targets/labels"].tolist()

    positive = torch.from_numpy(recorded["targets/pos_inds"])
    first = torch.tensor([0, 9, 17])[:, None]
    instances = by_level(matched + first, locations)[positive]
    assert instances.tolist() == recorded["targets/target_inds"].tolist()
    boxes = boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))
    distances = by_level(box_distances(locations, boxes), locations)[positive]
    close(distances, recorded["targets/reg_targets"], 1e-5, "box targets")
    close(losses.centerness(distances), recorded["targets/pos_ctrness"], 1e-6, "centerness targets")


def test_mask_targets_are_the_recorded_ones(targets, recorded):
    sampled = gather_masks(targets, stride=4, size=(80, 80), device=torch.device("cpu"))
    expected = np.concatenate([recorded[f"mask_targets_{i}"] for i in range(3)])
    assert sampled.equal(torch.from_numpy(expected).bool())


@pytest.mark.parametrize("mode", ["bnfrozen", "bntrain"])
def test_losses_and_gradients_are_the_recorded_ones(model, images, targets, recorded, mode):
    model.train()
    if mode == "bnfrozen":
        model.head.mask_branch.eval()
    result = model(images, targets)
    names = {"loss_cls": "fcos_cls", "loss_box": "fcos_loc", "loss_centerness": "fcos_ctr", "loss_mask": "mask"}
    for ours, theirs in names.items():
        expected = float(recorded[f"train_{mode}/loss_{theirs}"])
        say(f"{ours}, relative", abs(result[ours].item() / expected - 1), LOSS)
        assert result[ours].item() == pytest.approx(expected, rel=LOSS)

    sum(result.values()).backward()
    parameters = dict(model.named_parameters())
    compared, worst = 0, 0.0
    for theirs, expected in zip(
        recorded[f"train_{mode}/grad_names"], recorded[f"train_{mode}/grad_norms"], strict=True
    ):
        (ours,) = interop.to_our_names({str(theirs): torch.zeros(1)})
        if ours == "head.scales":
            continue
        norm = parameters[ours].grad.norm().item()
        worst = max(worst, abs(norm / expected - 1))
        assert norm == pytest.approx(expected, rel=GRADIENT), theirs
        compared += 1
    assert compared == 126 - 5
    say("gradient norms, relative", worst, GRADIENT)
    key = f"train_{mode}/grad8/controller.bias"
    torch.testing.assert_close(
        parameters["head.controller.bias"].grad[:8], torch.from_numpy(recorded[key]), rtol=1e-2, atol=1e-6
    )
    scale = recorded[f"train_{mode}/grad8/proposal_generator.fcos_head.scales.1.scale"]
    assert parameters["head.scales"].grad[1].item() == pytest.approx(float(scale[0]), rel=GRADIENT)


@torch.no_grad()
def test_mask_logits_of_the_first_positives_are_the_recorded_ones(model, images, recorded):
    """The reference lists positives level by level; the first twelve are all on P3."""
    pyramid = model.neck(model.backbone(model.make_batch(images)))
    predictions, locations = model.head(pyramid), model.make_locations(pyramid)
    positive = torch.from_numpy(recorded["targets/pos_inds"])[:12]
    image, position = positive // 1600, positive % 1600
    assert positive.max() < 3 * 1600
    logits = mask_logits(
        model.head.mask_branch(pyramid),
        parameters=dynamic_parameters(model.head.controller, predictions.box_maps, images=image, positions=position),
        images=image,
        points=locations.points[position],
        sizes=locations.sizes[position],
        stride=8,
    )
    close(logits, recorded["train_bnfrozen/mask_logits_first12"].reshape(-1), 5 * OUTPUT, "mask logits")


def expected_detections(recorded, kind, i):
    prefix = f"infer/{kind}/{i}/"
    return {k.removeprefix(prefix): value for k, value in recorded.items() if k.startswith(prefix)}


@pytest.mark.parametrize("kind", ["default", "low"])
def test_detections_and_masks_are_the_recorded_ones(model, images, recorded, kind):
    if kind == "low":
        model = with_settings(model, score_threshold=0.01, candidates_per_level=300, detections_per_image=300)
    for i, image in enumerate(images):
        expected = expected_detections(recorded, kind, i)
        size = tuple(recorded["out_sizes"][i].tolist())
        (detections,) = model.predict([image], [size])
        compare_detections(model, image, detections, expected)


@torch.no_grad()
def compare_detections(model, image, detections, expected):
    pyramid = model.neck(model.backbone(model.make_batch([image])))
    locations = model.make_locations(pyramid)
    (raw,) = select_detections(model.head(pyramid), locations, model.config)
    assert len(detections["boxes"]) == len(expected["boxes"]) == len(raw["positions"])
    # Scores differ by as little as 5e-7, so ranks may swap: match detections by location, stride and class.
    points = locations.points[raw["positions"]]
    strides = locations.strides[raw["positions"]]
    rows = zip(points.tolist(), strides.tolist(), raw["labels"].tolist(), strict=True)
    ours = {(*point, stride, label): row for row, (point, stride, label) in enumerate(rows)}
    rows = zip(expected["locations"], expected["fpn_levels"], expected["classes"], strict=True)
    order = [ours[float(p[0]), float(p[1]), 8.0 * 2 ** int(level), int(c)] for p, level, c in rows]
    close(detections["boxes"][order], expected["boxes"], BOX, "boxes, pixels")
    close(detections["scores"][order], expected["scores"], SCORE, "scores")

    masks = detections["masks"][order].numpy()
    # A few pixels in a million are so close to 0.5 that the order of summation decides; one more row would be 2e-3.
    areas = np.abs(masks.sum((1, 2)) - expected["mask_areas"].astype(int))
    say("mask area, of all pixels", areas.sum() / masks.size, 1e-5)
    assert areas.sum() < 1e-5 * masks.size
    height, width = masks.shape[1:]
    packed = np.unpackbits(expected["masks_packed"], axis=1)[:, : height * width].reshape(-1, height, width)
    different = (masks[: len(packed)] != packed).sum()
    say("mask pixels, of all", different / max(1, packed.size), 1e-5)
    assert different <= 1e-5 * packed.size
