"""FCOS: locations, targets, head, losses and the selection of detections, checked by hand and by loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cassl_lib.models import ModelConfig, fcos_targets
from cassl_lib.models.fcos import select_detections
from cassl_lib.models.fcos_head import Head, Predictions
from cassl_lib.models.fcos_losses import fcos_losses
from cassl_lib.models.fcos_targets import Targets, assign_targets, box_distances, make_locations
from cassl_lib.models.fpn import FPN

CONFIG = ModelConfig(
    num_classes=3, masks=False, channels=8, strides=(8, 16, 32), ranges=(64, 128), tower_convs=1, head_norm="gn"
)
SHAPES = [(8, 12), (4, 6), (2, 3)]  # of a 64 x 96 image


@pytest.fixture
def locations():
    return make_locations(SHAPES, CONFIG, torch.device("cpu"))


def assign(locations, boxes, centers=None, radius=1.5):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(1, -1, 4)
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2 if centers is None else torch.tensor([centers])
    return assign_targets(locations, boxes, centers, radius=radius)[0]


def assign_by_loop(boxes, centers, radius, strides, ranges):
    """The assignment rule, location by location; ranges are (lowest, highest) per level."""
    matched = []
    for (height, width), stride, (lowest, highest) in zip(SHAPES, strides, ranges, strict=True):
        for i in range(height):
            for j in range(width):
                x, y = j * stride + stride // 2, i * stride + stride // 2
                best, best_area = -1, math.inf
                for m, ((x1, y1, x2, y2), (cx, cy)) in enumerate(zip(boxes, centers, strict=True)):
                    half = radius * stride
                    in_x = max(cx - half, x1) < x < min(cx + half, x2)
                    in_y = max(cy - half, y1) < y < min(cy + half, y2)
                    reach = max(x - x1, y - y1, x2 - x, y2 - y)
                    area = (x2 - x1) * (y2 - y1)
                    if in_x and in_y and lowest <= reach <= highest and area < best_area:
                        best, best_area = m, area
                matched.append(best)
    return matched


def test_locations_have_the_points_strides_and_ranges_of_their_level(locations):
    assert locations.counts == [96, 24, 6]
    assert locations.points[[0, 1, 12, 96, 120]].tolist() == [[4, 4], [12, 4], [4, 12], [8, 8], [16, 16]]
    assert locations.strides[[0, 95, 96, 120]].tolist() == [8, 8, 16, 32]
    assert locations.lowest[[0, 96, 120]].tolist() == [-1, 64, 128]
    assert locations.highest[[0, 96, 120]].tolist() == [64, 128, 1e8]
    assert locations.sizes[[0, 96, 120]].tolist() == [64, 128, 256]


def test_targets_equal_the_assignment_rule_by_loops(locations):
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        corner = torch.rand(12, 2, generator=generator) * torch.tensor([80.0, 50.0])
        side = torch.rand(12, 2, generator=generator) ** 2 * 150 + 1
        boxes = (
            torch.cat([corner - 5, corner + side], 1).round().tolist()
        )  # rounded, so that some locations are on box sides
        centers = (corner + side / 3).tolist()
        expected = assign_by_loop(boxes, centers, 1.5, CONFIG.strides, [(-1, 64), (64, 128), (128, 1e8)])
        assert assign(locations, boxes, centers).tolist() == expected
        assert set(expected) != {-1}


def test_the_smallest_box_wins_and_of_equal_ones_the_first(locations):
    small, large = [20, 20, 44, 44], [10, 10, 54, 54]
    center = 3 * 12 + 3  # stride 8, pixel (28, 28)
    assert assign(locations, [large, small])[center] == 1
    assert assign(locations, [small, large])[center] == 0
    assert assign(locations, [small, small, large])[center] == 0


def test_a_location_on_the_side_of_a_box_is_outside(locations):
    matched = assign(locations, [[4, 4, 20, 20]])[:96].view(8, 12)
    assert (matched >= 0).nonzero().tolist() == [[1, 1]]  # (12, 12); x = 4 and x = 20 are on a side


def test_ranges_of_interest_include_both_ends(locations):
    matched = assign(locations, [[-36, 4, 92, 60]])  # exactly 64 left of (28, 28)
    assert matched[3 * 12 + 3] == 0
    matched = assign(locations, [[-40, 0, 80, 60]])  # exactly 64 left of (24, 24), level 1
    assert matched[96 + 6 + 1] == 0
    matched = assign(locations, [[-37, 4, 91, 60]])  # 65 to the left, beyond level 0
    assert matched[3 * 12 + 3] == -1


def test_center_sampling_follows_the_mask_not_the_box(locations):
    box = [[0, 0, 60, 60]]
    by_mask = assign(locations, box, [[8.0, 8.0]])[:96].view(8, 12)
    assert (by_mask >= 0).nonzero().tolist() == [[i, j] for i in range(2) for j in range(2)]  # (8, 8) +- 12, exclusive
    by_box = assign(locations, box)[:96].view(8, 12)
    assert (by_box >= 0).nonzero().tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]  # (30, 30) +- 12


def test_one_pixel_boxes_match_only_a_location_inside_and_padding_boxes_match_none(locations):
    assert (assign(locations, [[28, 28, 29, 29]]) == -1).all()
    assert assign(locations, [[27.5, 27.5, 28.5, 28.5]])[3 * 12 + 3] == 0
    assert (assign(locations, [[0, 0, 0, 0]]) == -1).all()


def test_assigning_in_chunks_gives_the_same_targets(locations, monkeypatch):
    corner = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(1)) * 40
    boxes = torch.cat([corner, corner + 30], -1)
    whole = assign_targets(locations, boxes, corner + 15, radius=1.5)
    monkeypatch.setattr(fcos_targets, "PAIRS_AT_ONCE", 126 * 3 * 2)
    assert assign_targets(locations, boxes, corner + 15, radius=1.5).equal(whole)
    assert (whole >= 0).any()


def test_box_distances_are_in_strides(locations):
    distances = box_distances(locations, torch.tensor([10.0, 20.0, 50.0, 60.0]).expand(1, 126, 4))[0]
    assert distances[0].tolist() == [-6 / 8, -16 / 8, 46 / 8, 56 / 8]
    assert distances[96].tolist() == [-2 / 16, -12 / 16, 42 / 16, 52 / 16]


def make_predictions(locations, batch=1, classes=3):
    generator = torch.Generator().manual_seed(2)
    total = len(locations.points)
    return Predictions(
        class_logits=torch.randn(batch, total, classes, generator=generator).requires_grad_(),
        distances=(torch.rand(batch, total, 4, generator=generator) * 3).requires_grad_(),
        centerness=torch.randn(batch, total, generator=generator).requires_grad_(),
        box_maps=[],
    )


def test_losses_equal_their_formulas_by_loops(locations):
    boxes = torch.tensor([[[10.0, 12, 50, 52], [20, 20, 38, 36]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    labels = torch.tensor([[2, 0], [0, 0]])
    targets = Targets(boxes, labels, (boxes[..., :2] + boxes[..., 2:]) / 2)
    predictions = make_predictions(locations, batch=2)
    matched = assign_targets(locations, targets.boxes, targets.centers, radius=1.5)
    losses = fcos_losses(predictions, locations=locations, matched=matched, targets=targets)

    focal = box = center = weight = positives = 0.0
    for image in range(2):
        for p in range(126):
            m = matched[image, p].item()
            for c in range(3):
                prob = predictions.class_logits[image, p, c].sigmoid().item()
                is_class = m >= 0 and labels[image, m] == c
                focal -= 0.25 * (1 - prob) ** 2 * math.log(prob) if is_class else 0.75 * prob**2 * math.log(1 - prob)
            if m < 0:
                continue
            (x, y), stride = locations.points[p].tolist(), locations.strides[p].item()
            x1, y1, x2, y2 = boxes[image, m].tolist()
            left, top, right, bottom = (d / stride for d in (x - x1, y - y1, x2 - x, y2 - y))
            target = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            a, b, c, d = predictions.distances[image, p].tolist()
            inner = (min(a, left) + min(c, right)) * (min(b, top) + min(d, bottom))
            outer = (max(a, left) + max(c, right)) * (max(b, top) + max(d, bottom))
            union = (a + c) * (b + d) + (left + right) * (top + bottom) - inner
            box += target * (1 - (inner + 1) / (union + 1) + (outer - union) / outer)
            prob = predictions.centerness[image, p].sigmoid().item()
            center -= target * math.log(prob) + (1 - target) * math.log(1 - prob)
            positives, weight = positives + 1, weight + target
    assert positives > 5
    assert losses["loss_cls"].item() == pytest.approx(focal / positives, rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(box / weight, rel=1e-4)
    assert losses["loss_centerness"].item() == pytest.approx(center / positives, rel=1e-4)


def test_without_instances_box_losses_are_zero_and_reach_every_prediction(locations):
    predictions = make_predictions(locations)
    targets = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 2))
    matched = torch.full((1, 126), -1)
    losses = fcos_losses(predictions, locations=locations, matched=matched, targets=targets)
    assert losses["loss_box"] == 0 and losses["loss_centerness"] == 0
    expected = sum(-0.75 * p**2 * math.log(1 - p) for p in predictions.class_logits.sigmoid().flatten().tolist())
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-4)  # divided by 1
    sum(losses.values()).backward()
    for values in (predictions.class_logits, predictions.distances, predictions.centerness):
        assert values.grad is not None and values.grad.isfinite().all()


def detect(locations, scores, **settings):
    """Detections for {(location, class): (class probability, centerness)}, with boxes of 2 x 2 strides."""
    logits = torch.full((1, 126, 3), -20.0)
    centerness = torch.full((1, 126), -20.0)
    for (p, c), (classification, center) in scores.items():
        logits[0, p, c] = math.log(classification / (1 - classification))
        centerness[0, p] = math.log(center / (1 - center))
    predictions = Predictions(logits, torch.ones(1, 126, 4), centerness, [])
    return select_detections(predictions, locations, replace(CONFIG, **settings))[0]


def test_score_is_the_geometric_mean_and_is_thresholded_before_the_root(locations):
    scores = {(0, 1): (0.5, 0.3), (50, 2): (0.4, 0.12), (96, 0): (0.8, 0.2)}
    detections = detect(locations, scores)
    assert detections["positions"].tolist() == [96, 0]  # 0.4 * 0.12 = 0.048 is below 0.05
    assert detections["labels"].tolist() == [0, 1]
    torch.testing.assert_close(detections["scores"], torch.tensor([0.16, 0.15]).sqrt())
    assert detections["boxes"].tolist() == [[-8, -8, 24, 24], [-4, -4, 12, 12]]
    detections = detect(locations, scores, threshold_on="cls")
    assert detections["positions"].tolist() == [96, 0, 50]
    assert detections["scores"][2].item() == pytest.approx(math.sqrt(0.048))


def test_nms_is_per_class_and_across_levels(locations):
    # Location 0 on stride 8 spans (-4, -4, 12, 12), location 1 (4, -4, 20, 12): IoU 1/3.
    close = {(0, 1): (0.9, 0.9), (1, 1): (0.8, 0.9)}
    assert detect(locations, close)["positions"].tolist() == [0, 1]
    assert detect(locations, close, nms_threshold=0.3)["positions"].tolist() == [0]
    assert len(detect(locations, {(0, 1): (0.9, 0.9), (1, 2): (0.8, 0.9)}, nms_threshold=0.3)["positions"]) == 2
    # Location 0 on stride 16 spans (-8, -8, 24, 24); location 13 on stride 8 spans (4, 4, 20, 20): IoU 1/4.
    across = {(13, 1): (0.9, 0.9), (96, 1): (0.8, 0.9)}
    assert detect(locations, across, nms_threshold=0.2)["positions"].tolist() == [13]


def test_detections_are_limited_per_level_and_per_image(locations):
    scores = {(p, 0): (0.5 + p / 1000, 0.9) for p in (0, 10, 40, 60, 96, 110)}
    assert detect(locations, scores)["positions"].tolist() == [110, 96, 60, 40, 10, 0]
    assert detect(locations, scores, candidates_per_level=1)["positions"].tolist() == [110, 60]
    assert detect(locations, scores, detections_per_image=2)["positions"].tolist() == [110, 96]
    assert len(detect(locations, {})["boxes"]) == 0


def test_head_scales_distances_per_level_and_keeps_them_nonnegative():
    torch.manual_seed(0)
    head = Head(CONFIG).eval()
    pyramid = [torch.randn(2, 8, *shape) for shape in SHAPES]
    plain = head(pyramid)
    assert plain.class_logits.shape == (2, 126, 3) and plain.distances.shape == (2, 126, 4)
    assert plain.centerness.shape == (2, 126)
    assert plain.distances.min() == 0 and plain.distances.max() > 0
    torch.nn.init.constant_(head.scales, 1.0)
    with torch.no_grad():
        head.scales[1] = 3.0
    scaled = head(pyramid)
    torch.testing.assert_close(scaled.distances[:, 96:120], 3 * plain.distances[:, 96:120])
    torch.testing.assert_close(scaled.distances[:, :96], plain.distances[:, :96])
    torch.testing.assert_close(scaled.centerness, plain.centerness)
    # Level 1, cell (row 2, column 5) of image 1 is location 96 + 2 * 6 + 5; centerness uses the box tower.
    expected = head.centerness(head.box_tower(pyramid)[1])[1, 0, 2, 5]
    assert plain.centerness[1, 96 + 17].item() == pytest.approx(expected.item(), abs=1e-6)
    expected = head.class_logits(head.class_tower(pyramid)[1])[1, :, 2, 5]
    torch.testing.assert_close(plain.class_logits[1, 96 + 17], expected)


def test_initial_class_probability_is_one_percent():
    head = Head(CONFIG).eval()
    assert head.class_logits.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
    assert sum(p.std().item() for n, p in head.named_parameters() if "convs" in n and p.dim() == 4) / 2 == (
        pytest.approx(0.01, rel=0.2)
    )


def test_batch_norms_of_a_tower_have_statistics_per_level():
    tower = Head(replace(CONFIG, head_norm="bn")).box_tower
    tower([torch.randn(2, 8, *shape) * scale for shape, scale in zip(SHAPES, (1, 5, 25), strict=True)])
    variances = [norm.running_var.mean().item() for norm in tower.norms[0]]
    assert variances[0] < variances[1] < variances[2]


# ---- An image of the paper's size: 800 x 1088, five levels ----

WHOLE = replace(CONFIG, strides=(8, 16, 32, 64, 128), ranges=(64, 128, 256, 512))
ENDS = [-1, 64, 128, 256, 512, 1e8]  # range of interest of level k: ENDS[k] to ENDS[k + 1], inclusive


def make_boxes(random):
    """37 boxes in an 800 x 1088 image, at whole and half pixels, so that all comparisons are exact in float32."""
    corner, side = random.integers(0, (1000, 720), (8, 2)), random.integers(1, 300, (8, 2))
    boxes = np.concatenate([corner, corner + side], 1).tolist()
    for end in ENDS[1:5]:  # a side exactly `end` away from a location of the levels below and above
        for stride in (end // 8, end // 4):
            x = stride * random.integers(512 // stride + 1, 1088 // stride - 1) + stride // 2
            y = stride * random.integers(1, 800 // stride - 1) + stride // 2
            boxes.append([x - end, y - stride - 3, x + stride + 5, y + stride + 1])
            boxes.append([x - stride - 3, y - stride - 1, x + stride + 1, y + end])
    x, y = 8 * random.integers(20, 80, 2) + 4
    boxes += [[x - 0.5, y - 0.5, x + 0.5, y + 0.5], [x, y, x + 1, y + 1]]  # one pixel around a location, and next to it
    boxes += [[x - 30, y - 15, x + 30, y + 15], [x - 15, y - 30, x + 15, y + 30]]  # equal area
    boxes += [[x - 50, y - 6, x + 50, y + 6]]  # longer, but of smaller area
    boxes += [
        [0, 0, 60, 40],
        [0, 0, 60, 40],
        [0, 300, 9, 700],
        [1000, 740, 1088, 800],
        [0, 0, 1088, 800],
    ]  # at the border
    boxes += [[1060, -50, 1200, 90], [1088, 100, 1150, 200], [-70, -70, -10, -10]]  # partly and entirely outside
    return np.array(boxes, float)


def assign_on_grids(boxes, centers, shapes):
    """The assignment rule, box by box on each level's grid of locations."""
    matched = []
    for level, (height, width) in enumerate(shapes):
        stride = 8 << level
        y, x = np.mgrid[:height, :width] * stride + stride // 2
        best, smallest = np.full((height, width), -1), np.full((height, width), np.inf)
        for m, ((x1, y1, x2, y2), (cx, cy)) in enumerate(zip(boxes, centers, strict=True)):
            positive = (x1 < x) & (x < x2) & (y1 < y) & (y < y2)
            positive &= (abs(x - cx) < 1.5 * stride) & (abs(y - cy) < 1.5 * stride)
            largest = np.max([x - x1, y - y1, x2 - x, y2 - y], axis=0)
            positive &= (ENDS[level] <= largest) & (largest <= ENDS[level + 1])
            positive &= (x2 - x1) * (y2 - y1) < smallest
            best[positive], smallest[positive] = m, (x2 - x1) * (y2 - y1)
        matched += best.flatten().tolist()
    return matched


@pytest.mark.parametrize("center", ["box", "mask"])
def test_targets_of_an_image_of_the_papers_size(center):
    stages = [torch.zeros(1, 1, 800 // stride, 1088 // stride) for stride in (4, 8, 16, 32)]
    shapes = [tuple(x.shape[-2:]) for x in FPN([1] * 4, 1, WHOLE.strides)(stages)]
    assert shapes == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]  # a stride-2 convolution rounds up
    locations = make_locations(shapes, WHOLE, torch.device("cpu"))
    assert locations.counts == [13600, 3400, 850, 221, 63]
    levels_seen = set()
    for seed in range(4):
        random = np.random.default_rng(seed)
        boxes = make_boxes(random)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        if center == "mask":  # anywhere in the box, at multiples of 1/8
            centers = boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]) * random.integers(1, 8, centers.shape) / 8
        matched = assign(locations, boxes.tolist(), centers.tolist())
        expected = assign_on_grids(boxes, centers, shapes)
        assert matched.tolist() == expected
        levels_seen |= {k for k, part in enumerate(matched.split(locations.counts)) if (part >= 0).any()}
    assert levels_seen == {0, 1, 2, 3, 4}


def test_boxes_at_and_outside_the_image_border(locations):
    """The last locations of stride 8 in a 64 x 96 image are (92, y) and (x, 60)."""
    assert (assign(locations, [[88, 56, 104, 72]])[:96] >= 0).nonzero().tolist() == [[95]]  # contains only (92, 60)
    assert (assign(locations, [[88, 56, 96, 64]])[:96] >= 0).nonzero().tolist() == [[95]]
    assert (assign(locations, [[93, 56, 96, 64]]) == -1).all()  # contains no location
    assert (assign(locations, [[96, 64, 120, 90]]) == -1).all()


def test_degenerate_boxes_match_no_location(locations):
    flat = [
        [28, 10, 28, 50],
        [10, 28, 50, 28],
        [28, 28, 28, 28],
        [44, 44, 12, 12],
    ]  # no width, no height, both, inverted
    assert (assign(locations, flat) == -1).all()
    assert (assign(locations, [*flat, [20, 20, 44, 44]])[3 * 12 + 3]) == 4
