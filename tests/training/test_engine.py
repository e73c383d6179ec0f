"""The training loop on a model small enough to compute by hand: updates, log, checkpoints, weights."""

import json
from dataclasses import replace

import pytest
import torch
from line import PLAIN, Line, go
from safetensors import safe_open
from safetensors.torch import load_file

from cassl_lib.errors import ConfigError, NonFiniteLoss
from cassl_lib.runs import Run
from cassl_lib.training import checkpoint, distributed
from cassl_lib.training.engine import save_weights, train
from cassl_lib.training.procedure import Supervised


def test_a_step_follows_the_gradient(tmp_path):
    model = Line()
    result = go(model, [1, 2, 3, 4, 5, 6], tmp_path)
    # momentum 0.9: velocities 1, 2.9, 5.61, 9.049, 13.1441, 17.82969, their sum times the rate
    assert model.w.item() == pytest.approx(1 - 0.1 * 49.53279, abs=1e-4)
    assert result["unreadable"] == [] and result["seconds"] > 0
    history = Run(tmp_path).history
    assert [entry["step"] for entry in history] == [2, 4, 6]
    assert history[0]["loss_cls"] == pytest.approx(0.9 * 2) and history[0]["learning_rate"] == 0.1


def test_each_step_uses_its_own_learning_rate(tmp_path):
    model = Line()
    go(model, [1, 1, 1, 1], tmp_path, replace(PLAIN, steps=4, log_every=1, milestones=(0.5,), warmup_steps=1))
    rates = [0.0001, 0.1, 0.01, 0.01]
    assert [entry["learning_rate"] for entry in Run(tmp_path).history] == pytest.approx(rates)
    velocities = [1, 1.9, 2.71, 3.439]
    assert model.w.item() == pytest.approx(1 - sum(r * v for r, v in zip(rates, velocities, strict=True)), abs=1e-6)


def test_gradients_are_clipped(tmp_path):
    model = Line()
    go(model, [100], tmp_path, replace(PLAIN, steps=1, clip_norm=0.5))
    assert model.w.item() == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)


def test_a_non_finite_loss_names_step_and_images_and_keeps_the_checkpoint(tmp_path):
    model = Line()
    with pytest.raises(NonFiniteLoss, match=r"step 3: losses \{'loss_cls': nan, .* on images \[1003\]"):
        go(model, [1, 2, 3, float("nan"), 5, 6], tmp_path)
    assert torch.isfinite(model.w).all()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert saved["step"] == 2 and torch.isfinite(saved["model"]["w"]).all()
    with pytest.raises(NonFiniteLoss, match="step 0: .*inf"):
        go(Line(), [float("inf")], tmp_path / "other")
    assert not (tmp_path / "other/checkpoint.pt").exists()


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_a_finite_loss_with_a_gradient_that_is_not_names_the_images_and_changes_no_weight(tmp_path, clip_norm):
    class Rooted(Line):
        def forward(self, images, targets):  # at 0 the square root is finite, its slope is not
            return {"loss_cls": torch.sqrt(self.w[0] * 0 + torch.stack(images).mean()) + self.w[0]}

    model = Rooted()
    with pytest.raises(NonFiniteLoss, match=r"step 3: the gradient's norm is nan on images \[1003\]"):
        go(model, [1, 2, 3, 0, 5, 6], tmp_path, replace(PLAIN, clip_norm=clip_norm))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert saved["step"] == 2 and torch.isfinite(model.w).all()


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, stop):
    """Weights, momentum, random numbers and log, after a stop between two checkpoints or at one."""
    config = replace(PLAIN, optimizer="adamw", log_every=1)
    torch.manual_seed(0)
    uninterrupted = Line(noisy=True)
    go(uninterrupted, [1, 2, 3, 4, 5, 6], tmp_path / "whole", config)
    torch.manual_seed(0)
    with pytest.raises(NonFiniteLoss):
        go(Line(noisy=True), [1, 2, 3, 4, 5, 6][:stop] + [float("nan")], tmp_path / "parts", config)
    torch.manual_seed(99)
    resumed = Line(noisy=True)
    go(resumed, [1, 2, 3, 4, 5, 6], tmp_path / "parts", config)
    assert torch.equal(resumed.w, uninterrupted.w)

    def history(name):
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in Run(tmp_path / name).history]

    assert history("parts") == history("whole") and len(history("parts")) == 6


def test_a_checkpoint_of_version_0_1_0_which_has_no_procedure_can_be_resumed(tmp_path):
    with pytest.raises(NonFiniteLoss):
        go(Line(), [1, 2, float("nan")], tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    del saved["procedure"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    resumed, uninterrupted = Line(), Line()
    go(resumed, [1, 2, 3, 4, 5, 6], tmp_path)
    go(uninterrupted, [1, 2, 3, 4, 5, 6], tmp_path / "whole")
    assert torch.equal(resumed.w, uninterrupted.w)


def test_a_run_without_a_checkpoint_starts_a_new_log(tmp_path):
    Run(tmp_path).log({"step": 1})
    go(Line(), [1, 2, 3, 4, 5, 6], tmp_path)
    assert [entry["step"] for entry in Run(tmp_path).history] == [2, 4, 6]


def test_unreadable_images_are_named_once_including_those_before_an_interruption(tmp_path):
    names = {0: ["b.jpg"], 3: ["a.jpg", "b.jpg"], 5: ["c.jpg"]}
    with pytest.raises(NonFiniteLoss):
        go(Line(), [1, 2, float("nan")], tmp_path, unreadable=names)
    assert go(Line(), [1, 2, 3, 4, 5, 6], tmp_path, unreadable=names)["unreadable"] == ["a.jpg", "b.jpg", "c.jpg"]


def test_seconds_include_those_before_an_interruption(tmp_path):
    with pytest.raises(NonFiniteLoss):
        go(Line(), [1, 2, float("nan")], tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    torch.save(saved | {"seconds": 1000.0}, tmp_path / "checkpoint.pt")
    assert go(Line(), [1, 2, 3, 4, 5, 6], tmp_path)["seconds"] > 1000


def test_processes_average_batchnorm_statistics(monkeypatch):
    """Each process saw other images: weights are equal, but BatchNorm's running statistics are not."""
    model, other = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    model.running_mean[:], other.running_mean[:] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    model.num_batches_tracked += 5
    theirs = torch.cat([other.running_mean, other.running_var]).double()
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda mine: mine.add_(theirs))  # a single transfer
    distributed.average_buffers(model)
    assert model.running_mean.tolist() == [2, 4] and model.running_var.tolist() == [1, 1]
    assert model.num_batches_tracked == 5 and model.running_mean.dtype == torch.float32


@pytest.mark.parametrize("world", [3, 7, 48])
def test_averaging_equal_buffers_never_changes_them(monkeypatch, world):
    """Such as pixel means: in float32, the average of equal values may differ from them by rounding."""
    model, values = torch.nn.Module(), torch.rand(1000, generator=torch.Generator().manual_seed(0)) / 3
    model.register_buffer("constant", values.clone())

    def sum_one_by_one(mine):
        own = mine.clone()
        for _ in range(world - 1):
            mine += own

    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, world))
    monkeypatch.setattr(distributed.dist, "all_reduce", sum_one_by_one)
    distributed.average_buffers(model)
    assert torch.equal(model.constant, values)


def test_processes_unite_the_names_of_unreadable_images_at_a_checkpoint(tmp_path, monkeypatch):
    procedure = Supervised(Line())
    gathered = {"unreadable": {"b"}}
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(
        distributed, "of_all_processes", lambda mine, world: [mine, gathered["unreadable"] if mine == {"a"} else mine]
    )
    monkeypatch.setattr(checkpoint, "_in_first_process", lambda *_: None)
    progress = checkpoint.Progress(unreadable={"a"})
    checkpoint.save(Run(tmp_path), procedure, torch.optim.SGD(procedure.model.parameters()), progress)
    assert progress.unreadable == {"a", "b"} and not (tmp_path / "checkpoint.pt").exists()  # the first process writes


def test_weights_are_written_atomically_with_their_metadata(tmp_path):
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    metadata = {"run": "warmup-1", "model": {"channels": 4}}
    save_weights(model, tmp_path / "model.safetensors", metadata=metadata)
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["cassl"]) == metadata
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# ---- gradient accumulation ----


class Counted(torch.nn.Module):
    """Loss w * (sum over images) / (number of positive images): normalized as a detector's, by positives."""

    def __init__(self):
        super().__init__()
        self.w, self.calls = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, images, targets):
        values = torch.stack([image.mean() for image in images])
        self.calls.append(values.tolist())
        return {"loss": self.w[0] * values.sum() / (values > 1.5).sum().clamp(min=1)}


VALUES = [1.0, 2.0, 3.0, 1.0, 5.0, 6.0]  # of the images of a batch


def accumulated(folder, accumulate, *, values=VALUES, **changes):
    """The model after a step on a batch of these images in `accumulate` parts, and its log."""
    config = replace(PLAIN, steps=1, batch_size=6, accumulate=accumulate, log_every=1, **changes)
    folder.mkdir(exist_ok=True)
    images = [torch.full((3, 2, 2), value) for value in values]
    model = Counted()
    loaded = [(images, [{}] * 6, list(range(100, 106)), [])]
    train(Supervised(model), lambda step: loaded, config=config, steps=1, run=Run(folder), title="parts")
    return model, Run(folder).history


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_accumulated_gradients_are_those_of_the_mean_over_the_parts(tmp_path, accumulate):
    """By hand: every accumulate-th image is a part, each normalized by its own positives."""
    model, (entry,) = accumulated(tmp_path, accumulate)
    parts = {1: [VALUES], 2: [[1, 3, 5], [2, 1, 6]], 3: [[1, 1], [2, 5], [3, 6]]}[accumulate]
    total = 0.0
    for part in parts:
        positives = max(1, sum(value > 1.5 for value in part))
        total += sum(part) / positives
    expected = {1: 4.5, 2: 4.5, 3: (2 + 3.5 + 4.5) / 3}[accumulate]
    assert total / accumulate == pytest.approx(expected)
    assert model.calls == parts and model.w.grad.item() == pytest.approx(expected)
    rate = 0.1 * 6 / 16
    assert model.w.item() == pytest.approx(1 - rate * expected) and entry["loss"] == pytest.approx(expected, abs=1e-5)


def test_the_summed_gradient_is_clipped(tmp_path):
    """Not those of the parts: 2, 3.5 and 4.5 would all be cut to 1."""
    model, _ = accumulated(tmp_path, 3, clip_norm=3.4)
    assert model.w.grad.item() == pytest.approx(10 / 3)
    model, _ = accumulated(tmp_path / "clipped", 3, clip_norm=1.0)
    assert model.w.grad.item() == pytest.approx(1.0, abs=1e-5)


def test_a_non_finite_loss_of_a_part_names_its_images(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 0: losses \{'loss': nan\} on images \[101, 103, 105\]"):
        accumulated(tmp_path, 2, values=[1.0, 2.0, 3.0, float("nan"), 5.0, 6.0])


@pytest.mark.parametrize("accumulate", [0, 4, 12])
def test_parts_must_divide_the_batch(tmp_path, accumulate):
    message = rf"accumulate={accumulate} does not divide the 6 images of each process \(batch_size=6, 1 processes\)"
    with pytest.raises(ConfigError, match=message):
        accumulated(tmp_path, accumulate)
