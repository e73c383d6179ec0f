"""Remove from executed notebooks what differs between machines: `python tests/notebooks/clean_notebooks.py FILES`.

Outputs are kept, so that a code host shows them, except for stderr (log lines and progress bars). Metadata of the
execution is removed, and paths below the folders of runs, data sets and the repository become relative.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cassl_lib import paths

KEPT_METADATA = ("tags",)  # of cells


def clean(notebook: dict) -> dict:
    """The notebook, changed in place."""
    notebook["metadata"] = {"kernelspec": notebook["metadata"]["kernelspec"]}
    _remove_injected(notebook)
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = str(number)
        cell["metadata"] = {name: value for name, value in cell["metadata"].items() if name in KEPT_METADATA}
        if cell["cell_type"] == "code":
            kept = [_without_paths(output) for output in cell["outputs"] if output.get("name") != "stderr"]
            cell["outputs"] = _merged(kept)
    return notebook


def _remove_injected(notebook: dict) -> None:
    """Take out the cell of parameters that papermill has inserted; what was executed after it moves up by one."""
    cells = notebook["cells"]
    for place in [n for n, cell in enumerate(cells) if "injected-parameters" in cell["metadata"].get("tags", ())]:
        for counted in (each for cell in cells[place + 1 :] for each in (cell, *cell.get("outputs", ()))):
            if counted.get("execution_count"):
                counted["execution_count"] -= 1
        del cells[place]


def _merged(outputs: list[dict]) -> list[dict]:
    """What is printed by one cell arrives in pieces of any length; pieces that follow each other become one."""
    merged: list[dict] = []
    for output in outputs:
        before = merged[-1] if merged else {}
        if output["output_type"] == before.get("output_type") == "stream":
            before["text"] = "".join([*before["text"], *output["text"]]).splitlines(keepends=True)
        else:
            merged.append(output)
    return merged


def _without_paths(value):
    """Every text in an output, except images, with absolute folders replaced by their names."""
    if isinstance(value, dict):
        return {key: each if key.startswith("image/") else _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    if isinstance(value, str):
        for folder, name in ((paths.runs(), "runs"), (paths.datasets(), "datasets"), (paths.REPOSITORY, ".")):
            value = value.replace(str(folder), name)
    return value


def main(files: list[str]) -> None:
    for file in map(Path, files):
        cleaned = clean(json.loads(file.read_text()))
        file.write_text(json.dumps(cleaned, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
