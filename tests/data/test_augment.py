"""Augmentation: boxes, masks and pixels move together; color operations by hand."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small_sets import STRONG, WEAK
from torchvision import tv_tensors

from cassl_lib.data import augment
from cassl_lib.data.augment import test_shape as shape_at_test_time
from cassl_lib.data.augment import test_transform as transform_at_test_time
from cassl_lib.data.augment import training_transform
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


@pytest.mark.parametrize("kind", range(4))
def test_boxes_fit_their_masks_after_every_geometric_operation(monkeypatch, kind):
    moved = set()
    for seed in range(20):
        torch.manual_seed(seed)
        scripted(monkeypatch, kind)
        image, target = augment._geometry(*rectangle(50, 35, 90, 65))
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
        assert (image == 250).all() and (target["masks"] == 1).all()  # the inputs are not modified


def test_strong_samples_differ_from_weak_ones_and_masks_stay_inside_boxes():
    weak, strong, differ = training_transform(WEAK), training_transform(STRONG), 0
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
    assert isinstance(transform_at_test_time(WEAK), partial)
