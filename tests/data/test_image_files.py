"""Image files: which read errors mean a damaged image, and evenly spaced indices."""

import errno
import os

import pytest

from cassl_lib.data.image_files import describe_damage, spread
from cassl_lib.errors import DataError


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
