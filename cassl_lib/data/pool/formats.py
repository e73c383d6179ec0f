"""The parts a pool is built from: folder, tar, COCO JSON, Open Images CSV, Places365 list, or an earlier index.

Every format has a function that yields (path, bytes, id, height, width) per image, in an order that depends on names
alone: the path as `paths.portable` gives it, 0 for bytes and None for the rest if the format does not say. No image is
opened here.
"""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path

from cassl_lib import paths
from cassl_lib.data.image_files import ENDINGS
from cassl_lib.data.pool import folders, lists
from cassl_lib.data.pool.folders import PACKED, Listed
from cassl_lib.data.pool.open_index import open_index
from cassl_lib.errors import DataError

SHARE = re.compile(r"0?\.\d+")  # what follows FOLDER@


def list_images(part: str, cache: Path) -> Listed:
    """List the images of a part; PART@0.3 takes 3 in 10, evenly spaced.

    Args:
        cache: folder where the members of tar archives are recorded.

    Raises:
        DataError: the part does not exist, is damaged, or has an unknown format.
    """
    whole, share = share_of(part)
    images = _list_whole(whole, cache)
    if share == 1:
        return images
    taken, of = share.as_integer_ratio()
    return (image for place, image in enumerate(images) if (place + 1) * taken // of > place * taken // of)


def share_of(part: str) -> tuple[str, Fraction]:
    """Split PART@SHARE into the part and its share, 1 by default. An existing path is not split."""
    whole, _, share = part.rpartition("@")
    if whole and SHARE.fullmatch(share) and not Path(part).expanduser().exists():
        return whole, Fraction(share)
    return part, Fraction(1)


def _list_whole(part: str, cache: Path) -> Listed:
    name, beside = paths.file_and_folder(part)
    path = Path(name).expanduser()
    if not part.strip():
        raise DataError("a part of the pool is empty; give a folder of images, a list, a .tar or an index")
    if not path.exists():
        raise DataError(
            f"{path}: no such folder or JSON, CSV, .txt list, .tar or .parquet index; give a folder of images, a list "
            f"as LIST{os.pathsep}FOLDER, or a share of one as FOLDER@0.3"
        )
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path} is a pipe or a device; give a folder or a file")
    if path.is_file() and path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path} is a single image; give its folder, {path.parent}")
    if path.is_file() and path.name.lower().endswith(PACKED):
        raise DataError(f"{path} is compressed; unpack it into a .tar or a folder")
    ending = "folder" if path.is_dir() else path.suffix.lower()
    if ending in ("folder", ".tar", ".parquet") and beside is not None:
        raise DataError(f"{part}: a {ending} takes no {os.pathsep}FOLDER; give {name} alone")
    if ending == "folder":
        return folders.list_folder(path, cache)
    if ending == ".tar":
        return folders.list_tar(path, cache)
    if ending == ".parquet":
        return _list_index(path)
    return {".csv": lists.list_open_images, ".txt": lists.list_places}.get(ending, lists.list_coco)(part)


def _list_index(path: Path) -> Listed:
    """The images of an earlier index."""
    for batch in open_index(path).iter_batches(columns=["path", "id", "height", "width"]):
        columns = [column.to_pylist() for column in batch.columns]
        yield from ((name, 0, *facts) for name, *facts in zip(*columns, strict=True))
