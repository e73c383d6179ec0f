"""Errors that the user can fix: each message names the file or parameter, its value and the remedy.

The command line prints a `CasslError` as one line, without a traceback.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class CasslError(Exception):
    """Base class of all errors below."""


class ConfigError(CasslError, ValueError):
    """A parameter has an invalid value; the message names it, its value and what is allowed."""


class DataError(CasslError, ValueError):
    """An input file is missing or invalid; the message names the file, the value and the remedy."""


class SceneError(CasslError, ValueError):
    """The embedded scenes cannot be used: the folder holds different or damaged scenes, or the unit is unknown."""


class PseudoLabelError(CasslError, ValueError):
    """A pseudo-label store is unfinished, damaged or mixed with shards of another one; the message names the file."""


class LabelingError(PseudoLabelError):
    """Labeling cannot start or continue; finished shards are kept, and the message says how to resume."""


class WeightsError(CasslError, ValueError):
    """Weights cannot be loaded; the message names the file or tensors and the remedy."""


class CheckpointError(CasslError, RuntimeError):
    """A checkpoint is damaged or does not fit; the message names the file and the remedy."""


class DiskFull(CasslError, OSError):
    """A file does not fit on its disk; the message names it, the free space and the remedy.

    Made as `OSError` is, from an errno and the message.
    """

    def __str__(self) -> str:
        return self.strerror


class MissingRun(CasslError, RuntimeError):
    """A run does not exist and may not be made now; the message holds the command that makes it."""


class LaunchError(CasslError, RuntimeError):
    """The processes of a stage failed; their own messages are printed above."""


class NonFiniteLoss(CasslError, RuntimeError):
    """A loss is NaN or infinite; the message names the step, the losses and the image ids of the batch."""


class Stopped(CasslError, RuntimeError):
    """The deadline has passed; what was done is saved, and the same command resumes it."""


@dataclass(frozen=True)
class LeftOut:
    """What was skipped while reading a source, by reason.

    Attributes:
        counts: number of skipped items per reason.
        examples: up to five of them per reason.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: object) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < 5:
            shown.append(str(example))

    def __str__(self) -> str:
        """One line per reason; empty if nothing was skipped."""
        lines = []
        for reason, count in self.counts.items():
            shown = self.examples[reason]
            lines.append(f"{count} {reason}: {', '.join(shown)}{', ...' if count > len(shown) else ''}")
        return "\n".join(lines)
