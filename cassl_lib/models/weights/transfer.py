"""Transfer of parts from a warmed-up detector to the next one (Sec. 3.3, Table 9)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cassl_lib.config import PARTS
from cassl_lib.errors import ConfigError, WeightsError


@dataclass(frozen=True)
class TransferReport:
    """What happened to every tensor of the requested parts, by its name in the target."""

    copied: tuple[str, ...]
    skipped: tuple[str, ...]  # shapes differ
    missing: tuple[str, ...]  # not in the source

    def __str__(self) -> str:
        line = f"{len(self.copied)} tensors copied, {len(self.skipped)} skipped for their shape, "
        line += f"{len(self.missing)} missing in the source"
        exceptions = [*self.skipped, *self.missing]
        return line + (f" ({', '.join(exceptions[:4])}{', ...' if len(exceptions) > 4 else ''})" if exceptions else "")


def part_of(name: str) -> str:
    """The part of Table 9 that a tensor of a detector's state dict belongs to."""
    return "classifier" if name.startswith("head.class_logits.") else name.split(".")[0]


def copy_parts(source: dict[str, Tensor], model: nn.Module, parts: tuple[str, ...] = PARTS) -> TransferReport:
    """Copy parts of a detector's state dict into `model`; other parts keep their initial weights.

    The classifier of a class-agnostic source is copied to every class of the target.

    Args:
        source: state dict of a detector.
        model: the target, changed in place.
        parts: any of backbone; neck (P2 to P7); head (towers, box and centerness predictions, scales, controller,
            mask branch); classifier (the layer of the class logits).

    Raises:
        ConfigError: unknown parts.
        WeightsError: nothing could be copied for one of the parts.
    """
    unknown = [part for part in parts if part not in PARTS]
    if isinstance(parts, str) or unknown:
        raise ConfigError(f"parts={parts!r}: unknown. Give a tuple of {', '.join(PARTS)}.")
    copied, skipped, missing = [], [], []
    for name, target in model.state_dict().items():
        if part_of(name) not in parts:
            continue
        if name not in source:
            missing.append(name)
            continue
        value = source[name]
        if part_of(name) == "classifier" and len(value) == 1:
            value = value.expand_as(target) if value.shape[1:] == target.shape[1:] else value
        if value.shape == target.shape:
            target.copy_(value)
            copied.append(name)
        else:
            skipped.append(name)
    for part in parts:
        if part not in map(part_of, copied):
            raise WeightsError(
                f"parts: nothing to copy for {part!r}, the source has no such tensor of the target's shape. Choose "
                "other parts, or a source with the same architecture."
            )
    return TransferReport(tuple(copied), tuple(skipped), tuple(missing))
