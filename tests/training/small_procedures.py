"""Procedures and data small enough to train in a test, and a script that trains one and may kill itself.

    [torchrun] small_procedures.py FOLDER TASK ...

Tasks: `gradient` takes one step without BatchNorm and saves the gradients, `accumulated` does so in two parts; `whole`
trains to the end; `frequent` and `rare` too, with a checkpoint at every step and at the last one alone; `killed` dies
by SIGKILL between two checkpoints; `resumed` trains the killed run to the end. Weights are saved per process.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cassl_lib.config import ModelConfig, TrainConfig
from cassl_lib.data.loader import Order
from cassl_lib.models.build import build_detector
from cassl_lib.runs import Run
from cassl_lib.training import distributed, engine
from cassl_lib.training.ema import ExponentialMovingAverage
from cassl_lib.training.procedure import Batch, Supervised

STEPS, BATCH, KILLED_AT = 6, 4, 5  # the last checkpoint before the kill has step 4
TRAIN = TrainConfig(
    steps=STEPS,
    batch_size=BATCH,
    learning_rate=0.004,
    warmup_steps=0,
    milestones=(0.5,),
    workers=0,
    checkpoint_every=2,
    log_every=1,
)
DETECTOR = ModelConfig(
    backbone="resnet10t",
    backbone_options=(("channels", (8, 8, 16, 16)), ("stem_width", 8)),
    num_classes=2,
    channels=8,
    strides=(8, 16, 32),
    ranges=(32, 64),
    tower_convs=1,
    mask_channels=8,
    mask_convs=1,
    score_threshold=0.0,
    detections_per_image=5,
)
WITHOUT_BATCHNORM = replace(DETECTOR, backbone_norm="gn", mask_norm="gn")


class MeanTeacher:
    """Losses on labeled images, and on unlabeled ones with noise, whose targets are an EMA teacher's detections.

    `seen`, the mean of this process's last unlabeled images, stands for state that differs between the processes.
    """

    def __init__(self, model: nn.Module, *, unlabeled_from, noise: float = 0.1):
        self.model, self.teacher = model, ExponentialMovingAverage(model, momentum=0.9)
        self.seen = self.mean_seen = torch.zeros(())
        self.unlabeled_from, self.unlabeled, self.noise = unlabeled_from, None, noise

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if self.unlabeled is None:
            self.unlabeled = iter(self.unlabeled_from(step))
        unlabeled = Batch(*next(self.unlabeled)).to(batch.images[0].device)
        self.mean_seen = torch.stack(unlabeled.images).mean().cpu()
        targets = self.teacher.model.predict(unlabeled.images)
        noisy = [image + self.noise * torch.rand_like(image) for image in unlabeled.images]
        weighted = {f"{name}_unlabeled": loss / 2 for name, loss in self.model(noisy, targets).items()}
        return self.model(batch.images, batch.targets) | weighted

    def after_step(self, step: int) -> None:
        self.teacher.update(self.model)
        self.seen = self.mean_seen

    def state_dict(self) -> dict:
        return {"teacher": self.teacher.state_dict(), "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.seen = state["seen"]


def batches_from(seed: int, *, steps: int = STEPS, kill_at: int | None = None):
    """A function of the first step that returns this process's batches; the last process dies at `kill_at`."""
    rank, world = distributed.rank_and_world()

    def from_step(start: int):
        order = Order(20, batch_size=BATCH, start=start, stop=steps, seed=seed, rank=rank, world=world)
        for step, tickets in enumerate(order, start):
            if step == kill_at and rank == world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            samples = [sample(seed, index) for _, index in tickets]
            yield [image for image, _ in samples], [target for _, target in samples], [i for _, i in tickets], []

    return from_step


def sample(seed: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of noise with up to two bright rectangles as instances."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    image, count = torch.rand(3, 64, 64, generator=generator) / 2, index % 3
    corners = torch.randint(0, 24, (count, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(16, 40, (count, 2), generator=generator)], 1)
    masks = torch.zeros((count, 64, 64), dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
        mask[top:bottom, left:right] = True
        image[:, top:bottom, left:right] += 0.5
    return image, {"boxes": boxes.float(), "labels": torch.arange(count) % 2, "masks": masks}


def detector(config: ModelConfig) -> nn.Module:
    """A detector that finds something before it is trained: boxes of a few strides, with scores around 0.5."""
    distributed.seed_everything(0)
    model = build_detector(config)
    nn.init.zeros_(model.head.class_logits.bias)
    nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    return model


def supervised() -> Supervised:
    return Supervised(detector(DETECTOR))


def mean_teacher(config: ModelConfig = DETECTOR, *, noise: float = 0.1) -> MeanTeacher:
    return MeanTeacher(detector(config), unlabeled_from=batches_from(seed=2), noise=noise)


def train(procedure, folder: Path, *, kill_at: int | None = None, config: TrainConfig = TRAIN) -> dict:
    """Train to the end or to the kill; returns the weights of student and, where there is one, teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(distributed.rank_and_world()[0])  # other noise in each process; a resumed run must not draw it
    loader_from = batches_from(seed=1, steps=config.steps, kill_at=kill_at)
    engine.train(procedure, loader_from, config=config, steps=config.steps, run=Run(folder), title="small")
    return {"student": procedure.model.state_dict(), **procedure.state_dict()}


def accumulated_gradients(folder: Path) -> dict[str, Tensor]:
    """Gradients of the first step of a supervised detector without BatchNorm, in two parts."""
    procedure = Supervised(detector(WITHOUT_BATCHNORM))
    train(procedure, folder, config=replace(TRAIN, steps=1, clip_norm=0.0, accumulate=2))
    return {name: parameter.grad for name, parameter in procedure.model.named_parameters()}


def gradients(folder: Path) -> dict[str, Tensor]:
    """Gradients of the first step of a mean teacher without BatchNorm and noise."""
    procedure = mean_teacher(WITHOUT_BATCHNORM, noise=0.0)
    train(procedure, folder, config=replace(TRAIN, steps=1, clip_norm=0.0))
    return {name: parameter.grad for name, parameter in procedure.model.named_parameters()}


def main(folder: Path, tasks: list[str]) -> None:
    for task in tasks:
        if task == "gradient":
            result = gradients(folder / "gradient")
        elif task == "accumulated":
            result = accumulated_gradients(folder / task)
        else:
            run = folder / (task if task in ("whole", "frequent", "rare") else "parts")
            config = replace(TRAIN, checkpoint_every={"frequent": 1, "rare": STEPS}.get(task, TRAIN.checkpoint_every))
            result = train(mean_teacher(), run, kill_at=KILLED_AT if task == "killed" else None, config=config)
        torch.save(result, folder / f"{task}-{distributed.rank_and_world()[0]}.pt")


if __name__ == "__main__":
    with distributed.processes():
        main(Path(sys.argv[1]), sys.argv[2:])
