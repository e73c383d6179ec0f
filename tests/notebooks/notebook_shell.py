"""Notebooks executed in this process: papermill injects the parameters, but no kernel has to start."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill.cli
from click.testing import CliRunner
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from cassl_lib import paths
from cassl_lib.runs import Run

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@dataclass
class Executed:
    """What a notebook has shown."""

    text: str  # printed, and all tables as HTML
    pictures: int
    error: Exception | None = None

    def last_run(self, stage: str) -> Run:
        """The run of a stage that was shown last."""
        return Run(paths.runs() / re.findall(rf"\b{stage}-[0-9a-f]{{12}}", self.text)[-1])


def command_line(name: str, parameters: dict) -> list[str]:
    """The arguments of papermill's command line, in whose words values are."""
    words = [str(NOTEBOOKS / f"{name}.ipynb"), "out.ipynb", "--kernel", "python3", "--no-progress-bar"]
    return words + [word for key, value in parameters.items() for word in ("-p", key, str(value))]


def execute(name: str, folder: Path, **parameters) -> Executed:
    """Execute a notebook with IPython, its parameters injected by papermill's command line, called in `folder`."""
    source, target, *options = command_line(name, parameters)
    arguments = [source, str(folder / target), *options, "--prepare-only", "--cwd", str(folder)]
    done = CliRunner().invoke(papermill.cli.papermill, arguments)
    assert done.exit_code == 0, done.output
    cells = [cell.source for cell in nbformat.read(folder / "out.ipynb", 4).cells if cell.cell_type == "code"]
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    try:
        with capture_output() as captured:
            shell.display_trap.hook = sys.displayhook  # otherwise results of cells are printed as text
            error = _run(shell, cells)
    finally:
        InteractiveShell.clear_instance()
    data = [output.data for output in captured.outputs]
    tables = "".join(each.get("text/html", "") for each in data)
    return Executed(captured.stdout + tables, sum("image/png" in each for each in data), error)


def _run(shell: InteractiveShell, cells: list[str]) -> Exception | None:
    """The error that ended the cells, if any."""
    for cell in cells:
        result = shell.run_cell(cell, store_history=True)
        if error := result.error_before_exec or result.error_in_exec:
            return error
    return None


def read(file: Path) -> Executed:
    """What an executed notebook file shows."""
    outputs = [output for cell in json.loads(file.read_text())["cells"] for output in cell.get("outputs", ())]
    data = [output.get("data", {}) for output in outputs]
    text = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")
    tables = "".join("".join(each.get("text/html", "")) for each in data)
    return Executed(text + tables, sum("image/png" in each for each in data))
