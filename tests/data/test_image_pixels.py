"""Pixels of image files: orientation, depth, and what is not read. See test_loader.py for ordinary kinds of images."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_sets import DATA, HEIGHT, WIDTH, save_turned, write_coco

from cassl_lib.data.augment import training_transform
from cassl_lib.data.coco import CocoImages
from cassl_lib.data.image_files import MOST_PIXELS
from cassl_lib.data.image_pixels import displayed_size
from cassl_lib.data.loader import Samples, read_image
from cassl_lib.data.pool.build import build_pool
from cassl_lib.data.pool.near_duplicates import image_hash
from cassl_lib.errors import DataError

# Four colors: no turn leaves them where they are
QUARTERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
DISPLAYED = np.kron(QUARTERS, np.ones((HEIGHT // 2, WIDTH // 2, 1))).astype(np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
ORIENTATIONS = pytest.mark.parametrize("orientation", range(1, 9))


def is_displayed(image, tolerance=0):
    """Whether an image (3, H, W) equals `DISPLAYED`."""
    pixels = np.asarray(image).transpose(1, 2, 0).astype(int)
    return pixels.shape == DISPLAYED.shape and np.abs(pixels - DISPLAYED).max() <= tolerance


# ---- orientation ----


@ORIENTATIONS
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.jpg", {"quality": 100, "subsampling": 0}),
    ],
)
def test_pixels_and_size_are_as_displayed(orientation, name, options, tmp_path):
    path = save_turned(tmp_path / name, DISPLAYED, orientation, **options)
    assert is_displayed(read_image(path), tolerance=3 if name == "a.jpg" else 0)
    assert displayed_size(path) == (HEIGHT, WIDTH)
    with Image.open(path) as image:
        np.testing.assert_array_equal(ImageOps.exif_transpose(image), read_image(path).permute(1, 2, 0))


@ORIENTATIONS
def test_training_samples_are_as_displayed(orientation, tmp_path):
    """Boxes and masks refer to the displayed image, and so do its listed height and width."""
    source = CocoImages(write_coco(tmp_path, DATA), tmp_path / "images")
    save_turned(tmp_path / "images/a.jpg", DISPLAYED, orientation, quality=100, subsampling=0)
    samples = Samples(source, lambda image, target: (image, target), masks=True, classes=True)
    image, target, image_id, unreadable = samples[(0, 0)]
    assert image_id == 70 and not unreadable and is_displayed(image, tolerance=3)
    assert target["boxes"][0].tolist() == [2, 3, 7, 7] and target["masks"].shape == (2, HEIGHT, WIDTH)


@ORIENTATIONS
def test_the_index_of_a_pool_has_displayed_sizes(orientation, tmp_path):
    (tmp_path / "pool").mkdir()
    save_turned(tmp_path / "pool/a.png", DISPLAYED, orientation)
    pool = build_pool([str(tmp_path / "pool")], tmp_path / "index")
    assert (pool.row(0)["height"], pool.row(0)["width"]) == (HEIGHT, WIDTH)
    image, *_ = Samples(pool, lambda *sample: sample, masks=False, classes=False, replace=False)[(0, 0)]
    assert is_displayed(image)


def test_near_duplicates_are_compared_as_displayed(tmp_path):
    hashes = {image_hash(str(save_turned(tmp_path / f"{n}.png", DISPLAYED, n))) for n in range(1, 9)}
    assert len(hashes) == 1


def test_damaged_exif_data_is_ignored(tmp_path):
    Image.fromarray(DISPLAYED).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(250)))
    assert is_displayed(read_image(tmp_path / "a.png")) and displayed_size(tmp_path / "a.png") == (HEIGHT, WIDTH)


# ---- depth ----


def gray(path, values):
    """Write an array as an image; returns the gray values that are read from it."""
    Image.fromarray(values).save(path)
    pixels = read_image(path)
    assert (pixels == pixels[:1]).all()
    return pixels[0].tolist()


def test_gray_images_are_taken_to_have_8_12_or_16_bits(tmp_path):
    for kind in ("a.png", "a.tif"):
        assert gray(tmp_path / kind, np.array([[0, 2048, 4095]], np.uint16)) == [[0, 128, 255]]
        assert gray(tmp_path / kind, np.array([[0, 4096, 65535]], np.uint16)) == [[0, 16, 255]]
        assert gray(tmp_path / kind, np.array([[0, 7, 255]], np.uint16)) == [[0, 7, 255]]
    assert gray(tmp_path / "a.tif", np.array([[0, 2048, 4095]], np.int32)) == [[0, 128, 255]]


def test_floats_from_0_to_1_are_from_black_to_white(tmp_path):
    assert gray(tmp_path / "a.tif", np.array([[0, 0.5, 1]], np.float32)) == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 200]], np.float32), "float values from 0 to 200; scale them to 0 to 1, or save it with 8 bits"),
        (np.array([[-0.5, 1]], np.float32), "float values from -0.5 to 1;"),
        (np.array([[0, np.nan]], np.float32), "float values from nan"),
        (np.array([[0, 70_000]], np.int32), "32-bit values from 0 to 70000; scale them"),
        (np.array([[-1, 7]], np.int32), "32-bit values from -1 to 7;"),
    ],
)
def test_values_without_a_defined_brightness_are_not_read(values, message, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match=f"^{message}"):
        read_image(tmp_path / "a.tif")


def test_colors_of_12_bits_in_16_are_not_read(tmp_path):
    """Pillow drops the lower eight bits, so the image would be nearly black."""

    def write(value):
        row = b"\0" + struct.pack(">3H", *[value] * 3) * WIDTH
        write_png(tmp_path / "deep.png", WIDTH, HEIGHT, row * HEIGHT, depth=16)
        return tmp_path / "deep.png"

    assert read_image(write(0x7FFF)).unique().tolist() == [0x7F]
    with pytest.raises(OSError, match="16 bits per channel, of which only the lower 12 are used"):
        read_image(write(0x0FFF))


def write_png(path, width, height, rows, depth=8):
    """An RGB PNG of any claimed size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, depth, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(
    ("mode", "value", "options", "expected"),
    [
        ("P", 1, {"transparency": 1}, [10, 200, 30]),
        ("P", 1, {"transparency": b"\x80\x00"}, [10, 200, 30]),
        ("LA", (77, 0), {}, [77, 77, 77]),
        ("L", 77, {"transparency": 77}, [77, 77, 77]),
        ("1", 1, {}, [255, 255, 255]),
    ],
)
def test_transparency_is_ignored(mode, value, options, expected, tmp_path):
    image = Image.new(mode, (6, 4), value)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png", **options)
    assert read_image(tmp_path / "a.png").flatten(1).unique(dim=1).squeeze(1).tolist() == expected


# ---- what is not read ----


@pytest.mark.parametrize(("width", "height"), [(2**13 + 1, 2**13), (2**20, 2**20), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_too_many_pixels_is_not_decoded(width, height, tmp_path):
    write_png(tmp_path / "a.png", width, height, b"")
    assert (tmp_path / "a.png").stat().st_size < 100
    for read in (read_image, displayed_size):
        with pytest.raises(OSError, match=f"more than {MOST_PIXELS:,} pixels; shrink it"):
            read(tmp_path / "a.png")


def test_images_that_are_too_large_are_left_out_of_a_pool_and_skipped_in_training(tmp_path):
    source = CocoImages(write_coco(tmp_path, DATA), tmp_path / "images")
    write_png(tmp_path / "images/a.jpg", 9000, 9000, b"")
    *_, unreadable = Samples(source, training_transform, masks=False, classes=True, replace=False)[(0, 0)]
    assert "a.jpg (9,000 x 9,000 are more than 67,108,864 pixels; shrink it)" in unreadable[0]
    pool = build_pool([str(tmp_path / "images")], tmp_path / "index")
    assert pool.left_out.counts["files cannot be read as images"] == 1 and "9,000 x" in str(pool.left_out)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_not_an_image(make, tmp_path):
    make(tmp_path / "a.jpg")
    for read in (read_image, displayed_size):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / "a.jpg")


def test_a_pipe_in_a_folder_is_passed_over(tmp_path, caplog):
    (tmp_path / "pool").mkdir()
    os.mkfifo(tmp_path / "pool/a.jpg")
    Image.fromarray(DISPLAYED).save(tmp_path / "pool/b.jpg")
    pool = build_pool([str(tmp_path / "pool")], tmp_path / "index")
    assert len(pool) == 1 and "1 pipes or devices" in caplog.text


def test_a_pipe_that_a_list_names_is_left_out(tmp_path):
    Image.fromarray(DISPLAYED).save(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    pool = build_pool([f"{tmp_path / 'list.txt'}:{tmp_path}"], tmp_path / "index")
    assert len(pool) == 1 and "a.jpg (not a regular file)" in str(pool.left_out)
    with pytest.raises(DataError, match="a.tar is a pipe or a device; give"):
        os.mkfifo(tmp_path / "a.tar")
        build_pool([str(tmp_path / "a.tar")], tmp_path / "index")


def test_every_error_of_a_damaged_file_is_one_of_the_file(tmp_path):
    """Some parsers of Pillow raise a TypeError, or others, of a damaged header."""
    content, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(DISPLAYED).save(content, "TIFF", compression="tiff_lzw")
    for _ in range(300):
        damaged = bytearray(content.getvalue())
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.tif").write_bytes(damaged)
        try:
            read_image(tmp_path / "a.tif")
        except OSError:
            continue
