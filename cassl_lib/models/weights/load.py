"""Weights from a file or another library into a model, and a report of what became of every tensor."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cassl_lib.errors import WeightsError
from cassl_lib.models.weights.names import is_caffe, to_our_names
from cassl_lib.models.weights.transfer import part_of

# What numpy arrays in a checkpoint are made of: harmless, and some public checkpoints hold arrays.
ARRAYS = [np._core.multiarray._reconstruct, np._core.multiarray.scalar, np.ndarray, np.dtype]
ARRAYS += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "u1", "i4", "i8")]
WRAPPERS = ("model", "state_dict", "model_state")  # under which a training checkpoint keeps the weights
COUNTER = "num_batches_tracked"  # of BatchNorms; nothing reads it
SHOWN = 4  # names of each kind in an error


@dataclass(frozen=True)
class LoadReport:
    """loaded, missing, wrong_shape: names in the model; skipped: names in the state dict that the model lacks."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    def __str__(self) -> str:
        counts = [f"{len(getattr(self, name))} {name}" for name in ("loaded", "skipped", "missing", "wrong_shape")]
        return ", ".join(counts).replace("_", " ")


def load(model: nn.Module, state_dict: dict, strict: bool = True) -> LoadReport:
    """Copy a state dict into a detector, print what was loaded in a line, and report every name.

    Args:
        model: a detector of ours, changed in place.
        state_dict: {name: tensor or array}, named as ours or as in `names.to_our_names`, perhaps below "model".
        strict: refuse what would leave a part half old, half new.

    Raises:
        WeightsError: when nothing fits and, if `strict`, when one of backbone, neck, head, classifier would be
            filled only partly, or the stem takes other pixels than the model gives it. Nothing is changed then. A part
            that the state dict does not have at all is reported, not an error; so are the levels of the pyramid that
            the model does not use.
    """
    state_dict = unwrap(state_dict)
    if strict and is_caffe(state_dict):
        raise WeightsError(
            "this ResNet is Caffe's: its stem takes BGR pixels up to 255, the model's RGB pixels up to 1; for an FCOS "
            "or CondInst of AdelaiDet use interop.from_adelaidet; strict=False loads the weights as they are"
        )
    unused = [f"neck.{name}." for name in model.neck.unused()]
    unused += [f"backbone.norms.{stage}." for stage in range(model.backbone.first_stage)]
    return fill(model.state_dict(), to_our_names(state_dict), optional=tuple(unused), strict=strict, title="weights")


def load_backbone(backbone: nn.Module, file: str | Path) -> LoadReport:
    """`load` into a backbone alone; a classifier of images lacks the norms that detectors add to a transformer."""
    target = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state_dict = unwrap(read_weights(file))
    if is_caffe(state_dict):
        raise WeightsError(f"{file}: this ResNet takes BGR pixels up to 255; give one of torchvision or timm")
    source = to_our_names(state_dict)
    for name in [name for name in source if name not in target]:
        ours = bare_backbone_name(name, target)
        if ours:
            source[ours] = source.pop(name)
    optional = tuple(f"backbone.norms.{stage}." for stage in range(backbone.first_stage))
    if not any(name.startswith("backbone.norms.") for name in source):
        optional = ("backbone.norms.",)
    try:
        return fill(target, source, optional=optional, strict=True, title=f"backbone from {file}")
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error


def bare_backbone_name(name: str, target: dict[str, Tensor]) -> str | None:
    """Our name of a tensor of a timm model: layer1.0.conv1 or stages.2.blocks, of which timm makes stages_2.blocks."""
    first, _, rest = name.partition(".")
    number, _, deeper = rest.partition(".")
    candidates = (f"backbone.body.{name}", f"backbone.body.{first}_{number}.{deeper}")
    return next((candidate for candidate in candidates if candidate in target), None)


def fill(
    target: dict[str, Tensor], source: dict[str, Tensor], *, optional: tuple[str, ...], strict: bool, title: str
) -> LoadReport:
    """Copy what fits from `source` into the tensors of `target`; names that begin as in `optional` may be missing."""
    common = [name for name in target if name in source]
    report = LoadReport(
        loaded=tuple(name for name in common if source[name].shape == target[name].shape),
        skipped=tuple(name for name in source if name not in target and not name.endswith(COUNTER)),
        missing=tuple(name for name in target if name not in source and not name.endswith(COUNTER)),
        wrong_shape=tuple(name for name in common if source[name].shape != target[name].shape),
    )
    if not report.loaded:
        raise WeightsError(f"no tensor fits the model: {report}; it wants e.g. {shown(target)}; given {shown(source)}")
    begun = {part_of(name) for name in report.loaded}
    lost = [name for name in report.missing if not name.startswith(optional)]
    torn = [name for name in (*lost, *report.wrong_shape) if part_of(name) in begun]
    if strict and torn:
        raise WeightsError(
            f"only part of {part_of(torn[0])} fits: {report}; lacking e.g. {shown(torn)}; "
            f"without a place e.g. {shown(report.skipped) or 'none'}"
        )
    for name in report.loaded:
        target[name].copy_(source[name])
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{title}: {report}")
    return report


def shown(names) -> str:
    return ", ".join(list(names)[:SHOWN])


def read_weights(file: str | Path) -> dict:
    """The tensors of a .safetensors, or of a checkpoint that torch.save wrote; nothing in it is executed.

    Raises:
        FileNotFoundError, WeightsError: naming the file and the remedy.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give a .safetensors or a .pth of weights")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals(ARRAYS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"{file} holds no weights that can be read safely ({type(error).__name__}). "
            "If you trust it, load it yourself and save its state dict by safetensors.torch.save_file"
        ) from error


def unwrap(checkpoint: dict) -> dict:
    """The weights inside a training checkpoint, without what is no tensor."""
    for wrapper in WRAPPERS:
        if isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
            break
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor | np.ndarray)}
