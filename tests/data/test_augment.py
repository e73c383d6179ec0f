"""Augmentation: boxes, masks and pixels move together; color operations by hand."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from plain_augment import plain_training_sample
from small_sets import STRONG, WEAK
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from cassl_lib.config import AugmentConfig
from cassl_lib.data import augment
from cassl_lib.data.augment import test_shape as shape_at_test_time
from cassl_lib.data.augment import test_transform as transform_at_test_time
from cassl_lib.data.augment import training_transform
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import resolve

WHOLE = replace(WEAK, crop=0)


def hull(mask):
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])


def rectangle(left, top, right, bottom, size=(100, 140)):
    """A dark image with one bright rectangle, and its target."""
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[top:bottom, left:right] = 1
    boxes = tv_tensors.BoundingBoxes([[left, top, right, bottom]], format="XYXY", canvas_size=size, dtype=torch.float32)
    target = {"boxes": boxes, "labels": torch.tensor([3]), "masks": tv_tensors.Mask(mask[None])}
    return tv_tensors.Image((mask * 250).expand(3, *size).contiguous()), target


def together(image, mask):
    """Whether the bright pixels of the image are the mask, except for about a row and a column."""
    bright = image[0] > 187  # halfway between the gray of filled-in pixels and the rectangle
    left, top, right, bottom = hull(mask).tolist()
    return (bright != (mask > 0)).sum() <= (right - left) + (bottom - top)


@pytest.mark.parametrize("size", [(2, 3000), (4000, 2), (1, 1), (1, 200), (200, 1)])
@pytest.mark.parametrize("config", [WEAK, WHOLE, STRONG, replace(STRONG, crop=0)])
def test_a_thin_image_keeps_at_least_one_pixel(size, config):
    """Its short side would be rounded to 0 where the long one is limited."""
    height, width = size
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = training_transform(config, pseudo_labeled=True)(*rectangle(0, 0, width, height, size))
        assert min(image.shape) >= 1 and target["masks"].shape[1:] == image.shape[1:]
    assert min(transform_at_test_time(config)(*rectangle(0, 0, width, height, size))[0].shape) >= 1


# The first rectangle stays inside in every augmentation; those in corners are often cropped.
@pytest.mark.parametrize("place", [(50, 35, 90, 65), (0, 0, 40, 30), (100, 20, 140, 100)])
@pytest.mark.parametrize("crop", [0, 96])
def test_boxes_fit_their_masks_after_flip_resize_and_crop(place, crop):
    transform, shapes, kept = training_transform(replace(WEAK, crop=crop)), set(), 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*rectangle(*place))
        shapes.add(tuple(image.shape))
        assert type(target["boxes"]) is type(target["masks"]) is torch.Tensor
        assert target["masks"].shape[1:] == image.shape[1:] and len(target["boxes"]) == len(target["masks"]) <= 1
        if len(target["boxes"]):
            kept += 1
            assert (target["boxes"][0] - hull(target["masks"][0])).abs().max() <= 1
            assert together(image, target["masks"][0])
    if crop:
        assert shapes == {(3, 96, 96)}
    else:  # the short side, 100 pixels, becomes 80, 96 or 112
        assert shapes == {(3, 80, 112), (3, 96, 134), (3, 112, 156)} and kept == 40


def test_the_long_side_is_limited():
    transform = training_transform(replace(WEAK, crop=0, sizes=(112,), longest=120))
    assert transform(*rectangle(50, 35, 90, 65))[0].shape == (3, 85, 120)  # 140 -> 120 takes 100 -> 85.7


def test_half_of_the_images_are_flipped():
    transform, left = training_transform(WHOLE), 0
    for seed in range(200):
        torch.manual_seed(seed)
        image, target = transform(*rectangle(0, 35, 40, 65))
        left += int(target["boxes"][0, 0] == 0)
    assert 70 < left < 130


def test_objects_outside_the_crop_are_dropped_with_their_labels():
    transform, seen = training_transform(replace(WEAK, sizes=(200,), longest=400, crop=96)), set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, target = transform(*rectangle(0, 0, 60, 60))
        count = len(target["boxes"])
        assert count == len(target["labels"]) == len(target["masks"])
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= 96).all()
        seen.add(count)
    assert seen == {0, 1}


@pytest.mark.parametrize("pseudo_labeled", [False, True])
def test_weak_augmentation_is_flip_resize_crop_and_nothing_else(pseudo_labeled):
    """Bit for bit, on a detailed image with two objects of which one is often cropped away."""
    transform, counts = training_transform(WEAK, pseudo_labeled=pseudo_labeled), set()
    resize = v2.RandomShortestSize([80, 96, 112], max_size=192)
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(noise((100, 140)), two_rectangles())
        torch.manual_seed(seed)
        expected = (noise((100, 140)), two_rectangles())
        for step in (v2.RandomHorizontalFlip(0.5), resize, v2.RandomCrop(96, pad_if_needed=True)):
            expected = step(*expected)
        boxes = expected[1]["boxes"].as_subclass(torch.Tensor).clamp(0, 96)
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1) & (expected[1]["masks"] > 0).flatten(1).any(1)
        assert torch.equal(image, expected[0]) and torch.equal(target["boxes"], boxes[keep])
        assert torch.equal(target["masks"], expected[1]["masks"][keep])
        assert target["labels"].tolist() == expected[1]["labels"][keep].tolist()
        counts.add(len(boxes[keep]))
    assert counts == {1, 2}


def two_rectangles():
    (_, first), (_, second) = rectangle(50, 35, 90, 65), rectangle(130, 10, 140, 100)
    boxes = tv_tensors.wrap(torch.cat([first["boxes"], second["boxes"]]), like=first["boxes"])
    masks = tv_tensors.Mask(torch.cat([first["masks"], second["masks"]]))
    return {"boxes": boxes, "labels": torch.tensor([3, 4]), "masks": masks}


def scripted(monkeypatch, *values):
    """Make augmentation draw these integers next."""
    script = iter(values)
    monkeypatch.setattr(augment.torch, "randint", lambda *_, **__: torch.tensor(next(script)))


def noise(size=(40, 48)):
    return tv_tensors.Image(torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0)).byte())


def test_every_color_operation_runs_at_every_magnitude(monkeypatch):
    image, changed = noise(), set()
    for kind in range(9):
        for magnitude in range(1, 10):
            scripted(monkeypatch, magnitude, kind)
            colored, target = augment._color(image, {"boxes": 1})
            assert colored.shape == image.shape and colored.dtype == torch.uint8 and target == {"boxes": 1}
            if not torch.equal(colored, image):
                changed.add((kind, magnitude))
    # The identity never changes the image; autocontrast and equalize do not depend on the magnitude. At m = 5 the
    # factor of saturation, contrast, brightness and sharpness is 1.8 * 5 / 10 + 0.1 = 1.
    assert not any(kind == 0 for kind, _ in changed)
    assert {magnitude for kind, magnitude in changed if kind in (4, 5, 6, 7)} == {1, 2, 3, 4, 6, 7, 8, 9}
    assert {kind for kind, _ in changed} >= {2, 3, 4, 5, 6, 7, 8}


def test_color_operations_by_hand(monkeypatch):
    image = tv_tensors.Image(torch.tensor([40, 200], dtype=torch.uint8).expand(3, 1, 2).contiguous())

    def after(kind, magnitude):
        scripted(monkeypatch, magnitude, kind)
        return augment._color(image, {})[0][0, 0].tolist()

    assert after(3, 5) == [40, 255 - 200]  # solarize above 256 * 5 / 10 = 128
    assert after(8, 5) == [0, 192]  # posterize to 4 - int(4 * 5 / 10) = 2 bits
    assert after(6, 8) == pytest.approx([40 * 1.54, 255], abs=1)  # brighter by 1.8 * 8 / 10 + 0.1
    assert after(1, 1) == pytest.approx([0, 255], abs=1)  # autocontrast


def geometry(image, target):
    """The geometric operation alone."""
    motion = augment._draw_motion(tuple(image.shape[-2:]), turn="masks" in target)
    image, target = augment._move(motion, image, target)
    return image, augment._fit_boxes(target) if augment._turns(motion) else target


@pytest.mark.parametrize("kind", range(4))
def test_boxes_fit_their_masks_after_every_geometric_operation(monkeypatch, kind):
    moved = set()
    for seed in range(20):
        torch.manual_seed(seed)
        scripted(monkeypatch, kind)
        image, target = geometry(*rectangle(50, 35, 90, 65))
        assert target["labels"].tolist() == [3] and image.shape == (3, 100, 140)
        box, mask = target["boxes"][0].as_subclass(torch.Tensor), target["masks"][0]
        assert (box - hull(mask)).abs().max() <= 1.5  # nearest pixels
        assert together(image, mask)
        assert set(image.unique().tolist()) <= {0, 125, 250}  # pixels from outside are gray
        assert (image == 125).any() or (box - torch.tensor([50.0, 35, 90, 65])).abs().max() < 2
        moved.add(tuple((box - torch.tensor([50.0, 35, 90, 65])).round().tolist()))
    assert len(moved) > 5
    for left, top, right, bottom in moved:
        if kind == 0:  # along x by up to a tenth of 140
            assert left == right and abs(left) <= 14 and top == bottom == 0
        elif kind == 1:
            assert top == bottom and abs(top) <= 10 and left == right == 0
        else:  # around the center of the image, which is that of the rectangle: the box grows equally on both sides
            assert abs(left + right) <= 1 and abs(top + bottom) <= 1


def odd_shapes(size=(128, 160)):
    """A noisy image and four shapes that fill little of their boxes, at least a tenth of the sides off the border."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    inside = (x >= 20) & (x < 140) & (y >= 16) & (y < 112)
    ellipse = ((x - 80) / 50.0) ** 2 + ((y - 60) / 15.0) ** 2 <= 1
    corner = ((x < 35) | (y >= 95)) & (x < 90) & (y >= 30) & inside  # an L
    falling = ((x - y - 20).abs() <= 1) & inside  # three pixels wide
    rising = ((x + y - 150).abs() <= 1) & inside
    masks = torch.stack([ellipse, corner, falling, rising]).byte()
    boxes = torch.stack([hull(mask) for mask in masks]).float()
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.arange(4),
        "masks": tv_tensors.Mask(masks),
    }
    return noise(size), target


def own_iou(target):
    """IoU (N,) of each box with the tight box of its mask."""
    tight = torch.stack([hull(mask) for mask in target["masks"]]).float()
    return box_iou(target["boxes"].as_subclass(torch.Tensor), tight).diagonal()


def without_erasing(monkeypatch):
    monkeypatch.setattr(augment, "_erase", lambda image, target: (image, target))


@pytest.mark.parametrize("crop", [0, 96])
def test_boxes_of_moved_shapes_are_tight_around_their_masks(monkeypatch, crop):
    """Shapes that are not rectangles: the hull of their turned boxes has an IoU of 0.7 with their own, or less."""
    without_erasing(monkeypatch)
    motions, draw = [], augment._draw_motion
    monkeypatch.setattr(augment, "_draw_motion", lambda *a, **k: motions.append(draw(*a, **k)) or motions[-1])
    cropping, ious = [v2.RandomCrop(crop)] if crop else [], []
    for seed in range(80):
        torch.manual_seed(seed)
        _, target = augment._drop_lost_instances(*augment.strong(cropping, *odd_shapes()))
        if not crop or augment._turns(motions[-1]):  # a crop clips the boxes of shapes that were only shifted
            ious.append(own_iou(target))
    turned = [augment._turns(motion) for motion in motions]
    assert 25 < sum(turned) < 55
    assert torch.cat(ious).min() >= 0.99 and len(torch.cat(ious)) > 2 * len(ious)


def test_instances_that_leave_the_image_are_dropped(monkeypatch):
    """A mask in the corner leaves at 30 degrees; the box of an empty mask is empty."""
    without_erasing(monkeypatch)
    monkeypatch.setattr(augment, "_draw_motion", lambda *_, **__: dict(angle=30.0, translate=[0, 0], shear=[0.0, 0.0]))
    _, target = augment.strong([], *rectangle(0, 0, 12, 12))
    assert target["boxes"].tolist() == [[0, 0, 0, 0]] and not target["masks"].any()
    _, kept = augment._drop_lost_instances(*augment.strong([], *rectangle(0, 0, 12, 12)))
    assert kept["boxes"].shape == (0, 4) and kept["labels"].shape == (0,) and kept["masks"].shape == (0, 100, 140)


def test_boxes_without_masks_are_shifted_but_never_rotated_or_sheared(monkeypatch):
    without_erasing(monkeypatch)
    monkeypatch.setattr(augment, "_color", lambda image, target: (image, target))
    shifts = set()
    for seed in range(120):
        torch.manual_seed(seed)
        image, target = rectangle(50, 35, 90, 65)
        del target["masks"]
        image, target = augment._drop_lost_instances(*augment.strong([], image, target))
        left, top, right, bottom = target["boxes"][0].int().tolist()
        assert (right - left, bottom - top) == (40, 30) and (left == 50 or top == 35)
        assert hull(image[0] == 250).tolist() == target["boxes"][0].tolist()
        assert (image[0] == 250).sum() == 40 * 30  # the whole box: still an upright rectangle
        shifts.add((left - 50, top - 35))
    for sides, most in zip(zip(*shifts, strict=True), (14, 10), strict=True):  # a tenth of the sides, both ways
        assert -most <= min(sides) <= -0.8 * most and 0.8 * most <= max(sides) <= most


def test_boxes_shifted_over_the_border_are_clipped(monkeypatch):
    without_erasing(monkeypatch)
    monkeypatch.setattr(augment, "_draw_motion", lambda *_, **__: dict(angle=0.0, translate=[-9, 0], shear=[0.0, 0.0]))
    _, target = augment._drop_lost_instances(*augment.strong([], *rectangle(5, 35, 90, 65)))
    assert target["boxes"].tolist() == [[0, 35, 81, 65]]


def test_erased_patches_are_gray_and_removed_from_masks(monkeypatch):
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = rectangle(0, 0, 140, 100)
        patched, erased = augment._erase(image, target)
        gone = erased["masks"][0] == 0
        assert 0 <= gone.float().mean() <= 4 * 0.2**2 and torch.equal(
            patched[:, gone].unique(), torch.tensor([125]).byte()[: gone.any()]
        )
        assert (patched[:, ~gone] == 250).all() and torch.equal(erased["boxes"], target["boxes"])


@pytest.mark.parametrize("pseudo_labeled", [False, True])
def test_strong_samples_differ_from_weak_ones_and_masks_stay_inside_boxes(pseudo_labeled):
    weak, strong, differ = training_transform(WEAK), training_transform(STRONG, pseudo_labeled=pseudo_labeled), 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = strong(*rectangle(50, 35, 90, 65))
        torch.manual_seed(seed)
        differ += not torch.equal(image, weak(*rectangle(50, 35, 90, 65))[0])
        assert image.shape == (3, 96, 96) and image.dtype == torch.uint8
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            inner = hull(mask)
            assert (inner[:2] >= box[:2] - 1.5).all() and (inner[2:] <= box[2:] + 1.5).all()
    assert differ > 55


def one_color(size=(100, 140)):
    """An image of one color, all of it one object."""
    image = torch.tensor([240, 10, 60], dtype=torch.uint8).reshape(3, 1, 1).expand(3, *size).contiguous()
    return tv_tensors.Image(image), rectangle(0, 0, size[1], size[0], size)[1]


def test_labeled_images_are_neither_moved_nor_erased():
    """An image of one color stays one; geometry and erasing leave gray pixels and holes in the mask."""
    colors, untouched = {False: set(), True: set()}, {False: 0, True: 0}
    for pseudo_labeled in (False, True):
        transform = training_transform(replace(STRONG, crop=0), pseudo_labeled=pseudo_labeled)
        for seed in range(60):
            torch.manual_seed(seed)
            image, target = transform(*one_color())
            uniform = image.flatten(1).unique(dim=1)
            gray = (image == 125).all(0).any()
            untouched[pseudo_labeled] += uniform.shape[1] == 1 and not gray and bool((target["masks"] == 1).all())
            colors[pseudo_labeled] |= {tuple(column) for column in uniform.T.tolist()}
    assert untouched[False] == 60 and untouched[True] < 6
    assert len(colors[False]) > 10  # the color operation is there


def test_labeled_images_get_one_color_operation_on_top_of_scale_jitter(monkeypatch):
    """With one size and without color, the strong sample of a labeled image is the weak one."""
    colored = []
    monkeypatch.setattr(augment, "_color", lambda image, target: colored.append(image) or (image, target))
    for size in (48, 96, 144):
        weak, strong = training_transform(replace(WEAK, sizes=(size,))), replace(STRONG, strong_sizes=(size, size))
        for seed in range(10):
            torch.manual_seed(seed)
            image, target = weak(noise((100, 140)), two_rectangles())
            torch.manual_seed(seed)
            same, same_target = training_transform(strong)(noise((100, 140)), two_rectangles())
            assert torch.equal(image, same) and all(torch.equal(target[name], same_target[name]) for name in target)
    assert len(colored) == 30 and colored[0].shape == (3, 48, 67)  # before padding: 140 * 48 / 100


@pytest.mark.parametrize("pseudo_labeled", [False, True])
def test_scale_jitter_draws_every_short_side_of_its_range(pseudo_labeled):
    config = replace(STRONG, strong_sizes=(48, 52), crop=0)
    transform, drawn = training_transform(config, pseudo_labeled=pseudo_labeled), []
    for seed in range(250):
        torch.manual_seed(seed)
        drawn.append(transform(*rectangle(50, 35, 90, 65))[0].shape[1])
    counts = {side: drawn.count(side) for side in set(drawn)}
    assert set(counts) == {48, 49, 50, 51, 52}
    assert 25 < min(counts.values()) and max(counts.values()) < 80  # uniform: 50 each, standard deviation 6.3


def test_small_scales_are_padded_and_large_ones_cropped():
    for size, occupied in ((48, 48 * 67), (144, 96 * 96)):  # 140 * 48 / 100 = 67.2
        config = replace(STRONG, strong_sizes=(size, size))
        torch.manual_seed(0)
        image, target = training_transform(config)(*one_color())
        assert image.shape == (3, 96, 96) and int(target["masks"].sum()) == occupied


@pytest.mark.parametrize("profile", PROFILES)
def test_scale_jitter_is_half_to_one_and_a_half_of_the_test_size(profile):
    """Soft Teacher's 400 to 1200 of 800, at every profile and size."""
    for size in (None, 96, 200):
        config = resolve(profile=profile, size=size).augment
        assert config.strong_sizes == pytest.approx((0.5 * config.test_size, 1.5 * config.test_size), abs=4)
        assert size == 200 or config.strong_sizes == (config.test_size // 2, 3 * config.test_size // 2)


def test_test_images_are_only_resized():
    config = replace(WEAK, test_size=50, longest=100)
    assert shape_at_test_time((100, 140), config) == (50, 70)
    assert shape_at_test_time((300, 100), config) == (100, 33)  # the long side would be 150
    image, target = rectangle(50, 35, 90, 65)
    resized, untouched = transform_at_test_time(config)(image, target)
    assert resized.shape == (3, 50, 70) and type(resized) is torch.Tensor
    assert untouched is target


def test_transforms_can_be_pickled_for_worker_processes():
    assert isinstance(training_transform(resolve(profile="smoke").augment), partial)
    transform = pickle.loads(pickle.dumps(training_transform(STRONG, pseudo_labeled=True)))
    assert transform(*rectangle(50, 35, 90, 65))[0].shape == (3, 96, 96)
    assert isinstance(transform_at_test_time(WEAK), partial)


UNCROPPED = AugmentConfig(sizes=(320, 352), strong_sizes=(200, 420), longest=500)


@pytest.mark.parametrize("parts", [("masks", "ignored"), ("masks",), ()])
@pytest.mark.parametrize("pseudo_labeled", [False, True])
@pytest.mark.parametrize("config", [WEAK, STRONG, UNCROPPED, replace(UNCROPPED, kind="strong")])
def test_samples_are_those_of_torchvisions_transforms(config, pseudo_labeled, parts):
    """Bit for bit, and with the same draws."""
    transform = training_transform(config, pseudo_labeled=pseudo_labeled)
    for seed in range(25):
        size = ((128, 160), (240, 321), (97, 96))[seed % 3]
        image, target = odd_shapes(size)
        target["ignored"] = tv_tensors.Mask((image[0] > 200).byte())
        target = {name: target[name] for name in ("boxes", "labels", *parts)}
        if seed % 5 == 0:  # in memory as images are read and masks decoded
            image = tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
            target |= {name: tv_tensors.Mask(target[name].mT.contiguous().mT) for name in parts}
        before = [image.clone(), *(value.clone() for value in target.values())]
        torch.manual_seed(seed)
        found, found_target = transform(image, target)
        drawn = torch.rand(())
        torch.manual_seed(seed)
        expected, expected_target = plain_training_sample(config, image, target, pseudo_labeled=pseudo_labeled)
        assert torch.equal(found, expected) and drawn == torch.rand(()) and found_target.keys() == target.keys()
        for name, value in expected_target.items():
            assert torch.equal(found_target[name], value) and found_target[name].dtype == value.dtype
        assert all(map(torch.equal, before, [image, *target.values()]))  # the inputs are not modified
