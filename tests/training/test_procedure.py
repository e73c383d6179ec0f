"""The contract of procedures: what the loop does with one, exact resumption after SIGKILL, several processes."""

import copy
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_procedures as small
import torch

from cassl_lib.paths import REPOSITORY
from cassl_lib.runs import Run
from cassl_lib.training import engine
from cassl_lib.training.distributed import parallel
from cassl_lib.training.procedure import Batch, Procedure, Supervised

PROCEDURES = {"supervised": small.supervised, "mean teacher": small.mean_teacher}


@pytest.fixture(params=PROCEDURES)
def build(request):
    """A function that returns a new procedure, always with the same weights."""
    return PROCEDURES[request.param]


def first_batch() -> Batch:
    return Batch(*next(iter(small.batches_from(seed=1)(0))))


def equal(first, second) -> bool:
    """Whether two nested dicts of tensors are equal bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    return torch.equal(first, second)


def log_of(folder: Path) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in Run(folder).history]


# ---- the contract, of every procedure ----


def test_losses_are_finite_scalars_with_gradients_for_the_whole_model_and_nothing_else(build):
    procedure = build()
    procedure.model.train()
    state = copy.deepcopy(procedure.state_dict())
    losses = procedure.losses(first_batch(), 0)
    assert isinstance(procedure, Procedure) and all(loss.shape == () for loss in losses.values())
    total = sum(losses.values())
    assert torch.isfinite(total) and total > 0
    total.backward()
    for parameter in procedure.model.parameters():
        assert torch.isfinite(parameter.grad).all() if parameter.requires_grad else parameter.grad is None
    assert equal(procedure.state_dict(), state)  # only `after_step` changes it
    # the model, which is saved at the end, must not hold a teacher
    assert procedure.model.state_dict().keys() == small.supervised().model.state_dict().keys()


def test_names_of_losses_do_not_depend_on_the_step_or_on_instances(build):
    procedure = build()
    procedure.model.train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 64, 64)}
    names = []
    for step, loaded in enumerate(small.batches_from(seed=1)(0)):
        batch = Batch(*loaded)
        targets = batch.targets if step % 2 else [empty] * len(batch.images)
        names.append(list(procedure.losses(batch._replace(targets=targets), step)))
    assert len(names) == small.STEPS and all(at_step == names[0] for at_step in names)


def test_training_changes_the_model_and_repeats_bit_for_bit(build, tmp_path):
    before = copy.deepcopy(build().model.state_dict())
    results = [small.train(build(), tmp_path / name) for name in ("first", "second")]
    assert equal(*results) and log_of(tmp_path / "first") == log_of(tmp_path / "second")
    assert not equal(results[0]["student"], before) and len(log_of(tmp_path / "first")) == small.STEPS


def test_a_restored_procedure_continues_with_the_same_losses_and_state(build):
    first, second = build(), build()
    small_steps(first, range(2))
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert equal(second.state_dict(), first.state_dict())
    random_state = torch.get_rng_state()
    continued = small_steps(first, range(2, 4))
    torch.set_rng_state(random_state)
    assert equal(small_steps(second, range(2, 4)), continued)
    assert equal(second.state_dict(), first.state_dict())


def small_steps(procedure, steps: range) -> dict:
    """Plain gradient descent over some steps; returns the last losses."""
    procedure.model.train()
    for step, loaded in zip(steps, small.batches_from(seed=1)(steps.start), strict=False):
        losses = procedure.losses(Batch(*loaded), step)
        procedure.model.zero_grad()
        sum(losses.values()).backward()
        with torch.no_grad():
            for parameter in filter(lambda each: each.requires_grad, procedure.model.parameters()):
                parameter -= 0.001 * parameter.grad
        procedure.after_step(step)
    return {name: loss.detach() for name, loss in losses.items()}


# ---- what the loop does with a procedure ----


class Recorder(Supervised):
    """Records what the loop calls, and the weight at that time."""

    def __init__(self):
        super().__init__(torch.nn.Linear(1, 1, bias=False))
        torch.nn.init.zeros_(self.model.weight)
        self.calls, self.count = [], 0

    @property
    def weight(self) -> float:
        return round(self.model.weight.item(), 4)

    def losses(self, batch, step):
        self.calls.append(("losses", step, batch.ids, self.weight))
        return {"loss": self.model(batch.images[0]).sum()}

    def after_step(self, step):
        self.count += 1
        self.calls.append(("after_step", step, self.weight))

    def state_dict(self):
        self.calls.append(("state_dict",))
        return {"count": self.count}

    def load_state_dict(self, state):
        self.calls.append(("load_state_dict", state))


def test_the_loop_updates_the_model_between_losses_and_after_step(tmp_path):
    """The gradient is 1 and the rate 0.5: with momentum 0.9 the weight falls by 0.5, then by 0.95."""
    config = replace(small.TRAIN, learning_rate=2.0, optimizer="sgd", weight_decay=0.0, milestones=(), clip_norm=0.0)

    def train(procedure, steps):
        def loader_from(start):
            return [([torch.ones(1)], [], [100 + step], []) for step in range(start, steps)]

        engine.train(procedure, loader_from, config=config, steps=steps, run=Run(tmp_path), title="recorder")
        return procedure.calls

    first = [("losses", 0, [100], 0.0), ("after_step", 0, -0.5)]
    second = [("losses", 1, [101], -0.5), ("after_step", 1, -1.45)]
    assert train(Recorder(), steps=2) == first + second + [("state_dict",)]
    calls = train(Recorder(), steps=3)
    assert calls[:2] == [("load_state_dict", {"count": 2}), ("losses", 2, [102], -1.45)]


def test_only_the_model_is_synchronized_between_processes():
    class Module(small.MeanTeacher, torch.nn.Module):
        def __init__(self, model):
            torch.nn.Module.__init__(self)
            small.MeanTeacher.__init__(self, model, unlabeled_from=small.batches_from(seed=2))

    model = small.detector(small.DETECTOR)
    for procedure in (small.MeanTeacher(model, unlabeled_from=small.batches_from(seed=2)), Module(model)):
        losses = parallel(procedure, torch.device("cpu"))
        assert dict(losses.named_children()) == {"model": model}
        assert list(losses.parameters()) == list(model.parameters()) and list(losses.buffers()) == list(model.buffers())


# ---- killed and resumed ----


def start(folder: Path, *tasks: str, processes: int = 1) -> subprocess.CompletedProcess:
    """Run the tasks of small_procedures.py in processes of their own."""
    command = [sys.executable, small.__file__, str(folder), *tasks]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_killed_mean_teacher_resumes_bit_for_bit(tmp_path, caplog):
    """Student, teacher and log; the second loader and the random noise continue where they were."""
    whole = small.train(small.mean_teacher(), tmp_path / "whole")
    killed = start(tmp_path, "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [entry["step"] for entry in log_of(tmp_path / "parts")] == [1, 2, 3, 4, 5]
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=False)["step"] == 4
    with caplog.at_level(logging.INFO):
        resumed = small.train(small.mean_teacher(), tmp_path / "parts")
    assert caplog.messages == ["parts: resuming at step 4"]
    assert equal(resumed, whole) and not equal(whole["student"], whole["teacher"])
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole") and len(log_of(tmp_path / "whole")) == small.STEPS


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """What two processes leave behind: the gradients of a step, whole runs, and one that was killed and resumed."""
    folder = tmp_path_factory.mktemp("two")
    killed = start(folder, "gradient", "accumulated", "whole", "frequent", "rare", "killed", processes=2)
    assert killed.returncode and f"Signal {signal.SIGKILL:d} (SIGKILL)" in killed.stderr, killed.stderr
    assert not (folder / "killed-0.pt").exists()
    assert torch.load(folder / "parts/checkpoint.pt", weights_only=False)["step"] == 4
    resumed = start(folder, "resumed", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    return folder


def test_two_killed_processes_resume_bit_for_bit(two_processes):
    """Each process's own state is restored."""
    results = [[torch.load(two_processes / f"{task}-{rank}.pt") for rank in (0, 1)] for task in ("whole", "resumed")]
    assert equal(results[1][0], results[0][0]) and equal(results[1][1], results[0][1])
    first, second = results[0]
    assert not torch.equal(first["seen"], second["seen"])
    assert equal(first["student"], second["student"])  # its statistics are averaged after each step,
    assert equal(first["teacher"], second["teacher"])  # before the teacher follows
    assert any("running_" in name for name in first["teacher"])
    whole = log_of(two_processes / "whole")
    assert log_of(two_processes / "parts") == whole and len(whole) == small.STEPS


def test_how_often_two_processes_save_a_checkpoint_decides_nothing(two_processes):
    """A teacher detects with the student's averaged BatchNorm statistics, so their averaging decides the targets."""
    results = [torch.load(two_processes / f"{task}-{rank}.pt") for task in ("frequent", "rare") for rank in (0, 1)]
    for frequent, rare in zip(results[:2], results[2:], strict=True):
        assert equal(rare, frequent)
    assert equal(results[0]["student"], results[1]["student"])
    assert log_of(two_processes / "frequent") == log_of(two_processes / "rare") == log_of(two_processes / "whole")


def test_one_process_resumes_what_two_began(two_processes, tmp_path):
    """With the first process's teacher. Nothing is left to train here: more steps would not be bit for bit the same."""
    shutil.copytree(two_processes / "whole", tmp_path / "whole")
    resumed = small.train(small.mean_teacher(), tmp_path / "whole")
    assert equal(resumed, torch.load(two_processes / "whole-0.pt"))


def test_gradients_of_two_processes_are_those_of_one_on_the_joint_batch(two_processes, tmp_path):
    """Compared relative to the largest gradient of each parameter; sums in another order differ by float rounding."""
    alone = small.gradients(tmp_path)
    for rank in (0, 1):
        together = torch.load(two_processes / f"gradient-{rank}.pt")
        assert together.keys() == alone.keys()
        for name, gradient in alone.items():
            assert (gradient is None) == (together[name] is None)
            if gradient is None:  # of a frozen parameter
                continue
            torch.testing.assert_close(together[name], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item())
    (entry,), (joint,) = log_of(two_processes / "gradient"), log_of(tmp_path)
    assert entry == pytest.approx(joint, rel=1e-4)


def test_accumulated_gradients_of_two_processes_by_hand(two_processes):
    """Process r has images r and r + 2 of the batch of four, one in each part. Parts have a normalizer of their own.

    So each part is the batch (0, 1) or (2, 3) of both processes together, and the gradients of the two are averaged.
    """
    images, targets, ids, _ = next(iter(small.batches_from(seed=1)(0)))
    model, expected = small.detector(small.WITHOUT_BATCHNORM).train(), {}
    for part in ((0, 1), (2, 3)):
        model.zero_grad()
        sum(model([images[at] for at in part], [targets[at] for at in part]).values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad / 2
    for rank in (0, 1):
        together = torch.load(two_processes / f"accumulated-{rank}.pt")
        assert {name for name, gradient in together.items() if gradient is not None} == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(together[name], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item())
