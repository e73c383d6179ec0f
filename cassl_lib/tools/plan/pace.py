"""How fast this machine is, measured once and kept in the run store: what `table --dry-run` multiplies."""

from __future__ import annotations

import contextlib
import hashlib
import json

from cassl_lib import paths
from cassl_lib.config import Config
from cassl_lib.files import where_writable, write_atomically
from cassl_lib.resolve import to_json
from cassl_lib.runs import environment
from cassl_lib.tools.plan import estimate

ANY = ("seed", "split", "labeled_images", "store", "baseline_lengths")  # settings that do not decide the pace
WHERE = ("device", "threads", "torch", "machine")


def pace(config: Config) -> dict[str, float]:
    """Seconds of a training step, or of an image to label, by stage; measured unless it was on this machine before.

    Delete `pace.json` in the run store to have it measured again. A store that cannot be written keeps nothing.
    """
    file, key = paths.runs() / "pace.json", _key(config)
    known = _read(file)
    if key not in known:
        rows = estimate.estimate(config).rows
        known[key] = {row.stage: row.seconds / max(row.steps or row.images, 1) for row in rows}
        with where_writable(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(known, indent=1) + "\n").encode())
    return known[key]


def _key(config: Config) -> str:
    settings = {name: value for name, value in to_json(config).items() if name not in ANY}
    here = environment()  # once: it starts git
    where = {name: here[name] for name in WHERE}
    return hashlib.sha256(json.dumps([settings, where], sort_keys=True).encode()).hexdigest()[:16]


def _read(file) -> dict[str, dict[str, float]]:
    """What is kept; nothing if it is missing or damaged, since it can be measured again."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(file.read_text())
        if isinstance(known, dict):
            return known
    return {}
