"""Requests for runs: a stage, its configuration, and the runs it starts from, which may be requests themselves.

A request is cheap: no data is read and nothing is made. `graph.obtain` finds or makes its run.

    requests.warmup(config)                       the usual chain up to the warm-up
    requests.warmup(config, store)                on the labels of a given pseudo_labels run or request
    requests.finetune(config)                     CA-SSL
    requests.finetune(config, requests.pseudo_labeler(config))   Objects (G,A) of Table 2
    requests.baselines(config)                    from scratch, one for each length of the configuration
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cassl_lib.config import PARTS, Config, TrainConfig
from cassl_lib.errors import ConfigError
from cassl_lib.profiles import PROFILES
from cassl_lib.runs import Run
from cassl_lib.stages import identity
from cassl_lib.stages.registry import SCRATCH, STAGES

DEFAULT_PARTS = PARTS[:3]  # backbone, neck, head: what finetuning copies from its input


@dataclass(frozen=True, eq=False)
class Request:
    """A run that is asked for. Equal requests ask for the same run; an input given as a run differs from its request.

    Attributes:
        stage: a name of the registry.
        config: the configuration; what of it decides the run is in `stages/identity.py`.
        inputs: the run it starts from, finished or itself a request; empty for a pseudo labeler, a baseline, and a
            warm-up on `config.store`.
        parts: of finetuning, which parts of the input's detector are copied (Table 9).
    """

    stage: str
    config: Config
    inputs: tuple[Request | Run, ...] = ()
    parts: tuple[str, ...] = DEFAULT_PARTS

    @property
    def input(self) -> Request | Run | None:
        return self.inputs[0] if self.inputs else None

    @property
    def start(self) -> str:
        """The stage of the input; "scratch" where there is none."""
        return self.input.stage if self.inputs else SCRATCH

    @property
    def is_baseline(self) -> bool:
        return self.stage == "finetune" and not self.inputs

    @property
    def title(self) -> str:
        """The stage in words, with its start where that is not the usual one."""
        if self.is_baseline:
            return "baseline"
        unusual = self.inputs and self.start != STAGES[self.stage].starts_from[0]
        return STAGES[self.stage].title + (f" from the {STAGES[self.start].title}" if unusual else "")

    @cached_property
    def key(self) -> str:
        """What tells requests apart without reading any data."""
        inputs = [each.key if isinstance(each, Request) else each.id for each in self.inputs]
        return identity.key(self, inputs)

    def with_runs(self, run_for: Callable[[Request], Run | None]) -> Request | None:
        """This request with runs in place of the requests that it starts from; None if one of them has no run.

        Args:
            run_for: function of a request that returns its run, or None.
        """
        inputs = tuple(each if isinstance(each, Run) else run_for(each) for each in self.inputs)
        return replace(self, inputs=inputs) if all(inputs) else None

    def with_inputs(self) -> list[Request]:
        """Every request that this one starts from, in the order in which they can be made, and itself."""
        before = [each for wanted in self.inputs if isinstance(wanted, Request) for each in wanted.with_inputs()]
        return [*before, self]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def pseudo_labeler(config: Config) -> Request:
    return Request("pseudo_labeler", config)


def pseudo_labels(config: Config, labeler: Request | Run | None = None) -> Request:
    """The pool labeled by `labeler`; None is the configuration's own pseudo labeler.

    Raises:
        ConfigError: own labeled images, but the pool is that of the drawn scenes.
    """
    if config.unlabeled == "scenes" and config.labeled != "scenes":
        raise ConfigError(
            f"unlabeled=None with labeled={config.labeled!r} would label the drawn scenes; give unlabeled=FOLDER (or "
            "another pool), or a pseudo-label store"
        )
    return Request("pseudo_labels", config, (labeler or pseudo_labeler(config),))


def warmup(config: Config, labels: Request | Run | None = None) -> Request:
    """A warm-up on `labels`; None is `config.store` if given, else the pseudo labeler's labels of the pool."""
    if labels is None and config.store is not None:
        labels = run_of_store(config.store)
        return Request("warmup", config, (labels,) if labels else ())
    return Request("warmup", config, (labels or pseudo_labels(config),))


def finetune(config: Config, start: Request | Run | None = None, *, parts: tuple[str, ...] = DEFAULT_PARTS) -> Request:
    """Finetuning from `start`, a warm-up (None: the configuration's own) or a pseudo labeler: Objects (G,A).

    Raises:
        ConfigError: an unknown part.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"parts={tuple(parts)!r}: {unknown[0]!r} is unknown; use any of: {', '.join(PARTS)}")
    return Request("finetune", config, (start or warmup(config),), tuple(part for part in PARTS if part in parts))


def baseline(config: Config, length: float = 1) -> Request:
    """Finetuning from the backbone's initial weights, `length` times as long as the configuration's finetuning."""
    return Request("finetune", longer(config, "finetune", length))


def baselines(config: Config) -> tuple[Request, ...]:
    """The baselines of all lengths; the best one on held-out images is compared with CA-SSL, see `stages/choice.py`."""
    return tuple(baseline(config, length) for length in config.baseline_lengths)


def longer(config: Config, stage: str, factor: float) -> Config:
    """The configuration with `stage` trained `factor` times as long."""
    own: TrainConfig = getattr(config, stage)
    return replace(config, **{stage: replace(own, epochs=own.epochs * factor, steps=_times(own.steps, factor))})


def _times(steps: int, factor: float) -> int:
    """Steps of a longer or shorter training, at least one; 0 stays 0, where epochs count."""
    return max(1, round(steps * factor)) if steps else 0


def chain(config: Config) -> dict[str, Request]:
    """The requests that belong together: every stage, the baselines by length, and Objects (G,A)."""
    labeler = pseudo_labeler(config)
    labels = pseudo_labels(config, labeler)
    warmed_up = warmup(config, None if config.store else labels)
    return {
        "pseudo_labeler": labeler,
        "pseudo_labels": labels,
        "warmup": warmed_up,
        **{f"baseline_{length:g}x": baseline(config, length) for length in config.baseline_lengths},
        "objects_ga": finetune(config, labeler),
        "cassl": finetune(config, warmed_up),
    }


def request(
    stage: str,
    config: Config,
    *,
    start: str | None = None,
    run: Run | None = None,
    parts: tuple[str, ...] = DEFAULT_PARTS,
) -> Request:
    """The request that command-line arguments name.

    Args:
        stage: a name of the registry.
        start: of finetuning, warmup, pseudo_labeler or scratch; None is the stage of `run`, else the usual one.
        run: a finished run to start from instead of the one that the configuration means.

    Raises:
        ConfigError: an unknown stage, or an input that the stage cannot start from.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage={stage!r} is not allowed; use one of: {', '.join(STAGES)}")
    allowed = (*STAGES[stage].starts_from, SCRATCH) if stage == "finetune" else STAGES[stage].starts_from
    if not allowed and (start or run):
        given = f"start={start!r}" if start else f"input={run.id!r}"
        raise ConfigError(f"{given}: {stage} starts from no run; leave it out")
    if start is not None and start not in allowed:
        raise ConfigError(f"start={start!r} is not allowed for {stage}; use one of: {', '.join(allowed)}")
    if run is not None and run.stage not in allowed:
        raise ConfigError(f"input={run.id!r}: {stage} does not start from a {run.stage} run; leave it out")
    if run is not None and start not in (None, run.stage):
        raise ConfigError(f"start={start!r} contradicts input={run.id!r}; leave one of them out")
    if stage == "finetune" and start == SCRATCH:
        return baseline(config)
    if run is None and start == "pseudo_labeler":
        run = pseudo_labeler(config)
    if stage == "finetune":
        return finetune(config, run, parts=parts)
    build = {"pseudo_labels": pseudo_labels, "warmup": warmup}
    return build[stage](config, run) if stage in build else pseudo_labeler(config)


def run_of_store(store: str | Path) -> Run | None:
    """The finished pseudo_labels run whose store this is; None for a store from elsewhere."""
    folder = Path(store)
    run = Run(folder.parent)
    return run if folder.name == "store" and run.stage == "pseudo_labels" and run.finished else None


def with_inputs(asked: Iterable[Request]) -> list[Request]:
    """These requests and all that they start from, each once, stage by stage."""
    order = list(STAGES)
    every = dict.fromkeys(each for wanted in asked for each in wanted.with_inputs())
    return sorted(every, key=lambda each: order.index(each.stage))


def describe(asked: Request) -> str:
    """What sets a request apart from others of its stage in a table of one seed."""
    config, before = asked.config, asked.input
    source = describe(before) if isinstance(before, Request) else before.id if before else ""
    learned = f"{config.annotation}{' with classes' if config.class_specific else ''}, {config.augment.kind}"
    if asked.stage == "pseudo_labeler":
        return f"{learned}, {length(config.pseudo_labeler)}"
    if asked.stage == "pseudo_labels":
        return f"{config.split} by {source}"
    if asked.stage == "warmup":
        threshold = config.pseudo_labels.threshold
        on = f"labels{'' if threshold is None else f' above {threshold:g}'} of {source or config.store}"
        return f"{learned}, {length(config.warmup)} on {on}"
    own = f"{config.target}, {config.augment.kind}, {length(config.finetune)}{_options(config)}"
    if asked.is_baseline:
        return f"{own}, from scratch"
    return f"{own}, {' '.join(asked.parts)} from {source}"


def _options(config: Config) -> str:
    """What finetuning changes of the profile's own learning rate and weight decay."""
    own, words = PROFILES[config.profile]["finetune"], {"learning_rate": "rate", "weight_decay": "weight decay"}
    words["fresh_rate"] = "rate of fresh layers times"
    values = {name: getattr(config.finetune, name) for name in words}
    usual = {name: own.get(name, getattr(TrainConfig, name)) for name in words}
    return "".join(f", {words[name]} {value:g}" for name, value in values.items() if value != usual[name])


def length(section: TrainConfig) -> str:
    return f"{section.steps} steps" if section.steps else f"{section.epochs:g} epochs"
