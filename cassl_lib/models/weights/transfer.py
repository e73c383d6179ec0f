"""Which parts of a warmed-up model start the next one (Sec. 3.3, Table 9)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cassl_lib.config import PARTS


@dataclass(frozen=True)
class TransferReport:
    """Names in the target model: copied; skipped = present in both but of another shape; missing in the source."""

    copied: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{len(self.copied)} tensors copied, {len(self.skipped)} skipped for their shape, "
        line += f"{len(self.missing)} missing in the source"
        exceptions = [*self.skipped, *self.missing]
        return line + (f" ({', '.join(exceptions[:4])}{', ...' if len(exceptions) > 4 else ''})" if exceptions else "")


def part_of(name: str) -> str:
    """The part of Table 9 that a parameter of the detector belongs to."""
    return "classifier" if name.startswith("head.class_logits.") else name.split(".")[0]


def copy_parts(source: dict[str, Tensor], model: nn.Module, parts: tuple[str, ...] = PARTS) -> TransferReport:
    """Copy parts of a detector's state dict into `model`; what is not named keeps its fresh start.

    The classifier of a class-agnostic source is copied to every class of the target.

    Args:
        source: state dict of a detector.
        model: the target, changed in place.
        parts: any of backbone; neck (P2..P7); head (towers, box and centerness predictions, scales, controller, mask
            branch); classifier (the layer of the class logits).
    """
    unknown = [part for part in parts if part not in PARTS]
    if isinstance(parts, str) or unknown:
        raise ValueError(f"unknown parts {parts!r}, expected a tuple of {', '.join(PARTS)}")
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
            raise ValueError(
                f"nothing of the part {part!r} could be copied: the source has no such tensor of the shape"
            )
    return TransferReport(tuple(copied), tuple(skipped), tuple(missing))
