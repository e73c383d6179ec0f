"""The index of a pool: a Parquet file of images, read a few row groups at a time, and a CSV of what was left out."""

from __future__ import annotations

import hashlib
import html
import json
from collections import OrderedDict
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cassl_lib import paths
from cassl_lib.data.pool.chunks import write_table
from cassl_lib.data.pool.open_index import INDEX, REMEDY, in_one_line, open_index
from cassl_lib.data.source import Annotations
from cassl_lib.errors import DataError, LeftOut
from cassl_lib.files import replacing

CACHED_GROUPS = 4  # row groups per pool; readers go through it in order
LEFT_OUT = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("bytes", pa.int64())])
REASONS = {
    "missing": "images are listed but do not exist",
    "unreadable": "files cannot be read as images",
    "other size": "images have another size than listed",
    "duplicate": "images are byte-identical to an earlier one",
    "near duplicate": "images resemble one of those to keep out",
}
COUNTS = ("listed", "images", *REASONS)  # of each part
PARTS = list[dict[str, int | str]]


class Pool:
    """Unlabeled images from an index, an `ImageSource` without instances. Pickles as the path of the index.

    Attributes:
        index: the Parquet file, with the columns of `INDEX`.
        fingerprint: hash of what was listed (paths, and the bytes of each file or, from a JSON, id, height and width)
            and of what was left out. Paths below the data root are relative to it.
        parts: one dict per part that the pool was built from: "part", "listed", "images", and a count for each of
            `REASONS`.
    """

    def __init__(self, index: Path):
        self.index = Path(index)
        self._file = open_index(self.index)
        self.fingerprint, self.parts = _metadata(self.index, self._file.schema_arrow.metadata)
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.metadata.num_row_groups)]
        self._first = np.cumsum([0, *sizes])
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __reduce__(self):
        return Pool, (self.index,)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __repr__(self) -> str:
        return f"Pool of {len(self):,} images from {', '.join(part['part'] for part in self.parts) or self.index}"

    def _repr_html_(self) -> str:
        """What each part lists and what was left out of it, as a notebook shows it."""
        names = ["part", "listed", *(name for name in REASONS if any(part[name] for part in self.parts)), "images"]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_shown(part[name]))}</td>" for name in names) + "</tr>"
            for part in self.parts
        )
        return f"<p>{len(self):,} unlabeled images</p><table><tr>{head}</tr>{body}</table>"

    def row(self, index: int) -> dict:
        """`id`, `path` (portable), `height`, `width` and `source` (name of the folder or archive) of an image."""
        return {name: self._value(name, index) for name in INDEX.names}

    def image_path(self, index: int) -> Path:
        return paths.image(self._value("path", index))

    def image_id(self, index: int) -> int:
        return self._value("id", index)

    @property
    def left_out(self) -> LeftOut:
        """Images that were left out, counted by reason; all are listed in `left_out_file`."""
        counted, rows = LeftOut(), read_left_out(self.index)
        for path, reason, detail, _ in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            counted.add(REASONS[reason], f"{path} ({detail})" if detail else path)
        return counted

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
            self._groups[number] = self._file.read_row_group(number, use_threads=False)  # threads do not survive a fork
        self._groups.move_to_end(number)
        while len(self._groups) > CACHED_GROUPS:
            self._groups.popitem(last=False)
        return self._groups[number].column(name)[index - int(self._first[number])].as_py()


def _metadata(index: Path, known: dict[bytes, bytes]) -> tuple[str, list[dict]]:
    """Fingerprint and parts of an index. Raises DataError if they are not what `write_index` has written."""
    try:
        fingerprint, parts = known[b"fingerprint"].decode(), msgspec.json.decode(known.get(b"parts", b"[]"), type=PARTS)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise DataError(f"{index}: its metadata is damaged ({error}); {REMEDY}") from error
    for part in parts:
        if lacking := [
            name for name in ("part", *COUNTS) if not isinstance(part.get(name), int if name in COUNTS else str)
        ]:
            raise DataError(f"{index}: its metadata lacks {lacking[0]} of a part; {REMEDY}")
    return fingerprint, parts


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def save(pool: Pool, index: Path, *, without: dict[int, str] | None = None) -> Pool:
    """Write a pool's index, and the CSV of what was left out, to `index`.

    Args:
        without: indices of images to leave out as near-duplicates, with the detail to record for each. They change
            the fingerprint.

    Returns:
        The new pool.
    """
    rows, left_out = pq.read_table(pool.index, schema=INDEX), read_left_out(pool.index)
    parts, fingerprint = [dict(part) for part in pool.parts], pool.fingerprint
    if without:
        places = np.array(sorted(without), np.int64)
        # Update the counts of each part, whose images follow each other.
        last_of_part = np.cumsum([part["images"] for part in parts])
        for number in np.searchsorted(last_of_part, places, side="right") if parts else ():
            parts[number]["images"] -= 1
            parts[number]["near duplicate"] += 1
        # Move the images to the list of what was left out.
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
    """The CSV beside an index that lists what was left out: path, reason, detail, bytes."""
    return index.with_suffix(".left_out.csv")


def read_left_out(index: Path) -> pa.Table:
    """What was left out of an index, as a table of `LEFT_OUT`; empty if there is no list."""
    file = left_out_file(index)
    if not file.exists():
        return LEFT_OUT.empty_table()
    options = pa.csv.ConvertOptions(
        column_types=LEFT_OUT, include_columns=LEFT_OUT.names, strings_can_be_null=False, null_values=[]
    )
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    try:
        left_out = pa.csv.read_csv(file, convert_options=options, parse_options=parsing)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged ({in_one_line(error)}); {REMEDY}") from error
    if unknown := set(left_out.column("reason").unique().to_pylist()) - set(REASONS):
        raise DataError(f"{file}: unknown reason {min(unknown)!r}; {REMEDY}")
    return left_out


def fingerprint_with(fingerprint: str, left_out: pa.Table) -> str:
    """The fingerprint of a pool, from that of its listing (or of a larger pool) and what was left out."""
    names, reasons = left_out.column("path").to_pylist(), left_out.column("reason").to_pylist()
    lines = [fingerprint, *(f"{name}|{reason}" for name, reason in zip(names, reasons, strict=True))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_index(rows: pa.Table, left_out: pa.Table, parts: list[dict], fingerprint: str, index: Path) -> None:
    """Write an index atomically; its CSV of what was left out comes first, so that no index lacks one."""
    file = left_out_file(index)
    with replacing(file) as temporary:
        pa.csv.write_csv(left_out, temporary)
    write_table(rows.replace_schema_metadata({"fingerprint": fingerprint, "parts": json.dumps(parts)}), index)
