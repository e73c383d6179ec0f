"""Pixels of image files: 8-bit RGB as displayed, whatever mode, depth and orientation the file has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from cassl_lib.data.image_files import MOST_PIXELS, open_file

# Operations that turn stored pixels into displayed ones, by EXIF orientation
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
DEPTHS = (8, 12, 16)  # bits of a gray image, of which files store 16
DEEP_COLOR = re.compile(r";16[BLN]")  # in Pillow's name of the encoding of colors with 16 bits per channel


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        OSError: it is not an image, or has more than `MOST_PIXELS` pixels.
        ValueError, SyntaxError: the header is damaged.
    """
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own, which is higher
        raise OSError(f"more than {MOST_PIXELS:,} pixels; shrink it") from error
    if image.width * image.height > MOST_PIXELS:
        raise OSError(f"{image.width:,} x {image.height:,} are more than {MOST_PIXELS:,} pixels; shrink it")
    return image


def displayed_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file as displayed, from its header. Raises as `open_image` and `open_file`."""
    with open_file(path) as file, open_image(file) as image:
        return size_of(image)


def size_of(image: Image.Image) -> tuple[int, int]:
    """(height, width) as displayed of an image that is not yet decoded."""
    return (image.width, image.height) if orientation(image) in SIDEWAYS else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of an image that is not yet decoded.

    1 if it has none, if its EXIF data is damaged, or if a PNG stores it after its pixels; and for TIFF, which Pillow
    turns itself.
    """
    if hasattr(image, "tag_v2"):
        return 1
    try:
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # that of PNG would decode the image
    except Exception:  # on damaged EXIF data Pillow raises whatever its parser does
        return 1
    return found if found in TURNS else 1


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3) uint8, as displayed, of an image that is not yet decoded.

    Gray, palette, CMYK and black-and-white images are converted, deeper ones as in `to_8bit`; transparency is ignored.

    Raises:
        OSError: it cannot be decoded, or `to_8bit` cannot convert it.
        ValueError, SyntaxError: it is damaged.
    """
    turn = TURNS.get(orientation(image))
    deep = DEEP_COLOR.search(str(image.tile[:1]))
    colors = to_8bit(image).convert("RGB")
    pixels = np.array(colors if turn is None else colors.transpose(turn))
    if deep and pixels.max() < 2**4:  # Pillow has dropped the lower eight bits of each channel
        raise OSError("16 bits per channel, of which only the lower 12 are used, so it is nearly black; save it with 8")
    return pixels


def to_8bit(image: Image.Image) -> Image.Image:
    """Gray images of integers or floats as 8-bit ones; others unchanged. Pillow's `convert` would clip them at 255.

    Integers are taken to have 8, 12 or 16 bits, the smallest number that holds the largest value of the image, since
    cameras store 12 bits in files of 16; the upper eight are kept. Floats must be from 0 to 1, for black and white.

    Raises:
        OSError: integers or floats out of range, whose brightness is not defined.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also NaN
            raise OSError(f"float values from {low:g} to {high:g}; scale them to 0 to 1, or save it with 8 bits")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if low < 0 or high >= 2**16:
        raise OSError(f"32-bit values from {low} to {high}; scale them to 0 to 65535, or save it with 8 bits")
    bits = next(bits for bits in DEPTHS if high < 2**bits)
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))
