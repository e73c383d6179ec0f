"""Near-duplicates: images of a pool that resemble images it must not contain, such as the validation set.

They are detected by perceptual hash (ImageHash's `phash`), 64 bits that hardly change under resizing and compression.
Measured on 947 photographs of COCO: pairs within a distance of at most

     6   8  10  12  14   bits
     0   0   0   1  16   of the 447,931 pairs of different photographs (number of pairs)

and, of 316 photographs, the share whose edited version is within that distance of the original:

   100 100 100 100 100 % half the size; JPEG quality 50 or 20; gray
    99 100 100 100 100 % resized to 256 x 256
    99  99 100 100 100 % resized to a short side of 256
    97  99 100 100 100 % 1.3 times as bright
    88  97  99  99 100 % cropped by 2 % on each side
    74  91  97  98 100 % cropped by 2.5 % on each side
    17  38  60  79  90 % cropped by 5 % on each side

Mirror images are not detected.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.image_files import DAMAGED, describe_damage, open_file
from cassl_lib.data.image_pixels import TURNS, open_image, orientation, to_8bit
from cassl_lib.data.pool.chunks import map_in_chunks, write_table
from cassl_lib.data.pool.index import Pool, save
from cassl_lib.errors import DataError
from cassl_lib.files import alone

DISTANCE = 8  # bits
SIDE = 32  # pixels; `phash` shrinks every image to this size
UNREADABLE = 2**64 - 1  # a perceptual hash has at most 32 bits set, so this is at least 32 bits from all
BLOCK = 32_768  # hashes; they fit the cache of a core
HASHES = pa.schema([("hash", pa.uint64())])

logger = logging.getLogger(__name__)


class Near(NamedTuple):
    """An image of a pool and an image that it resembles."""

    place: int  # index in the pool
    path: str  # of the image in the pool; portable
    like: str  # path of the image that it resembles; portable
    distance: int  # number of bits, of 64, in which their hashes differ


def near_duplicates(
    pool: Pool, against: Iterable[Path | str], *, distance: int = DISTANCE, workers: int | None = None
) -> list[Near]:
    """Every pair of an image of `pool` and one of `against` whose hashes differ in at most `distance` bits.

    Hashes are cached in the run store; a call that was killed resumes. Images that cannot be decoded match nothing; a
    warning counts them, and the next call tries them again.

    Args:
        against: paths of the images that the pool must not resemble.
        distance: 0 to 31 bits.
        workers: number of processes, by default one per core; spawned.
    """
    if not 0 <= distance < 32:
        raise ValueError(f"distance={distance} is out of range; use 0 to 31, {DISTANCE} by default")
    names = pq.read_table(pool.index, columns=["path"])
    others = pa.table({"path": pa.array([paths.portable(path) for path in against], pa.string())})
    of_pool = _hashes(names, pool.fingerprint, "hash the pool", workers)
    of_others = _hashes(others, _state(others), "hash the images to keep out", workers)
    names, others = names.column("path"), others.column("path")
    pairs = search(of_pool, of_others, distance)
    return [Near(place, names[place].as_py(), others[other].as_py(), bits) for place, other, bits in pairs.tolist()]


def search(hashes: np.ndarray, wanted: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of uint64 hashes that differ in at most `distance` bits.

    Returns:
        (K, 3) int64, sorted: index in `hashes` (N,), index in `wanted` (M,), number of bits that differ.
    """
    pairs = [np.zeros((0, 3), np.int64)]
    for start in tqdm(range(0, len(hashes), BLOCK), desc="compare hashes", unit="block", mininterval=1, disable=None):
        block = hashes[start : start + BLOCK]
        different, bits = np.empty_like(block), np.empty(len(block), np.uint8)
        for other, value in enumerate(wanted):
            if value == UNREADABLE:
                continue
            np.bitwise_count(np.bitwise_xor(block, value, out=different), out=bits)
            if bits.min() <= distance:
                near = np.flatnonzero(bits <= distance)
                pairs.append(np.stack([near + start, np.full(len(near), other), bits[near]], 1).astype(np.int64))
    table = np.concatenate(pairs)
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def image_hash(path: str) -> tuple[int]:
    """The perceptual hash of an image file as a row of `HASHES`; `UNREADABLE` if it cannot be decoded.

    Raises:
        DataError: a storage or system error, see `describe_damage`.
    """
    try:
        with open_file(path) as file, open_image(file) as image:
            turn = TURNS.get(orientation(image))
            image.draft("L", (SIDE, SIDE))  # decode JPEGs in gray and at an eighth of their size
            gray = to_8bit(image)
            bits = imagehash.phash(gray if turn is None else gray.transpose(turn)).hash
    except DAMAGED as error:
        describe_damage(path, error)
        return (UNREADABLE,)
    return (int.from_bytes(np.packbits(bits).tobytes(), "big"),)


def exclude(pool: Pool, near: list[Near], index: Path) -> Pool:
    """Write a new `index` of `pool` without the images of `near`; they are listed in its CSV of what was left out."""
    closest: dict[int, Near] = {}
    for pair in sorted(near, key=lambda pair: pair.distance, reverse=True):
        closest[pair.place] = pair
    if len(closest) == len(pool):
        raise DataError(
            f"{pool.index}: all of its {len(pool):,} images resemble one of those to keep out; lower the distance"
        )
    return save(pool, index, without={place: f"{p.distance} bits from {p.like}" for place, p in closest.items()})


def write_pairs(near: list[Near], file: Path) -> None:
    """Write the pairs as a CSV: path, like, distance."""
    columns = {name: [getattr(pair, name) for pair in near] for name in ("path", "like", "distance")}
    schema = pa.schema([("path", pa.string()), ("like", pa.string()), ("distance", pa.int64())])
    pa.csv.write_csv(pa.table(columns, schema=schema), file)


def _hashes(names: pa.Table, identity: str, title: str, workers: int | None) -> np.ndarray:
    """(N,) uint64 hashes of the images at portable paths `names`, cached under `identity`."""
    folder = paths.runs() / "pools" / f"hashes-{identity}"
    file, chunks = folder / "hashes.parquet", folder / "chunks"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if not file.exists():
            chunks.mkdir(exist_ok=True)
            write_table(map_in_chunks(image_hash, names, HASHES, chunks, title=title, workers=workers), file)
            shutil.rmtree(chunks)
    hashes = pq.read_table(file).column("hash").to_numpy().copy()
    lost = np.flatnonzero(hashes == UNREADABLE)
    for place in lost.tolist():  # the image may have been restored since
        (hashes[place],) = image_hash(str(paths.image(names.column("path")[place].as_py())))
    if lost := [place for place in lost.tolist() if hashes[place] == UNREADABLE]:
        example = paths.image(names.column("path")[lost[0]].as_py())
        logger.warning(
            "%s of %s images cannot be read and are not compared, such as %s",
            f"{len(lost):,}",
            f"{len(names):,}",
            example,
        )
    return hashes


def _state(names: pa.Table) -> str:
    """Hash of the paths and sizes of image files."""
    digest = hashlib.sha256()
    for name in names.column("path").to_pylist():
        path = paths.image(name)
        digest.update(f"{name}|{os.path.getsize(path) if path.is_file() else -1}\n".encode())
    return digest.hexdigest()[:16]
