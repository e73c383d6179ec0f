"""Typed reading of COCO JSON files: what does not fit ends in one line with the file, the place and the expectation."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cassl_lib.data.schema import Rle, Segmentation
from cassl_lib.errors import DataError
from cassl_lib.typed_json import in_words

T = TypeVar("T")
PLACE = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<place>.*)`)?", re.DOTALL)
ENTRY = re.compile(r"(?P<list>\w*)\[(?P<row>\d+)\]")  # at the beginning of a place


def read(path: Path | str, kind: type[T], what: str) -> T:
    """Read a JSON file as `kind`, one of the types of schema.py.

    Args:
        what: the kind of file that is expected, for messages: "a COCO instances file".

    Raises:
        DataError: the file cannot be read, is not JSON, or has a field of another type.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give {what}") from error
    return parse(content, kind, str(path), what)


def parse(content: bytes, kind: type[T], name: str, what: str) -> T:
    """The same for the content of a file; `name` is its name in messages."""
    try:
        content = _utf8(content)
        return _decoder(kind).decode(content)
    except msgspec.ValidationError as error:
        raise DataError(f"{name}: {_problem(error, content)}; give {what}") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if place := _place_of_constant(content):
            raise DataError(f"{name}: {place}; give finite numbers") from error
        raise DataError(f"{name} is not JSON ({error}); give {what}") from error


def segmentation_of(raw: msgspec.Raw, where: Callable[[], str]) -> list[list[float]] | Rle | None:
    """Parse one segmentation. `where()` names the file and the annotation in the DataError of one that does not fit."""
    try:
        return _decoder(Segmentation).decode(raw)
    except msgspec.ValidationError as error:
        place, problem = _parts(error)
        dot = "" if place.startswith("[") or not place else "."
        raise DataError(f"{where()}: segmentation{dot}{place}: {problem}; give polygons or RLE") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DataError(f"{where()}: segmentation is not valid ({error}); give polygons or RLE") from error


def convert(value: Any, kind: type[T], where: str) -> T:
    """Check an entry that is parsed already. `where` names the file and the entry in the DataError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        place, problem = _parts(error)
        raise DataError(f"{where}{place and f': {place}'}: {problem}") from error


@functools.cache
def _decoder(kind: type) -> msgspec.json.Decoder:
    return msgspec.json.Decoder(kind)


def _utf8(content: bytes) -> bytes:
    """The content in UTF-8 without a byte order mark; JSON may also be UTF-16 or UTF-32."""
    encoding = json.detect_encoding(content)
    return content if encoding == "utf-8" else content.decode(encoding).encode()


def _parts(error: msgspec.ValidationError) -> tuple[str, str]:
    """The place in the file, such as `annotations[17].bbox[2]`, and what is wrong there, in plain words."""
    found = PLACE.fullmatch(str(error))
    return found["place"] or "", in_words(found["problem"])


def _problem(error: msgspec.ValidationError, content: bytes) -> str:
    place, problem = _parts(error)
    if entry := ENTRY.match(place):
        place += _identity(content, entry["list"], int(entry["row"]))
    return f"{place}: {problem}" if place else problem


def _identity(content: bytes, name: str, row: int) -> str:
    """The id of an entry of a file that is not parsed; empty if it cannot be."""
    try:
        whole = _decoder(dict[str, msgspec.Raw]).decode(content)[name] if name else content
        return _id_of(_decoder(Any).decode(_decoder(list[msgspec.Raw]).decode(whole)[row]))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""


def _id_of(entry: Any) -> str:
    """The id of an entry, or that of its image, as ` (id 42)`; empty if it has none."""
    key = next((key for key in ("id", "image_id") if isinstance(entry, dict) and key in entry), None)
    return f" ({key} {repr(entry[key])[:50]})" if key else ""


def _place_of_constant(content: bytes) -> str:
    """Where a file has NaN or Infinity, which Python writes but JSON lacks; empty if it has none."""
    try:
        parsed = json.loads(content)
        place, value = _not_finite(parsed, "") or ("", "")
    except (ValueError, RecursionError):
        return ""
    if entry := ENTRY.match(place):
        place += _id_of((parsed[entry["list"]] if entry["list"] else parsed)[int(entry["row"])])
    return f"{place}: {value} is not a number" if place else ""


def _not_finite(value: Any, place: str) -> tuple[str, float] | None:
    """The place and value of the first number that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, value)
    if isinstance(value, dict):
        inner = ((f"{place}.{key}".lstrip("."), item) for key, item in value.items())
    elif isinstance(value, list):
        inner = ((f"{place}[{row}]", item) for row, item in enumerate(value))
    else:
        return None
    return next((found for at, item in inner if (found := _not_finite(item, at))), None)
