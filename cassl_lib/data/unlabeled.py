"""Pools of unlabelled images: one Parquet index (id, path, height, width, source), whatever the images came as.

A pool is given as a folder, a COCO image_info JSON (with its folder), or several of them. Sizes are read from the file
headers, never by decoding; files that are no images are counted and named.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from cassl_lib.data.coco import DataError, Report, locate

SHARE = re.compile(r"0?\.\d+")  # what follows FOLDER@
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SCHEMA = pa.schema(
    [("id", pa.int64()), ("path", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("source", pa.string())]
)


class Pool:
    """An index of unlabelled images.

    Attributes:
        table: Arrow table with the columns of `SCHEMA`, opened by memory map.
        fingerprint: hash of the paths, with the bytes of each file or, of a JSON, its id, height and width.
    """

    def __init__(self, index: Path):
        self.index = Path(index)
        self.table = pq.read_table(self.index, memory_map=True)
        self.fingerprint = (self.table.schema.metadata or {}).get(b"fingerprint", b"").decode()

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> dict:
        """id, path, height, width and source of an image."""
        return {name: self.table.column(name)[index].as_py() for name in SCHEMA.names}

    def image_path(self, index: int) -> Path:
        return Path(self.table.column("path")[index].as_py())

    def image_id(self, index: int) -> int:
        return self.table.column("id")[index].as_py()

    def paths(self) -> set[str]:
        """The paths of all images."""
        return set(self.table.column("path").to_pylist())

    def annotations(self, index: int, *, masks: bool = False) -> dict:
        """Nothing: these images have no labels. Makes a pool a source of `Samples`."""
        import numpy as np

        return {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}


def build_pool(parts: list[str], folder: Path) -> tuple[Pool, Report]:
    """Index the images of `parts` (folders, or JSON[:FOLDER]) into `folder`; an index of the same files is found again.

    Returns:
        The pool, and what was left out (files that are no images).

    Raises:
        DataError: a part does not exist or holds no image.
    """
    listing = [entry for part in parts for entry in _listing(part)]
    names = "\n".join(f"{path}|{size}|{facts or ''}" for path, size, facts in listing)
    fingerprint = hashlib.sha256(names.encode()).hexdigest()[:16]
    index = folder / f"pool-{fingerprint}.parquet"
    report = Report()
    if not index.exists():
        columns = _columns(listing, report)
        table = pa.table(columns, schema=SCHEMA.with_metadata({"fingerprint": fingerprint, "report": str(report)}))
        folder.mkdir(parents=True, exist_ok=True)
        temporary = index.with_suffix(f".{os.getpid()}.tmp")
        pq.write_table(table, temporary)
        os.replace(temporary, index)
        if report.counts:
            print(report, file=sys.stderr)
    pool = Pool(index)
    if not len(pool):
        raise DataError(f"{', '.join(parts)}: no image in it; endings that count are {' '.join(ENDINGS)}")
    return pool, report


def _listing(part: str) -> list[tuple[str, int, tuple | None]]:
    """(path, bytes, (id, height, width) if known) of a part, sorted by path; FOLDER@0.3 takes an even 3 in 10."""
    whole, _, share = part.rpartition("@")
    if whole and SHARE.fullmatch(share) and not Path(part).expanduser().exists():
        whole, share = _listing(whole), float(share)
        return [entry for place, entry in enumerate(whole) if int((place + 1) * share) > int(place * share)]
    path = Path(part.partition(os.pathsep)[0]).expanduser()
    if path.is_dir():
        return sorted(_walk(path))
    if not path.is_file():
        raise DataError(f"{path}: no such folder or JSON; give a folder of images or a COCO image_info JSON")
    json_path, images = locate(part)
    try:
        entries = json.loads(json_path.read_bytes())["images"]
        known = [(i["file_name"], (i["id"], i["height"], i["width"])) for i in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{json_path} is not a COCO image_info file ({error!r})") from error
    return [(str(images / name), 0, facts) for name, facts in sorted(known)]


def _walk(folder: Path):
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path))
            elif entry.name.lower().endswith(ENDINGS):
                yield str(Path(entry.path).resolve()), entry.stat().st_size, None


def _columns(listing: list, report: Report) -> dict[str, list]:
    """The columns of the index. Ids are COCO's if JSONs give every image one of its own, else places, from 1."""
    known = {facts[0] for _, _, facts in listing if facts}
    by_place = len(known) < len(listing)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    bar = tqdm(listing, desc="pool", unit="image", disable=None, mininterval=1)
    for place, (path, _, facts) in enumerate(bar, start=1):
        try:
            image_id, height, width = facts or (place, *_size(path))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            report.add("files cannot be read as images", f"{path} ({error})")
            continue
        image_id = place if by_place else image_id
        for name, value in zip(SCHEMA.names, (image_id, path, height, width, Path(path).parent.name), strict=True):
            columns[name].append(value)
    return columns


def _size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width
