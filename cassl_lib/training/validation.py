"""Evaluation between the steps of training, and the weights that were best so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cassl_lib.config import KEEP, TrainConfig
from cassl_lib.errors import ConfigError
from cassl_lib.runs import Run
from cassl_lib.training import checkpoint, distributed
from cassl_lib.training.checkpoint import Progress


@dataclass(frozen=True)
class Validation:
    """When a model is evaluated during training, and what its values decide.

    Args:
        evaluate: function of the number of finished steps, called in all processes, that returns the model's AP in the
            first one (the others' values are ignored). None: no evaluation.
        steps: of the whole training; the last one is evaluated too.

    Raises:
        ConfigError: an unknown `config.keep`, or the best weights are asked for and nothing is evaluated.
    """

    evaluate: Callable[[int], float | None] | None
    model: nn.Module
    config: TrainConfig
    steps: int
    run: Run

    def __post_init__(self):
        if self.config.keep not in KEEP:
            raise ConfigError(f"keep={self.config.keep!r} is not allowed; use one of: {', '.join(KEEP)}")
        if self.config.keep == "best" and self.evaluate is None:
            raise ConfigError("keep='best' needs held-out images to choose on; give some, or use keep='last'")

    def due(self, progress: Progress) -> bool:
        """Whether the model is to be evaluated before training proceeds: a step that is due, and not yet evaluated."""
        step, every = progress.step, self.config.evaluate_every
        if self.evaluate is None or step <= progress.evaluated:
            return False
        return step == self.steps or bool(every and step % every == 0)

    def update(self, progress: Progress) -> None:
        """Evaluate and log; if the value is the highest so far, note the step and, if asked for, keep the weights."""
        with _undisturbed(self.model):
            value = distributed.of_first_process(self.evaluate(progress.step))
        progress.evaluated = progress.step
        if value is None:
            return
        first = distributed.rank_and_world()[0] == 0
        if first:
            self.run.log({"step": progress.step, "validation_ap": value})
        if progress.best_value is None or value > progress.best_value:
            progress.best_step, progress.best_value = progress.step, value
            if first and self.config.keep == "best":
                checkpoint.keep_best(self.run, self.model, progress.step)

    def finish(self, progress: Progress) -> dict:
        """Put the best weights into the model, if asked for; returns step and value of the best evaluation, if any."""
        if progress.best_step is None:
            return {}
        if self.config.keep == "best" and progress.best_step != progress.step:
            self.model.load_state_dict(checkpoint.best_weights(self.run, progress.best_step))
        return {"best_step": progress.best_step, "best_validation_ap": progress.best_value}


@contextlib.contextmanager
def _undisturbed(model: nn.Module):
    """Restore random states and training mode afterward, so that evaluating changes nothing in training."""
    modes = [(module, module.training) for module in model.modules()]
    state = checkpoint.random_state()
    yield
    checkpoint.set_random_state(state)
    for module, training in modes:
        module.training = training
