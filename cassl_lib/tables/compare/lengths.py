"""The curve of a cell over its lengths of training: the best length on the tuning scenes counts in the table.

A curve is what `runner.collect` stores under `lengths`: `steps`, by number of steps and seed the metric on the reported
images, and `chosen`, by seed the number of steps that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cassl_lib.paper import EPOCHS
from cassl_lib.tables.compare.cells import cell_text, values
from cassl_lib.tables.compare.layouts import Cell, Layout, Number

OTHER_METRICS = re.compile(r"(mask AP|PQ|AP50|AP75|APs|APm|APl)$")  # the curves shown are of box AP
HEADER = ("row and column", "steps", "epochs of the paper", "box AP", "chosen for")
CAPTION = (
    "Length of training: each length has its own run, and the one with the best AP on the tuning scenes counts. The "
    "profile's own length of finetuning stands for the paper's 36 epochs. Box AP, mean ± std over seeds."
)


def lengths(collected: Mapping) -> list[Layout]:
    """The box AP of the table's cells that several lengths compete for; empty if there are none."""
    return curve_layout(_box_curves(collected), collected.get("config", {}))


def curve_layout(curves: Mapping[str, Mapping], config: Mapping) -> list[Layout]:
    """A table with one line per curve and length; empty without any number.

    Args:
        curves: by name, see above.
        config: of the runs, as JSON data; tells how many steps the finetuning's own length has.
    """
    body = [
        (Cell(name), Cell(steps), Cell(epochs), Cell(numbers=(Number(tuple(values(cell))),)), Cell(chosen))
        for name, steps, epochs, cell, chosen in _lines(curves, config)
    ]
    return [Layout(CAPTION, (tuple(map(Cell, HEADER)),), tuple(body))] if body else []


def text(collected: Mapping) -> str:
    """The same as lines for a shell, below the table; empty if there are none."""
    shown = []
    for name, steps, epochs, cell, chosen in _lines(_box_curves(collected), collected.get("config", {})):
        shown += [f"{name}, by length of training:"] if name else []
        where = f"{steps} steps" + (f" ({epochs} epochs of the paper)" if epochs else "")
        shown.append(f"  {where}: box AP {cell_text(cell)}, chosen for {chosen}")
    return "\n".join(shown)


def _box_curves(collected: Mapping) -> dict[str, Mapping]:
    return {name: curve for name, curve in collected.get("lengths", {}).items() if not OTHER_METRICS.search(name)}


def _lines(curves: Mapping[str, Mapping], config: Mapping) -> Iterator[tuple[str, str, str, Mapping, str]]:
    """For each curve and length: name (on the first line), steps, the paper's epochs, the cell, how many chose it."""
    for name, curve in curves.items():
        measured = _measured(curve["steps"])
        epochs = _epochs(list(measured), config)
        chosen = [int(steps) for steps in curve["chosen"].values() if steps is not None]
        seeds = f"{len(chosen)} {'seed' if len(chosen) == 1 else 'seeds'}"
        for place, (steps, cell) in enumerate(measured.items()):
            stands_for = f"{epochs[place]:g}" if epochs else ""
            yield name if place == 0 else "", f"{steps:,}", stands_for, cell, f"{chosen.count(steps)} of {seeds}"


def _measured(steps: Mapping[str, Mapping]) -> dict[int, Mapping]:
    """By number of steps, in rising order; without lengths that have no run yet, whose names are words."""
    done = {name: cell for name, cell in steps.items() if any(value is not None for value in cell.values())}
    return {int(name): done[name] for name in sorted(filter(str.isdecimal, done), key=int)}


def _epochs(steps: list[int], config: Mapping) -> list[float] | None:
    """The paper's epochs that each length stands for; None if the configuration does not tell."""
    own = config.get("finetune", {}).get("steps")
    if own:
        return [EPOCHS["finetune"] * each / own for each in steps]
    multiples = sorted(config.get("baseline_lengths", ()))  # the length is in epochs: told by the order
    return [EPOCHS["finetune"] * each for each in multiples] if len(multiples) == len(steps) else None
