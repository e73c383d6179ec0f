"""The bridge between a notebook and the library: parameters in, source shown, numbers set beside the paper's."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping

from cassl_lib.config import Config
from cassl_lib.errors import ConfigError
from cassl_lib.resolve import describe, resolve, why_profile
from cassl_lib.runs import Run, find_run

COUNTS = {"devices": "processes", "jobs": "runs", "seeds": "seeds"}  # parameters of notebooks that are numbers


def configure(*, stage: str | None = None, own: Mapping | None = None, show: bool = True, **parameters) -> Config:
    """The Config of a notebook's parameters; prints which profile it is and why, and the settings.

    papermill only warns about a parameter that a notebook does not have, and goes on with the defaults. Here it fails.

    Args:
        stage: of `resolve`, said by the notebook and no parameter of it.
        own: the parameters that decide no setting: whole numbers (`COUNTS`); all others are names or None.
        parameters: of `resolve`.

    Raises:
        ConfigError: a parameter that is not known, or a value that is not allowed.
    """
    own = dict(own or {})
    check_injected((*parameters, *own))
    config = resolve(**parameters, stage=stage)
    _check_own(own)
    print(why_profile(parameters.get("profile", "auto")))
    if show:
        for line in describe(config).splitlines():
            print(textwrap.fill(line, 120, subsequent_indent=" " * 13, break_long_words=False))
    return config


def _check_own(own: Mapping) -> None:
    """Refuse devices that are no number, names that are no text, and both together."""
    devices = own.get("devices", 1)
    for name, things in COUNTS.items():
        count = own.get(name, 1)
        if (name, count) != ("seeds", None) and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ConfigError(f"{name}={count!r} is not a whole number of {things}; use 1 or more")
    for name, value in own.items():
        if name in COUNTS or value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{name}={value!r} is not a name; use None for the one that the other parameters mean")
        if devices > 1:
            raise ConfigError(f"{name}={value!r} is for one process; use devices=1, not {devices}")


def check_injected(allowed: tuple[str, ...]) -> None:
    """Refuse names that papermill injected and this notebook does not have."""
    unknown = [name for name in injected_names() if name not in allowed]
    if unknown:
        raise ConfigError(f"unknown parameter {', '.join(unknown)}; this notebook has: {', '.join(allowed)}")


def injected_names() -> list[str]:
    """Names assigned in the cell that papermill put after the parameters; none without papermill."""
    if "IPython" not in sys.modules:
        return []
    from IPython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    injected = next((cell for cell in reversed(cells) if cell.lstrip().startswith("# Parameters\n")), "")
    nodes = ast.parse(injected).body
    return [target.id for node in nodes if isinstance(node, ast.Assign) for target in node.targets]


def named_run(name: str, *allowed: str) -> Run:
    """The finished run that a parameter names.

    Args:
        name: of `find_run`.
        allowed: the stages it may be of.
    """
    run = find_run(name)
    stage = run.result["stage"]
    if stage not in allowed:
        raise ConfigError(f"{name!r} is a run of the stage {stage}; give one of: {', '.join(allowed)}")
    return run


def show_source(*functions) -> None:
    """Show the source of library functions, colored: the very code that the stage runs."""
    from IPython.display import Code, display

    for function in functions:
        display(Code(inspect.getsource(function), language="python"))


def show_shapes(**named) -> None:
    """Print the shapes of tensors, lists of tensors and dicts of tensors, one name a line."""
    for name, value in named.items():
        print(f"{name:12} {_shape(value)}")


def _shape(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shape(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (int, float)) for item in value):
        shown = "; ".join(_shape(item) for item in value[:4])
        return f"[{shown}{'; ...' if len(value) > 4 else ''}]"
    return str(tuple(value.shape)) if hasattr(value, "shape") else repr(value)


def show_left_out(report) -> None:
    """Print what was left out while reading, by reason; a sentence where nothing was."""
    print(str(report) or "nothing was left out")


def show_run(run: Run) -> None:
    """Print a finished run: its name, on how much it was made and in what time."""
    result = run.result
    steps = f"{result['steps']:,} steps, " if "steps" in result else ""
    print(f"{run.id}: {steps}{result['images']:,} images, {result['seconds']:.0f} s")
    for name, images in (("unreadable", "images"), ("unreadable_validation", "validation images")):
        if lost := result.get(name):
            print(f"{len(lost)} {images} could not be read, such as {lost[0]}")


def metric(run: Run, kind: str, key: str = "AP") -> float | None:
    """A number of a run, such as ("box_agnostic", "AP75"), between 0 and 1; None where the run has none."""
    value = run.result["metrics"].get(kind, {}).get(key)
    return None if value is None or value < 0 else value


def beside_paper(rows: list[tuple[str, float | None, float | None]], *, metric: str) -> None:
    """Print (row, ours, the paper's) as a table; ours between 0 and 1, the paper's times 100, None stays blank."""
    print(f"{metric:46}{'here':>8}{'paper':>8}")
    for name, ours, printed in rows:
        here = "" if ours is None else f"{100 * ours:.1f}"
        there = "" if printed is None else f"{printed:.1f}"
        print(f"{name:46}{here:>8}{there:>8}")
