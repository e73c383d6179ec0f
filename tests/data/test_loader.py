"""Reading images, samples and their order."""

import errno
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import HEIGHT, STRONG, WEAK, WIDTH

from cassl_lib.data import loader
from cassl_lib.data.augment import training_transform
from cassl_lib.data.loader import Order, Samples, batches, in_turn, read_image
from cassl_lib.data.pseudo_labeled import PseudoLabeled
from cassl_lib.errors import DataError
from cassl_lib.labels.shards import finish, write_shard
from cassl_lib.labels.store import PseudoLabelStore

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
    transform = training_transform(config, pseudo_labeled=True)
    return Samples(images, transform, **{"masks": True, "classes": True} | options)


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
    assert (
        image_id != 70
        and name == f"{tmp_path / 'images/a.jpg'} (30x20 pixels, listed as 20x30, height and width swapped)"
    )
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


def test_samples_draw_what_manual_seed_draws():
    """Seeding without `fork_rng` is only faster, and the state is restored after an error too."""
    for seed in (0, 7, 2**63 - 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = torch.rand(9), torch.randint(1000, (9,)), torch.randperm(9)
        state = torch.get_rng_state()
        with pytest.raises(OSError, match="damaged"), loader._seeded(seed):
            drawn = torch.rand(9), torch.randint(1000, (9,)), torch.randperm(9)
            raise OSError("damaged")
        assert all(torch.equal(one, other) for one, other in zip(drawn, expected, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


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


PAGES = """
import resource, sys, numpy as np
from cassl_lib.data.loader import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
pages = []
for _ in range(10):
    arrays = [np.ones(20 << 20, np.uint8) for _ in range(3)]
    del arrays
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[0])
"""


def pages(memory: str) -> int:
    """How many pages the system hands out when 60 MB are allocated again and again, in a new process."""
    done = subprocess.run([sys.executable, "-c", PAGES, memory], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_loading_processes_keep_freed_memory():
    assert batches([], [], workers=1).worker_init_fn is loader.keep_freed_memory
    assert pages("kept") < pages("returned") / 10
