"""Evaluation during training: when, what it must not disturb, and the best weights through kill and resumption."""

import json
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from cassl_lib import deadline
from cassl_lib.config import TrainConfig
from cassl_lib.errors import ConfigError, NonFiniteLoss, Stopped
from cassl_lib.runs import Run
from cassl_lib.training import distributed, engine
from cassl_lib.training.engine import train
from cassl_lib.training.procedure import Supervised
from cassl_lib.training.validation import Validation

STEPS = 8
CONFIG = TrainConfig(
    steps=STEPS, learning_rate=0.01, warmup_steps=0, workers=0, checkpoint_every=3, log_every=1, evaluate_every=2
)
VALUES = {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2}  # by step; the first of equal values counts


class Noisy(torch.nn.Module):
    """A line with BatchNorm, dropout and losses that draw from every generator."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = torch.nn.Parameter(torch.ones(3))
        self.norm, self.frozen = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)

    def forward(self, images, targets):
        assert self.training and self.norm.training and not self.frozen.training
        drawn = random.random() + np.random.random() + torch.rand(())
        value = self.norm(torch.stack(images) * self.w[:, None, None]).square().mean()
        return {"loss": value * drawn + (self.frozen(torch.stack(images))[0, 0, 0, 0] * self.w).sum() * drawn}

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


def seed_all() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)


def go(folder, evaluate=None, *, values=VALUES, config=CONFIG, stop_at=None, at_stop=None):
    """Train to the end, or until `at_stop` is called at a step; returns the model and what `train` returns.

    Args:
        evaluate: called with model and step, before the value of the step is looked up in `values`.
    """
    folder.mkdir(exist_ok=True)
    seed_all()
    model = Noisy()

    def loader_from(start):
        for step in range(start, STEPS):
            if step == stop_at:
                at_stop()
            generator = torch.Generator().manual_seed(step)
            yield [torch.rand(3, 4, 4, generator=generator) for _ in range(2)], [{}, {}], [0, 1], []

    def validate(step):
        if evaluate:
            evaluate(model, step)
        return values[step]

    options = {} if values is None else {"evaluate": validate}
    result = train(
        Supervised(model), loader_from, config=config, steps=STEPS, run=Run(folder), title="noisy", **options
    )
    return model, result


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def log_of(folder) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in Run(folder).history]


def disturb(model, step) -> None:
    """What an evaluation may do: change modes, draw random numbers."""
    model.eval(), model.frozen.train()
    random.random(), np.random.random(), torch.rand(5)


# ---- when ----


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 6, 8]), (3, [3, 6, 8]), (0, [8]), (100, [8])])
def test_evaluated_steps_are_multiples_and_the_last(every, expected, tmp_path):
    steps = []
    values = dict.fromkeys(range(STEPS + 1), 0.5)
    go(tmp_path, lambda _, step: steps.append(step), values=values, config=replace(CONFIG, evaluate_every=every))
    logged = [entry for entry in Run(tmp_path).history if "validation_ap" in entry]
    assert steps == expected and logged == [{"step": step, "validation_ap": 0.5} for step in expected]


def test_nothing_is_evaluated_or_returned_without_a_function(tmp_path):
    _, result = go(tmp_path, values=None)
    assert result.keys() == {"seconds", "unreadable"}
    assert not any("validation_ap" in entry for entry in Run(tmp_path).history)


def test_no_value_is_neither_logged_nor_best(tmp_path):
    _, result = go(tmp_path, values=dict.fromkeys(VALUES))
    assert "best_step" not in result and len(log_of(tmp_path)) == STEPS


def test_evaluation_disturbs_neither_random_streams_nor_modes(tmp_path):
    """The model itself asserts its modes at every step."""
    without, _ = go(tmp_path / "without", values=None)
    with_it, _ = go(tmp_path / "with", disturb)
    assert same(with_it.state_dict(), without.state_dict()) and with_it.training and not with_it.frozen.training
    assert [entry for entry in log_of(tmp_path / "with") if "loss" in entry] == log_of(tmp_path / "without")


# ---- the best weights ----


def test_the_best_weights_are_those_of_their_step(tmp_path):
    at_step = {}

    def copy(model, step):
        at_step[step] = {name: value.clone() for name, value in model.state_dict().items()}
        disturb(model, step)

    last, result = go(tmp_path / "last", copy)
    assert result["best_step"] == 4 and result["best_validation_ap"] == 0.3
    assert same(last.state_dict(), at_step[8]) and not list((tmp_path / "last").glob("best-*"))
    best, result = go(tmp_path / "best", copy, config=replace(CONFIG, keep="best"))
    assert result["best_step"] == 4 and same(best.state_dict(), at_step[4]) and not same(at_step[4], at_step[8])
    assert [path.name for path in (tmp_path / "best").glob("best-*")] == ["best-4.pt"]
    (tmp_path / "best/request.json").write_text(json.dumps({"stage": "warmup", "inputs": {}}))
    Run(tmp_path / "best").finish({})
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["log.jsonl", "request.json", "result.json"]


@pytest.mark.parametrize(
    ("values", "expected"), [(VALUES, 4), ({2: 0.5, 4: 0.3, 6: 0.1, 8: 0.2}, 2), ({2: 0, 4: 0.1, 6: 0.2, 8: 0.3}, 8)]
)
@pytest.mark.parametrize("stop", [2, 4, 5, 7])
def test_a_killed_run_resumes_bit_for_bit_and_knows_the_best_so_far(tmp_path, values, expected, stop):
    """By SIGKILL; checkpoints are at steps 3, 6 and 8, evaluations at 2, 4, 6 and 8."""
    config = replace(CONFIG, keep="best")
    whole, result = go(tmp_path / "whole", disturb, values=values, config=config)
    child = os.fork()
    if not child:
        go(tmp_path / "parts", disturb, values=values, config=config, stop_at=stop, at_stop=kill)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    resumed, again = go(tmp_path / "parts", disturb, values=values, config=config)
    assert same(resumed.state_dict(), whole.state_dict()) and log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert result["best_step"] == again["best_step"] == expected
    # once more, as after a failure of what follows training
    finished, once_more = go(tmp_path / "parts", disturb, values=values, config=config)
    assert same(finished.state_dict(), whole.state_dict()) and once_more["best_step"] == expected


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_best_weights_that_an_older_checkpoint_needs_are_kept(tmp_path):
    """Step 2 was the best at the checkpoint of step 3; a run that goes another way from there may never reach step 4's.

    So may one on a GPU, or on another number of processes.
    """
    config = replace(CONFIG, keep="best")
    with pytest.raises(NonFiniteLoss):
        go(tmp_path, config=config, stop_at=5, at_stop=lambda: fail())
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-2.pt", "best-4.pt"]
    model, result = go(tmp_path, values=VALUES | {4: 0.0, 6: 0.0, 8: 0.0}, config=config)
    assert result["best_step"] == 2 and [path.name for path in tmp_path.glob("best-*")] == ["best-2.pt"]


def fail() -> None:
    raise NonFiniteLoss("stopped between two checkpoints")


@pytest.mark.parametrize(
    ("keep", "values", "message"),
    [
        ("first", VALUES, "keep='first' is not allowed; use one of: last, best"),
        ("best", None, "keep='best' needs held-out images to choose on; give some, or use keep='last'"),
    ],
)
def test_impossible_settings_are_errors(tmp_path, keep, values, message):
    with pytest.raises(ConfigError, match=message):
        go(tmp_path, values=values, config=replace(CONFIG, keep=keep))


def test_the_first_process_alone_decides_what_is_best(tmp_path, monkeypatch):
    """Its metrics are those of all images; other processes return no value."""
    from cassl_lib.training.checkpoint import Progress

    monkeypatch.setattr(distributed, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(distributed.dist, "broadcast_object_list", lambda values: values.__setitem__(0, 0.7))
    progress = Progress(step=2)
    Validation(lambda step: None, Noisy(), replace(CONFIG, keep="best"), STEPS, Run(tmp_path)).update(progress)
    assert (progress.best_step, progress.best_value) == (2, 0.7) and not list(tmp_path.iterdir())


# ---- the deadline ----


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 8])
def test_a_run_that_the_deadline_stopped_resumes_bit_for_bit(tmp_path, monkeypatch, stop):
    """After `stop` steps, with evaluations at 2, 4, 6 and 8: one that is due then is caught up when it is resumed."""
    config = replace(CONFIG, keep="best")
    whole, result = go(tmp_path / "whole", disturb, config=config)
    monkeypatch.setattr(engine, "past_deadline", lambda step, device: step == stop)
    with pytest.raises(Stopped, match=f"parts: stopped at step {stop} of 8; rerun the same command to resume"):
        go(tmp_path / "parts", disturb, config=config)
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=False)["step"] == stop
    monkeypatch.setattr(engine, "past_deadline", lambda step, device: False)
    resumed, again = go(tmp_path / "parts", disturb, config=config)
    assert same(resumed.state_dict(), whole.state_dict()) and again["best_step"] == result["best_step"] == 4
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


def test_a_deadline_in_force_saves_before_an_evaluation_that_may_pass_it(tmp_path):
    def stopped(model, step):
        raise Stopped("evaluation")

    with deadline.within(60), pytest.raises(Stopped):
        go(tmp_path / "parts", stopped)
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=False)["step"] == 2
    whole, _ = go(tmp_path / "whole", disturb)
    resumed, _ = go(tmp_path / "parts", disturb)
    assert same(resumed.state_dict(), whole.state_dict()) and log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
