"""Fixtures of the tests of tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from cassl_lib.config import Config
from cassl_lib.profiles import PROFILES
from cassl_lib.resolve import resolve


@pytest.fixture
def config(monkeypatch) -> Config:
    """A profile that leaves out no cell."""
    monkeypatch.setitem(PROFILES["gpu"], "grid", (1, 2, 3, 4, 5))
    return resolve(profile="gpu")


@pytest.fixture(scope="session")
def smoke() -> Config:
    """The smoke profile with stages of two steps of two images."""
    config = resolve(profile="smoke")
    short = {"steps": 2, "batch_size": 2, "checkpoint_every": 1000}
    sections = ("pseudo_labeler", "warmup", "finetune")
    return replace(config, **{name: replace(getattr(config, name), **short) for name in sections})


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """An empty run store."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"
