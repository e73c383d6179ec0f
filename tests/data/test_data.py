"""From files to samples: COCO JSON, image files, samples and their order, augmentation."""

import errno
import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api
from torchvision import tv_tensors

from cassl_lib.config import AugmentConfig
from cassl_lib.data import augment, loader
from cassl_lib.data.augment import test_shape as shape_at_test_time
from cassl_lib.data.augment import test_transform as transform_at_test_time
from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages, locate
from cassl_lib.data.image_files import describe_damage, spread
from cassl_lib.data.loader import Order, Samples, batches, in_turn, read_image
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import resolve

HEIGHT, WIDTH = 20, 30
WEAK = AugmentConfig(sizes=(80, 96, 112), longest=192, crop=96, test_size=96)
STRONG = replace(WEAK, kind="strong")


def filled(left, top, right, bottom):
    """The mask of a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def as_rle(mask):
    rle = mask_api.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def image_entry(image_id, name):
    return {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}


def annotation(number, image_id, category, box, segmentation=None, **extra):
    entry = {"id": number, "image_id": image_id, "category_id": category, "bbox": box, **extra}
    return entry if segmentation is None else entry | {"segmentation": segmentation}


def write(folder, data, images=("a.jpg", "b.jpg", "c.jpg")):
    """Write `data` as a JSON in `folder`, and its images, gray ones, in `folder/images`."""
    (folder / "images").mkdir(exist_ok=True)
    for name in images:
        Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)).save(folder / "images" / name)
    path = folder / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


# Ids have gaps and are out of order. Column-major counts of a rectangle: x 10 to 11, y 4 to 7.
COUNTS = [10 * HEIGHT + 4, 4, HEIGHT - 4, 4, HEIGHT - 8 + 18 * HEIGHT]
TWO_POLYGONS = [[2, 3, 7, 3, 7, 5, 2, 5], [2, 6, 7, 6, 7, 7, 2, 7]]
DATA = {
    "images": [
        image_entry(70, "a.jpg"),
        image_entry(3, "b.jpg"),
        image_entry(1000, "c.jpg"),
        image_entry(8, "gone.jpg"),
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 17, "name": "ghost"}],
    "annotations": [
        annotation(1, 1000, 90, [0, 0, 4, 2], as_rle(filled(0, 0, 4, 2))),
        annotation(2, 70, 90, [2, 3, 5, 4], TWO_POLYGONS),
        annotation(3, 70, 5, [10, 4, 2, 4], {"size": [HEIGHT, WIDTH], "counts": COUNTS}, iscrowd=0),
        annotation(4, 70, 90, [0, 0, 30, 20], {"size": [HEIGHT, WIDTH], "counts": [0, 600]}, iscrowd=1),
        annotation(5, 70, 90, [4, 4, 0, 5], [[4, 4, 4, 9, 4, 7]]),
        annotation(6, 70, 90, [], []),
        annotation(7, 999, 90, [1, 1, 2, 2], TWO_POLYGONS),
        annotation(8, 8, 90, [1, 1, 2, 2], TWO_POLYGONS),
        annotation(9, 70, 33, [1, 1, 2, 2], TWO_POLYGONS),
    ],
}


@pytest.fixture
def coco(tmp_path):
    return CocoImages(write(tmp_path, DATA), tmp_path / "images")


# ---- COCO JSON ----


def test_classes_are_sorted_by_id_even_with_gaps(coco):
    assert coco.classes == ["dog", "ghost", "cat"] and coco.category_ids.tolist() == [5, 17, 90]
    assert coco.ids.tolist() == [70, 3, 1000] and len(coco) == 3
    assert coco.image_id(2) == 1000 and coco.image_path(2).name == "c.jpg"


def test_annotations_are_those_of_the_image(coco):
    first = coco.annotations(0)
    assert first["boxes"].tolist() == [[2, 3, 7, 7], [10, 4, 12, 8]] and first["boxes"].dtype == np.float32
    assert first["labels"].tolist() == [2, 0] and first["labels"].dtype == np.int64
    np.testing.assert_array_equal(
        first["masks"][0], filled(2, 3, 7, 5) | filled(2, 6, 7, 7)
    )  # two polygons, one object
    np.testing.assert_array_equal(first["masks"][1], filled(10, 4, 12, 8))  # uncompressed counts
    third = coco.annotations(2)
    assert third["boxes"].tolist() == [[0, 0, 4, 2]] and third["labels"].tolist() == [2]
    np.testing.assert_array_equal(third["masks"][0], filled(0, 0, 4, 2))  # compressed counts
    assert "masks" not in coco.annotations(0, masks=False)


def test_an_image_without_objects_has_empty_arrays(coco):
    empty = coco.annotations(1)
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["masks"].shape == (0, 20, 30)


def test_skipped_images_and_annotations_are_counted_and_named(coco):
    assert coco.left_out.counts == {
        "images of the JSON are not in the folder": 1,
        "annotations belong to no image": 2,
        "crowds are not trained on": 1,
        "boxes have no area": 2,
        "annotations have a category the JSON does not list": 1,
        "classes have no instance": 1,
    }
    text = str(coco.left_out)
    for part in ("gone.jpg", "annotation 4", "annotation 5 [4, 4, 0, 5]", "annotation 7, annotation 8", "ghost"):
        assert part in text
    assert "33" in next(line for line in text.splitlines() if "category" in line)


def test_left_out_counts_all_and_names_five():
    left_out = LeftOut()
    for number in range(7):
        left_out.add("things are odd", number)
    assert str(left_out) == "7 things are odd: 0, 1, 2, 3, 4, ..."
    assert str(LeftOut()) == ""


def test_an_annotation_without_mask_in_a_set_with_masks_is_named(tmp_path):
    data = DATA | {"annotations": [*DATA["annotations"], annotation(10, 3, 5, [1, 1, 4, 4])]}
    images = CocoImages(write(tmp_path, data), tmp_path / "images")
    assert images.left_out.counts["annotations have no mask to train on"] == 1
    assert "annotation 10" in str(images.left_out)
    assert images.annotations(1)["masks"].sum() == 0 and len(images.annotations(1)["boxes"]) == 1


def test_a_set_with_boxes_only_can_be_read_without_masks(tmp_path):
    boxes_only = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in DATA["annotations"]]
    images = CocoImages(write(tmp_path, DATA | {"annotations": boxes_only}), tmp_path / "images")
    assert images.annotations(0, masks=False)["boxes"].shape == (2, 4)
    assert "annotations have no mask to train on" not in images.left_out.counts
    with pytest.raises(DataError, match="instances.json holds boxes only, no segmentation; use masks=False"):
        images.annotations(0)


def test_a_set_without_annotations_is_valid(tmp_path):
    images = CocoImages(write(tmp_path, DATA | {"annotations": []}), tmp_path / "images")
    assert len(images) == 3 and len(images.boxes) == 0 and images.annotations(0)["masks"].shape == (0, 20, 30)


def test_the_fingerprint_depends_on_the_annotations_and_on_which_images_exist(tmp_path):
    def fingerprint(data=DATA):
        return CocoImages(write(tmp_path, data), tmp_path / "images").fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert fingerprint(DATA | {"annotations": DATA["annotations"][:-1]}) != first
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/gone.jpg")  # it was absent
    assert fingerprint() != first


def without(key, *names):
    return DATA | {key: [{k: v for k, v in item.items() if k not in names} for item in DATA[key]]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"images": [', "is not JSON"),
        (b"\xff\xd8\xff\xe0 a picture", "is not JSON"),
        ("", "is not JSON"),
        ([DATA], "is not a COCO instances file: it has no list 'images', 'annotations', 'categories'"),
        ({"images": DATA["images"]}, "it has no list 'annotations', 'categories'"),
        (DATA | {"annotations": {"1": 2}}, "it has no list 'annotations'"),
        (DATA | {"images": []}, "'images' is empty"),
        (DATA | {"categories": []}, "'categories' is empty"),
        (without("images", "file_name", "width"), "an entry of 'images' (id 70) lacks file_name, width"),
        (without("annotations", "bbox"), "an entry of 'annotations' (id 1) lacks bbox"),
        (without("annotations", "category_id", "image_id"), "(id 1) lacks image_id, category_id"),
        (without("categories", "name"), "an entry of 'categories' (id 90) lacks name"),
        (DATA | {"images": [image_entry(1, "gone.jpg")]}, "none of its 1 images (such as 'gone.jpg') is in"),
    ],
)
def test_a_file_that_is_not_coco_instances_is_named_in_the_error(tmp_path, data, message):
    path = write(tmp_path, DATA)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(DataError) as caught:
        CocoImages(path, tmp_path / "images")
    assert str(path) in str(caught.value) and message in str(caught.value)


# ---- locating files ----


def test_the_image_folder_is_found_in_coco_layouts(tmp_path):
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances_train2017.json"
    path.touch()
    with pytest.raises(DataError, match=f"{path}: no image folder found beside it; give it as {path}:FOLDER"):
        locate(str(path))
    (tmp_path / "images").mkdir()
    assert locate(str(path)) == (path, tmp_path / "images")
    (tmp_path / "annotations/images").mkdir()
    assert locate(str(path)) == (path, tmp_path / "annotations/images")
    (tmp_path / "annotations/images").rmdir()
    (tmp_path / "images").rmdir()
    (tmp_path / "train2017").mkdir()
    assert locate(str(path)) == (path, tmp_path / "train2017")
    (tmp_path / "elsewhere").mkdir()
    assert locate(f"{path}:{tmp_path / 'elsewhere'}") == (path, tmp_path / "elsewhere")


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="labels.json: no such annotation file; give a COCO JSON, or JSON:FOLDER"):
        locate(str(tmp_path / "labels.json"))
    (tmp_path / "labels.json").touch()
    with pytest.raises(DataError, match="pictures: no such image folder"):
        locate(f"{tmp_path / 'labels.json'}:{tmp_path / 'pictures'}")


# ---- images ----


def saved(path, image, **options):
    image.save(path, **options)
    return read_image(path)


def test_every_kind_of_image_is_read_as_rgb(tmp_path):
    gray = Image.new("L", (6, 4), 100)
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    transparent = Image.new("RGBA", (6, 4), (10, 200, 30, 0))
    deep = Image.fromarray(np.full((4, 6), 100 * 256 + 7, np.uint16))
    color, tone = [10, 200, 30], [100, 100, 100]
    exact = {
        "gray.png": (gray, tone),
        "gray_alpha.png": (gray.convert("LA"), tone),
        "palette.png": (palette, color),
        "palette.gif": (palette, color),
        "transparent.png": (transparent, color),
        "deep.png": (deep, tone),  # 16 bits
        "rgb.bmp": (Image.new("RGB", (6, 4), tuple(color)), color),
        "cmyk.tif": (Image.new("CMYK", (6, 4), (245, 55, 225, 0)), color),  # 255 - C and so on, no black
        "bits.png": (Image.new("1", (6, 4), 1), [255, 255, 255]),
    }
    for name, (image, expected) in exact.items():
        pixels = saved(tmp_path / name, image)
        assert pixels.shape == (3, 4, 6) and pixels.dtype == torch.uint8, name
        assert pixels.flatten(1).unique(dim=1).squeeze(1).tolist() == expected, name
    for name, image in {"gray.jpg": gray, "cmyk.jpg": Image.new("CMYK", (6, 4), (155, 155, 155, 0))}.items():
        pixels = saved(tmp_path / name, image, quality=100)
        assert pixels.shape == (3, 4, 6) and (pixels.int() - 100).abs().max() <= 3, name  # JPEG rounds


def test_a_damaged_image_raises_and_never_crashes(tmp_path):
    """Roughly one in a few hundred damaged JPEGs crashed torchvision's decoder, and with it the process."""
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (5, 7, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    whole, rng, unreadable = (tmp_path / "whole.jpg").read_bytes(), np.random.default_rng(1), 0
    for _ in range(500):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.jpg").write_bytes(damaged)
        try:
            assert read_image(tmp_path / "damaged.jpg").dtype == torch.uint8
        except OSError:
            unreadable += 1
    assert 0 < unreadable < 500
    for name, content in {"empty.jpg": b"", "text.png": b"no image", "short.jpg": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError):
            read_image(tmp_path / name)


# ---- samples ----


WHOLE = replace(WEAK, crop=0)


def samples_of(images, config=WHOLE, **options):
    return Samples(images, training_transform(config), **{"masks": True, "classes": True} | options)


def test_a_damaged_image_is_named_and_replaced_by_the_next(coco, tmp_path):
    (tmp_path / "images/a.jpg").write_text("no image")
    (tmp_path / "images/b.jpg").write_text("no image either")
    _, target, image_id, unreadable = samples_of(coco)[(0, 0)]
    assert image_id == 1000 and target["labels"].tolist() == [2]
    assert [name.split(" ")[0] for name in unreadable] == [str(tmp_path / f"images/{name}.jpg") for name in "ab"]
    image, target, image_id, unreadable = samples_of(coco, replace=False)[(0, 0)]
    assert image is None and target is None and image_id == 70 and "a.jpg" in unreadable[0]
    (tmp_path / "images/c.jpg").unlink()
    with pytest.raises(DataError, match="3 images in a row cannot be used, the last is .*b.jpg"):
        samples_of(coco)[(0, 2)]


def test_a_storage_error_raises_instead_of_skipping_images(coco, tmp_path, monkeypatch):
    """An image that may be readable tomorrow must not be recorded as unreadable, or be replaced by another one."""
    samples = samples_of(coco, replace=False)
    (tmp_path / "images/a.jpg").unlink()
    assert samples[(0, 0)][3] == [f"{tmp_path / 'images/a.jpg'} (No such file or directory)"]  # only this one
    for name in "bc":
        (tmp_path / f"images/{name}.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"a.jpg: No such file .* storage or system error, not a damaged image. Check that .*images is mounted",
    ):
        samples[(0, 0)]
    (tmp_path / "images").rmdir()
    for replaced in (True, False):
        with pytest.raises(DataError, match="rerun the same command to resume"):
            samples_of(coco, replace=replaced)[(0, 0)]

    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(loader, "open_file", fail)
    with pytest.raises(DataError, match="a.jpg: Too many open files"):
        samples[(0, 0)]


@pytest.mark.parametrize(
    ("number", "exists", "damaged"),
    [
        (None, False, True),  # Pillow's: the file was read, but is not an image
        (errno.ENOENT, True, True),
        (errno.ENOENT, False, False),
        (errno.EACCES, True, True),
        (errno.EACCES, False, False),  # expired credentials
        (errno.EIO, True, False),
        (errno.ESTALE, True, False),
        (errno.EMFILE, True, False),
    ],
)
@pytest.mark.parametrize("member", [False, True])
def test_damaged_images_are_told_from_storage_errors(number, exists, damaged, member, tmp_path):
    folder = tmp_path / "images"
    if exists and member:
        folder.write_bytes(b"archive")
        folder = folder.rename(tmp_path / "images.tar")
    elif exists:
        folder.mkdir()
        (folder / "other.jpg").touch()
    path = f"{tmp_path}/images.tar::512+100::a.jpg" if member else folder / "a.jpg"
    error = OSError("cannot identify image file <_io.BytesIO object at 0x7f>")
    if number is not None:
        error = OSError(number, os.strerror(number), str(path))
    if damaged:
        expected = "cannot identify image file" if number is None else os.strerror(number)
        assert describe_damage(path, error) == expected
    else:
        with pytest.raises(DataError, match="not a damaged image"):
            describe_damage(path, error)


def test_indices_are_spread_evenly():
    assert spread(5) == [0, 1, 2, 3, 4] and spread(0) == []
    assert spread(100, 4) == [0, 25, 50, 75] and len(spread(3_660_000)) == 20


def test_a_batch_leaves_out_unreadable_images(coco, tmp_path):
    (tmp_path / "images/b.jpg").write_text("no image")
    loader = batches(samples_of(coco, replace=False), in_turn(range(3), 2), workers=0)
    (images, targets, ids, unreadable), (_, _, last, none) = loader
    assert ids == [70] and len(images) == len(targets) == 1 and "b.jpg" in unreadable[0]
    assert last == [1000] and none == []


@pytest.mark.parametrize("masks", [True, False])
def test_an_image_of_another_size_than_its_annotations_is_unusable(coco, tmp_path, masks):
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images/a.jpg")
    _, _, image_id, (name,) = samples_of(coco, masks=masks)[(0, 0)]
    assert image_id != 70 and name == f"{tmp_path / 'images/a.jpg'} (30x20 pixels, listed as 20x30)"
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (HEIGHT, WIDTH)).save(path)
    with pytest.raises(DataError, match="3 images in a row cannot be used, the last is .* listed as 20x30"):
        samples_of(coco, masks=masks)[(0, 0)]


def test_an_image_of_another_size_than_its_pseudo_labels_raises(tmp_path):
    image = saved(tmp_path / "a.png", Image.new("RGB", (WIDTH, HEIGHT)))
    row = {"image_id": 4, "file_name": str(tmp_path / "a.png"), "height": HEIGHT, "width": WIDTH}
    write_shard(tmp_path / "store", 0, [row | {"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}], "labeler")
    finish(tmp_path / "store", labeler="labeler", pool="pool")
    source = PseudoLabeled(PseudoLabelStore(tmp_path / "store"))
    assert source.image_path(0) == tmp_path / "a.png" and source.image_id(0) == 4 and image.shape[1:] == (20, 30)
    assert samples_of(source, WEAK)[(0, 0)][1]["masks"].shape == (0, 96, 96)
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="21x30 pixels, listed as 20x30"):
        samples_of(source)[(0, 0)]


def test_class_agnostic_samples_have_label_0(coco):
    assert samples_of(coco)[(0, 0)][1]["labels"].tolist() == [2, 0]
    assert samples_of(coco, classes=False)[(0, 0)][1]["labels"].tolist() == [0, 0]
    assert coco.labels.tolist() == [2, 0, 2]  # the set itself is not changed


@pytest.mark.parametrize("config", [WEAK, STRONG])
def test_an_image_without_objects_is_an_ordinary_sample(coco, config):
    image, target, _, _ = samples_of(coco, config)[(5, 1)]
    assert image.shape == (3, 96, 96) and image.dtype == torch.uint8 and type(image) is torch.Tensor
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["masks"].shape == (0, 96, 96)


def same(first, second):
    """Whether two samples are equal in everything."""
    assert first[1].keys() == second[1].keys() and first[2:] == second[2:]
    return torch.equal(first[0], second[0]) and all(torch.equal(first[1][k], second[1][k]) for k in first[1])


def test_a_sample_depends_on_its_position_alone(coco, tmp_path):
    Image.effect_noise((WIDTH, HEIGHT), 90).convert("RGB").save(tmp_path / "images/a.jpg")
    samples = samples_of(coco, STRONG, seed=1)
    torch.manual_seed(5)
    state, first = torch.get_rng_state(), samples[(7, 0)]
    assert torch.equal(torch.get_rng_state(), state)  # the global stream is untouched
    torch.manual_seed(6)
    samples[(8, 0)]
    assert same(samples[(7, 0)], first)
    assert not same(samples[(8, 0)], first)
    assert not same(samples_of(coco, STRONG, seed=2)[(7, 0)], first)


def test_worker_processes_do_not_change_samples(coco, tmp_path):
    Image.effect_noise((WIDTH, HEIGHT), 90).convert("RGB").save(tmp_path / "images/a.jpg")
    samples, order = samples_of(coco, STRONG), Order(3, batch_size=2, start=0, stop=4, seed=0)
    alone, helped = (list(batches(samples, order, workers=workers)) for workers in (0, 2))
    assert [batch[2] for batch in alone] == [batch[2] for batch in helped]
    for one, other in zip(alone, helped, strict=True):
        for index in range(2):
            assert same([part[index] for part in one[:3]], [part[index] for part in other[:3]])


def test_loading_does_not_advance_the_models_random_stream(coco):
    """Otherwise a resumed run, which starts another loader, would draw other numbers than an uninterrupted one."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in batches(samples_of(coco), Order(3, batch_size=2, start=0, stop=2, seed=0), workers=0):
        pass
    assert torch.equal(torch.get_rng_state(), state)


# ---- order ----


def order(size=7, batch_size=4, start=0, stop=6, seed=3, **places):
    return list(Order(size, batch_size=batch_size, start=start, stop=stop, seed=seed, **places))


def test_every_epoch_visits_each_image_once_in_a_new_order():
    tickets = [ticket for step in order(stop=7) for ticket in step]  # 28 positions: four epochs of 7
    assert [position for position, _ in tickets] == list(range(28))
    epochs = [[index for _, index in tickets[at : at + 7]] for at in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order(seed=4) != order(seed=3) == order()


def test_several_processes_together_see_the_same_samples_as_one():
    both = zip(order(rank=0, world=2), order(rank=1, world=2), strict=True)
    assert [sorted([*first, *second]) for first, second in both] == order()
    assert all(len(step) == 2 for step in order(rank=1, world=2))
    with pytest.raises(ValueError, match="batch_size=4 over 3 processes: use a multiple of 3"):
        order(world=3)


def test_the_order_can_resume_at_any_step():
    for start in range(7):
        assert order(start=start) == order()[start:]
    assert len(Order(7, batch_size=4, start=2, stop=6, seed=0)) == 4


# ---- augmentation ----


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
