"""Steps, learning rate, weight decay and precision from training settings."""

from dataclasses import replace

import pytest
import timm
import torch

from cassl_lib.config import TrainConfig
from cassl_lib.errors import ConfigError
from cassl_lib.training.optimizer import autocast, build_optimizer, learning_rate, number_of_steps, precision_of


def test_the_learning_rate_by_hand():
    config = TrainConfig(learning_rate=0.1, batch_size=32, warmup_steps=10, milestones=(2 / 3, 25 / 27))
    rates = [learning_rate(step, config=config, steps=270) for step in (0, 5, 10, 179, 180, 249, 250, 269)]
    # 0.1 is for 16 images, so 0.2: warm-up from 1/1000 of it in 10 steps, divided by 10 at 180 and again at 250
    assert rates == pytest.approx([0.0002, 0.2 * (0.001 + 0.999 / 2), 0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


def test_a_short_run_warms_up_over_a_tenth_of_its_steps():
    config = TrainConfig(learning_rate=1.0, batch_size=16, warmup_steps=1500, milestones=())
    rates = [learning_rate(step, config=config, steps=40) for step in range(5)]
    assert rates == pytest.approx([0.001, 0.25075, 0.5005, 0.75025, 1.0])
    assert learning_rate(0, config=config, steps=1) == 0.001


def test_epochs_are_rounded_up_to_whole_batches():
    config = TrainConfig(epochs=3, batch_size=16)
    assert number_of_steps(config, 100) == 19  # 300 / 16 = 18.75
    assert number_of_steps(replace(config, steps=7), 100) == 7
    assert number_of_steps(replace(config, epochs=0.01), 10) == 1
    assert number_of_steps(TrainConfig(epochs=36, batch_size=16), 118_287) == 266_146  # 36 * 118287 / 16 = 266145.75


def decays(model) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, TrainConfig(weight_decay=0.05)).param_groups
    return {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}


def test_only_weights_decay():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    model.scale = torch.nn.Parameter(torch.ones(()))
    model[2].weight.requires_grad_(False)
    assert decays(model) == {"0.weight": 0.05, "0.bias": 0, "1.weight": 0, "1.bias": 0, "2.bias": 0, "scale": 0}


def test_position_tables_of_transformers_do_not_decay():
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1), num_classes=0)
    decay = decays(swin)
    tables = [name for name in decay if "relative_position_bias_table" in name]
    assert len(tables) == 4 and {decay[name] for name in tables} == {0}
    assert decay["layers.0.blocks.0.attn.qkv.weight"] == 0.05 and decay["layers.0.blocks.0.norm1.weight"] == 0
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_classes=0)
    assert decays(vit)["pos_embed"] == 0 and decays(vit)["blocks.0.mlp.fc1.weight"] == 0.05


def test_fresh_layers_learn_at_a_rate_of_their_own():
    """With the default factor the groups are those of a model without fresh layers."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1))
    fresh = {"1.weight", "1.bias"}
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def factors(config: TrainConfig) -> dict[str, float]:
        groups = build_optimizer(model, config, fresh=fresh).param_groups
        return {names[id(parameter)]: group["factor"] for group in groups for parameter in group["params"]}

    assert factors(TrainConfig(fresh_rate=4)) == {"0.weight": 1, "0.bias": 1, "1.weight": 4, "1.bias": 4}
    assert set(factors(TrainConfig()).values()) == {1}
    plain = [each["params"] for each in build_optimizer(model, TrainConfig()).param_groups]
    assert [each["params"] for each in build_optimizer(model, TrainConfig(), fresh=fresh).param_groups] == plain


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ConfigError, match="optimizer='adam' is not allowed; use adamw or sgd"):
        build_optimizer(torch.nn.Linear(1, 1), TrainConfig(optimizer="adam"))


def test_precision_depends_on_the_device_unless_it_is_set():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [precision_of(TrainConfig(), device) for device in (cpu, cuda)] == ["float32", "bf16"]
    assert precision_of(TrainConfig(precision="bf16"), cpu) == "bf16"
    with autocast(TrainConfig(precision="bf16"), cpu):
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(TrainConfig(), cpu):
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.float32
