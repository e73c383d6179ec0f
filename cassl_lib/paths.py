"""Locations of data sets and runs. No other module reads the environment, so notebooks work from any folder."""

import itertools
import os
from pathlib import Path

ALLOW_OUTSIDE = "CASSL_ALLOW_OUTSIDE"  # name of the variable that the shell's --allow-outside sets
REPOSITORY = Path(__file__).resolve().parent.parent


def datasets() -> Path:
    """Root of the data sets: $CASSL_DATASETS, else $DETECTRON2_DATASETS, else `datasets/` in the repository."""
    named = os.environ.get("CASSL_DATASETS") or os.environ.get("DETECTRON2_DATASETS")
    return Path(named).expanduser().resolve() if named else REPOSITORY / "datasets"


def portable(path: Path | str) -> str:
    """A path as indices and stores record it: relative to `datasets()` if below it, so that the root can be moved."""
    absolute, root = os.path.abspath(path), str(datasets())
    return os.path.relpath(absolute, root) if absolute.startswith(root + os.sep) else absolute


def portable_prefix(folder: Path) -> str:
    """What the portable names of a folder's files begin with; a link that leads below `datasets()` is resolved."""
    absolute, root = Path(os.path.abspath(folder)), datasets()
    for place, base in itertools.product((absolute, absolute.resolve()), (root, root.resolve())):
        if place.is_relative_to(base):
            below = place.relative_to(base).as_posix()
            return "" if below == "." else f"{below}/"
    return f"{absolute}/"


def image(name: str) -> Path:
    """The path of an image, or of an image inside a tar archive, from its portable name."""
    return datasets() / name


def file_and_folder(named: str) -> tuple[str, str | None]:
    """Split `FILE:FOLDER`; FOLDER is None if not given. An existing path is not split, so its name may have a colon."""
    ends = [place for place, letter in enumerate(named) if letter == os.pathsep]
    for end in [len(named), *ends]:
        if Path(named[:end]).expanduser().exists():
            return named[:end], named[end + 1 :] if end < len(named) else None
    file, separator, folder = named.partition(os.pathsep)
    return file, folder if separator else None


def scenes() -> Path:
    """Root of the embedded scenes, below `datasets()`."""
    return datasets() / "scenes"


def runs() -> Path:
    """Root of the run store: $CASSL_RUNS, else `runs/` in the repository."""
    named = os.environ.get("CASSL_RUNS")
    return Path(named).expanduser().resolve() if named else REPOSITORY / "runs"


def profile() -> str | None:
    """The profile set by $CASSL_PROFILE, or None."""
    return os.environ.get("CASSL_PROFILE") or None


def allow_outside() -> bool:
    """Whether names in annotation files and lists may lead out of their image folder: $CASSL_ALLOW_OUTSIDE is 1."""
    return os.environ.get(ALLOW_OUTSIDE) == "1"


def hash_images() -> bool:
    """Whether fingerprints cover the contents of all images, instead of some: $CASSL_HASH_IMAGES is 1."""
    return os.environ.get("CASSL_HASH_IMAGES") == "1"
