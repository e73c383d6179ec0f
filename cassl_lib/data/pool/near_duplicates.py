"""Images of a pool that look like images it must not hold, such as the validation set.

By perceptual hash (ImageHash's `phash`): 64 bits that survive another size or compression. On 947 photographs of COCO,
pairs within a distance of

    6  8  10  12  14 bits
    0  0   0   1  16   of the 447,931 pairs of different photographs; and of 316 photographs and their
  100 100 100 100 100 % versions: half as large, saved at quality 50 or 20, gray
   99 100 100 100 100 % to 256 x 256, 99 99 100 100 100 % to a short side of 256
   97 99 100 100 100 % 1.3 times as bright
   88 97  99  99 100 % cut by 2 % on each side, 74 91 97 98 100 % by 2.5 %, 17 38 60 79 90 % by 5 %

Mirror images are not found.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from cassl_lib import paths
from cassl_lib.data.image_files import DAMAGED, chunk_by_chunk, eight_bits, open_file, own_fault, write_table
from cassl_lib.data.pool.index import Pool, save
from cassl_lib.errors import DataError
from cassl_lib.files import alone

DISTANCE = 8  # bits
SIDE = 32  # pixels, what `phash` sees of an image
UNREADABLE = 2**64 - 1  # at most 32 bits of a perceptual hash are set, so this one is far from all
BLOCK = 32_768  # hashes that fit a core's cache
HASHES = pa.schema([("hash", pa.uint64())])


class Near(NamedTuple):
    """An image of a pool, the image it resembles, and in how many of 64 bits they differ."""

    place: int  # in the pool
    path: str
    like: str
    distance: int


def near_duplicates(
    pool: Pool, against: Iterable[Path | str], *, distance: int = DISTANCE, workers: int | None = None
) -> list[Near]:
    """Every pair of an image of `pool` and one of `against` whose hashes differ in at most `distance` bits.

    The hashes are kept in the run store and found again; killed and called again it goes on. Images that cannot be
    decoded resemble nothing, are counted on stderr, and are tried again the next time.
    """
    if not 0 <= distance < 32:
        raise ValueError(f"distance={distance} is out of range; use 0 to 31, {DISTANCE} by default")
    names = pq.read_table(pool.index, columns=["path"])
    others = pa.table({"path": pa.array([paths.portable(path) for path in against], pa.string())})
    of_pool = _hashes(names, pool.fingerprint, "hash the pool", workers)
    of_others = _hashes(others, _state(others), "hash the images to keep out", workers)
    names, others = names.column("path"), others.column("path")
    found = search(of_pool, of_others, distance)
    return [Near(place, names[place].as_py(), others[other].as_py(), far) for place, other, far in found.tolist()]


def search(hashes: np.ndarray, wanted: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of uint64 hashes that differ in at most `distance` bits.

    Returns:
        (K, 3) int64, sorted: place in `hashes` (N,), place in `wanted` (M,), number of bits.
    """
    found = [np.zeros((0, 3), np.int64)]
    for start in tqdm(range(0, len(hashes), BLOCK), desc="compare hashes", unit="block", mininterval=1, disable=None):
        block = hashes[start : start + BLOCK]
        different, bits = np.empty_like(block), np.empty(len(block), np.uint8)
        for other, value in enumerate(wanted):
            if value == UNREADABLE:
                continue
            np.bitwise_count(np.bitwise_xor(block, value, out=different), out=bits)
            if bits.min() <= distance:
                near = np.flatnonzero(bits <= distance)
                found.append(np.stack([near + start, np.full(len(near), other), bits[near]], 1).astype(np.int64))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def image_hash(path: str) -> tuple[int]:
    """The perceptual hash of an image file, `UNREADABLE` if it cannot be decoded."""
    try:
        with open_file(path) as file, Image.open(file) as image:
            image.draft("L", (SIDE, SIDE))  # a JPEG is decoded at an eighth of its size, gray
            bits = imagehash.phash(eight_bits(image)).hash
    except DAMAGED as error:
        own_fault(path, error)
        return (UNREADABLE,)
    return (int.from_bytes(np.packbits(bits).tobytes(), "big"),)


def exclude(pool: Pool, near: list[Near], index: Path) -> Pool:
    """Write `pool` without the images of `near` as a new `index`, which lists them in its left_out.csv."""
    closest: dict[int, Near] = {}
    for pair in sorted(near, key=lambda pair: pair.distance, reverse=True):
        closest[pair.place] = pair
    if len(closest) == len(pool):
        raise DataError(f"{pool.index}: all of its {len(pool):,} images resemble one of those to keep out")
    return save(pool, index, without={place: f"{p.distance} bits from {p.like}" for place, p in closest.items()})


def write_pairs(near: list[Near], file: Path) -> None:
    """The pairs as a CSV: path, like, distance."""
    columns = {name: [getattr(pair, name) for pair in near] for name in ("path", "like", "distance")}
    schema = pa.schema([("path", pa.string()), ("like", pa.string()), ("distance", pa.int64())])
    pa.csv.write_csv(pa.table(columns, schema=schema), file)


def _hashes(names: pa.Table, identity: str, title: str, workers: int | None) -> np.ndarray:
    folder = paths.runs() / "pools" / f"hashes-{identity}"
    file, chunks = folder / "hashes.parquet", folder / "chunks"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if not file.exists():
            chunks.mkdir(exist_ok=True)
            write_table(chunk_by_chunk(image_hash, names, HASHES, chunks, title=title, workers=workers), file)
            shutil.rmtree(chunks)
    hashes = pq.read_table(file).column("hash").to_numpy().copy()
    lost = np.flatnonzero(hashes == UNREADABLE)
    for place in lost.tolist():  # it may have come
        (hashes[place],) = image_hash(str(paths.image(names.column("path")[place].as_py())))
    if lost := [place for place in lost.tolist() if hashes[place] == UNREADABLE]:
        example = paths.image(names.column("path")[lost[0]].as_py())
        print(f"{len(lost):,} of {len(names):,} images cannot be compared, such as {example}", file=sys.stderr)
    return hashes


def _state(names: pa.Table) -> str:
    """Hash of the paths and sizes of files."""
    digest = hashlib.sha256()
    for name in names.column("path").to_pylist():
        path = paths.image(name)
        digest.update(f"{name}|{os.path.getsize(path) if path.is_file() else -1}\n".encode())
    return digest.hexdigest()[:16]
