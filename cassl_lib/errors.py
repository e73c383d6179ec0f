"""Errors that a person can act on: each message names the file or parameter, its value and the remedy.

The shell prints the message of a `CasslError` as one line, without a traceback.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cassl_lib.runs import Run


class CasslError(Exception):
    """The base of all errors below."""


class ConfigError(CasslError, ValueError):
    """A parameter that cannot be used; the message names it, its value and what is allowed."""


class DataError(CasslError, ValueError):
    """Data that cannot be used; the message names the file, the value and the remedy."""


class SceneError(CasslError, ValueError):
    """A folder that holds other scenes than those asked for or damaged ones, or an unknown unit of scenes."""


class PseudoLabelError(CasslError, ValueError):
    """A pseudo-label store that is unfinished, damaged, or has foreign shards; the message names the file."""


class LabelingError(PseudoLabelError):
    """Labeling cannot start or continue; finished shards are kept, and the message says what to do."""


class WeightsError(CasslError, ValueError):
    """Weights that cannot be used; the message names the file or tensors and the remedy."""


class MissingRun(CasslError, RuntimeError):
    """A run does not exist and may not be made now; the message holds the command that makes it.

    `run` is where it will be, where that is known.
    """

    def __init__(self, message: str, run: Run | None = None):
        super().__init__(message)
        self.run = run


class LaunchError(CasslError, RuntimeError):
    """The processes of a stage failed; their own messages are above."""


class NonFiniteLoss(CasslError, RuntimeError):
    """A loss that is not finite; the message names the step, the losses and the image ids of the batch."""


@dataclass(frozen=True)
class LeftOut:
    """What was left out while reading, by reason: how many, and up to five examples each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: object) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < 5:
            shown.append(str(example))

    def __str__(self) -> str:
        """One line per reason; empty if nothing was left out."""
        lines = []
        for reason, count in self.counts.items():
            shown = self.examples[reason]
            lines.append(f"{count} {reason}: {', '.join(shown)}{', ...' if count > len(shown) else ''}")
        return "\n".join(lines)
