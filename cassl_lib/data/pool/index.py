"""The index of a pool: a Parquet file of images with the list of what was left out, read a few row groups at a time."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cassl_lib import paths
from cassl_lib.data.image_files import write_table
from cassl_lib.data.pool.formats import INDEX, open_index
from cassl_lib.data.source import Annotations
from cassl_lib.errors import LeftOut
from cassl_lib.files import replacing

GROUPS = 4  # row groups that a pool keeps: readers go through it in order
LEFT_OUT = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("bytes", pa.int64())])
REASONS = {
    "missing": "images are listed but not there",
    "unreadable": "files cannot be read as images",
    "other size": "images have another size than listed",
    "duplicate": "images are byte-identical to an earlier one",
    "near duplicate": "images look like one they must not be like",
}


class Pool:
    """An index of unlabeled images, read a few row groups at a time; pickles as its path.

    Attributes:
        fingerprint: hash of what was listed (paths, bytes of each file or, of a JSON, its id, height and width) and of
            what was left out. Paths below the data root count relative to it.
        parts: what was found, a dict a part: "part", "listed", "images", and a count for each of `REASONS`.
    """

    def __init__(self, index: Path):
        self.index = Path(index)
        self._file = open_index(self.index)
        known = self._file.schema_arrow.metadata
        self.fingerprint = known[b"fingerprint"].decode()
        self.parts: list[dict] = json.loads(known.get(b"parts", b"[]"))
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.metadata.num_row_groups)]
        self._first = np.cumsum([0, *sizes])
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __reduce__(self):
        return Pool, (self.index,)

    def __len__(self) -> int:
        return int(self._first[-1])

    def row(self, index: int) -> dict:
        """id, path (as the index has it), height, width and source of an image."""
        return {name: self._value(name, index) for name in INDEX.names}

    def image_path(self, index: int) -> Path:
        return paths.image(self._value("path", index))

    def image_id(self, index: int) -> int:
        return self._value("id", index)

    @property
    def left_out(self) -> LeftOut:
        """Images that were skipped when the pool was indexed; all of them are listed in `left_out_file`."""
        return left_out_report(self.index)

    def annotations(self, index: int, *, masks: bool = False) -> Annotations:
        """The image's `size` and no instances."""
        size = self._value("height", index), self._value("width", index)
        none: Annotations = {"size": size, "boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
        return none | {"masks": np.zeros((0, *size), np.uint8)} if masks else none

    def _value(self, name: str, index: int):
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.index}")
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        if number not in self._groups:
            self._groups[number] = self._file.read_row_group(number, use_threads=False)  # threads do not outlive a fork
        self._groups.move_to_end(number)
        while len(self._groups) > GROUPS:
            self._groups.popitem(last=False)
        return self._groups[number].column(name)[index - int(self._first[number])].as_py()


def save(pool: Pool, index: Path, *, without: dict[int, str] | None = None) -> Pool:
    """Write a pool's index, and its left_out.csv, as `index`.

    Args:
        without: places in the pool to leave out for resembling an image, with what is to be said of each. The new pool
            has another fingerprint.
    """
    rows, left_out = pq.read_table(pool.index, schema=INDEX), read_left_out(pool.index)
    parts, fingerprint = [dict(part) for part in pool.parts], pool.fingerprint
    if without:
        places = np.array(sorted(without), np.int64)
        last_of_part = np.cumsum([part["images"] for part in parts])
        for number in np.searchsorted(last_of_part, places, side="right") if parts else ():
            parts[number]["images"] -= 1
            parts[number]["near duplicate"] += 1
        names = rows.column("path").take(places).to_pylist()
        details, sizes = [without[place] for place in places.tolist()], [0] * len(names)
        added = [names, ["near duplicate"] * len(names), details, sizes]
        left_out = pa.concat_tables([left_out, pa.table(added, schema=LEFT_OUT)])
        rows = rows.filter(~np.isin(np.arange(len(rows)), places))
        fingerprint = fingerprint_with(pool.fingerprint, left_out)
    index.parent.mkdir(parents=True, exist_ok=True)
    write_index(rows, left_out, parts, fingerprint, index)
    return Pool(index)


def left_out_file(index: Path) -> Path:
    """The CSV beside an index that names what was left out: path, reason, detail, bytes."""
    return index.with_suffix(".left_out.csv")


def read_left_out(index: Path) -> pa.Table:
    """What was left out of an index, as a table of `LEFT_OUT`."""
    file = left_out_file(index)
    if not file.exists():
        return LEFT_OUT.empty_table()
    options = pa.csv.ConvertOptions(column_types=LEFT_OUT, strings_can_be_null=False)
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    return pa.csv.read_csv(file, convert_options=options, parse_options=parsing)


def left_out_report(index: Path) -> LeftOut:
    """What was left out of an index, counted by reason."""
    report, left_out = LeftOut(), read_left_out(index)
    for path, reason, detail, _ in zip(*(column.to_pylist() for column in left_out.columns), strict=True):
        report.add(REASONS[reason], f"{path} ({detail})" if detail else path)
    return report


def fingerprint_with(fingerprint: str, left_out: pa.Table) -> str:
    """The fingerprint of a pool without `left_out`, from that of all it was made from."""
    names, reasons = left_out.column("path").to_pylist(), left_out.column("reason").to_pylist()
    lines = [fingerprint, *(f"{name}|{reason}" for name, reason in zip(names, reasons, strict=True))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_index(rows: pa.Table, left_out: pa.Table, parts: list[dict], fingerprint: str, index: Path) -> None:
    """Write an index and, before it, its left_out.csv, so that there is no index without one."""
    file = left_out_file(index)
    with replacing(file) as temporary:
        pa.csv.write_csv(left_out, temporary)
    write_table(rows.replace_schema_metadata({"fingerprint": fingerprint, "parts": json.dumps(parts)}), index)
