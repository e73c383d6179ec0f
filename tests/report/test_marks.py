"""docs/deviations.md names what departs from the paper.

A comment that contains UNSTATED or DEVIATES begins with that word and a colon, `# UNSTATED: why`; further comment lines
below belong to it. docs/deviations.md names every file with such a comment, by its path below `cassl_lib/`, and no
other file of the library.
"""

import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "cassl_lib"
DOCUMENT = REPOSITORY / "docs" / "deviations.md"
WORDS = ("UNSTATED", "DEVIATES")


def comments_with_a_mark(text: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [comment for comment in comments if any(word in comment for word in WORDS)]


@functools.cache
def marked_files() -> dict[str, list[str]]:
    files = {path.relative_to(LIBRARY).as_posix(): path.read_text() for path in sorted(LIBRARY.rglob("*.py"))}
    return {name: marks for name, text in files.items() if (marks := comments_with_a_mark(text))}


def test_marks_are_comments_only():
    text = 'x = 1  # UNSTATED: why\n# DEVIATES: how\ny = "# UNSTATED: no comment"\n"""DEVIATES"""\n'
    assert comments_with_a_mark(text) == ["# UNSTATED: why", "# DEVIATES: how"]


@pytest.mark.parametrize("name", marked_files())
def test_every_mark_begins_its_comment(name):
    for mark in marked_files()[name]:
        assert re.match(r"# (UNSTATED|DEVIATES): \w", mark), (
            f"{name}: {mark!r} does not begin with the word and a colon"
        )


@pytest.mark.parametrize("name", sorted(path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py")))
def test_the_document_names_exactly_the_files_with_a_mark(name):
    assert DOCUMENT.exists(), f"{DOCUMENT} is missing; it lists what is unstated in the paper and what departs from it"
    text = DOCUMENT.read_text().replace("cassl_lib/", "")
    assert (re.search(rf"(?<![\w/]){re.escape(name)}", text) is not None) == (name in marked_files())
