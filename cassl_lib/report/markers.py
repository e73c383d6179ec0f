"""Files that are partly generated: what stands between two markers is replaced, the prose around them stays.

<!-- results -->
generated
<!-- end of results -->
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cassl_lib.errors import DataError
from cassl_lib.files import write_atomically
from cassl_lib.report.blocks import Block, markdown

Sections = Mapping[str, Callable[[], Sequence[Block]]]  # by name of the markers, what makes the blocks between them

log = logging.getLogger(__name__)


def markers(name: str) -> tuple[str, str]:
    """The two comments around a generated section."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def between(text: str, name: str) -> str:
    """What a text has between the markers of a section."""
    begin, end = markers(name)
    return text.partition(begin)[2].partition(end)[0].strip()


def filled(text: str, contents: Mapping[str, str], *, file: Path | str = "the text") -> str:
    """The text with other contents between its markers. A section whose markers are absent is left out, with a warning.

    Raises:
        DataError: only one marker of a section is there, or a marker is there twice, or the end comes first.
    """
    for name, content in contents.items():
        begin, end = markers(name)
        if begin not in text and end not in text:
            log.warning("%s: no section %r is generated. Add %s and %s where it belongs.", file, name, begin, end)
            continue
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
            raise DataError(
                f"{file}: {begin} and {end} must each appear once, in this order. Correct them; nothing was changed."
            )
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


def renew(file: Path, sections: Sections) -> None:
    """Regenerate the sections of a Markdown file.

    Raises:
        DataError: markers are incomplete or in disorder; the file is not changed.
    """
    contents = {name: markdown(make()) for name, make in sections.items()}
    write_atomically(file, filled(file.read_text(), contents, file=file).encode())
