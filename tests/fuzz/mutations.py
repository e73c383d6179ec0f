"""Damage to files, drawn by hypothesis: values of other types, keys that are missing or twice, bytes that are lost."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.5, 0.1, 1e7, 1e30, -1e30, 1_000_000, 2**31, 2**32, 2**63, 2**64, 10**40),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "1",
        "x",
        "x" * 5000,
        "nan",
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "\ud800",
        "Straße.jpg",
        "$a_b^$",
    ),
    *([], {}, [None], [[]], [{}], [1, "2"], {"a": 1}, [1e7] * 6, [0.1] * 4, [[float("nan")] * 6], [[1e12] * 8]),
    *(
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [20, 30], "counts": "!!"},
        {"size": [20, 30], "counts": [-5, 605]},
    ),
]
values = st.one_of(
    st.sampled_from(ODD),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 100),
    st.floats(),
    st.floats(-50, 50),
    st.text(max_size=12),
    st.lists(st.one_of(st.integers(-5, 60), st.floats(-20, 90)), max_size=9),
)


@st.composite
def json_files(draw, document: Any) -> bytes:
    """A JSON file with one to three changes in its content, and sometimes damage to its bytes."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        changed = _change(draw, changed)
    text = json.dumps(changed).encode("utf-8", "surrogatepass")
    return _damage(draw, text) if draw(st.sampled_from([False] * 9 + [True])) else text


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file with damage to its bytes."""
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        content = _damage(draw, content)
    return content


def _change(draw, document: Any) -> Any:
    """Change one place of a document, any of them with the same probability."""
    places = list(_places(document))
    if not places or draw(st.sampled_from([False] * 39 + [True])):
        return draw(values)
    container, key = draw(st.sampled_from(places))
    action = draw(st.sampled_from(["value", "value", "value", "swap", "delete", "repeat", "rename"]))
    if action == "value":
        container[key] = draw(values)
    elif action == "swap":
        other, its = draw(st.sampled_from(places))
        container[key] = copy.deepcopy(other[its])
    elif action == "delete":
        del container[key]
    elif isinstance(container, list):
        container.insert(draw(st.integers(0, len(container))), copy.deepcopy(container[key]))
    else:
        container[f"{key}_"] = container.pop(key)
    return document


def _places(value: Any):
    """Every container and key of a document."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(inner)


def _damage(draw, content: bytes) -> bytes:
    place = draw(st.integers(0, max(0, len(content) - 1)))
    action = draw(st.sampled_from(["cut", "change", "insert", "remove", "mark", "utf-16"]))
    if action == "cut":
        return content[:place]
    if action == "change":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    if action == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=9)) + content[place:]
    if action == "remove":
        return content[:place] + content[place + draw(st.integers(1, 200)) :]
    if action == "mark":
        return b"\xef\xbb\xbf" + content
    return content.decode("latin-1").encode("utf-16")
