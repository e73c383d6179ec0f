"""What fingerprints promise of image contents, and a look at some images before anything is trained on them.

The fingerprint of a labeled set covers the sizes in bytes of all its images and the contents of 256 of them, evenly
spaced; so the same JSON with another image folder is other data. Unnoticed is only a changed image that has kept its
size and is not one of the 256. With CASSL_HASH_IMAGES=1, which makes fingerprints of its own, the contents of all
images are covered. Times of modification are not: a copy of the data is the same data. The fingerprint of a pool covers
the contents of 256 images, and the sizes of all where the pool is a folder or a tar. The embedded scenes follow from a
seed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cassl_lib import paths
from cassl_lib.data.image_files import DAMAGED, describe_damage, open_file, spread
from cassl_lib.data.image_pixels import displayed_size
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import DataError

HASHED = 256  # images; at 150 kB each, 40 MB are read
LOOKED_AT = 200  # images whose headers are read before training
MOST_UNUSABLE = 0.1  # share of them


def files_fingerprint(folder: Path, names: Sequence[str]) -> str:
    """Hash of the sizes and contents of the images `names` in `folder`, as promised above.

    Raises:
        DataError: a storage or system error, see `describe_damage`.
    """
    digest = hashlib.sha256()
    for name in names:
        try:
            size = os.stat(f"{folder}/{name}").st_size
        except OSError:
            size = -1
        digest.update(b"%d|" % size)
    digest.update(contents_fingerprint(f"{folder}/{names[place]}" for place in covered(len(names))).encode())
    return digest.hexdigest()[:16]


def covered(count: int) -> list[int]:
    """The indices of those of `count` images whose contents a fingerprint covers."""
    return spread(count, count if paths.hash_images() else HASHED)


def contents_fingerprint(files: Iterable[Path | str]) -> str:
    """Hash of the contents of image files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(_content(file))
    return digest.hexdigest()[:16]


def _content(path: Path | str) -> bytes:
    """Hash of a file; of nothing if it is missing or cannot be opened."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (FileNotFoundError, NotADirectoryError):
        return hashlib.sha256().digest()
    except OSError as error:
        describe_damage(path, error)
        return hashlib.sha256().digest()


def check_usable(source: ImageSource, name: Path | str) -> None:
    """Look at the headers of up to 200 evenly spaced images, in a fraction of a second.

    Args:
        name: of the source, for the message.

    Raises:
        DataError: more than a tenth of them cannot be opened, or have another size than their annotations.
    """
    places = spread(len(source), LOOKED_AT)
    problems = [problem for place in places if (problem := _problem(source, place))]
    if len(problems) > MOST_UNUSABLE * len(places):
        raise DataError(
            f"{name}: {len(problems)} of the {len(places)} images that were looked at cannot be used, such as "
            f"{problems[0]}; restore or correct them, or remove them from the file"
        )


def _problem(source: ImageSource, index: int) -> str:
    """Why an image of a source cannot be used, with its path; "" if it can, as far as its header says."""
    path, expected = source.image_path(index), source.annotations(index, masks=False).get("size")
    try:
        size = displayed_size(path)
    except DAMAGED as error:
        return f"{path} ({describe_damage(path, error)})"
    return "" if expected in (None, size) else f"{path} ({other_size(size, expected)})"


def other_size(size: tuple[int, int], expected: tuple[int, int]) -> str:
    """That an image has another (height, width) than expected; swapped ones come from an ignored EXIF orientation."""
    swapped = ", height and width swapped" if size == expected[::-1] else ""
    return f"{size[0]}x{size[1]} pixels, listed as {expected[0]}x{expected[1]}{swapped}"
