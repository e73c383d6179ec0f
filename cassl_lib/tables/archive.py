"""Numbers of finished runs that are tracked under `reports/results/`, so that a lost run store costs no measurement.

    runs_demo.jsonl     a line per run: its name, its result without what only the run's folder can use, and its numbers
                        on held-out images

The name of a run follows from its request alone, so a kept run is found again without its folder. `cassl table N
--record` keeps what is finished and does not make again what is kept: a table can be measured in slices, on machines
that start empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cassl_lib.errors import CasslError, DataError, Stopped
from cassl_lib.files import alone, write_atomically
from cassl_lib.runs import Run
from cassl_lib.stages import choice, graph
from cassl_lib.stages.requests import Request, with_inputs
from cassl_lib.tables import results
from cassl_lib.tables.definitions import Row, requests_of

KEPT = ("stage", "steps", "images", "seconds", "metrics", "classes", "environment")  # of a run's result


@dataclass(frozen=True)
class KeptRun:
    """The numbers of a run whose folder may be gone; where only numbers are asked for it stands in for a `Run`.

    Attributes:
        id: `<stage>-<hash>`, as of the run.
        result: the run's result, see `KEPT`.
        held_out: its metrics by the fingerprint of the held-out images.
    """

    id: str
    result: Mapping
    held_out: Mapping

    @property
    def stage(self) -> str:
        return self.result["stage"]

    def held_out_metrics(self, fingerprint: str) -> Mapping:
        """Its metrics on held-out images.

        Raises:
            DataError: they were not kept.
        """
        if fingerprint not in self.held_out:
            raise DataError(f"{self.id} is kept without numbers on these held-out images; delete its line in the file")
        return self.held_out[fingerprint]


def kept(profile: str) -> dict[str, KeptRun]:
    """The kept runs of a profile, by name.

    Raises:
        DataError: the file is damaged.
    """
    file, runs = archive_file(profile), {}
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], start=1):
        try:
            entry = json.loads(line)
            runs[entry["id"]] = KeptRun(entry["id"], entry["result"], entry["held_out"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: not a kept run ({error!r}); restore the file") from error
    return runs


def keep(profile: str, runs: Iterable[Run]) -> int:
    """Add finished runs to those of a profile; returns how many were added or have new held-out numbers."""
    results.RESULTS.mkdir(parents=True, exist_ok=True)
    with alone(results.RESULTS):
        known = before = kept(profile)
        known = known | {each.id: each for each in map(kept_run, runs)}
        changed = sum(before.get(name) != each for name, each in known.items())
        if changed:
            lines = (json.dumps(vars(known[name]), sort_keys=True) + "\n" for name in sorted(known))
            write_atomically(archive_file(profile), "".join(lines).encode())
    return changed


def kept_run(run: Run) -> KeptRun:
    """What is kept of a finished run."""
    result = run.result
    held_out = {
        file.stem.partition("-")[2]: json.loads(file.read_text()) for file in sorted(run.folder.glob("heldout-*.json"))
    }
    return KeptRun(run.id, {name: result[name] for name in KEPT if name in result}, held_out)


def find_all(requests: Iterable[Request], profile: str) -> dict[Request, Run | KeptRun | None]:
    """As `graph.find_all`, but a kept run stands in for one that is missing."""
    known, places, found = kept(profile), {}, {}
    for request in requests:
        places[request] = place = _place(request.with_runs(places.get))
        finished = place is not None and graph.whole(place)
        found[request] = place if finished else known.get(place.id) if place is not None else None
    return found


def finished(rows: Sequence[Row]) -> list[Run]:
    """The finished runs of a table, after the lengths that compete for a cell were judged on held-out images.

    Runs that were not judged before the deadline are left out.
    """
    found = graph.find_all(requests_of(rows))
    for cell in (cell for row in rows for cell in row.cells.values() if cell.longer):
        for request in cell.candidates:
            try:
                _ = found[request] and choice.heldout_metrics(found[request], request.config)
            except Stopped:
                found[request] = None
    return [run for run in found.values() if run]


def unfinished(rows: Sequence[Row], profile: str) -> list[Request]:
    """The requests of a table's numbers that are neither finished nor kept, and all that they start from."""
    found = find_all(requests_of(rows), profile)
    cells = (cell for row in rows for cell in row.cells.values())
    return with_inputs(request for cell in cells for request in cell.candidates if found[request] is None)


def _place(request: Request | None) -> Run | None:
    """Where the run of a request is or would be; None if its data cannot be read."""
    try:
        return graph.located(request) if request else None
    except (CasslError, OSError):
        return None


def archive_file(profile: str) -> Path:
    return results.RESULTS / f"runs_{profile}.jsonl"
