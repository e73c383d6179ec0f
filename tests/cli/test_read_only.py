"""A run store that cannot be written is read, and what could not be kept is said."""

import errno
import logging
import os
from pathlib import Path

import pytest

from cassl_lib import files
from cassl_lib.cli.main import main
from cassl_lib.stages.registry import STAGES
from cassl_lib.tools.plan import cost, estimate


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """A folder in which the system refuses to create anything, even to root."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("CASSL_RUNS", str(folder))
    really = {name: getattr(os, name) for name in ("open", "mkdir")}

    def refusing(name: str):
        def call(path, *rest, **named):
            creates = name == "mkdir" or rest[0] & os.O_CREAT
            if creates and str(path).startswith(str(folder)):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return really[name](path, *rest, **named)

        return call

    for name in really:
        monkeypatch.setattr(os, name, refusing(name))
    return folder


def test_a_dry_run_needs_no_writable_store(store, monkeypatch, capsys, caplog):
    """Entities are converted into a folder of this process, and the measured pace is not kept."""
    caplog.set_level(logging.INFO, "cassl_lib")
    rows = [cost.Row(name, steps=1, images=1, seconds=1.0, evaluation=0.0, kept=0) for name in STAGES]
    monkeypatch.setattr(estimate, "estimate", lambda config: cost.Plan("", tuple(rows), (), "", 0))
    assert main(["table", "3", "--profile", "smoke", "--dry-run"]) == 0
    assert "4 runs, 4 missing" in capsys.readouterr().out and not list(store.iterdir())
    said = caplog.text
    assert "cannot be written; using" in said and "pace.json: not kept, read-only file system" in said


def test_what_is_kept_for_next_time_is_left_out(store, caplog):
    caplog.set_level(logging.INFO, "cassl_lib")
    with files.where_writable(store / "a.json"):
        files.write_atomically(store / "a.json", b"{}")
    assert "a.json: not kept, read-only file system" in caplog.text and not list(store.iterdir())
    with pytest.raises(OSError, match="broken"), files.where_writable(store):
        raise OSError(errno.EIO, "broken")


def test_a_folder_of_this_process_takes_the_place_of_one_that_cannot_be_made(store, tmp_path):
    temporary = files.writable(store / "pools")
    assert temporary.is_dir() and store not in temporary.parents
    assert files.writable(store / "pools") == temporary
    assert files.writable(tmp_path / "other") == tmp_path / "other" and (tmp_path / "other").is_dir()
