"""The exponential moving average, re-derived with plain loops."""

import copy

import pytest
import torch
from torch import nn

from cassl_lib.errors import ConfigError
from cassl_lib.training.ema import ExponentialMovingAverage


def small_model() -> nn.Module:
    """Parameters, float buffers (running statistics) and an integer buffer (their counter)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def shake(model: nn.Module) -> None:
    """Stand-in for an update: random parameters, and statistics of random images."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model.train()(torch.rand(2, 3, 8, 8))


def test_average_of_parameters_and_float_buffers_by_hand():
    model, momentum = small_model(), 0.75
    ema = ExponentialMovingAverage(model, momentum=momentum)
    expected = {name: value.double().flatten().tolist() for name, value in model.state_dict().items()}
    for _ in range(5):
        shake(model)
        ema.update(model)
        for name, value in model.state_dict().items():
            values = value.double().flatten().tolist()
            for i in range(len(values)):
                t, s = expected[name][i], values[i]
                expected[name][i] = momentum * t + (1 - momentum) * s if value.is_floating_point() else s
    assert len(expected) == 7 and expected["1.num_batches_tracked"] == [5]
    for name, value in ema.state_dict().items():
        assert value.flatten().tolist() == pytest.approx(expected[name], abs=1e-6), name


def test_momentum_0_copies_the_model_and_1_never_changes():
    model = small_model()
    copied, fixed = (ExponentialMovingAverage(model, momentum=momentum) for momentum in (0, 1))
    before = copy.deepcopy(model.state_dict())
    shake(model)
    copied.update(model), fixed.update(model)
    for name, value in model.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)
        assert torch.equal(fixed.state_dict()[name], before[name]) or not value.is_floating_point()


def test_equal_values_stay_equal():
    """Else frozen parameters of the teacher would drift away from those of the student by rounding."""
    model = small_model()
    ema = ExponentialMovingAverage(model, momentum=0.9996)
    for _ in range(1000):
        ema.update(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ema.state_dict().items())


def test_the_average_is_a_frozen_copy_in_evaluation_mode():
    model = small_model()
    ema = ExponentialMovingAverage(model, momentum=0.9)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not any(module.training for module in ema.model.modules())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    shake(model)
    assert not torch.equal(ema.model[0].weight, model[0].weight)  # no memory in common
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    ema.update(model)
    assert ema.model[0].weight.grad is None and not ema.model[0].weight.requires_grad


def test_state_is_restored_exactly():
    model = small_model()
    ema = ExponentialMovingAverage(model, momentum=0.9)
    shake(model)
    ema.update(model)
    other = ExponentialMovingAverage(small_model(), momentum=0.9)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    shake(model)
    ema.update(model), other.update(model)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ema.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_outside_0_to_1_is_an_error(momentum):
    with pytest.raises(ConfigError, match=f"momentum={momentum} is not allowed; use a number between 0 and 1"):
        ExponentialMovingAverage(small_model(), momentum=momentum)
