"""Typed reading of the JSON files that cassl writes itself: what does not fit is named with its file and its place."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from cassl_lib.errors import DataError

NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
ERROR = re.compile(r"(?P<problem>.*?)(?: - at `(?:key in `)?\$(?P<place>.*?)`)?", re.DOTALL)
STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<row>\d+|\.\.\.)\]")


def read(path: Path, kind: type, remedy: str, *, finite: bool = False) -> Any:
    """The content of a JSON file that fits `kind`, with keys that `kind` does not name.

    Args:
        remedy: what to do about a file that does not fit, for the message: "restore it from git".
        finite: whether NaN and Infinity, which Python writes but JSON lacks, are errors too.

    Raises:
        DataError: the file cannot be read, is not JSON, or has a field of another type.
    """
    try:
        content = json.loads(path.read_bytes(), parse_constant=_not_json if finite else None)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); {remedy}") from error
    if problem := check(content, kind):
        raise DataError(f"{path}: {problem}; {remedy}")
    return content


def check(content: Any, kind: type) -> str | None:
    """What does not fit in parsed JSON: one line such as `rows.warm-up[2]: expected ...`; None if all fits."""
    try:
        msgspec.convert(content, kind)
        return None
    except UnicodeEncodeError as error:  # half of a pair of escapes, such as "\\ud800"
        return f"{error.object[:50]!r} is not text"
    except msgspec.ValidationError as error:
        found = ERROR.fullmatch(str(error))
        place = _named(content, kind, _keys(found["place"] or ""))
    return f"{place}: {in_words(found['problem'])}".removeprefix(": ")


def in_words(problem: str) -> str:
    """What msgspec says of a value that does not fit, without its place, in plain words."""
    problem = re.sub(r"Object missing required field `(.*)`", r"lacks \1", problem)
    problem = re.sub(r"`([^`]*)`", lambda match: _plain(match[1]), problem)
    return problem[:1].lower() + problem[1:]


def _keys(place: str) -> list[str | int | None]:
    """The keys of a place as msgspec writes it; None for the key of a dict, which it does not name."""
    steps = STEP.finditer(place)
    return [step["name"] or (None if step["row"] == "..." else int(step["row"])) for step in steps]


def _named(content: Any, kind: type, keys: list[str | int | None]) -> str:
    """The place with all of its keys, which are found by trying one after another."""
    content, place = copy.deepcopy(content), ""
    inner = content
    for key in keys:
        if key is None:
            items = dict(inner)
            for key in items:
                inner.clear()
                inner[key] = items[key]
                if not _fits(content, kind):
                    break
        place += f"[{key}]" if isinstance(key, int) else f".{key}"
        inner = inner[key]
    return place.removeprefix(".")


def _fits(content: Any, kind: type) -> bool:
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError:
        return False
    return True


@functools.cache
def _plain(names: str) -> str:
    return " or ".join(NAMES.get(name, name) for name in names.split(" | "))


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")
