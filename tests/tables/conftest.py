"""Fixtures of the tests of tables."""

from pathlib import Path

import pytest

from cassl_lib.config import Config
from cassl_lib.resolve import resolve


@pytest.fixture(scope="session")
def config() -> Config:
    """A profile that leaves out no cell."""
    return resolve(profile="gpu")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """An empty run store."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"
