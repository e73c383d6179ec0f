"""Load weights of a file or another library into a model, and report what happened to every tensor."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
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

logger = logging.getLogger(__name__)

# The pickled components of numpy arrays, which some public checkpoints contain; they are safe to load.
ARRAYS = [np._core.multiarray._reconstruct, np._core.multiarray.scalar, np.ndarray, np.dtype]
ARRAYS += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "u1", "i4", "i8")]
WRAPPERS = ("model", "state_dict", "model_state")  # keys of the weights in a training checkpoint
COUNTER = "num_batches_tracked"  # of BatchNorms, not used
SHOWN = 4  # names listed in an error


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor, by name."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]  # in the state dict, not in the model
    missing: tuple[str, ...]  # in the model, not in the state dict
    wrong_shape: tuple[str, ...]  # in both, shapes differ

    def __str__(self) -> str:
        counts = [f"{len(getattr(self, name))} {name}" for name in ("loaded", "skipped", "missing", "wrong_shape")]
        return ", ".join(counts).replace("_", " ")


def load(model: nn.Module, state_dict: dict, strict: bool = True) -> LoadReport:
    """Copy a state dict into a detector, log a summary, and report every name.

    Args:
        model: one of our detectors, changed in place.
        state_dict: {name: tensor or array} with our names or those that `names.to_our_names` translates; may be nested
            in a checkpoint under "model" or "state_dict".
        strict: raise, without changing the model, if a part (backbone, neck, head, classifier) would be loaded only
            partly, or if the stem expects other pixels than the model gives it. Parts that are missing altogether
            are reported, not an error; neither are missing pyramid levels that the model does not use.

    Raises:
        WeightsError: no tensor fits, or see `strict`.
    """
    state_dict = unwrap(state_dict)
    if strict and is_caffe(state_dict):
        raise WeightsError(
            "state_dict: this is a Caffe ResNet for BGR pixels in [0, 255], but the model expects RGB in [0, 1]. Use "
            "interop.from_adelaidet for AdelaiDet's FCOS or CondInst, or strict=False to load the weights anyway."
        )
    unused = [f"neck.{name}." for name in model.neck.unused()]
    unused += [f"backbone.norms.{stage}." for stage in range(model.backbone.first_stage)]
    return fill(model.state_dict(), to_our_names(state_dict), optional=tuple(unused), strict=strict, title="weights")


def load_backbone(backbone: nn.Module, file: str | Path) -> LoadReport:
    """Load a file into a backbone; the norms that detectors add after a transformer's stages may be missing."""
    target = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state_dict = unwrap(read_weights(file))
    if is_caffe(state_dict):
        raise WeightsError(
            f"{file}: this is a Caffe ResNet for BGR pixels in [0, 255]. Use weights of torchvision or timm instead."
        )
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
    """Our name of a tensor of a timm model, or None. timm's feature extractor renames stages.2 to stages_2."""
    first, _, rest = name.partition(".")
    number, _, deeper = rest.partition(".")
    candidates = (f"backbone.body.{name}", f"backbone.body.{first}_{number}.{deeper}")
    return next((candidate for candidate in candidates if candidate in target), None)


def fill(
    target: dict[str, Tensor], source: dict[str, Tensor], *, optional: tuple[str, ...], strict: bool, title: str
) -> LoadReport:
    """Copy the tensors of `source` that fit into those of `target`; names that start with `optional` may be missing."""
    common = [name for name in target if name in source]
    report = LoadReport(
        loaded=tuple(name for name in common if source[name].shape == target[name].shape),
        skipped=tuple(name for name in source if name not in target and not name.endswith(COUNTER)),
        missing=tuple(name for name in target if name not in source and not name.endswith(COUNTER)),
        wrong_shape=tuple(name for name in common if source[name].shape != target[name].shape),
    )
    if not report.loaded:
        raise WeightsError(
            f"no tensor fits the model ({report}). The model has e.g. {shown(target)}; the weights have e.g. "
            f"{shown(source)}. Check the file and the architecture."
        )
    # A part is incomplete if some of its tensors can be loaded and others cannot.
    begun = {part_of(name) for name in report.loaded}
    lacking = [name for name in report.missing if not name.startswith(optional)]
    incomplete = [name for name in (*lacking, *report.wrong_shape) if part_of(name) in begun]
    if strict and incomplete:
        raise WeightsError(
            f"only part of {part_of(incomplete[0])} fits the model ({report}). Missing or of another shape: e.g. "
            f"{shown(incomplete)}; not in the model: e.g. {shown(report.skipped) or 'none'}. Check the architecture."
        )
    for name in report.loaded:
        target[name].copy_(source[name])
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.info("%s: %s", title, report)
    return report


def shown(names: Iterable[str]) -> str:
    """The first few names, for an error message."""
    return ", ".join(list(names)[:SHOWN])


def read_weights(file: str | Path) -> dict:
    """Read a .safetensors file, or a checkpoint written by torch.save, without executing code in it.

    Raises:
        FileNotFoundError: the file does not exist.
        WeightsError: the file cannot be read safely.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Give a .safetensors or .pth file of weights.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals(ARRAYS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"{file}: no weights that can be read safely ({type(error).__name__}). If you trust the file, load it "
            "yourself and save its state dict with safetensors.torch.save_file."
        ) from error


def unwrap(checkpoint: dict) -> dict:
    """The tensors and arrays of a training checkpoint, by name."""
    for wrapper in WRAPPERS:
        if isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
            break
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor | np.ndarray)}
