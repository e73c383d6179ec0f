"""The verb `data`: the published data that a configuration needs, what of it is there, and where the rest is from."""

from __future__ import annotations

import argparse

from cassl_lib import paths
from cassl_lib.cli.options import config_of


def act(parsed: argparse.Namespace) -> int:
    """Print one line per part; returns 1 if one is missing."""
    from cassl_lib.data import datasets, layout

    config = config_of(parsed)
    parts = [layout.PARTS[name] for name in datasets.needed(config)]
    own = {name: getattr(config, name) for name in ("labeled", "val", "heldout", "unlabeled", "store")}
    for name, value in own.items():
        if value == "scenes":
            print(f"{name}: embedded scenes, which need no download")
        elif value not in (None, "split", datasets.own_labeled(name)):
            print(f"{name}: your own, {value}")
    if parts:
        print(f"below {paths.datasets()}:")
        print("\n".join(f"  {part}" for part in parts))
    lacking = sum(part.there is None for part in parts)
    if lacking:
        print(f"{lacking} of {len(parts)} parts missing; see docs/data.md")
    return 1 if lacking else 0
