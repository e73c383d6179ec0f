"""What the manifest of a pseudo-label store holds, and whether its parts fit together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from msgspec import Meta

from cassl_lib import typed_json
from cassl_lib.errors import PseudoLabelError

Count = Annotated[int, Meta(ge=0, le=2**62)]


class Category(TypedDict):
    id: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    name: str
    isthing: NotRequired[int | bool]


class Shard(TypedDict):
    """The entry of a shard, as `write_shard` returns it."""

    file: Annotated[str, Meta(pattern=r"^[^/\x00]+\.arrow$")]
    rows: Count
    labels: Count
    masks: Count
    bytes: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    labeler: str
    unreadable: list[str]


class Manifest(TypedDict):
    """A manifest, as `finish` writes it."""

    labeler: str
    pool: str
    categories: Annotated[list[Category], Meta(min_length=1)]
    images: Count
    labels: Count
    unreadable: NotRequired[Count]
    shards: list[Shard]


def check_manifest(manifest: Mapping, path: Path) -> None:
    """Raise PseudoLabelError unless a parsed manifest has these types, lists each shard once, and counts right."""
    problem = typed_json.check(manifest, Manifest) or _contradiction(manifest)
    if problem:
        raise PseudoLabelError(f"{path} is damaged: {problem}. Delete it and label again.")


def _contradiction(manifest: Mapping) -> str | None:
    shards = manifest["shards"]
    files = [shard["file"] for shard in shards]
    if len(set(files)) < len(files):
        return f"it lists {next(file for file in files if files.count(file) > 1)} more than once"
    for name, of_shard in (("images", "rows"), ("labels", "labels")):
        if (total := sum(shard[of_shard] for shard in shards)) != manifest[name]:
            return f"it has {manifest[name]} {name}, its shards {total}"
    ids, names = ([category[key] for category in manifest["categories"]] for key in ("id", "name"))
    if len(set(ids)) < len(ids) or len(set(names)) < len(names):
        return "two of its categories have the same id or name"
    return None
