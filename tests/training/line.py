"""A model small enough to compute by hand, and its training for the loop's tests."""

import torch

from cassl_lib.config import TrainConfig
from cassl_lib.runs import Run
from cassl_lib.training.engine import train
from cassl_lib.training.procedure import Supervised

PLAIN = TrainConfig(
    steps=6,
    batch_size=16,
    learning_rate=0.1,
    optimizer="sgd",
    weight_decay=0.0,
    warmup_steps=0,
    milestones=(),
    clip_norm=0.0,
    workers=0,
    checkpoint_every=2,
    log_every=2,
)


class Line(torch.nn.Module):
    """Loss w * mean(images) and, if `noisy`, a second one with a random weight."""

    def __init__(self, noisy=False):
        super().__init__()
        self.w, self.noisy = torch.nn.Parameter(torch.ones(1)), noisy

    def forward(self, images, targets):
        value = self.w[0] * torch.stack(images).mean()
        return {"loss_cls": value, "loss_box": value * torch.rand(()) if self.noisy else value * 0}


def loader(values, unreadable=None):
    """Batches of one image each, filled with these values; `unreadable` maps steps to file names."""

    def from_step(step):
        for at in range(step, len(values)):
            image = torch.full((3, 2, 2), float(values[at]))
            yield [image], [{"boxes": torch.zeros(0, 4)}], [1000 + at], (unreadable or {}).get(at, [])

    return from_step


def go(model, values, folder, config=PLAIN, **options):
    folder.mkdir(exist_ok=True)
    loader_from = loader(values, **options)
    return train(Supervised(model), loader_from, config=config, steps=config.steps, run=Run(folder), title="line")
