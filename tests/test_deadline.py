"""The deadline: which one is in force, when work stops, and that several processes agree."""

import os
import time

import pytest
import torch

from cassl_lib import deadline
from cassl_lib.config import TrainConfig
from cassl_lib.errors import Stopped
from cassl_lib.training import distributed
from cassl_lib.training.engine import predict


def test_the_earliest_deadline_is_in_force_and_is_restored():
    assert not deadline.in_force() and deadline.seconds_left() == float("inf")
    with deadline.within(None):
        assert not deadline.in_force()
    with deadline.within(2):
        assert 119 < deadline.seconds_left() <= 120
        with deadline.within(1):
            assert 59 < deadline.seconds_left() <= 60
            with deadline.within(10):
                assert 59 < deadline.seconds_left() <= 60
        assert 119 < deadline.seconds_left() <= 120 and not deadline.passed()
        assert float(os.environ["CASSL_DEADLINE"]) == pytest.approx(time.time() + 120, abs=1)  # child processes see it
    assert not deadline.in_force()


def test_nothing_is_begun_after_the_deadline_and_what_was_begun_has_a_grace():
    with deadline.within(0):
        with pytest.raises(Stopped, match="evaluation: stopped at the deadline; rerun the same command to resume"):
            deadline.check("evaluation")
        deadline.check("evaluation", begun=True)
    with deadline.within(-deadline.GRACE / 60), pytest.raises(Stopped):
        deadline.check("evaluation", begun=True)
    with deadline.within(1):
        deadline.check("evaluation")


class Blind(torch.nn.Linear):
    """A detector without detections."""

    def predict(self, images, sizes):
        return [{"scores": torch.zeros(0)} for _ in images]


def test_detection_stops_before_the_first_batch_or_after_the_grace():
    loader = [([torch.zeros(3, 2, 2)], [], [at], []) for at in range(4)]

    def detect():
        return predict(Blind(1, 1), loader, sizes=lambda at: (2, 2), config=TrainConfig(), title=None)

    with deadline.within(0), pytest.raises(Stopped, match="labeling"):
        next(detect())
    seen = []
    with deadline.within(1), pytest.raises(Stopped):
        for image_id, _, _ in detect():
            seen.append(image_id)
            late = {0: 1, 1: deadline.GRACE + 1}.get(image_id, 0)  # seconds after the deadline: within the grace, after
            os.environ["CASSL_DEADLINE"] = str(time.time() - late)  # restored by `within`
    assert seen == [0, 1]


@pytest.mark.parametrize("late", [[False, False], [False, True], [True, True]])
def test_several_processes_stop_at_the_same_step(monkeypatch, late):
    """If one of them is late, all stop, but only at a step at which they ask each other."""
    asked = []
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, 2))

    def all_reduce(answer, op):
        asked.append(answer.item())
        answer.copy_(torch.tensor(float(late[0] or late[1])))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with deadline.within(0 if late[0] else 1):
        stopped = [step for step in range(1, 17) if distributed.past_deadline(step, torch.device("cpu"))]
    assert stopped == ([8, 16] if any(late) else []) and asked == [float(late[0])] * 2
    assert not distributed.past_deadline(8, torch.device("cpu")) and len(asked) == 2  # no transfer without a deadline


def test_one_process_stops_at_once():
    with deadline.within(0):
        assert distributed.past_deadline(3, torch.device("cpu"))
    with deadline.within(1):
        assert not distributed.past_deadline(8, torch.device("cpu"))
