"""The README names what departs from the paper.

The rule: a comment that contains UNSTATED or DEVIATES begins with that word and a colon, `# UNSTATED: why`; comments
that go on below belong to it. Every file with such a comment is named, by its path below `cassl_lib/`, in the README's
section 'Where this differs from the paper', and no other file of the library is.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "cassl_lib"
SECTION = "## Where this differs from the paper"
WORDS = ("UNSTATED", "DEVIATES")


def comments_with_a_mark(text: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [comment for comment in comments if any(word in comment for word in WORDS)]


def marked_files() -> dict[str, list[str]]:
    files = {path.relative_to(LIBRARY).as_posix(): path.read_text() for path in sorted(LIBRARY.rglob("*.py"))}
    return {name: marks for name, text in files.items() if (marks := comments_with_a_mark(text))}


def differences() -> str:
    """The README's section, up to the next heading."""
    readme = (REPOSITORY / "README.md").read_text()
    assert SECTION in readme, f"the README has no section {SECTION!r}"
    return readme.split(SECTION, 1)[1].split("\n## ", 1)[0]


def test_a_mark_is_found_in_code_of_every_kind():
    text = 'x = 1  # UNSTATED: why\n# DEVIATES: how\ny = "# UNSTATED: no comment"\n"""DEVIATES"""\n'
    assert comments_with_a_mark(text) == ["# UNSTATED: why", "# DEVIATES: how"]


@pytest.mark.parametrize("name", marked_files())
def test_marks_are_written_alike(name):
    for mark in marked_files()[name]:
        assert re.match(r"# (UNSTATED|DEVIATES): \w", mark), (
            f"{name}: {mark!r} does not begin with the word and a colon"
        )


@pytest.mark.parametrize("name", sorted(path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py")))
def test_the_readme_names_the_files_with_a_mark_and_no_other(name):
    named = re.search(rf"(?<![\w/]){re.escape(name)}", differences().replace("cassl_lib/", "")) is not None
    assert named == (name in marked_files())
