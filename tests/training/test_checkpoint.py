"""Checkpoints that are damaged, hostile, old or too large: what is resumed from, and what is said."""

import logging
import pickle
import random
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from line import Line, go

from cassl_lib.errors import CheckpointError, DiskFull, NonFiniteLoss
from cassl_lib.runs import Run
from cassl_lib.training import checkpoint, distributed, sealed
from cassl_lib.training.procedure import Supervised

VALUES = [1, 2, 3, 4, 5, 6]
NAN = float("nan")


@pytest.fixture
def stopped(tmp_path) -> Run:
    """A run that stopped after step 5, with checkpoints of steps 4 and 2."""
    with pytest.raises(NonFiniteLoss):
        go(Line(), [*VALUES[:5], NAN], tmp_path / "run")
    run = Run(tmp_path / "run")
    assert step_of(run.checkpoint) == 4 and step_of(run.previous_checkpoint) == 2
    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> torch.Tensor:
    """The weight of an undisturbed run."""
    return resumed(tmp_path_factory.mktemp("whole"))


def step_of(file: Path) -> int:
    return torch.load(file, weights_only=True)["step"]


def resumed(folder: Path) -> torch.Tensor:
    model = Line()
    go(model, VALUES, folder)
    return model.w.detach()


def flip_a_bit(file: Path) -> None:
    """In the middle of a tensor, where only the checksum can tell."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def another_content(file: Path) -> None:
    sealed.write(file, {"weights": torch.ones(1)})


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def code(file: Path) -> None:
    torch.save({"model": Code(file.parent / "executed")}, file)


def pickled_code(file: Path) -> None:
    file.write_bytes(pickle.dumps(Code(file.parent / "executed")))


DAMAGES = [flip_a_bit, cut, empty, another_content, code, pickled_code]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(stopped, damage, expected, caplog):
    damage(stopped.checkpoint)
    caplog.set_level(logging.INFO)
    assert torch.equal(resumed(stopped.folder), expected)
    assert f"{stopped.checkpoint} is damaged: " in caplog.text
    assert f"; resuming from the one before it, {stopped.previous_checkpoint}" in caplog.text
    assert "resuming at step 2" in caplog.text and not (stopped.folder / "executed").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_both_are_damaged_one_line_names_the_file_and_the_remedy(stopped, damage):
    damage(stopped.checkpoint)
    damage(stopped.previous_checkpoint)
    with pytest.raises(CheckpointError) as caught:
        resumed(stopped.folder)
    message = str(caught.value)
    assert message.startswith(f"{stopped.checkpoint} is damaged: ") and "\n" not in message
    assert message.endswith(f"Delete {stopped.checkpoint} and checkpoint.previous.pt to start this run over.")
    assert stopped.checkpoint.exists() and not (stopped.folder / "executed").exists()


def test_a_damaged_checkpoint_never_becomes_the_previous_one(stopped):
    flip_a_bit(stopped.checkpoint)
    with pytest.raises(NonFiniteLoss):
        go(Line(), [*VALUES[:4], NAN], stopped.folder)
    assert step_of(stopped.checkpoint) == 4 and sealed.read(stopped.previous_checkpoint)["step"] == 2


def test_a_kill_between_the_two_renames_costs_one_checkpoint(stopped, expected):
    stopped.checkpoint.unlink()
    assert torch.equal(resumed(stopped.folder), expected)


@pytest.mark.parametrize("failing", ["model", "optimizer", "random"])
def test_a_checkpoint_that_does_not_fit_is_told_in_one_line(stopped, failing):
    saved = sealed.read(stopped.checkpoint)
    sealed.write(stopped.checkpoint, saved | {failing: {"model": {"v": torch.ones(2)}}.get(failing, [{"a": 1}])})
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt does not fit this run: .* to start this run over"
    ) as caught:
        resumed(stopped.folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_an_earlier_version_is_resumed_with_a_warning(stopped, expected, caplog):
    """Without a checksum and a group's factor, with a NumPy array, a set, and the procedure's state as bytes."""
    saved = torch.load(stopped.checkpoint, weights_only=True)
    saved["random"][0]["numpy"] = np.random.get_state()
    saved["procedure"] = [state.numpy().tobytes() for state in saved["procedure"]]
    for group in saved["optimizer"]["param_groups"]:
        group.pop("factor", None)
    torch.save(saved | {"unreadable": {"a.jpg"}}, stopped.checkpoint)
    assert torch.equal(resumed(stopped.folder), expected)
    assert f"{stopped.checkpoint} has no checksum: an earlier version wrote it" in caplog.text


def test_random_states_survive_as_plain_types():
    before = draws()
    state = checkpoint.random_state()
    expected = draws()
    assert before != expected
    checkpoint.set_random_state(state)
    assert draws() == expected


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(np.random.normal()), float(torch.rand(()))]


def test_every_process_takes_what_the_first_one_chooses(stopped, monkeypatch):
    """The newest checkpoint looks intact to this process; the first one found it damaged."""
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(distributed, "of_first_process", lambda value: (stopped.previous_checkpoint, None))
    model = Line()
    progress = checkpoint.resume(stopped, Supervised(model), torch.optim.SGD(model.parameters()))
    assert progress.step == 2
    monkeypatch.setattr(distributed, "of_first_process", lambda value: (None, "both are damaged"))
    with pytest.raises(CheckpointError, match="both are damaged"):
        checkpoint.resume(stopped, Supervised(model), torch.optim.SGD(model.parameters()))


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_ones_before(stopped):
    before = {path: path.read_bytes() for path in stopped.folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = Line()
    optimizer = torch.optim.SGD(model.parameters())
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(DiskFull, match=r"checkpoint.pt cannot be written: .* MB free on .*rerun the same command"):
            checkpoint.save(stopped, Supervised(model), optimizer, checkpoint.Progress(step=6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in stopped.folder.iterdir()} == before


def test_damaged_best_weights_are_told_in_one_line(stopped):
    checkpoint.keep_best(stopped, Line(), 3)
    assert torch.equal(checkpoint.best_weights(stopped, 3)["w"], torch.ones(1))
    flip_a_bit(stopped.folder / "best-3.pt")
    with pytest.raises(CheckpointError, match=r"best-3.pt is damaged: .* to start this run over"):
        checkpoint.best_weights(stopped, 3)
    with pytest.raises(CheckpointError, match="best-4.pt is missing. Delete"):
        checkpoint.best_weights(stopped, 4)


def test_best_weights_that_the_previous_checkpoint_needs_are_kept(tmp_path):
    run, model, progress = Run(tmp_path), Line(), checkpoint.Progress()
    optimizer = torch.optim.SGD(model.parameters())
    for best in (1, 2, 3):
        checkpoint.keep_best(run, model, best)
        progress = replace(progress, step=best, best_step=best)
        checkpoint.save(run, Supervised(model), optimizer, progress)
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-2.pt", "best-3.pt"]
    assert sealed.read(run.previous_checkpoint)["best_step"] == 2
