"""Where things are. The only module that reads the environment, so that a notebook works from any folder."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def datasets() -> Path:
    """Root of the data sets: $CASSL_DATASETS, else $DETECTRON2_DATASETS, else `datasets/` of the repository."""
    named = os.environ.get("CASSL_DATASETS") or os.environ.get("DETECTRON2_DATASETS")
    return Path(named).expanduser().resolve() if named else REPOSITORY / "datasets"


def portable(path: Path | str) -> str:
    """How indices and stores write a path: relative to `datasets()` if it lies below, so that the root may move."""
    absolute, root = os.path.abspath(path), str(datasets())
    return os.path.relpath(absolute, root) if absolute.startswith(root + os.sep) else absolute


def image(name: str) -> Path:
    """The place of an image, or of an image inside a tar archive, that `portable` wrote."""
    return datasets() / name


def file_and_folder(named: str) -> tuple[str, str | None]:
    """FILE and FOLDER of `FILE:FOLDER`. What is there as it is written is taken whole: its name may have a colon."""
    ends = [place for place, letter in enumerate(named) if letter == os.pathsep]
    for end in [len(named), *ends]:
        if Path(named[:end]).expanduser().exists():
            return named[:end], named[end + 1 :] if end < len(named) else None
    file, separator, folder = named.partition(os.pathsep)
    return file, folder if separator else None


def scenes() -> Path:
    """Root of the embedded scenes, inside `datasets()`."""
    return datasets() / "scenes"


def runs() -> Path:
    """Root of the run store: $CASSL_RUNS, else `runs/` of the repository."""
    named = os.environ.get("CASSL_RUNS")
    return Path(named).expanduser().resolve() if named else REPOSITORY / "runs"


def profile() -> str | None:
    """The profile that $CASSL_PROFILE asks for, or None."""
    return os.environ.get("CASSL_PROFILE") or None
