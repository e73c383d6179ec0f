"""The bridge between a notebook and the library: parameters in, source code and small tables shown."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from cassl_lib import log_to_stderr, paths
from cassl_lib.config import Config
from cassl_lib.data.source import ImageSource
from cassl_lib.errors import ConfigError
from cassl_lib.resolve import resolve, why_profile
from cassl_lib.runs import Run, find_run
from cassl_lib.stages import graph
from cassl_lib.stages.registry import STAGES
from cassl_lib.stages.requests import Request
from cassl_lib.tables.rows import Rows
from cassl_lib.tables.runner import number

SETTINGS = tuple(name for name in inspect.signature(resolve).parameters if name != "stage")
FLAGS = ("recorded",)  # notebook parameters that are True or False
COUNTS = {"devices": "processes", "jobs": "runs", "seeds": "seeds"}  # notebook parameters that are numbers
NAMES = ("pseudo_labeler", "warmup", "run", "other", "images")  # notebook parameters that are names or None
DETECTORS = tuple(name for name, each in STAGES.items() if each.trains)  # stages whose runs hold a detector

# nbconvert's HTML shows code in outputs in the font of the text around it
CODE_STYLE = "font-family:monospace;font-size:90%;line-height:1.4"


# ---- parameters ----


def configure(namespace: Mapping, *, stage: str | None = None) -> Config:
    """The Config of a notebook's parameters; prints which profile is used, and why.

    papermill only warns about a parameter that a notebook does not have, and runs with the defaults. Here it raises.

    Args:
        namespace: the notebook's `globals()`, of which the parameters are taken by name.
        stage: the stage that the parameter `epochs` is for.

    Raises:
        ConfigError: an unknown parameter, or a value that is not allowed.
    """
    log_to_stderr()
    declared = declared_names() or _values_among(namespace)
    check_injected(declared)
    config = resolve(**{name: namespace[name] for name in declared if name in SETTINGS}, stage=stage)
    check_own({name: namespace[name] for name in declared if name in (*FLAGS, *COUNTS, *NAMES)})
    print(why_profile(namespace.get("profile", "auto")))
    return config


def _values_among(namespace: Mapping) -> list[str]:
    """The parameters in a namespace, not functions and modules; nbval keeps no history of cells to read instead."""
    known = (name for name in (*SETTINGS, *FLAGS, *COUNTS, *NAMES) if name in namespace)
    return [name for name in known if not callable(namespace[name]) and not inspect.ismodule(namespace[name])]


def check_own(own: Mapping) -> None:
    """Validate notebook-only parameters: counts are positive integers, names are strings; a named run needs devices=1.

    Raises:
        ConfigError: naming the parameter, its value and what is allowed.
    """
    devices = own.get("devices", 1)
    for name, things in COUNTS.items():
        count = own.get(name, 1)
        if (name, count) != ("seeds", None) and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ConfigError(f"{name}={count!r} is not a number of {things}; use an integer from 1")
    for name, value in own.items():
        if name in FLAGS and not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} is not allowed; use True or False")
        if name in (*COUNTS, *FLAGS) or value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{name}={value!r} is not a name; use None for the default")
        if devices > 1:
            raise ConfigError(f"{name}={value!r} works with one process; use devices=1, not {devices}")


def check_injected(allowed: Sequence[str]) -> None:
    """Raise ConfigError for names that papermill injected and this notebook does not declare."""
    unknown = [name for name in injected_names() if name not in allowed]
    if unknown:
        raise ConfigError(f"unknown parameter {', '.join(unknown)}; this notebook has: {', '.join(allowed)}")


def declared_names() -> list[str]:
    """Names of the parameters cell, the first cell of annotated assignments alone; none outside a notebook."""
    for cell in _executed_cells():
        nodes = _parse(cell)
        if nodes and all(isinstance(node, ast.AnnAssign) for node in nodes):
            return [node.target.id for node in nodes]
    return []


def injected_names() -> list[str]:
    """Names assigned in the cell that papermill inserted after the parameters; none without papermill."""
    for cell in reversed(_executed_cells()):
        if cell.lstrip().startswith("# Parameters\n"):
            nodes = _parse(cell)
            return [target.id for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return []


def _executed_cells() -> list[str]:
    if "IPython" not in sys.modules:
        return []
    from IPython import get_ipython

    shell = get_ipython()
    return list(shell.user_ns.get("In", [])) if shell else []


def _parse(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:  # a cell magic
        return []


# ---- runs ----


def named_run(name: str, *allowed: str) -> Run:
    """The finished run that a parameter names (run name, unique prefix, or folder).

    Args:
        allowed: names of the stages it may be of.
    """
    run = find_run(name)
    if run.stage not in allowed:
        raise ConfigError(f"{name!r} is a {run.stage} run; give a run of {' or '.join(allowed)}")
    return run


def input_run(request: Request, name: str | None = None, *, allowed: Sequence[str] = (), devices: int = 1) -> Run:
    """The run that a notebook starts from: the one that a parameter names, else that of `request`.

    A missing run is made only if the profile makes inputs on the way (`config.make_inputs`).

    Args:
        name: run name, unique prefix or folder; None for the request's run.
        allowed: stages that a named run may be of; by default the request's.

    Raises:
        MissingRun: the message holds the command that makes the run.
        ConfigError: the named run is of another stage.
    """
    if name:
        return named_run(name, *(allowed or (request.stage,)))
    return graph.obtain(request, devices=devices) if request.config.make_inputs else graph.require(request)


def metric(run: Run, kind: str, key: str = "AP") -> float | None:
    """A number of a run, such as ("box_agnostic", "AP75"), between 0 and 1; None if the run has none."""
    return number(run, kind, key)


# ---- what a cell shows ----


def show_source(*functions) -> None:
    """Show the source of library functions, highlighted: the very code that the stage runs."""
    from IPython.display import Markdown, display

    for function in functions:
        file = os.path.relpath(inspect.getsourcefile(inspect.unwrap(function)), paths.REPOSITORY)
        source = textwrap.dedent(inspect.getsource(function)).rstrip()
        display(Markdown(f'<div style="{CODE_STYLE}">\n\n`{file}`\n\n```python\n{source}\n```\n\n</div>'))


def show_shapes(**named) -> None:
    """Print the shapes of tensors, and of lists and dicts of tensors, one name per line."""
    for name, value in named.items():
        print(f"{name:12} {_shape(value)}")


def _shape(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shape(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (int, float)) for item in value):
        shown = "; ".join(_shape(item) for item in value[:4])
        return f"[{shown}{'; ...' if len(value) > 4 else ''}]"
    return str(tuple(value.shape)) if hasattr(value, "shape") else repr(value)


def left_out(source: ImageSource) -> Rows:
    """What was skipped while reading a source, by reason, with examples."""
    skipped = source.left_out
    counts = skipped.counts if skipped else {}
    body = [[reason, f"{count:,}", ", ".join(skipped.examples[reason])] for reason, count in counts.items()]
    return Rows(["left out", "count", "examples"], body, empty="Nothing was left out.")


def list_runs(runs: Mapping[str, Run]) -> Rows:
    """Several runs by what they are: name, amount of work and time of each."""
    return Rows(["", "run"], [[name, str(run)] for name, run in runs.items()])


def beside_paper(rows: Iterable[tuple[str, float | None, float | None]], *, metric: str) -> Rows:
    """(row, ours, the paper's) as a table; ours between 0 and 1, the paper's times 100, None stays blank."""
    body = []
    for name, ours, printed in rows:
        here = "" if ours is None else f"{100 * ours:.1f}"
        body.append([name, here, "" if printed is None else f"{printed:.1f}"])
    return Rows([metric, "here", "paper"], body)
