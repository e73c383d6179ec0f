"""Where things are. The only module that reads the environment, so that a notebook works from any folder."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def datasets() -> Path:
    """Root of the data sets: $CASSL_DATASETS, else $DETECTRON2_DATASETS, else `datasets/` of the repository."""
    named = os.environ.get("CASSL_DATASETS") or os.environ.get("DETECTRON2_DATASETS")
    return Path(named).expanduser().resolve() if named else REPOSITORY / "datasets"


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
